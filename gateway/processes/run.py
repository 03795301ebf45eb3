"""One child process: its pipes, its private folder, its deadline, its bounds.

`Child.run` returns only when everything the child ever started is dead and reaped, also when it is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec

from gateway.cells.cell import Allowance, Ended, Listener, Words
from gateway.cells.effort import Effort, effort
from gateway.cells.wire import Flag, Why
from gateway.processes.completed import NEVER, Completed, StaleCell, StartFailed, Stop, completed, why_stopped
from gateway.processes.launch import GRACE, RUN_NAME, Answered, Launch, Payload, pieces
from gateway.processes.log import LogLines

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.cells.cell import Cell
    from gateway.observe.redact import Redactor
    from gateway.processes.base import OnLine


CHUNK = 1 << 18  # bytes read at once; one read a turn of the loop
CLEANUP = 20.0  # seconds that a launch's own clean-up may take
_PRIVATE = ("HOME", "TMPDIR", "TRACEPARENT", "TRACESTATE")  # variables that a forked process has of its own
_RESULT_ON_3, _TELL_RESULT = int(Flag.RESULT_ON_3), int(Flag.TELL_RESULT)  # the operators of enumerations are slow
_RESULT_IN_LINE = int(Flag.RESULT_IN_LINE)
DRAIN = 0.25  # seconds that whatever outlives its answer has to write its last words


class Child(Listener):
    """A process that was asked for, in its cell, until all of it is gone."""

    def __init__(
        self,
        cell: Cell,
        launch: Launch,
        on_line: OnLine,
        release: Callable[[], None],
        other: Callable[[], tuple[Cell, Callable[[], None]]] | None = None,
    ) -> None:
        """`release` is called once, when it needs its cell no more; `other` is where to clean up after a dead one."""
        self.launch = launch
        self.pid = 0
        """As it is in its cell; 0: nobody has said so."""
        self._cell = cell
        self._release = release
        self._other = other
        self._loop = asyncio.get_running_loop()
        self._run = 0
        self._gone: asyncio.Future[Ended] = self._loop.create_future()
        self._waiter: asyncio.Future[None] | None = None
        """Wakes the run. What a cancelled task waits for is cancelled too, which `_gone` must not be."""
        self._stop: Stop | None = None
        self._answered: Answered | None = None
        self._started: asyncio.Future[None] | None = None
        self._touched = False
        self._on_line = on_line
        self._redact = launch.redact
        self._lines: LogLines | None = None
        self._name = ""

    def begin(self) -> None:
        """Have it started ahead of its request.

        Raises:
            StartFailed: there is no memory, or there are no descriptors.
        """
        self._begin(*words_of(self._cell, self.launch), Flag.AHEAD)

    async def fork(self, *, in_time: bool) -> None:
        """Have it forked by the host in its cell, ahead of its request. To be shielded from cancellation.

        Args:
            in_time: its request comes later, so that it can prepare itself.

        Raises:
            StartFailed: the host is gone, or cannot fork.
        """
        started = self._started = self._loop.create_future()
        own = [(name, value) for name, value in self.launch.env.items() if name in _PRIVATE]
        try:
            words = Words.of(["forked"], own)
        except OSError as problem:
            raise self._never(problem) from problem
        self._begin(words, limits(self.launch), Flag.AHEAD | Flag.FORKED | Flag.TELL | (Flag.IN_TIME if in_time else 0))
        await started
        if self._gone.done():
            self._gone.result()

    @property
    def untouched(self) -> bool:
        """Whether it lives and has written no result: a process that was started ahead must wait for its request."""
        return not self._gone.done() and not self._touched

    @property
    def gone(self) -> asyncio.Future[Ended]:
        """Done when all of it is dead and reaped."""
        return self._gone

    def effort(self) -> Effort:
        """Return what it, all that it has started, and its cell have taken so far."""
        return effort(self._cell.process.pid)

    def hand_over(self, on_line: OnLine, redact: Redactor) -> None:
        """Send the log to somebody else from now on: a process that was started ahead has found its request."""
        self._on_line, self._redact = on_line, redact
        if self._lines is not None:
            self._lines.hand_over(on_line, redact)

    async def run(self, payload: Payload, *, deadline: float, answered: Answered | None = None) -> Completed:
        """Feed the request, collect the result, and wait until all of it is dead.

        Args:
            payload: what the child reads on stdin, until EOF.
            deadline: a moment of the loop's clock. Its cell holds it.
            answered: asked whether what there is of the result is all of it, whenever it may be. From then on what the
                child has started may live on, its leader or what that left behind, and end by itself.

        Raises:
            StartFailed: it could not be started.
            asyncio.CancelledError: after the whole tree was killed.
        """
        self._answered = answered
        seconds = max(0.001, deadline - self._loop.time())
        flags = _TELL_RESULT if answered is not None else 0
        try:
            if self._run:
                self._feed(payload, seconds, flags)
            elif self._stop is None:
                self._begin(*words_of(self._cell, self.launch), flags, payload, seconds)
            else:
                self._gone.set_result(NEVER)
        except BaseException:
            self.let_go()
            raise
        del payload  # it may be large, and is not needed once it is written
        try:
            if not self._gone.done():
                self._waiter = self._loop.create_future()
                await self._waiter
        except asyncio.CancelledError:
            self.stop(Stop.CANCELLED)
            await uncancelled(self._gone)
            raise
        finally:
            if self._lines is not None:
                self._lines.finish()
            try:
                if self.launch.cleanup and self._has_to_be_cleaned_up():
                    await self._clean_up()
            finally:
                release, self._release = self._release, _nothing
                release()
        ended = self._gone.result()
        stop = None if ended.why is Why.BY_ITSELF else why_stopped(ended, self._stop)
        log = (self._lines.tail(), self._lines.total) if self._lines is not None else ("", 0)
        return completed(ended, self.launch, stop=stop, log=log)

    async def discard(self) -> None:
        """Kill it without a request, and wait for its end."""
        if self._run:
            self.stop(Stop.CANCELLED, grace=0)
            await uncancelled(self._gone)
            if self._lines is not None:
                self._lines.finish()
        else:
            self._gone.cancel()
        self.let_go()

    def stop(self, why: Stop, *, grace: float = GRACE) -> None:
        """Ask the whole group to end, and kill the whole tree after `grace` seconds. The first reason counts."""
        if self._gone.done():
            return
        self._stop = self._stop or why
        if not self._run:
            return
        if grace > 0:
            self._cell.stop(self._run, grace=grace)
        else:
            self._cell.kill(self._run)

    def let_go(self) -> None:
        """Give the cell back; it does no harm to do so again."""
        release, self._release = self._release, _nothing
        release()

    # --- what the cell says

    def on_started(self, pid: int) -> None:
        """Learn that the host has forked it; `pid` as it is in its cell."""
        self.pid = pid
        self._hear_started()

    def on_log(self, stream: int, data: bytes) -> None:
        """Take a piece of log."""
        if self._lines is None:
            self._lines = LogLines(self.launch.bounds.log, self._on_line, self._redact)
        self._lines.feed(stream, data)

    def on_result(self, result: bytearray) -> None:
        """Ask whether that is all of the result."""
        self._touched = True
        if self._answered is not None and self._stop is None and result and self._answered(result):
            self._cell.go_on(self._run)

    def on_failed(self, message: str, *, stale: bool = False) -> None:
        """Learn that there never was a process."""
        if not self._gone.done():
            self._gone.set_exception(StaleCell(message) if stale else StartFailed(message))
            self._gone.exception()  # looked at, also where nobody waits for it
        self._wake()

    def on_ended(self, ended: Ended) -> None:
        """Learn that nothing of it is left."""
        if not self._gone.done():
            self._gone.set_result(ended)
        self._wake()

    # --- private

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._started is not None:
            self._hear_started()

    def _hear_started(self) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_result(None)

    def _begin(self, words: Words, bounds: Allowance, flags: int, payload: Payload = b"", seconds: float = 0.0) -> None:
        if self.launch.result_on_fd3:
            flags |= _RESULT_ON_3
        if self.launch.result_in_line:
            flags |= _RESULT_IN_LINE
        if self.launch.cleanup:
            self._name = self._cell.name_of_next()
        try:
            parts = (payload,) if isinstance(payload, bytes) else payload
            self._run = self._cell.begin(self, words, bounds, flags=flags, payload=parts, seconds=seconds)
        except OSError as problem:
            raise self._never(problem) from problem

    def _never(self, problem: OSError) -> StartFailed:
        self._gone.cancel()
        return StartFailed(str(problem))

    def _feed(self, payload: Payload, seconds: float, flags: int) -> None:
        if self._gone.done():
            return
        try:
            self._cell.feed(self._run, pieces(payload), seconds=seconds, grace=GRACE, flags=flags)
        except OSError as problem:
            self.stop(Stop.CANCELLED, grace=0)
            raise StartFailed(str(problem)) from problem

    def _has_to_be_cleaned_up(self) -> bool:
        return bool(self._stop is not None or self._gone.exception() or self._gone.result().status)

    async def _clean_up(self) -> None:
        launch = self.launch
        argv = tuple(self._name if word == RUN_NAME else word for word in launch.cleanup)
        cleanup = msgspec.structs.replace(launch, argv=argv, cleanup=())
        with contextlib.suppress(StartFailed, OSError):
            cell, release = (self._cell, _nothing) if self._cell.alive or self._other is None else self._other()
            child = Child(cell, cleanup, self._on_line, release)
            running = self._loop.create_task(child.run(b"", deadline=self._loop.time() + CLEANUP))
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                await uncancelled(running)  # its cell is not to be used meanwhile
                raise


def words_of(cell: Cell, launch: Launch) -> tuple[Words, Allowance]:
    """Return a launch's command line and environment, as the wire has them, and what a run of it may use.

    Raises:
        StartFailed: a word has a NUL in it.
    """
    if cell.memo is not None and cell.memo[0] is launch.argv and cell.memo[1] is launch.env:
        return cell.memo[2:]
    argv = [cell.name_of_next() if word == RUN_NAME else word for word in launch.argv]
    try:
        words = Words.of(argv, launch.env.items())
    except OSError as problem:
        raise StartFailed(str(problem)) from problem
    bounds = limits(launch)
    if RUN_NAME not in launch.argv:
        cell.memo = launch.argv, launch.env, words, bounds
    return words, bounds


def _nothing() -> None:
    """Have nothing to release."""


def limits(launch: Launch) -> Allowance:
    """Return what a run of a launch may use, as a cell has it."""
    bounds = launch.bounds
    return Allowance(GRACE, bounds.output, bounds.log, bounds.memory, launch.sandbox.max_pids, bounds.linger)


async def uncancelled(future: asyncio.Future[Ended] | asyncio.Task[Completed]) -> None:
    """Wait for a future whatever is cancelled meanwhile; its exception is its owner's business."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
