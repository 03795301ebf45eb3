"""Who has sent a request, and by which URL, where trusted proxies stand between."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.settings import TrustedProxies

UNIX = "unix"
"""What whoever comes by a Unix socket is called."""

_Peer = IPv4Address | IPv6Address | str

_PAIR = re.compile(r'\s*([\w!#$%&\'*+.^`|~-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;,"\s]*)\s*')
_PLACE = re.compile(r"\[(?P<six>[0-9A-Fa-f:.]+)\](?::\d{1,5})?|(?P<four>[0-9.]+)(?::\d{1,5})?|(?P<bare>[0-9A-Fa-f:.]+)")


class _Hop(NamedTuple):
    """What a proxy says of whoever it has the request from."""

    place: str
    scheme: str = ""
    host: str = ""


class Proxies:
    """Those that are believed."""

    def __init__(self, trusted: TrustedProxies) -> None:
        self._trusted = trusted

    def address(self, request: web.BaseRequest) -> str:
        """Return the caller's address: the peer's, or what trusted proxies say of it.

        Of what they say the nearest address counts that is no proxy's. Where one says nothing that can be read, it is
        that proxy's own.
        """
        peer = _peer(request)
        if not self._is_trusted(peer):
            return str(peer)
        for hop in reversed(_hops(request)):
            found = _read(hop.place)
            if found is None:
                break
            peer = found
            if not self._is_trusted(peer):
                break
        return str(peer)

    def base(self, request: web.BaseRequest) -> str:
        """Return the scheme and the host by which a browser has called, as `https://gateway.example`."""
        scheme, host = request.scheme, request.host
        if self._is_trusted(_peer(request)):
            hops = _hops(request)
            last = hops[-1] if hops else _Hop("")
            scheme = _last(request.headers.getall("X-Forwarded-Proto", ())) or last.scheme or scheme
            host = _last(request.headers.getall("X-Forwarded-Host", ())) or last.host or host
        return f"{scheme.lower()}://{host}"

    def _is_trusted(self, peer: _Peer) -> bool:
        if isinstance(peer, str):
            return self._trusted.unix
        return any(peer in network for network in self._trusted.networks)


PROXIES: web.AppKey[Proxies] = web.AppKey("proxies")


def address_of(request: web.Request) -> str:
    """Return the address of whoever has sent a request, `unix` for one that has come by a Unix socket."""
    return request.app[PROXIES].address(request)


def base_of(request: web.Request) -> str:
    """Return the scheme and the host by which a browser has called; neither need be valid."""
    return request.app[PROXIES].base(request)


def _peer(request: web.BaseRequest) -> _Peer:
    transport = request.transport
    name = transport.get_extra_info("peername") if transport is not None else None
    found = _read(str(name[0])) if isinstance(name, tuple | list) and name else None
    return UNIX if found is None else found


def _hops(request: web.BaseRequest) -> Sequence[_Hop]:
    """Return what proxies have written, the nearest last.

    `Forwarded` counts where there is no `X-Forwarded-For`: most proxies write that one alone, and pass the other on as
    a caller has written it.
    """
    said = request.headers.getall("X-Forwarded-For", ())
    if said:
        return [_Hop(one.strip()) for one in ",".join(said).split(",")]
    return list(_forwarded(",".join(request.headers.getall("Forwarded", ()))))


def _forwarded(text: str) -> Iterator[_Hop]:
    """Read a `Forwarded` header (RFC 7239); what cannot be read is a hop that says nothing."""
    at, pairs = 0, dict[str, str]()
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is not None:
            value = pair[2]
            pairs[pair[1].lower()] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
            at = pair.end()
        if at < len(text) and text[at] not in ";,":
            at += len(text[at:].partition(",")[0])
            pairs = {}
        if at < len(text) and text[at] == ",":
            yield _hop(pairs)
            pairs = {}
        at += 1
    if text:
        yield _hop(pairs)


def _hop(pairs: dict[str, str]) -> _Hop:
    return _Hop(pairs.get("for", ""), pairs.get("proto", ""), pairs.get("host", ""))


def _read(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address, perhaps in brackets, with a port, or with the interface that it belongs to."""
    match = _PLACE.fullmatch(text.partition("%")[0])
    if match is None:
        return None
    try:
        found = ip_address(match["six"] or match["four"] or match["bare"])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _last(said: Sequence[str]) -> str:
    """Return what the nearest proxy has written, of all headers of a name."""
    return ",".join(said).rpartition(",")[2].strip()
