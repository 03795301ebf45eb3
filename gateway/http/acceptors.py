"""Takes connections at the sockets that are listened at: plain ones, and those that begin with a handshake of TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

import structlog

from gateway.http.connections import LAST_WORDS, SPARE
from gateway.service import BACKLOG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

    from gateway.http.connections import Connections

BATCH = 64  # connections that are taken at once
PAUSE = 1.0  # seconds in which none is taken when there is no room for one, and between two lines of the log


class Acceptors:
    """All sockets of a server. TLS is for ports: who reaches a Unix socket is on this machine."""

    def __init__(self, server: web.Server, sockets: Sequence[socket.socket], bounds: Connections) -> None:
        self._server = server
        secure = bounds.encryption.context is not None
        self._secure = [_Acceptor(server, one, bounds) for one in sockets if secure and one.family != socket.AF_UNIX]
        own = {acceptor.socket for acceptor in self._secure}
        self._plain = [one for one in sockets if one not in own]
        self._servers: list[asyncio.AbstractServer] = []

    async def open(self) -> None:
        """Take what comes from now on."""
        loop = asyncio.get_running_loop()
        for one in self._plain:
            self._servers.append(await loop.create_server(self._server, sock=one, backlog=BACKLOG))
        for acceptor in self._secure:
            acceptor.open()

    def close(self) -> None:
        """Take no more; what has been taken stays."""
        for server in self._servers:
            server.close()
        for acceptor in self._secure:
            acceptor.close()


class _Acceptor:
    """One socket whose connections begin with a handshake.

    They are taken here and not by the loop, for which one that never ends its handshake is no connection: nothing
    would bound how many there are.
    """

    def __init__(self, server: web.Server, listening: socket.socket, bounds: Connections) -> None:
        self.socket = listening
        self._server = server
        self._bounds = bounds
        self._loop = asyncio.get_running_loop()
        self._shaking: dict[asyncio.Task[None], None] = {}
        """The handshakes under way, the longest first."""
        self._paused: asyncio.TimerHandle | None = None
        self._failed = 0
        self._latest = "", ""
        """The address and the reason of the latest handshake that failed."""

    def open(self) -> None:
        self._paused = None
        self._loop.add_reader(self.socket.fileno(), self._accept)

    def close(self) -> None:
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self.socket.fileno())
        self.socket.close()
        for task in list(self._shaking):
            task.cancel()

    def _accept(self) -> None:
        for _ in range(BATCH):
            try:
                connection, address = self.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as problem:  # no descriptors, no memory
                self._loop.remove_reader(self.socket.fileno())
                self._paused = self._loop.call_later(PAUSE, self.open)
                self._note("", problem)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._shake(connection, str(address[0])))
            self._shaking[task] = None
            task.add_done_callback(self._ended)
            if len(self._shaking) + self._bounds.open > self._bounds.most + SPARE:
                longest = next(iter(self._shaking))
                del self._shaking[longest]
                longest.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._shaking.pop(task, None)

    async def _shake(self, connection: socket.socket, address: str) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._server,
                connection,
                ssl=self._bounds.encryption.context,
                ssl_handshake_timeout=self._bounds.read_timeout,
                ssl_shutdown_timeout=LAST_WORDS,
            )
        except OSError as problem:
            if not isinstance(problem, ConnectionResetError | BrokenPipeError):  # somebody has only looked
                self._note(address, problem)
        except asyncio.CancelledError:
            self._note(address, TimeoutError("it took longest, and there were too many connections"))
            raise
        finally:
            with contextlib.suppress(OSError):
                connection.close()  # the transport has its own hold on it

    def _note(self, address: str, problem: OSError) -> None:
        """Tell it with all others of this second."""
        if not self._failed:
            self._loop.call_later(PAUSE, self._tell)
        self._failed += 1
        self._latest = address, _why(problem)

    def _tell(self) -> None:
        address, reason = self._latest
        structlog.get_logger().info("handshakes_failed", count=self._failed, address=address, reason=reason)
        self._failed = 0


def _why(problem: OSError) -> str:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"its certificate: {problem.verify_message}"
    reason = problem.reason if isinstance(problem, ssl.SSLError) else problem.strerror
    return str(reason or problem or type(problem).__name__)
