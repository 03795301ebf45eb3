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
from gateway.process import CHUNK, GRACE, Completed, StartFailed, Stop, joined, signal_name
from gateway.protocol import LARGE, is_document
from gateway.warden import procfs

if TYPE_CHECKING:
    from gateway.pool.base import OnLine, Room, Worker
    from gateway.pool.notices import Notices
    from gateway.pool.spawn import SpawnPool
    from gateway.process import Launch, Mode, Payload


class Persistent:
    """One connector's processes: those without a request, the latest used first."""

    def __init__(self, launch: Launch, spawn: SpawnPool, room: Room, notices: Notices) -> None:
        self.launch = launch
        self._spawn = spawn
        self._room = room
        self.notices = notices
        self._loop = asyncio.get_running_loop()
        self.used = self._loop.time()
        self._free: list[_Process] = []
        self._busy = 0
        self._held = True
        """Nobody has asked for processes ahead yet, or the latest of them has ended by itself."""
        self._closed = False
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def mode(self) -> Mode:
        """How processes are obtained."""
        return "persistent"

    async def obtain(self, _launch: Launch, on_line: OnLine) -> Worker:
        """Return a process without a request."""
        self.used = self._loop.time()
        while self._free:
            process = self._free.pop()
            if process.quiet():
                return self._session(process, on_line)
            self._dismiss(process)
        return self._session(self._start(), on_line)

    def idle(self) -> int:
        """Return how many processes have no request."""
        return len(self._free)

    def warm(self, *, idle: bool = False) -> None:
        """Start the first ones, or those that are to stay after idleness."""
        self._held = False
        keep = self.launch.keep
        wanted = min(keep.warm, keep.warm_min) if idle else keep.warm
        while len(self._free) + self._busy < wanted and self._room.free(self.launch) > 0:
            try:
                self._free.append(self._start())
            except StartFailed:
                self._held = True  # the next request will tell
                return

    def tend(self, now: float) -> None:
        """Recycle the worn, and shrink after idleness."""
        idle = now - self.used > self.launch.keep.warm_idle
        for process in list(self._free):
            if not process.resident.uses and process.resident.heavy():
                self.notices.heavy()
            if not process.quiet():
                self._free.remove(process)
                self._held = self._held or not process.resident.uses
                self._dismiss(process)
            elif process.resident.worn() or (idle and len(self._free) > self.launch.keep.warm_min):
                self._free.remove(process)
                self._end(process)
        if not self._held:
            self.warm(idle=idle)

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
        await self.left()

    def leaving(self) -> int:
        """Return how many processes have been given up and are not gone yet."""
        return len(self._ending)

    async def left(self) -> None:
        """Wait until those are gone."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    def give_back(self, process: _Process, *, fit: bool) -> None:
        """Take a process back after a request; `fit` for another one, as far as its session knows."""
        self._busy -= 1
        process.resident.busy(False)
        if fit:
            self._held = False
        if fit and process.quiet() and not self._closed and not process.resident.worn():
            self._free.append(process)
        else:
            self._dismiss(process)

    def _session(self, process: _Process, on_line: OnLine) -> _Session:
        self._busy += 1
        return _Session(self, process, on_line)

    def _start(self) -> _Process:
        try:
            return _Process(Resident(self._spawn.warden, self.launch, self._spawn.folder(), self.notices.line))
        except OSError as problem:
            raise StartFailed(str(problem)) from problem

    def _dismiss(self, process: _Process) -> None:
        if process.babbled:
            self.notices.warn(
                "wrote more than one line for a request, or one without a request: the process was ended, "
                "since its words would be taken for the next request's answer"
            )
        self._end(process)

    def _end(self, process: _Process) -> None:
        task = self._loop.create_task(process.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class _Process:
    """A process with its two pipes."""

    def __init__(self, resident: Resident) -> None:
        """Start it.

        Raises:
            StartFailed: it could not be.
            OSError: there are no more descriptors.
        """
        self.resident = resident
        self.answer: asyncio.Future[bytearray] | None = None
        self.overflow = False
        self.babbled = False
        """It wrote something that was not the one line for its one request."""
        self.mute = False
        """It has closed descriptor 3."""
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._unwritten = memoryview(b"")
        self._stdin = self._results = -1
        theirs: list[int] = []
        try:
            theirs_in, self._stdin = os.pipe()
            theirs.append(theirs_in)
            self._results, theirs_out = os.pipe()
            theirs.append(theirs_out)
            os.set_blocking(self._stdin, False)
            os.set_blocking(self._results, False)
            resident.start(theirs_in, theirs_out, host=False)
        except (OSError, StartFailed):
            self._close()
            resident.drop_folder()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self._loop.add_reader(self._results, self._on_readable)
        resident.gone.add_done_callback(self._on_gone)

    @property
    def alive(self) -> bool:
        return not self.resident.gone.done()

    def quiet(self) -> bool:
        """Tell whether it lives and has said nothing since its last answer."""
        if self.alive:
            self._on_readable()
        return self.alive and not self.babbled and not self.mute

    def ask(self, payload: Payload) -> asyncio.Future[bytearray]:
        """Send one request; the future has the line that answers it, or is cancelled when the process dies."""
        self.answer = self._loop.create_future()
        if not self.alive:
            self.answer.cancel()
            return self.answer
        # Within JSON, a line break can only be white space between values.
        self._unwritten = memoryview(joined(payload).replace(b"\n", b" ").replace(b"\r", b" ") + b"\n")
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
        return bool(data)

    def _take(self, data: bytes) -> None:
        line, end, more = data.partition(b"\n")
        waited_for = self.answer is not None and not self.answer.done()
        if not waited_for or more:
            self.babbled = True
            self.resident.kill()
        if not waited_for:
            return
        self._buffer += line
        if len(self._buffer) > self.resident.launch.bounds.output:
            self.overflow = True
            self.resident.kill()
        elif end and self.answer is not None:
            answer, self._buffer = self._buffer, bytearray()
            self.answer.set_result(answer)

    def _on_gone(self, _gone: object) -> None:
        while self._on_readable():  # its last words may be the answer
            pass
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
        self._resident = process.resident
        self._loop = asyncio.get_running_loop()
        self._stop: Stop | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._resident.uses += 1
        self._resident.fresh_log(on_line)
        self._resident.busy(True)

    async def run(self, payload: Payload, *, deadline: float) -> Completed:
        self._timers.append(self._loop.call_at(deadline, self.stop, Stop.DEADLINE))
        before = procfs.cpu(self._resident.pid)
        fit = False
        try:
            answer = await _settled(self._process.ask(payload))
            after, peak = procfs.cpu(self._resident.pid), procfs.peak(self._resident.pid)
            if answer is None or self._stop is not None:
                return await self._broken_off(before)
            used = procfs.Cpu(after.user - before.user, after.system - before.system)
            # After what is no answer the answer may still come: it would be the next request's.
            fit = await _is_document(answer)
            if not fit:
                self._resident.kill()
                await self._resident.ended()
            log = self._resident.log_tail()
            return self._completed(result=answer, log=log, status=0, cpu=used, peak=peak)
        except asyncio.CancelledError:
            self.stop(Stop.CANCELLED)
            with contextlib.suppress(StartFailed):
                await self._resident.ended()
            raise
        finally:
            for timer in self._timers:
                timer.cancel()
            self._pool.give_back(self._process, fit=fit)

    def stop(self, why: Stop, *, grace: float = GRACE) -> None:
        """End the process: it cannot go on with half a request."""
        if self._resident.gone.done():
            return
        self._stop = self._stop or why
        if grace > 0:
            self._resident.signal(signal.SIGTERM)
            self._timers.append(self._loop.call_later(grace, self._resident.kill))
        else:
            self._resident.kill()

    async def _broken_off(self, before: procfs.Cpu) -> Completed:
        """Tell how the process ended: by itself, or since an answer after the deadline is too late to trust it."""
        self._resident.kill()
        gone = await self._resident.ended()
        tail = self._resident.log_tail()
        return self._completed(
            log=tail,
            status=gone.status,
            cpu=procfs.Cpu(gone.utime - before.user, gone.stime - before.system),
            peak=gone.peak_rss,
            stop=Stop.OUTPUT if self._process.overflow else self._stop,
            out_of_memory=gone.out_of_memory,
            warden_died=gone.warden_died,
        )

    def _completed(
        self,
        *,
        log: tuple[str, int],
        status: int,
        cpu: procfs.Cpu,
        peak: int,
        result: bytearray | None = None,
        stop: Stop | None = None,
        out_of_memory: bool = False,
        warden_died: bool = False,
    ) -> Completed:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        return Completed(
            pid=self._resident.pid,
            bounds=self._resident.launch.bounds,
            status=None if number else os.WEXITSTATUS(status),
            signal=signal_name(number) if number else None,
            stop=stop,
            out_of_memory=out_of_memory,
            warden_died=warden_died,
            cpu_user=max(0.0, cpu.user),
            cpu_system=max(0.0, cpu.system),
            peak_rss=peak,
            result=result if result is not None else bytearray(),
            log_tail=log[0],
            log_bytes=log[1],
        )


async def _settled(answer: asyncio.Future[bytearray]) -> bytearray | None:
    """Wait for an answer; None when the process died. A cancellation is the caller's own."""
    await asyncio.wait([answer])
    return None if answer.cancelled() else answer.result()


async def _is_document(answer: bytearray) -> bool:
    if len(answer) <= LARGE:
        return is_document(answer)
    return await asyncio.to_thread(is_document, answer)  # it takes its time, and others have their turns
