"""Keeps a gateway: holds the sockets that it listens at, starts it again when it crashes or hangs, passes signals on.

The keeper serves nothing and knows nothing of connectors. It does for one gateway what systemd does for many, with the
same words (`gateway.service`); where there is a service manager nobody needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess  # noqa: TID251 - a gateway is no connector: no cell can be its parent
import sys
import tempfile
from struct import Struct
from typing import TYPE_CHECKING

import structlog

from gateway import signals
from gateway.backoff import Backoff
from gateway.cells import orphans
from gateway.service import SIGN, listening, watched
from gateway.settings import operators_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.settings import Settings

FIRST_PAUSE = 0.2  # seconds before a crashed gateway is started again; doubles
LAST_PAUSE = 10.0
STEADY = 30.0  # seconds alive after which a crash is an accident rather than a habit
SILENCE = 15.0  # seconds without a sign of life after which a gateway hangs
LOOKS = 5  # within that time: a keeper that was frozen, too, must not take its own absence for silence
MARGIN = 20.0  # seconds beyond the drain until a gateway that is still there is killed
HURRY = 5.0  # seconds for that when it was told to stop at once
REFUSED = 2  # the exit status of a gateway whose configuration cannot be used
MESSAGE = 4096  # bytes of the longest that is heard
CREDENTIALS = Struct("3i")  # process, user, group


class Keeper:
    """The parent of one gateway after the other."""

    def __init__(self, settings: Settings, arguments: list[str]) -> None:
        """`arguments` are those of `gateway serve` for the gateway itself."""
        self._settings = settings
        self._arguments = arguments
        self._gateway: _Ward | None = None
        self._stopping = asyncio.Event()
        self._stops = 0
        self._log = structlog.get_logger()

    async def run(self) -> int:
        """Run until told to stop; return the exit status: 0, or the one of a gateway that did not end by itself.

        Raises:
            ConfigError: an address cannot be listened at.
        """
        loop = asyncio.get_running_loop()
        orphans.be_unreadable()
        for number in signals.TAKEN:
            loop.add_signal_handler(number, self._on_signal, number)
        where = self._settings
        with (
            signals.taken(),
            listening(where.service, where.listen, where.socket_mode) as sockets,
            _line() as (line, address),
        ):
            loop.add_reader(line, self._on_line, line)
            looking = loop.create_task(self._look())
            try:
                return await self._keep([one.fileno() for one in sockets], address)
            finally:
                looking.cancel()
                loop.remove_reader(line)

    # --- private

    async def _keep(self, fds: list[int], address: str) -> int:
        pauses = Backoff(FIRST_PAUSE, LAST_PAUSE)
        loop = asyncio.get_running_loop()
        first = True
        while True:
            begun = loop.time()
            one = self._gateway = self._start(fds, address)
            status = await one.ended()
            if self._stopping.is_set() and status in {0, -signal.SIGTERM}:  # the second one may come behind its end
                return 0
            if status == REFUSED and first:  # it has said why
                return REFUSED
            first = False
            facts = {"problem": one.problem} if one.problem else {}
            self._log.error("gateway_died", pid=one.pid, status=status, **facts)
            if self._stopping.is_set():
                return 1
            if loop.time() - begun > STEADY:
                pauses.reset()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pauses.next())
                return 0

    def _start(self, fds: list[int], address: str) -> _Ward:
        handed = [word for fd in fds for word in ("--fd", str(fd))]
        with signals.held():  # what is told to it before it listens waits, instead of killing it
            process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", *self._arguments, "--keeper", str(os.getpid()), *handed],
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
                start_new_session=True,  # a ^C in the terminal reaches it through us, once
                env={**operators_environment(), **watched(address, SILENCE)},
            )
        return _Ward(process)

    async def _look(self) -> None:
        """Kill a gateway that gives no sign of life. Looks are counted, not seconds: we may have been frozen, too."""
        while True:
            await asyncio.sleep(SILENCE / LOOKS)
            if self._gateway is not None:
                self._gateway.look()

    def _on_line(self, line: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                said, credentials, _, _ = line.recvmsg(MESSAGE, socket.CMSG_SPACE(CREDENTIALS.size))
                if self._gateway is None or not _is_from(self._gateway.pid, credentials):
                    continue
                if said == SIGN.encode():
                    self._gateway.missed = 0
                self._settings.service.tell(said.decode(errors="replace"))  # somebody may keep us in turn

    def _on_signal(self, number: int) -> None:
        if self._gateway is not None:
            self._gateway.signal(number)
        if number == signal.SIGHUP:
            return
        self._stopping.set()
        self._stops += 1
        patience = {1: self._settings.drain + MARGIN, 2: HURRY}.get(self._stops, 0)
        asyncio.get_running_loop().call_later(patience, self._kill)

    def _kill(self) -> None:
        if self._gateway is not None:
            self._gateway.kill("did not end in time and was killed")


class _Ward:
    """One gateway's process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self.problem = ""
        self.missed: int | None = None
        """Looks since its last sign of life; None until it has given one."""
        self._process = process

    async def ended(self) -> int:
        """Wait for its end; return its exit status."""
        loop = asyncio.get_running_loop()
        end = loop.create_future()
        handle = os.pidfd_open(self.pid)
        loop.add_reader(handle, end.set_result, None)
        try:
            await end
        finally:
            loop.remove_reader(handle)
            os.close(handle)
        return self._process.wait()

    def look(self) -> None:
        """Take note that time has passed."""
        if self.missed is not None:
            self.missed += 1
            if self.missed > LOOKS:
                self.kill(f"gave no sign of life for {SILENCE:g} s and was killed")

    def kill(self, problem: str) -> None:
        """End it at once. Its cells kill what it ran."""
        if self._process.returncode is None:
            self.problem = problem
            self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        self._process.send_signal(number)


def _is_from(pid: int, ancillary: list[tuple[int, int, bytes]]) -> bool:
    """Tell whether a message is from a process: whatever else runs as the same user can send some."""
    return any(
        kind == socket.SCM_CREDENTIALS and CREDENTIALS.unpack_from(data)[0] == pid for _, kind, data in ancillary
    )


@contextlib.contextmanager
def _line() -> Iterator[tuple[socket.socket, str]]:
    """Have a socket that hears what the gateway tells; give it and its address."""
    with (
        tempfile.TemporaryDirectory(prefix="gateway-keeper.") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line,
    ):
        line.setblocking(False)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        line.bind(f"{folder}/notify")
        yield line, f"{folder}/notify"
