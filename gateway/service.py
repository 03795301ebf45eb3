"""What whoever keeps a service running and the service tell each other: its sockets, and signs of life.

The words are systemd's (sd_listen_fds(3), sd_notify(3)), and `gateway.keeper` speaks them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, NamedTuple, Self

from gateway.errors import ConfigError
from gateway.origins import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BACKLOG = 1024  # connections that wait to be accepted
FIRST = 3  # the descriptor of the first socket that is handed down
SIGN = "WATCHDOG=1"


class Service(NamedTuple):
    """What this process was told by whoever started it."""

    fds: tuple[int, ...] = ()
    """The listening sockets that were handed down."""
    notify: str = ""
    """The address of a datagram socket that takes what is told; a leading @ stands for an abstract one."""
    watchdog: float = 0.0
    """Seconds within which a sign of life is expected; 0: none is."""

    @classmethod
    def told(cls, environ: Mapping[str, str]) -> Self:
        """Read it from the environment; what is meant for another process, a parent, is not told to this one."""
        mine = environ.get("LISTEN_PID") == str(os.getpid())
        watches_me = environ.get("WATCHDOG_PID", "") in {"", str(os.getpid())}
        with contextlib.suppress(ValueError):
            return cls(
                fds=tuple(range(FIRST, FIRST + int(environ.get("LISTEN_FDS", "0")))) if mine else (),
                notify=environ.get("NOTIFY_SOCKET", ""),
                watchdog=int(environ.get("WATCHDOG_USEC", "0")) / 1e6 if watches_me else 0.0,
            )
        return cls()

    def tell(self, words: str) -> None:
        """Tell something, if anybody listens. Never waits, raises nothing."""
        if not self.notify:
            return
        address = "\0" + self.notify[1:] if self.notify.startswith("@") else self.notify
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.setblocking(False)
            line.sendto(words.encode(), address)

    def beat(self) -> None:
        """Tell again and again that the loop turns, three times within the time that is expected."""
        if self.watchdog > 0:
            self.tell(SIGN)
            asyncio.get_running_loop().call_later(self.watchdog / 3, self.beat)


def watched(address: str, silence: float) -> dict[str, str]:
    """Return what a process is told in its environment by whoever watches it: where signs of life go, how often."""
    return {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(silence * 1e6)), "WATCHDOG_PID": ""}


def sockets(service: Service, host: str | None, port: int) -> list[socket.socket]:
    """Return the sockets to listen at: those that were handed down, or else new ones.

    Raises:
        ConfigError: what was handed down is no socket that listens.
        OSError: it cannot be listened at the address.
    """
    return _handed_down(service.fds) if service.fds else _listening(host, port)


def strangers_reach(service: Service, host: str | None, port: int) -> list[str]:
    """Return the addresses of `sockets` that are not of this machine alone.

    Raises:
        ConfigError: what was handed down is no socket that listens.
        OSError: nobody knows the host.
    """
    if service.fds:
        handed = _handed_down(service.fds)
        addresses = [one.getsockname() for one in handed if one.family != socket.AF_UNIX]
        for one in handed:
            one.detach()  # it stays open
    else:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = [info[4] for info in infos]
    found = dict.fromkeys(str(one[0]) for one in addresses)
    return [one for one in found if not is_loopback(one)]


def _handed_down(fds: Iterable[int]) -> list[socket.socket]:
    found = []
    for fd in fds:
        try:
            os.set_inheritable(fd, False)
            one = socket.socket(fileno=fd)
            listens = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as problem:
            raise ConfigError(f"descriptor {fd}, which was handed down, is no socket: {problem.strerror}") from problem
        if not listens:
            one.detach()
            raise ConfigError(f"descriptor {fd}, which was handed down, is a socket that does not listen")
        one.setblocking(False)
        found.append(one)
    return found


def _listening(host: str | None, port: int) -> list[socket.socket]:
    """Listen at every address that a host has; None is every address of this machine."""
    found: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            try:
                one = socket.socket(family, kind, protocol)
            except OSError:  # an address family that this kernel does not have
                continue
            undo.callback(one.close)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            one.listen(BACKLOG)
            one.setblocking(False)
            found.append(one)
        undo.pop_all()
    return found
