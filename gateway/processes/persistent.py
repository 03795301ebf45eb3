"""One process, many requests: a JSON line in on stdin, a JSON line out on descriptor 3.

For what cannot be isolated per request cheaply. A process serves one request at a time; a crash, a deadline or a caller
who hangs up costs that process and that request.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, ClassVar

import msgspec

from gateway.cells.cell import Ended
from gateway.cells.wire import Rested, Why
from gateway.processes.base import processes
from gateway.processes.completed import NEVER, Completed, StartFailed, Stop, completed, why_stopped
from gateway.processes.launch import GRACE
from gateway.processes.line_process import LineProcess
from gateway.processes.resident import Resident
from gateway.processes.stock import Stock
from gateway.protocol.document import is_document
from gateway.protocol.request import LARGE
from gateway.protocol.told import ToldError, told

if TYPE_CHECKING:
    from gateway.cells.cell import Listener
    from gateway.observe.redact import Redactor
    from gateway.processes.base import OnLine, Process, Room
    from gateway.processes.launch import Answered, Keep, Launch, Payload
    from gateway.processes.notices import Notices
    from gateway.processes.spawn import SpawnPool
    from gateway.sections import Mode


FAILED = 400  # the least HTTP status that tells a failure
PATIENCE = 2.0  # seconds that a process has to go before there is another in its place


class Persistent:
    """One connector's processes, the latest used first."""

    least: ClassVar[int] = 1

    def __init__(self, launch: Launch, spawn: SpawnPool, room: Room, notices: Notices) -> None:
        self.launch = launch
        self.notices = notices
        self._spawn = spawn
        self._places = room.places
        self._loop = asyncio.get_running_loop()
        self.used = self._loop.time()
        self._stock: Stock[LineProcess] = Stock(room.places, self._on_unfit)
        self._busy = 0
        self._held = True
        """Nobody has asked for processes ahead yet, or the latest of them has ended by itself."""
        self._closed = False

    @property
    def mode(self) -> Mode:
        """How processes are obtained."""
        return "persistent"

    def obtain(self, launch: Launch, on_line: OnLine) -> Process:
        """Return a process without a request, or what will be a new one."""
        self.used = self._loop.time()
        self._busy += 1
        return _Session(self, self._stock.take(latest=True), launch.redact, on_line)

    async def new(self) -> LineProcess:
        """Return a new process, once one that was given up has gone where there would be one too many.

        Raises:
            StartFailed: it could not be started.
        """
        if self._busy + self._stock.leaving > self.launch.keep.concurrency:
            await self._stock.one_less(PATIENCE)
        return self.fresh()

    def fresh(self) -> LineProcess:
        """Start a process for a request.

        Raises:
            StartFailed: it could not be.
        """
        try:
            process = LineProcess(Resident(self._spawn, self.launch, self.notices.line))
        except OSError as problem:
            raise StartFailed(str(problem)) from problem
        self._stock.watch(process)
        return process

    def warm(self, *, idle: bool = False) -> None:
        """Start the first ones, or those that are to stay after idleness."""
        self._held = False
        keep = self.launch.keep
        wanted = min(min(keep.warm, keep.warm_min) if idle else keep.warm, keep.concurrency)
        while (there := len(self._stock) + self._busy) < wanted and self._places.free() > 0:
            if there + self._stock.leaving >= keep.concurrency:
                return  # until they are gone
            try:
                self._stock.give_back(self.fresh())
            except StartFailed:
                self._held = True  # the next request will tell
                return

    def tend(self, now: float) -> None:
        """Recycle the worn, and shrink after idleness."""
        idle = now - self.used > self.launch.keep.warm_idle
        self._stock.look()
        for process in self._stock:
            process.resident.look()
            if not process.resident.uses and process.resident.heavy():
                self.notices.heavy()
            if process.resident.worn() or (idle and len(self._stock) > self.launch.keep.warm_min):
                self._stock.retire(process)
        if not self._held:
            self.warm(idle=idle)

    def retire(self, *, light: bool = False) -> bool:
        """Give up one without a request; none is light."""
        return not light and self._stock.retire()

    def kept(self) -> dict[Listener, str]:
        """Return those without a request."""
        return {one.resident: "stays, waits for a call" for one in self._stock}

    async def close(self) -> None:
        """Kill those without a request; the others go when they are done."""
        self._closed = True
        await self._stock.close()

    def exchange(self, process: LineProcess) -> LineProcess:
        """Return a new one in place of one that has ended.

        Raises:
            StartFailed: it could not be started.
        """
        fresh = self.fresh()
        self._end(process)
        return fresh

    def may_stay(self, process: LineProcess, answer: bytearray) -> bool:
        """Tell whether a process may serve on after this answer: what was taken away may have been part of it."""
        error = _failure(answer)
        if error is not None and error.out_of_memory:
            return False
        code = error.error_code if error is not None else None
        again = code is not None and code == process.failure
        process.served, process.failure = process.served or code is None, code
        if Rested.KILLED in process.resident.swept:
            self.notices.warn_once(
                "a process that a request had started was killed after the request, and its own process was replaced: "
                "start at import what later requests need, and end in the command what it has started"
            )
            return False
        if again and process.served and Rested.REMOVED in process.resident.swept:
            self.notices.warn_once(
                f"failed twice in the same way ({code}) after files that requests had left were removed, and its "
                "process was replaced: make at import the files and folders that later requests need"
            )
            return False
        return True

    def give_back(self, process: LineProcess | None, *, fit: bool) -> None:
        """Take a process back after a request; `fit` for another one, as far as its session knows."""
        self._busy -= 1
        if process is None:
            return
        if fit:
            self._held = False
        if fit and process.ready and not self._closed and not process.resident.worn():
            self._stock.give_back(process)
        else:
            self._end(process)

    @staticmethod
    def keeps(keep: Keep) -> str:
        """See `Source`."""
        return processes(keep, f", and those that calls have needed (at most {keep.concurrency})")

    @staticmethod
    def counts(keep: Keep) -> tuple[int, int]:
        """See `Source`."""
        return min(keep.warm, keep.concurrency), keep.concurrency

    def _on_unfit(self, process: LineProcess) -> None:
        self._held = self._held or not process.resident.uses
        self._warn(process)

    def _end(self, process: LineProcess) -> None:
        self._warn(process)
        self._stock.end(process)

    def _warn(self, process: LineProcess) -> None:
        if process.babbled:
            self.notices.warn(
                "wrote more than one line for a request, or one without a request: the process was ended, "
                "since its words would be taken for the next request's answer"
            )


class _Session:
    """One request at a process that stays."""

    def __init__(self, source: Persistent, process: LineProcess | None, redact: Redactor, on_line: OnLine) -> None:
        """`process` is one that was there; None: there is to be a new one."""
        self._source = source
        self._redact = redact
        self._on_line = on_line
        self._stop: Stop | None = None
        self._there = process
        self._process: LineProcess | None = None

    @property
    def _resident(self) -> Resident:
        assert self._process is not None
        return self._process.resident

    def _take(self, process: LineProcess) -> None:
        self._process = process
        self._resident.uses += 1
        self._resident.fresh_log(self._on_line, self._redact)

    async def run(self, payload: Payload, *, deadline: float, answered: Answered | None = None) -> Completed:  # noqa: ARG002 - nothing goes on in it
        process, fit = self._there, False
        new = process is None
        try:
            process = process or await self._source.new()
            if self._stop is not None:
                fit = True
                return completed(NEVER, process.resident.launch, stop=self._stop, log=("", 0))
            self._take(process)
            before = self._resident.cpu
            asked = process.ask(payload)
            self._resident.begin_request(deadline)
            del payload  # it may be large, and is not needed once it is written
            answer = await _settled(asked)
            unread, process.unread = process.unread, None
            if answer is None and unread is not None and not new and self._stop is None:
                # It was about to end when it was chosen. One that dies while it starts up would only do so again.
                process = self._source.exchange(process)
                self._take(process)
                before = self._resident.cpu
                asked = process.ask(unread)
                self._resident.begin_request(deadline)
                del unread
                answer = await _settled(asked)
            if answer is None or self._stop is not None:
                return await self._broken_off(before)
            # After what is no answer the answer may still come: it would be the next request's.
            fit = await _is_document(answer) and await process.tidy() and self._stop is None
            if not fit:
                await process.end()
                if why_stopped(self._resident.gone.result(), None) is not None:
                    return await self._broken_off(before)
            fit = fit and self._source.may_stay(process, answer)
            return self._answered(answer, before)
        except asyncio.CancelledError:
            self.stop(Stop.CANCELLED)
            if process is not None:
                with contextlib.suppress(StartFailed):
                    await process.resident.ended()
            raise
        finally:
            self._source.give_back(process, fit=fit)

    def stop(self, why: Stop, *, grace: float = GRACE) -> None:
        """End the process: it cannot go on with half a request."""
        if self._process is None:
            self._stop = self._stop or why
        elif not self._resident.gone.done():
            self._stop = self._stop or why
            self._resident.stop(grace)

    async def _broken_off(self, before: tuple[float, float]) -> Completed:
        """Tell how the process ended: by itself, or since an answer after the deadline is too late to trust it."""
        process = self._process
        assert process is not None
        process.resident.kill()
        ended = await process.resident.ended()
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


class _Failing(msgspec.Struct, frozen=True):
    error: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()
    status: object = None


def _failure(answer: bytearray) -> ToldError | None:
    """Return the error that an answer tells, one with its status for a code if it has but that; None: it is neither."""
    if len(answer) > LARGE or not (b'"error"' in answer or b'"status"' in answer):
        return None
    try:
        failing = msgspec.json.decode(answer, type=_Failing)
    except msgspec.MsgspecError:
        return None
    error = told(failing.error)
    if error is not None:
        return error
    failed = failing.response and isinstance(failing.status, int) and failing.status >= FAILED
    return ToldError(error_code=f"status {failing.status}") if failed else None


async def _is_document(answer: bytearray) -> bool:
    if len(answer) <= LARGE:
        return is_document(answer)
    return await asyncio.to_thread(is_document, answer)  # it takes its time, and others have their turns
