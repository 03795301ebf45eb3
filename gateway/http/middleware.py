"""Around every handler: a request id, who may come in, what becomes of errors; one step a request."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, NamedTuple

import structlog
from aiohttp import hdrs, web

from gateway import origins
from gateway.errors import Forbidden, GatewayBusy, GatewayError, RequestTooLarge
from gateway.http.audited import note_problem
from gateway.http.budget import RETRY
from gateway.http.console.answers import HEADERS, instead
from gateway.http.keys import ANYBODY, CLIENT, NOBODY, Unauthorized
from gateway.http.pages import PRIVATE
from gateway.http.responses import json_response, of_error, of_status
from gateway.http.routes import CLIENTS, CONSOLE, SIGN_IN, Access, Route
from gateway.identity import Identity, Role
from gateway.service import Tcp
from gateway.units import Size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.connectors.registry import Registry
    from gateway.http.console.sessions import Sessions
    from gateway.http.keys import Authenticator
    from gateway.settings import Settings

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

READERS = tuple(Role)
ROLES = {
    Access.KEY: READERS,
    Access.METRICS: READERS,
    Access.CALL: (Role.CALLER, Role.OPERATOR),
    Access.CONSOLE: READERS,
    Access.CONSOLE_CALL: (Role.CALLER, Role.OPERATOR),
    Access.CONSOLE_OPERATOR: (Role.OPERATOR,),
    Access.TYPEAHEAD: (Role.CALLER, Role.OPERATOR),
    Access.OPERATOR: (Role.OPERATOR,),
}
"""Who may use routes for which a key is asked."""
PAGES = frozenset({Access.CONSOLE, Access.CONSOLE_CALL, Access.CONSOLE_OPERATOR})
"""For which the cookie of a session is asked, and no key."""
VISITOR = Identity(role=Role.CALLER)
VISITORS = {Access.METRICS: Identity(role=Role.VIEWER), Access.TYPEAHEAD: VISITOR}
"""As whom they are used without one, where the settings let that be."""
_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")


def around(
    settings: Settings, registry: Registry, routes: list[Route], authenticator: Authenticator, sessions: Sessions
) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Make the middleware."""
    doors = _Doors(settings, registry, routes, authenticator, sessions)
    known = doors.known

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        # The caller's request id, or one of ours: in the response, the log and the connector's context.
        given = request.headers.get("X-Request-Id")
        name = given if given is not None and _ID.fullmatch(given) else os.urandom(16).hex()
        request["request_id"] = name
        door = known.get(request.match_info.route)
        if door is None:
            door = doors.find(request)
        try:
            doors.enter(request, door)
            if door.options is not None and not _is_preflight(request):
                handler = door.options
            response = await handler(request)
        except Exception as problem:  # noqa: BLE001 - the outermost handler
            response = _of_problem(request, problem, settings)
            if door.page and settings.console:
                response = instead(request, response)
        if not request.content.is_eof():  # nobody wants the rest: it is thrown away, and not even unpacked
            response.force_close()
            request.protocol.close()
        if door.private:
            response.headers.update(PRIVATE)
        elif door.page:
            for header, value in HEADERS.items():
                response.headers.setdefault(header, value)
        response.headers["X-Request-Id"] = name
        return response

    return answer


class _Door(NamedTuple):
    """What is known of a route."""

    access: Access
    keyed: bool
    """Nobody gets in without a key, where there are some."""
    private: bool
    """Browsers get it while they sign in: whatever it is, it stays out of caches, frames and Referer headers."""
    page: bool
    """It is one of the console's."""
    options: Handler | None
    """What answers an OPTIONS that is no preflight, where a handler of preflights has the route."""


class _Doors:
    """Who may use which route. What is no route needs a key too, or, where there is none, no browser's mark."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        routes: list[Route],
        authenticator: Authenticator,
        sessions: Sessions,
    ) -> None:
        self.known: dict[web.AbstractRoute, _Door] = {}
        self._registry = registry
        self._authenticator = authenticator
        self._sessions = sessions
        self._rules = {(route.method, route.path): route.access for route in routes}
        self._options = {route.path: route.handler for route in routes if route.method == hdrs.METH_OPTIONS}
        settable = {Access.METRICS: settings.metrics_open, Access.TYPEAHEAD: settings.typeahead_open}
        self._opened = {rule: VISITORS[rule] for rule, is_open in settable.items() if is_open}
        self._strangers = _Strangers(settings)

    def find(self, request: web.Request) -> _Door:
        """Return a request's door, and know it from now on where it is a route's."""
        route = request.match_info.route
        path = (route.resource.canonical if route.resource is not None else "").removeprefix(CLIENTS)
        is_page = f"{path or request.path}/".startswith(f"{CONSOLE}/")
        access = self._rules.get((request.method, path), Access.CONSOLE if is_page else Access.KEY)
        options = self._options.get(path) if request.method == hdrs.METH_OPTIONS else None
        keyed = access is not Access.OPEN and access not in self._opened
        door = _Door(access, keyed, path.startswith(SIGN_IN), is_page, options)
        if path:
            self.known[route] = door
        return door

    def enter(self, request: web.Request, door: _Door) -> None:
        """Let a request pass that may, and remember whose it is.

        Raises:
            Unauthorized: it has no key that counts.
            Forbidden: its key has not the role; or a page of another site has made a browser send it.
            GatewayBusy: its connection is one too many.
        """
        named = request.match_info.get(CLIENT)
        if named is not None and self._registry.clients is None:
            raise web.HTTPNotFound
        visitor = None if door.keyed else self._visitor(request, door.access, named)
        identity = visitor or self._checked(request, door.access)
        request["identity"] = identity
        request["client"] = None if self._registry.clients is None else identity.client
        allowed = ROLES.get(door.access, READERS)
        if visitor is None and identity.role not in allowed and request.method != hdrs.METH_OPTIONS:
            needed = " or ".join(role.value for role in allowed)
            raise Forbidden(f"this needs a key with the role {needed}, and this one's is {identity.role.value}")

    def _visitor(self, request: web.Request, access: Access, named: str | None) -> Identity | None:
        """Return as whom a request is let in that needs no key; None where it needs one.

        What is open is so for what is common: who brings a key is its client. Whose sign-in it is no key says.
        """
        if access is Access.OPEN:
            return VISITOR if named is None else Identity(client=named, role=VISITOR.role)
        visitor = self._opened.get(access) if named is None else None
        if visitor is not None and self._registry.clients is not None:
            with contextlib.suppress(Unauthorized):
                return self._authenticator.identify(request)
        return visitor

    def _checked(self, request: web.Request, access: Access) -> Identity:
        if getattr(request.protocol, "surplus", False):
            raise GatewayBusy("there are too many connections (gateway.max_connections)", retry_after=RETRY)
        if _is_preflight(request):
            return NOBODY
        if not self._authenticator.needed:
            self._strangers.refuse(request)
            return ANYBODY
        if access in PAGES:
            return self._sessions.identify(request)
        return self._authenticator.identify(request)


class _Strangers:
    """Pages of other sites, whose visitors' browsers reach what strangers cannot: refused where there is no key.

    Browsers mark what they send: `Sec-Fetch-Site` says where it comes from, `Origin` does for all but GET, and `Host`
    has the name that they looked up, which may be anybody's that leads here (DNS rebinding).
    """

    def __init__(self, settings: Settings) -> None:
        self._origins = frozenset(settings.cors_origins)
        self._public = settings.public_url or ""
        named = {origins.host_of(one.host or "") for one in settings.listen if isinstance(one, Tcp)}
        public = {origins.read(self._public).host} if self._public else set()
        self._hosts = settings.hosts | public | {one for one in named if one is not None}
        self._any_host = settings.open

    def refuse(self, request: web.Request) -> None:
        """Let a request pass that no page of another site has sent.

        Raises:
            Forbidden: one has.
        """
        headers = request.headers
        host, origin, site = headers.get("Host"), headers.get("Origin"), headers.get("Sec-Fetch-Site")
        if host is not None and not self._is_ours(host):
            raise Forbidden(
                "there is no key, and Host is no name of this machine's: gateway.hosts has others that may be used"
            )
        if site in {"same-origin", "none"}:
            return
        if (origin is not None or site is not None) and not self._may_call(origin, host):
            raise Forbidden(
                "there is no key, and this comes from a page of another site: gateway.cors_origins has those that may"
            )

    def _is_ours(self, text: str) -> bool:
        if self._any_host:
            return True
        host = origins.host_of(text)
        return host is not None and (origins.is_here(host) or host in self._hosts)

    def _may_call(self, origin: str | None, host: str | None) -> bool:
        if "*" in self._origins:
            return True
        if origin is None:
            return False
        return origin in self._origins or origins.is_same(origin, host or "") or self._is_public(origin)

    def _is_public(self, origin: str) -> bool:
        return bool(self._public) and origins.is_plain(origin) and _site(origin) == _site(self._public)


def _site(url: str) -> origins.Origin:
    return origins.read(url)._replace(path="")


def _of_problem(request: web.Request, problem: Exception, settings: Settings) -> web.Response:
    """Turn whatever was raised into the envelope."""
    if isinstance(problem, GatewayError):
        note_problem(request, problem)
        answer = of_error(problem)
        if isinstance(problem, GatewayBusy):
            answer.force_close()
        return answer
    if isinstance(problem, Unauthorized):
        return json_response({"error": "Unauthorized"}, 401)
    if isinstance(problem, web.HTTPRequestEntityTooLarge):
        return of_error(RequestTooLarge(f"the body is larger than {Size(settings.max_request)} (gateway.max_request)"))
    if isinstance(problem, web.HTTPException):
        response = of_status(problem.status, f"{request.method} {request.path}: {problem.reason}")
        if "Allow" in problem.headers:
            response.headers["Allow"] = problem.headers["Allow"]
        return response
    name = request["request_id"]  # the log gets all of it
    structlog.get_logger().error("internal_error", path=request.path, request_id=name, exc_info=problem)
    return of_status(500, f"the gateway failed; its log has the cause under {name}")


def _is_preflight(request: web.Request) -> bool:
    asks = {hdrs.ORIGIN, hdrs.ACCESS_CONTROL_REQUEST_METHOD}
    return request.method == hdrs.METH_OPTIONS and all(name in request.headers for name in asks)
