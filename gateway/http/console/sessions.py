"""Who has logged in to the console: a sealed cookie that is bound to a key, and how often log-ins fail."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import time
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

import msgspec
from aiohttp import hdrs

from gateway import origins
from gateway.connectors.clients import digest_of
from gateway.errors import Forbidden
from gateway.files import read_file
from gateway.http.keys import Unauthorized
from gateway.http.proxies import address_of, base_of
from gateway.http.routes import CONSOLE
from gateway.oauth.seal import Seal
from gateway.sealing import Broken

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web

    from gateway.http.keys import Authenticator
    from gateway.identity import Identity
    from gateway.settings import Settings

COOKIE = "console"
SAFE_COOKIE = f"__Host-{COOKIE}"
"""What it is called over https: no page of a neighbouring name, nor one without TLS, can set one of this name."""
LIFE = 8 * 3600  # seconds of a session
LARGEST = 1024  # characters of a cookie
TOKEN = "csrf"  # noqa: S105 - a name
"""The field of a form that shows that the form is ours."""
TRIES = 5  # log-ins from one address that may fail
WINDOW = 300.0  # seconds, within them
ADDRESSES = 10_000  # that are remembered
ENDED = 10_000  # sessions that somebody has left, and whose time is not over
LARGEST_FILE = 1 << 20  # bytes of the file of them


class ConsoleSession(msgspec.Struct, frozen=True, kw_only=True):
    """What a cookie seals."""

    digest: bytes
    """Of the key."""
    token: str
    """The CSRF token: a session has one, which is its name, too."""
    until: float
    """Seconds since 1970."""


class Sessions:
    """Opens them, and knows those of requests. Nothing of an open one is kept: its cookie has all of it."""

    def __init__(self, settings: Settings, authenticator: Authenticator) -> None:
        self.failures = Failures()
        self._authenticator = authenticator
        self._public = settings.public_url
        self._seal = Seal(settings.oauth.key, settings.state_dir, "console")
        self._ended = LoggedOut(settings.state_dir / "logged_out")

    @property
    def needed(self) -> bool:
        """Whether there are keys, so that one has to log in."""
        return self._authenticator.needed

    def log_in(self, request: web.Request, response: web.Response, key: str) -> Identity:
        """Open a session with a key, and set its cookie.

        Raises:
            Unauthorized: the key is nobody's.
            OSError: what seals can neither be read nor made.
        """
        if not key:
            raise Unauthorized
        digest = digest_of(key)
        identity = self._authenticator.identify_session(request, digest)
        session = ConsoleSession(digest=digest, token=secrets.token_urlsafe(24), until=time.time() + LIFE)
        sealed = self._seal.close(msgspec.msgpack.encode(session))
        name, scope = _named(request)
        secure = name == SAFE_COOKIE
        response.set_cookie(name, sealed, max_age=LIFE, path=scope, httponly=True, samesite="Lax", secure=secure)
        return identity

    def log_out(self, request: web.Request, response: web.Response) -> None:
        """End the session of a request: its cookie counts no more, whoever has kept it."""
        session = self.session(request)
        if session is not None:
            self._ended.add(session)
        name, scope = _named(request)
        response.del_cookie(name, path=scope, httponly=True, samesite="Lax", secure=name == SAFE_COOKIE)

    def session(self, request: web.Request) -> ConsoleSession | None:
        """Return the session of a request, whether its key still counts or not."""
        sealed = request.cookies.get(_named(request)[0], "")
        if not sealed or len(sealed) > LARGEST:
            return None
        try:
            session = msgspec.msgpack.decode(self._seal.open(sealed), type=ConsoleSession)
        except (Broken, msgspec.MsgspecError, OSError):
            return None
        return session if session.until > time.time() and session.token not in self._ended else None

    def identify(self, request: web.Request) -> Identity:
        """Return who has logged in.

        Raises:
            Unauthorized: nobody has, or the key does not count any more.
        """
        session = self.session(request)
        if session is None:
            raise Unauthorized
        return self._authenticator.identify_session(request, session.digest)

    def token(self, request: web.Request) -> str:
        """Return what a form has to bring back; empty where there is no session."""
        session = self.session(request)
        return session.token if session is not None else ""

    def check(self, request: web.Request, token: str) -> None:
        """See that a form is one of ours, which its session has been shown.

        Raises:
            Forbidden: it is not.
        """
        self.check_site(request)
        if self.needed and not hmac.compare_digest(token.encode(), self.token(request).encode()):
            raise Forbidden("this form is not of your session: load the page again")

    def check_site(self, request: web.Request) -> None:
        """See that no page of another site has sent a form.

        Raises:
            Forbidden: one has.
        """
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get(hdrs.ORIGIN)
        if site is not None:
            ours = site in {"same-origin", "none"}
        else:
            ours = origin is None or origins.is_same(origin, request.host) or self._is_ours(request, origin)
        if not ours:
            raise Forbidden("this form comes from a page of another site")

    def _is_ours(self, request: web.Request, origin: str) -> bool:
        public = self._public or ""
        return origin == base_of(request) or public == origin or public.startswith(f"{origin}/")


def _named(request: web.Request) -> tuple[str, str]:
    """Return what the cookie is called where a browser calls, and its path."""
    return (SAFE_COOKIE, "/") if base_of(request).startswith("https:") else (COOKIE, CONSOLE)


class LoggedOut:
    """Sessions that somebody has left, and whose time is not over: in a file, so that no restart opens one again.

    Where the file cannot be used, this process alone knows of them.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._until: dict[str, float] | None = None

    def __contains__(self, token: str) -> bool:
        """Tell whether a session has been left."""
        if self._until is None:
            self._until = self._read()
        return token in self._until

    def add(self, session: ConsoleSession) -> None:
        """Remember that one is, also what another process has since written."""
        known = {**self._read(), **(self._until or {}), session.token: session.until}
        now = time.time()
        self._until = dict([one for one in known.items() if one[1] > now][-ENDED:])
        draft = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as stream:
                stream.write(msgspec.json.encode(self._until))
            draft.replace(self._file)

    def _read(self) -> dict[str, float]:
        try:
            return msgspec.json.decode(read_file(self._file, most=LARGEST_FILE), type=dict[str, float])
        except (OSError, msgspec.MsgspecError):
            return {}


class Failures:
    """Log-ins that failed, by address: after a few, an address has to wait."""

    def __init__(self) -> None:
        self._failed: OrderedDict[str, list[float]] = OrderedDict()

    def wait(self, request: web.Request) -> float:
        """Return the seconds after which a request's address may try again; 0: now."""
        failed = self._recent(_place(address_of(request)))
        return max(0.0, failed[0] + WINDOW - time.monotonic()) if len(failed) >= TRIES else 0.0

    def add(self, request: web.Request) -> None:
        """Remember that one has failed."""
        place = _place(address_of(request))
        self._failed[place] = [*self._recent(place), time.monotonic()][-TRIES:]
        self._failed.move_to_end(place)
        while len(self._failed) > ADDRESSES:
            self._failed.popitem(last=False)

    def _recent(self, place: str) -> list[float]:
        since = time.monotonic() - WINDOW
        return [moment for moment in self._failed.get(place, ()) if moment > since]


def _place(address: str) -> str:
    """Return what of an address counts: whoever has an IPv6 address has a whole network of them."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    return str(ip_network(f"{found}/64", strict=False)) if isinstance(found, IPv6Address) else address
