"""The routes of a browser that signs in: to the provider, and back with a token."""

from __future__ import annotations

import contextlib
import functools
import re
import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import msgspec
from aiohttp import web

from gateway import origins
from gateway.http.audited import note
from gateway.http.keys import CLIENT, client_of
from gateway.http.pages import page
from gateway.http.proxies import base_of
from gateway.http.routes import CLIENTS, Access, Route
from gateway.oauth import cookies
from gateway.oauth.answers import TokenRefused
from gateway.oauth.flow import LIFE, SignIn, authorize_url, fetch_token, is_code
from gateway.oauth.seal import Seal
from gateway.observe.events import SignInEnded
from gateway.protocol.json_text import in_ascii
from gateway.sealing import Broken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from gateway.application import Application
    from gateway.gateway import Gateway
    from gateway.origins import Origin

PATH = "/v1/auth/{connector}/{auth}"
SHOWN = 500  # characters of what a provider says

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_AGAIN = "Go back to where you came from and begin again."


class _SignInTrouble(Exception):
    """What a person is told instead of being sent on."""

    def __init__(self, status: int, title: str, *paragraphs: str, detail: str = "") -> None:
        """`detail` is for the log."""
        super().__init__(title)
        self.status = status
        self.title = title
        self.paragraphs = paragraphs
        self.reason = f"{title}: {detail}" if detail else title


class _Asked(NamedTuple):
    """What a request is about."""

    connector: str
    auth: str
    application: Application
    client: str | None
    prefix: str
    """What stands before the path of its routes."""

    @property
    def title(self) -> str:
        return f"{self.connector}/{self.auth}"


class AuthHandlers:
    """The routes below /v1/auth."""

    def __init__(self, gateway: Gateway, redirects: Callable[[str | None], tuple[Origin, ...]]) -> None:
        """`redirects` returns the origins that a client's browsers may be sent back to."""
        settings = gateway.settings
        self._gateway = gateway
        self._redirects = redirects
        self._public_url = settings.public_url
        self._seal = Seal(settings.oauth.key, settings.state_dir)

    def routes(self) -> list[Route]:
        """Return the table of routes."""
        return [
            Route("GET", PATH, self._told(self.begin), Access.OPEN, event="auth_started"),
            Route("GET", f"{PATH}/callback", self._told(self.callback), Access.OPEN, event="auth_finished"),
            *(Route("HEAD", path, self._told(self.look), Access.OPEN) for path in (PATH, f"{PATH}/callback")),
        ]

    async def begin(self, request: web.Request) -> web.Response:
        """Send the browser to the provider."""
        await self._gateway.registry.listed(client_of(request))
        asked = self._asked(request)
        redirect_url = _redirect_url(request.raw_path.partition("?")[2])
        if not redirect_url:
            raise _SignInTrouble(
                400, "No redirect_url", "The link that led here lacks redirect_url, the address to return to."
            )
        self._check(asked, redirect_url)
        url = self._url(request, asked)
        sign_in = SignIn(
            client=asked.client,
            connector=asked.connector,
            auth=asked.auth,
            application=asked.application.digest,
            redirect_url=redirect_url,
            redirect_uri=f"{url}/callback",
            expires=time.time() + LIFE,
        )
        response = _sent(authorize_url(asked.application, sign_in))
        parts = urlsplit(url)
        with _having_the_key():
            sealed = self._seal.close(msgspec.json.encode(sign_in))
            given_up = self._given_up(request)
        for name, value in cookies.parts(sign_in.state, sealed).items():
            response.set_cookie(
                name,
                value,
                max_age=LIFE,
                path=parts.path,
                secure=parts.scheme == "https",
                httponly=True,
                samesite="Lax",
            )
        _forget(request, response, parts.path, given_up)
        return response

    async def callback(self, request: web.Request) -> web.Response:
        """Turn the provider's code into a token, and send the browser back with it."""
        await self._gateway.registry.listed(client_of(request))
        asked = self._asked(request)
        sign_in = self._remembered(request, asked)
        try:
            response = await self._returned(request, asked, sign_in)
        except _SignInTrouble as trouble:
            response = self._page(request, trouble)
        path = urlsplit(sign_in.redirect_uri.removesuffix("/callback")).path
        _forget(request, response, path, [cookies.name_of(sign_in.state)])
        return response

    async def look(self, _request: web.Request) -> web.Response:
        """Answer who only looks, a scanner of links for one: nothing begins, and no sign-in ends."""
        return web.Response()

    # --- private

    def _told(
        self, handler: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[..., Awaitable[web.Response]]:
        """Turn trouble into a page."""

        @functools.wraps(handler)
        async def told(request: web.Request) -> web.Response:
            try:
                return await handler(request)
            except _SignInTrouble as trouble:
                return self._page(request, trouble)

        return told

    def _page(self, request: web.Request, trouble: _SignInTrouble) -> web.Response:
        self._ended(request, trouble.reason)
        note(request, outcome="failed")
        return page(trouble.status, trouble.title, *trouble.paragraphs)

    def _ended(self, request: web.Request, reason: str | None = None) -> None:
        names = request.match_info
        asked = {key: names[key][:SHOWN] for key in ("connector", "auth")}
        self._gateway.bus.publish(SignInEnded(**asked, outcome="failed" if reason else "ok", reason=reason))

    def _asked(self, request: web.Request) -> _Asked:
        connector, name = request.match_info["connector"], request.match_info["auth"]
        client = client_of(request)
        auth = self._gateway.registry.world(client).auth(connector, name)
        if auth is None:
            what = f"Nothing called {connector}/{name} can be signed in to here. For operators: gateway check says why."
            raise _SignInTrouble(404, "Auth not found", what)
        prefix = CLIENTS.format(client=request.match_info[CLIENT]) if CLIENT in request.match_info else ""
        return _Asked(connector, name, auth.application, client, prefix)

    def _check(self, asked: _Asked, redirect_url: str) -> None:
        """Refuse to send a token to where no operator wants it."""
        title = "This address to return to is not allowed"
        try:
            origin = origins.read(redirect_url)
        except ValueError as problem:
            raise _SignInTrouble(400, title, f"The redirect_url cannot be used: {problem}.") from problem
        if not any(rule.covers(origin) for rule in self._redirects(asked.client)):
            shown = str(origin._replace(path=""))
            how = (
                f"For operators: if it is your backend, add it to connectors.yaml, gateway: oauth: redirects: [{shown}]"
            )
            if asked.client is not None:
                how += ", or, where the client's file names hosts under callbacks, its host to callbacks: allow there"
            raise _SignInTrouble(400, title, f"This gateway sends no token to {shown}.", how, detail=shown)

    def _url(self, request: web.Request, asked: _Asked) -> str:
        """Return the address of this route as browsers and providers know it."""
        base = self._public_url
        if base is None:
            base = base_of(request)
            if not origins.is_plain(base):
                raise _SignInTrouble(400, "Host is not valid", "The request names no host that can be used.")
        return f"{base}{asked.prefix}/v1/auth/{quote(asked.connector, safe='')}/{quote(asked.auth, safe='')}"

    def _remembered(self, request: web.Request, asked: _Asked) -> SignIn:
        """Open the cookie that belongs to the state; only who began the sign-in can end it."""
        state = request.query.get("state", "")
        error = request.query.get("error")
        said = [f"The provider said: {error}."] if is_code(error) else []
        unknown = _SignInTrouble(
            400,
            "This sign-in is not known",
            "It was begun more than ten minutes ago or in another browser, it is over already, the configuration has"
            " changed since, or this browser keeps no cookies.",
            *said,
            _AGAIN,
        )
        sealed = cookies.joined(state, request.cookies)
        if not state or not sealed:
            raise unknown
        try:
            with _having_the_key():
                sign_in = self._opened(sealed)
        except (Broken, msgspec.DecodeError) as problem:
            raise unknown from problem
        if not sign_in.belongs((asked.client, asked.connector, asked.auth), asked.application, state, time.time()):
            raise unknown
        return sign_in

    def _opened(self, sealed: str) -> SignIn:
        return msgspec.json.decode(self._seal.open(sealed), type=SignIn)

    def _given_up(self, request: web.Request) -> list[str]:
        """Return all sign-ins but the latest: together they would outgrow what a request's head may have."""
        begun = {name: self._end(sealed) for name, sealed in cookies.each(request.cookies).items()}
        return sorted(begun, key=begun.__getitem__)[:-1]

    def _end(self, sealed: str) -> float:
        try:
            return self._opened(sealed).expires
        except (Broken, msgspec.DecodeError):
            return 0.0

    async def _returned(self, request: web.Request, asked: _Asked, sign_in: SignIn) -> web.Response:
        query = request.query
        if "error" in query:
            said = query["error"] if is_code(query["error"]) else "an error"
            description = query.get("error_description", "")[:SHOWN]
            told = [f"It said: {description}"] if description else []
            raise _SignInTrouble(400, f"The provider answered {said}", *told, _AGAIN)
        code = query.get("code")
        if not code:
            raise _SignInTrouble(400, "The provider answered no code", _AGAIN)
        self._check(asked, sign_in.redirect_url)
        try:
            token = await fetch_token(asked.application, sign_in, code)
        except TokenRefused as problem:
            where = f"For operators: {asked.title}, {problem}."
            raise _SignInTrouble(502, "The provider gave no token", where, _AGAIN, detail=str(problem)) from problem
        self._ended(request)
        joint = "&" if "?" in sign_in.redirect_url else "?"
        response = quote(in_ascii(token), safe="")  # a workflow backend keeps secrets in ASCII
        return _sent(f"{sign_in.redirect_url}{joint}response={response}")


@contextlib.contextmanager
def _having_the_key() -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        why = f"It cannot read or make the key in its state_dir: {problem.strerror}."
        raise _SignInTrouble(500, "The gateway cannot sign anybody in", why, detail=str(problem)) from problem


def _redirect_url(query: str) -> str:
    """Take what stands behind `redirect_url=`: the rest of the query, unless it is escaped, when it ends at an &."""
    value = f"&{query}".partition("&redirect_url=")[2]
    if _SCHEME.match(value):
        return value
    return unquote(value.partition("&")[0])


def _forget(request: web.Request, response: web.Response, path: str, sign_ins: list[str]) -> None:
    for name in request.cookies:
        if name.startswith(tuple(sign_ins)):
            response.del_cookie(name, path=path)


def _sent(url: str) -> web.Response:
    # Not HTTPFound, which takes the URL to pieces and puts it together in its own way.
    return web.Response(status=302, headers={"Location": url})
