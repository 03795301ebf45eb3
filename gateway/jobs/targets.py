"""Where callbacks may go: a rule for URLs, names and addresses."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Sequence

Address = IPv4Address | IPv6Address

# Where clouds tell machines their secrets, and what is no host at all.
REFUSED = tuple(
    ip_network(one)
    for one in (
        "0.0.0.0/8", "169.254.0.0/16", "100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32", "224.0.0.0/4",
        "255.255.255.255/32", "::/128", "fe80::/10", "fd00:ec2::/32", "fd20:ce::254/128", "ff00::/8",
    )
)  # fmt: skip
# Whose last 32 bits are an IPv4 address: NAT64 of the world and of a network, and what was said before `::ffff:`.
_EMBEDDING = tuple(IPv6Network(one) for one in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96"))
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)


class Refused(OSError):
    """A callback may not go there."""


class Targets(NamedTuple):
    """The rule. `names` None lets every name through; `networks` are those that were allowed by number."""

    names: frozenset[str] | None = None
    suffixes: tuple[str, ...] = ()
    networks: tuple[object, ...] = ()

    @classmethod
    def parse(cls, allow: Sequence[str] | None) -> Targets:
        """Read `callbacks.allow`.

        Raises:
            ValueError: an entry is none.
        """
        if allow is None:
            return cls()
        names, suffixes, networks = set(), [], []
        for entry in allow:
            text = entry.strip()
            try:
                networks.append(ip_network(text, strict=False))
                continue
            except ValueError:
                pass
            plain = text.removeprefix("*.")
            try:
                host, port = (None, None) if set(plain) & set("/:*@ ") else host_key(text)
            except ValueError:
                host = None
            if host is None or port is not None:
                raise ValueError(f"{entry!r} is no host: write a name, *.domain, an address or a network")
            literal = _literal(host)
            if literal is not None:
                networks.append(ip_network(literal))
            elif host.startswith("*."):
                suffixes.append(host[1:])
            else:
                names.add(host)
        return cls(frozenset(names), tuple(suffixes), tuple(networks))

    def check_url(self, url: str) -> URL:
        """Check what can be told without resolving; return it as it was read, for whoever connects.

        Raises:
            Refused: it is no http(s) URL, or its host is not allowed.
        """
        read = read_url(url)
        host = host_of(read)
        literal = _literal(host)
        if literal is not None:
            self.check(host, literal)
        elif self.names is not None and not self.networks and not self._named(host):
            raise Refused(f"{host} is not in callbacks.allow")
        return read

    def check(self, host: str, address: Address) -> None:
        """Check one address that a host stands for.

        Raises:
            Refused: it may not be connected to.
        """
        plain = _unwrapped(address)
        if any(plain in network for network in self.networks):  # type: ignore[operator]
            return
        if self._named(host):
            return
        if self.names is not None:
            raise Refused(f"{host} ({plain}) is not in callbacks.allow")
        if any(plain in network for network in REFUSED):
            raise Refused(f"{host} is at {plain}, a link-local or metadata address")

    def of_operators(self) -> Targets:
        """Return the rule for what operators name themselves: no metadata address that is not allowed by number."""
        return Targets(networks=self.networks)

    def _named(self, host: str) -> bool:
        name = host.lower().rstrip(".")
        return self.names is not None and (name in self.names or name.endswith(self.suffixes or ("\0",)))


def read_url(url: str) -> URL:
    """Read a URL in the way of whoever connects: a host can be written in several ways, with other digits, say.

    Raises:
        Refused: it is no http(s) URL, or one that nobody should call.
    """
    try:
        read = URL(url)
    except ValueError as problem:
        raise Refused(f"the callback URL is not valid: {problem}") from problem
    host = read.raw_host
    if read.scheme not in {"http", "https"} or not host or not host.isascii() or set(host) & set("% \\"):
        raise Refused("the callback URL is not an http or https URL")
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]) and _literal(host) is None:
        raise Refused("the callback URL's host is a number: write an address in its usual form, such as 127.0.0.1")
    if read.raw_user is not None or read.raw_password is not None:
        raise Refused("the callback URL holds credentials; they belong into callbacks.headers")
    return read


def host_of(url: URL) -> str:
    """Return a URL's host in the one form that rules are compared with: addresses as they are usually written."""
    host = (url.raw_host or "").lower().rstrip(".")
    literal = _literal(host)
    return host if literal is None else str(literal)


HostKey = tuple[str, int | None]
"""A host, or `*.domain`, and a port; None is any."""


def host_key(name: str) -> HostKey:
    """Read `name`, `name:port`, an address or `*.domain` into the form of `host_of`.

    Raises:
        ValueError: it is none of these.
    """
    wild = name.startswith("*.")
    plain = name.removeprefix("*.")
    if plain.count(":") > 1 and not plain.startswith("["):
        plain = f"[{plain}]"
    try:
        read = read_url(f"http://{plain}")
    except Refused as problem:
        raise ValueError(f"{name!r} is no host: write name, name:port or *.domain") from problem
    host = host_of(read)
    if read.raw_path not in {"", "/"} or read.raw_query_string or (wild and (read.explicit_port or _literal(host))):
        raise ValueError(f"{name!r} is no host: write name, name:port or *.domain")
    return (f"*.{host}" if wild else host), read.explicit_port


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if any(address in network for network in _EMBEDDING) and int(address) > 1:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
