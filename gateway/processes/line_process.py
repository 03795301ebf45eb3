"""A process that is asked in lines: a JSON line in on stdin, a JSON line out on descriptor 3, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import struct
import termios
from typing import TYPE_CHECKING

from gateway.cells.wire import Flag
from gateway.processes.completed import StartFailed
from gateway.processes.launch import pieces
from gateway.processes.run import CHUNK, DRAIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.cells.cell import Ended
    from gateway.processes.launch import Payload
    from gateway.processes.resident import Resident

PIPE = 1 << 16  # bytes that a pipe holds


class LineProcess:
    """A process with its two pipes."""

    def __init__(self, resident: Resident) -> None:
        """Start it.

        Raises:
            StartFailed: it could not be.
            OSError: there are no more descriptors.
        """
        self.resident = resident
        self.answer: asyncio.Future[bytearray] | None = None
        self.unread: Payload | None = None
        """The latest request, as long as it may be that nothing of it was read; what is left of it, when it is dead."""
        self.said = bytearray()
        """What it has said since its last line."""
        self.served = False
        """It has given an answer that was no failure."""
        self.failure: str | None = None
        """The code of the failure that its latest answer told."""
        self.overflow = False
        self.babbled = False
        """It wrote something that was not the one line for its one request."""
        self.mute = False
        """It has closed descriptor 3."""
        self.cut_off = False
        """It was killed, since nothing that it could still say would be an answer."""
        self._loop = asyncio.get_running_loop()
        self._boot: asyncio.Task[None] | None = None
        self._ready = False
        """It has started up, and got its first request."""
        self._asked = False
        """It was sent more than the first byte of a request: a line is the answer."""
        self._rest: Iterator[bytes] = iter(())
        self._unwritten = memoryview(b"")
        self._written = 0
        self._stdin = self._results = -1
        theirs: list[int] = []
        try:
            theirs_in, self._stdin = os.pipe()
            theirs.append(theirs_in)
            self._results, theirs_out = os.pipe()
            theirs.append(theirs_out)
            os.set_blocking(self._stdin, False)
            os.set_blocking(self._results, False)
            resident.start(Flag.CHANNEL, (theirs_in, theirs_out))
        except (OSError, StartFailed):
            self._close()
            resident.release()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self._loop.add_reader(self._results, self._on_readable)
        resident.gone.add_done_callback(self._on_gone)

    @property
    def alive(self) -> bool:
        """Whether it was not heard to have ended."""
        return not self.resident.gone.done()

    @property
    def gone(self) -> asyncio.Future[Ended]:
        """Done when nothing of it is left."""
        return self.resident.gone

    @property
    def ready(self) -> bool:
        """Whether it lives and has said nothing since its last answer."""
        if self.alive:
            self._on_readable()
        return self.alive and not self.babbled and not self.mute

    def ask(self, payload: Payload) -> asyncio.Future[bytearray]:
        """Send one request; the future has the line that answers it, or is cancelled when the process dies."""
        self.answer = self._loop.create_future()
        self.unread = payload
        self._asked = False
        self._rest = _line(payload)
        self._unwritten = memoryview(next(self._rest))
        self._written = 0
        if not self.alive:
            self.answer.cancel()
        elif self._ready:
            self._send()
        else:
            self._knock()
        return self.answer

    async def tidy(self) -> bool:
        """Take away what the latest request has left, processes and then files; tell whether it could be done."""
        return await self.resident.rest()

    async def end(self) -> None:
        """Kill it, and wait until nothing of it is left."""
        self.resident.kill()
        with contextlib.suppress(StartFailed):
            await self.resident.ended()

    # --- private: the request

    def _knock(self) -> None:
        """Send one byte: when it is read the process has started up, and what there is of it then is its own.

        A pipe with room for one piece can be written to again when that piece was read.
        """
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._stdin, fcntl.F_SETPIPE_SZ, 1)
        with contextlib.suppress(OSError):  # it is dying
            self._write(self._unwritten[:1])
        self._loop.add_writer(self._stdin, self._on_knock)

    def _on_knock(self) -> None:
        self._loop.remove_writer(self._stdin)
        if self._closed():
            self._hopeless()
            return
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._stdin, fcntl.F_SETPIPE_SZ, PIPE)
        self.unread = None
        self._boot = self._loop.create_task(self._take_stock())

    async def _take_stock(self) -> None:
        if await self.resident.rest(keep=True):
            self._ready = True
            self._send()

    def _send(self) -> None:
        if self._stdin < 0:
            return
        self._asked = True
        if self.mute:
            self._hopeless()
        self._on_writable()
        if self._unwritten and self._stdin >= 0:
            self._loop.add_writer(self._stdin, self._on_room)

    def _on_room(self) -> None:
        if self.unread is not None:
            self._look_whether_read()
        self._on_writable()

    def _on_writable(self) -> None:
        try:
            while self._unwritten:
                self._write(self._unwritten)
        except BlockingIOError:
            return
        except OSError:  # it is dying
            self._unwritten = memoryview(b"")
            self._rest = iter(())
        self._loop.remove_writer(self._stdin)

    def _write(self, data: memoryview) -> None:
        written = os.write(self._stdin, data)
        self._written += written
        self._unwritten = self._unwritten[written:] or memoryview(next(self._rest, b""))

    def _look_whether_read(self) -> None:
        """Let go of a request, which may be large, once some of it was read: nobody else may get it then."""
        (waiting,) = struct.unpack("i", fcntl.ioctl(self._stdin, termios.FIONREAD, bytes(4)))
        if waiting < self._written:
            self.unread = None

    def _closed(self) -> bool:
        """Tell whether nobody can read its stdin any more."""
        poll = select.poll()
        poll.register(self._stdin, 0)
        return bool(poll.poll(0))

    # --- private: the answer

    def _on_readable(self) -> bool:
        try:
            data = os.read(self._results, CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._take(data)
        else:
            self.mute = True
            self._loop.remove_reader(self._results)
            self._hopeless()
        return bool(data)

    def _take(self, data: bytes) -> None:
        line, end, more = data.partition(b"\n")
        waited_for = self.answer is not None and not self.answer.done()
        # A filter may begin its answer when it has read one byte; a whole line that soon is none.
        early = end and not self._asked
        if not waited_for or early or more:
            self.babbled = True
            self._cut_off()
        if not waited_for or early:
            return
        self.said += line
        if len(self.said) > self.resident.launch.bounds.output:
            self.overflow = True
            self.resident.kill()
        elif end and self.answer is not None:
            self.answer.set_result(self.said)
            self.answer, self.said, self.unread = None, bytearray(), None

    def _hopeless(self) -> None:
        """End what cannot answer any more, unless it is about to end by itself."""
        if self.alive and self.answer is not None and not self.answer.done():
            self._loop.call_later(DRAIN, self._cut_off)

    def _cut_off(self) -> None:
        if self.alive:
            self.cut_off = True
            self.resident.kill()

    def _on_gone(self, _gone: object) -> None:
        while self._on_readable():  # its last words may be the answer
            pass
        if self.unread is not None:
            self._look_whether_read()
        self._close()
        if self.answer is not None and not self.answer.done():
            self.answer.cancel()

    def _close(self) -> None:
        for fd in (self._stdin, self._results):
            if fd >= 0:
                self._loop.remove_reader(fd)
                self._loop.remove_writer(fd)
                os.close(fd)
        self._stdin = self._results = -1


def _line(payload: Payload) -> Iterator[bytes]:
    """Return a request as one line, in pieces of what a pipe holds: a large one is never put together."""
    held = b""
    for piece in pieces(payload):
        for start in range(0, len(piece), PIPE):
            if held:
                yield held
            # Within JSON, a line break can only be white space between values.
            held = bytes(piece[start : start + PIPE]).replace(b"\n", b" ").replace(b"\r", b" ")
    yield held + b"\n"
