"""What whoever keeps a service running and the service tell each other: its sockets, and signs of life.

The words are systemd's (sd_listen_fds(3), sd_notify(3)), and `gateway.keeper` speaks them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING, NamedTuple, Self

from gateway.errors import ConfigError
from gateway.origins import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

BACKLOG = 1024  # connections that wait to be accepted
FIRST = 3  # the descriptor of the first socket that is handed down
SIGN = "WATCHDOG=1"
LONGEST = 107  # bytes of a Unix socket's path


class Tcp(NamedTuple):
    """A port to listen at."""

    host: str | None
    """None: every address of this machine."""
    port: int

    def __str__(self) -> str:
        """Write it as an operator would."""
        host = f"[{self.host}]" if self.host and ":" in self.host else self.host or "*"
        return f"{host}:{self.port}"


class Local(NamedTuple):
    """A Unix socket to listen at."""

    path: str

    def __str__(self) -> str:
        """Write it as an operator would."""
        return f"unix:{self.path}"


Address = Tcp | Local


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


@contextlib.contextmanager
def listening(service: Service, addresses: Iterable[Address], mode: int) -> Iterator[list[socket.socket]]:
    """Listen for the length of the block: at the sockets that were handed down, or else at new ones.

    Args:
        service: what was handed down.
        addresses: where to listen otherwise. A Unix socket's file is removed at the end.
        mode: the permissions of such a file.

    Raises:
        ConfigError: it cannot be listened at an address, or what was handed down is no socket that listens.
    """
    with contextlib.ExitStack() as stack:
        found = []
        if service.fds:
            found = [stack.enter_context(one) for one in _handed_down(service.fds)]
        for address in () if service.fds else addresses:
            try:
                if isinstance(address, Local):
                    found.append(stack.enter_context(_local(address.path, mode)))
                else:
                    found += [stack.enter_context(one) for one in _ports(address)]
            except (OSError, UnicodeError) as problem:
                raise cannot_listen(address, problem) from problem
        yield found


def cannot_listen(address: Address, problem: OSError | UnicodeError) -> ConfigError:
    """Return what is said about an address that cannot be listened at."""
    why = getattr(problem, "strerror", None) or problem
    return ConfigError(f"cannot listen on {address}: {why}")


def strangers_reach(service: Service, addresses: Iterable[Address]) -> list[str]:
    """Return the hosts of what `listening` listens at that are not of this machine alone.

    Raises:
        ConfigError: what was handed down is no socket that listens, or nobody knows a host.
    """
    found: list[str] = []
    if service.fds:
        handed = _handed_down(service.fds)
        found = [str(one.getsockname()[0]) for one in handed if one.family != socket.AF_UNIX]
        for one in handed:
            one.detach()  # it stays open
    for address in () if service.fds else addresses:
        if isinstance(address, Tcp):
            try:
                infos = socket.getaddrinfo(address.host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            except (OSError, UnicodeError) as problem:
                raise cannot_listen(address, problem) from problem
            found += [str(info[4][0]) for info in infos]
    return [one for one in dict.fromkeys(found) if not is_loopback(one)]


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


def _ports(address: Tcp) -> list[socket.socket]:
    """Listen at every address that a host has."""
    found: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, place in dict.fromkeys(infos):
            try:
                one = socket.socket(family, kind, protocol)
            except OSError:  # an address family that this kernel does not have
                continue
            undo.callback(one.close)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(place)
            one.listen(BACKLOG)
            one.setblocking(False)
            found.append(one)
        undo.pop_all()
    return found


@contextlib.contextmanager
def _local(path: str, mode: int) -> Iterator[socket.socket]:
    """Listen at a path; the file that a dead process has left there is replaced, and ours is removed at the end.

    Raises:
        OSError: somebody listens there, something else is there, or its folder is not.
    """
    if len(os.fsencode(path)) > LONGEST:
        raise OSError(errno.ENAMETOOLONG, f"the path is longer than {LONGEST} bytes")
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.bind(path)
        mine = os.stat(path)
        try:
            os.chmod(path, mode)  # nobody can connect before it listens
            one.listen(BACKLOG)
            one.setblocking(False)
            yield one
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.lstat(path), mine):
                    os.unlink(path)


def _remove_stale(path: str) -> None:
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise OSError(errno.EEXIST, "there is something that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.setblocking(False)  # whoever listens may have no room for another
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "somebody listens there already")
