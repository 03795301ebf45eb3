"""Origins, `scheme://host:port`: where a browser may be sent back to with a token, and where it may come from."""

from __future__ import annotations

import contextlib
import re
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# Narrower than what browsers take, so that nothing is read in two ways: no user, no backslash, no fragment, no blank.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[!$-;=@-\[\]-~]*)?(?P<query>\?[!$-;=?@-\[\]-~]*)?",
    re.IGNORECASE | re.ASCII,  # without ASCII, an s is a U+017F too, and a k a U+212A
)
_HOST = re.compile(r"(?P<host>[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE | re.ASCII)
_STEPS = re.compile(r"[/\\]")
_DEFAULT = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """A scheme, a host and a port. As a rule: `scheme` None is http and https, `port` None any."""

    scheme: str | None
    host: str
    port: int | None
    path: str = ""
    """Without a slash at its end."""

    def __str__(self) -> str:
        """Write it as an operator would."""
        shown = "" if self.port is None or self.port == _DEFAULT.get(self.scheme or "") else f":{self.port}"
        return f"{self.scheme}://{self.host}{shown}" if self.scheme else f"{self.host}{shown}"

    def covers(self, other: Origin) -> bool:
        """Tell whether this, as a rule, lets an address pass."""
        return (
            self.host == other.host
            and self.scheme in {None, other.scheme}
            and self.port in {None, other.port}
            and (not self.path or other.path == self.path or other.path.startswith(f"{self.path}/"))
        )


def read(url: str) -> Origin:
    """Return the origin and the path of an http or https URL.

    Raises:
        ValueError: it is none, or it could be read in more than one way.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError("it is not a plain http or https URL")
    path = match["path"] or ""
    if {".", ".."} & set(_STEPS.split(unquote(path))):
        raise ValueError("its path has . or .. in it")
    scheme = match["scheme"].lower()
    return Origin(scheme, _host(match["host"]), _port(match["port"]) or _DEFAULT[scheme], path.rstrip("/"))


def is_plain(text: str) -> bool:
    """Tell whether it is an origin and nothing more."""
    match = _URL.fullmatch(text)
    return match is not None and match["path"] is None and match["query"] is None


def rule(text: str) -> Origin:
    """Read an origin as an operator writes it, perhaps with a path.

    Raises:
        ValueError: it is none.
    """
    try:
        origin = read(text)
    except ValueError as problem:
        raise ValueError(f"{text!r} is no origin, such as http://localhost:8000: {problem}") from problem
    if "?" in text:
        raise ValueError(f"{text!r} is no origin, such as http://localhost:8000: it has a query")
    return origin


def rules(
    redirects: Sequence[str] | None,
    *,
    rewrite: Iterable[str] = (),
    hosts: Iterable[str] = (),
    allow: Iterable[str] = (),
) -> tuple[Origin, ...]:
    """Return where browsers may be sent back to.

    That is what `redirects` (`gateway.oauth.redirects`) says, or else what the settings of callbacks tell of the
    backend: `rewrite` has the origins that it calls itself, `hosts` and `allow` have names, those of `hosts` perhaps
    with a port. Wildcards, networks and what is no origin tell of no backend.

    Raises:
        ValueError: an entry of `redirects` is no origin.
    """
    if redirects is not None:
        return tuple(rule(one) for one in redirects)
    named = map(_named, (*hosts, *allow))
    return (*_origins(rewrite), *(Origin(None, host, port) for host, port in named if host))


def host_of(text: str) -> str | None:
    """Return the host of `host` or `host:port`, as a Host header has it; None when it is none."""
    match = _HOST.fullmatch(text)
    if match is None:
        return None
    try:
        return _host(match["host"]).rstrip(".")
    except ValueError:
        return None


def is_here(host: str) -> bool:
    """Tell whether a host, as `host_of` returns it, is the loopback by its name or its address, wherever one asks."""
    return host == "localhost" or host.endswith(".localhost") or is_loopback(host.strip("[]"))


def is_loopback(address: str) -> bool:
    """Tell whether it is an address that only this machine reaches; a name is none."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def is_same(origin: str, host: str) -> bool:
    """Tell whether a page's origin is the host, `host` or `host:port`, that its request names."""
    scheme, _, place = origin.partition("://")
    return scheme.lower() in _DEFAULT and place.lower() == host.lower()


def _origins(texts: Iterable[str]) -> Iterator[Origin]:
    for text in texts:
        with contextlib.suppress(ValueError):
            yield rule(text)


def _named(text: str) -> tuple[str, int | None]:
    """Read `host` or `host:port`; nothing when it stands for more than one host."""
    text = text.strip().rstrip(".")
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    match = _HOST.fullmatch(text)
    try:
        return (_host(match["host"]), _port(match["port"])) if match is not None else ("", None)
    except ValueError:
        return "", None


def _host(text: str) -> str:
    if not text.startswith("["):
        return text.lower()
    try:
        return f"[{IPv6Address(text[1:-1])}]"
    except ValueError as problem:
        raise ValueError("its host is no address") from problem


def _port(text: str | None) -> int | None:
    if text is None:
        return None
    if not 0 < int(text) < 65536:
        raise ValueError("its port is none")
    return int(text)
