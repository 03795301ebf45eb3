"""One process, many requests: a JSON line in on stdin, a JSON line out on descriptor 3.

For what cannot be isolated per request cheaply. A process serves one request at a time; a crash, a deadline or a caller
who hangs up costs that process and that request.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from gateway.cells.cell import Ended
from gateway.cells.wire import Why
from gateway.processes.lines import Lines
from gateway.processes.resident import Resident
from gateway.processes.run import GRACE, Completed, StartFailed, Stop, completed, why_stopped
from gateway.protocol.document import is_document
from gateway.protocol.request import LARGE

if TYPE_CHECKING:
    from gateway.processes.base import OnLine, Room, Worker
    from gateway.processes.notices import Notices
    from gateway.processes.run import Answered, Launch, Mode, Payload
    from gateway.processes.spawn import SpawnPool


class Persistent:
    """One connector's processes: those without a request, the latest used first."""

    def __init__(self, launch: Launch, spawn: SpawnPool, room: Room, notices: Notices) -> None:
        self.launch = launch
        self._spawn = spawn
        self._room = room
        self.notices = notices
        self._loop = asyncio.get_running_loop()
        self.used = self._loop.time()
        self._free: list[Lines] = []
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
                self._busy += 1
                return _Session(self, process, on_line, new=False)
            self._dismiss(process)
        return _Session(self, self.fresh(), on_line, new=True)

    def fresh(self) -> Lines:
        """Start a process for a request.

        Raises:
            StartFailed: it could not be.
        """
        process = self._start()
        self._busy += 1
        return process

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
            process.resident.look()
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

    def give_back(self, process: Lines, *, fit: bool) -> None:
        """Take a process back after a request; `fit` for another one, as far as its session knows."""
        self._busy -= 1
        if fit:
            self._held = False
        if fit and process.quiet() and not self._closed and not process.resident.worn():
            self._free.append(process)
        else:
            self._dismiss(process)

    def _start(self) -> Lines:
        try:
            return Lines(Resident(self._spawn, self.launch, self.notices.line))
        except OSError as problem:
            raise StartFailed(str(problem)) from problem

    def _dismiss(self, process: Lines) -> None:
        if process.babbled:
            self.notices.warn(
                "wrote more than one line for a request, or one without a request: the process was ended, "
                "since its words would be taken for the next request's answer"
            )
        self._end(process)

    def _end(self, process: Lines) -> None:
        task = self._loop.create_task(process.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class _Session:
    """One request at a process that stays."""

    def __init__(self, pool: Persistent, process: Lines, on_line: OnLine, *, new: bool) -> None:
        self._pool = pool
        self._on_line = on_line
        self._new = new
        self._stop: Stop | None = None
        self._take(process)

    def _take(self, process: Lines) -> None:
        self._process = process
        self._resident = process.resident
        self._resident.uses += 1
        self._resident.fresh_log(self._on_line)

    async def run(self, payload: Payload, *, deadline: float, answered: Answered | None = None) -> Completed:  # noqa: ARG002 - nothing goes on in it
        before = self._resident.cpu
        fit = False
        try:
            asked = self._process.ask(payload)
            self._resident.begin_request(deadline)
            del payload  # it may be large, and is not needed once it is written
            answer = await _settled(asked)
            unread, self._process.unread = self._process.unread, None
            if answer is None and unread is not None and not self._new and self._stop is None:
                # It was about to end when it was chosen. One that dies while it starts up would only do so again.
                self._exchange()
                before = self._resident.cpu
                asked = self._process.ask(unread)
                self._resident.begin_request(deadline)
                del unread
                answer = await _settled(asked)
            if answer is None or self._stop is not None:
                return await self._broken_off(before)
            # After what is no answer the answer may still come: it would be the next request's.
            fit = await _is_document(answer) and await self._process.tidy() and self._stop is None
            if not fit:
                await self._process.end()
                if why_stopped(self._resident.gone.result(), None) is not None:
                    return await self._broken_off(before)
            return self._answered(answer, before)
        except asyncio.CancelledError:
            self.stop(Stop.CANCELLED)
            with contextlib.suppress(StartFailed):
                await self._resident.ended()
            raise
        finally:
            self._pool.give_back(self._process, fit=fit)

    def _exchange(self) -> None:
        """Go on with a new process.

        Raises:
            StartFailed: it could not be started.
        """
        process = self._pool.fresh()
        self._pool.give_back(self._process, fit=False)
        self._take(process)

    def stop(self, why: Stop, *, grace: float = GRACE) -> None:
        """End the process: it cannot go on with half a request."""
        if self._resident.gone.done():
            return
        self._stop = self._stop or why
        self._resident.stop(grace)

    async def _broken_off(self, before: tuple[float, float]) -> Completed:
        """Tell how the process ended: by itself, or since an answer after the deadline is too late to trust it."""
        self._resident.kill()
        ended = await self._resident.ended()
        process = self._process
        stop = Stop.OUTPUT if process.overflow else self._stop
        if stop is None and not process.cut_off:
            stop = why_stopped(ended, None)
        ended = ended._replace(
            status=0 if process.cut_off and stop is None else ended.status,
            result=process.said if stop is None else bytearray(),
            cpu_user=max(0.0, ended.cpu_user - before[0]),
            cpu_system=max(0.0, ended.cpu_system - before[1]),
        )
        return completed(ended, self._resident.launch, stop=stop, log=self._resident.log_tail())

    def _answered(self, answer: bytearray, before: tuple[float, float]) -> Completed:
        resident = self._resident
        ended = Ended(
            resident.pid,
            0,
            Why.BY_ITSELF,
            cpu_user=max(0.0, resident.cpu[0] - before[0]),
            cpu_system=max(0.0, resident.cpu[1] - before[1]),
            peak_rss=resident.peak,
            result=answer,
        )
        return completed(ended, resident.launch, stop=None, log=resident.log_tail())


async def _settled(answer: asyncio.Future[bytearray]) -> bytearray | None:
    """Wait for an answer; None when the process died. A cancellation is the caller's own."""
    await asyncio.wait([answer])
    return None if answer.cancelled() else answer.result()


async def _is_document(answer: bytearray) -> bool:
    if len(answer) <= LARGE:
        return is_document(answer)
    return await asyncio.to_thread(is_document, answer)  # it takes its time, and others have their turns
