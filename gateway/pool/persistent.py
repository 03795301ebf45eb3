"""One process, many requests: a JSON line in on stdin, a JSON line out on descriptor 3.

For what cannot be isolated per request cheaply. A process serves one request at a time; a crash, a deadline or a caller
who hangs up costs that process and that request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

from gateway.pool.resident import Resident
from gateway.process import CHUNK, GRACE, Completed, StartFailed, Stop, signal_name, uncancelled
from gateway.warden import procfs

if TYPE_CHECKING:
    from gateway.pool.base import OnLine, Room, Worker
    from gateway.pool.spawn import SpawnPool
    from gateway.process import Launch


class Persistent:
    """One connector's processes: those without a request, the latest used first."""

    def __init__(self, launch: Launch, spawn: SpawnPool, room: Room) -> None:
        self.launch = launch
        self._spawn = spawn
        self._room = room
        self._loop = asyncio.get_running_loop()
        self._free: list[_Process] = []
        self._used = self._loop.time()
        self._closed = False
        self._ending: set[asyncio.Task[None]] = set()

    async def obtain(self, _launch: Launch, on_line: OnLine) -> Worker:
        """Return a process without a request."""
        self._used = self._loop.time()
        while self._free:
            process = self._free.pop()
            if process.alive:
                return _Session(self, process, on_line)
            self._end(process)
        return _Session(self, self._start(), on_line)

    def idle(self) -> int:
        """Return how many processes have no request."""
        return len(self._free)

    def warm(self) -> None:
        """Start the first ones."""
        while len(self._free) < self.launch.keep.warm and self._room.free() > 0:
            try:
                self._free.append(self._start())
            except StartFailed:
                return  # the next request will tell

    def tend(self, now: float) -> None:
        """Recycle the worn, and shrink after idleness."""
        idle = now - self._used > self.launch.keep.warm_idle
        for process in list(self._free):
            if not process.alive or process.resident.worn() or (idle and len(self._free) > self.launch.keep.warm_min):
                self._free.remove(process)
                self._end(process)

    def evict(self) -> bool:
        """Give up one without a request."""
        if not self._free:
            return False
        self._end(self._free.pop(0))
        return True

    async def close(self) -> None:
        """Kill those without a request; the others go when they are done."""
        self._closed = True
        while self.evict():
            pass
        await asyncio.gather(*self._ending, return_exceptions=True)

    def give_back(self, process: _Process) -> None:
        """Take a process back after a request."""
        if process.alive and not self._closed and not process.resident.worn():
            self._free.append(process)
        else:
            self._end(process)

    def _start(self) -> _Process:
        return _Process(Resident(self._spawn.warden, self.launch, self._spawn.folder(), _nobody))

    def _end(self, process: _Process) -> None:
        task = self._loop.create_task(process.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class _Process:
    """A process with its two pipes."""

    def __init__(self, resident: Resident) -> None:
        self.resident = resident
        self.answer: asyncio.Future[bytearray] | None = None
        self.overflow = False
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._unwritten = memoryview(b"")
        theirs_in, self._stdin = os.pipe()
        self._results, theirs_out = os.pipe()
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._results, False)
        try:
            resident.start(theirs_in, theirs_out, host=False)
        except StartFailed:
            self._close()
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._loop.add_reader(self._results, self._on_readable)
        resident.gone.add_done_callback(self._on_gone)

    @property
    def alive(self) -> bool:
        return not self.resident.gone.done()

    def ask(self, payload: bytes) -> asyncio.Future[bytearray]:
        """Send one request; the future has the line that answers it, or is cancelled when the process dies."""
        self.answer = self._loop.create_future()
        # Within JSON, a line break can only be white space between values.
        self._unwritten = memoryview(payload.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n")
        self._on_writable()
        if self._unwritten and self._stdin >= 0:
            self._loop.add_writer(self._stdin, self._on_writable)
        return self.answer

    async def end(self) -> None:
        self.resident.kill()
        with contextlib.suppress(StartFailed):
            await self.resident.ended()

    def _on_writable(self) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._stdin, self._unwritten) :]
        except BlockingIOError:
            return
        except OSError:  # it is dying
            self._unwritten = memoryview(b"")
        self._loop.remove_writer(self._stdin)

    def _on_readable(self) -> None:
        try:
            data = os.read(self._results, CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._results)
            return
        self._buffer += data
        if self.answer is None or self.answer.done():
            self._buffer.clear()
            self.resident.kill()  # a word out of turn would be taken for the next request's answer
        elif self._buffer.endswith(b"\n"):
            answer, self._buffer = self._buffer, bytearray()
            self.answer.set_result(answer)
        elif len(self._buffer) > self.resident.launch.bounds.output:
            self.overflow = True
            self.resident.kill()

    def _on_gone(self, _gone: object) -> None:
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


class _Session:
    """One request at a process that stays."""

    def __init__(self, pool: Persistent, process: _Process, on_line: OnLine) -> None:
        self._pool = pool
        self._process = process
        self._on_line = on_line
        self._loop = asyncio.get_running_loop()
        self._stop: Stop | None = None
        self._timers: list[asyncio.TimerHandle] = []

    async def run(self, payload: bytes, *, deadline: float) -> Completed:
        process, resident = self._process, self._process.resident
        resident.uses += 1
        resident.fresh_log(self._on_line)
        self._timers.append(self._loop.call_at(deadline, self.stop, Stop.DEADLINE))
        before = procfs.cpu(resident.pid)
        try:
            answer = await _settled(process.ask(payload))
        except asyncio.CancelledError:
            self.stop(Stop.CANCELLED)
            await uncancelled(resident.gone)
            self._pool.give_back(process)
            raise
        finally:
            after, peak = procfs.cpu(resident.pid), procfs.peak(resident.pid)
            for timer in self._timers:
                timer.cancel()
        tail, total = resident.log_tail()
        if answer is not None and self._stop is None:
            self._pool.give_back(process)
            return self._completed(
                result=answer,
                log=(tail, total),
                status=0,
                cpu=(after.user - before.user, after.system - before.system),
                peak=peak,
            )
        resident.kill()  # an answer that comes after the deadline is too late, and the process is not to be trusted
        gone = await resident.ended()
        stop = Stop.OUTPUT if process.overflow else self._stop
        return self._completed(
            log=(tail, total),
            status=gone.status,
            cpu=(gone.utime - before.user, gone.stime - before.system),
            peak=gone.peak_rss,
            stop=stop,
            out_of_memory=gone.out_of_memory,
            warden_died=gone.warden_died,
        )

    def stop(self, why: Stop, *, grace: float = GRACE) -> None:
        """The process cannot go on with half a request: it ends."""
        if self._process.resident.gone.done():
            return
        self._stop = self._stop or why
        if grace > 0:
            self._process.resident.signal(signal.SIGTERM)
            self._timers.append(self._loop.call_later(grace, self._process.resident.kill))
        else:
            self._process.resident.kill()

    def _completed(
        self,
        *,
        log: tuple[str, int],
        status: int,
        cpu: tuple[float, float],
        peak: int,
        result: bytearray | None = None,
        stop: Stop | None = None,
        out_of_memory: bool = False,
        warden_died: bool = False,
    ) -> Completed:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        return Completed(
            pid=self._process.resident.pid,
            bounds=self._process.resident.launch.bounds,
            status=None if number else os.WEXITSTATUS(status),
            signal=signal_name(number) if number else None,
            stop=stop,
            out_of_memory=out_of_memory,
            warden_died=warden_died,
            cpu_user=max(0.0, cpu[0]),
            cpu_system=max(0.0, cpu[1]),
            peak_rss=peak,
            result=result if result is not None else bytearray(),
            log_tail=log[0],
            log_bytes=log[1],
        )


async def _settled(answer: asyncio.Future[bytearray]) -> bytearray | None:
    """Wait for an answer; None when the process died. A cancellation is the caller's own."""
    await asyncio.wait([answer])
    return None if answer.cancelled() else answer.result()


def _nobody(_stream: str, _line: str) -> None:
    """Take what is logged between requests."""
