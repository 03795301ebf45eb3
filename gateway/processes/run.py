"""One child process: its pipes, its private folder, its deadline, its bounds.

`Child.run` returns only when everything the child ever started is dead and reaped, also when it is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.cells.cell import Allowance, Ended, Listener, Words
from gateway.cells.wire import Flag, Why
from gateway.observe.redact import Redactor
from gateway.sandbox import Sandbox

if TYPE_CHECKING:
    from gateway.cells.cell import Cell

    OnLine = Callable[[str, str], None]
    """Takes a line of log: the stream's name and the text."""

CHUNK = 1 << 18  # bytes read at once; one read a turn of the loop
LINE = 8192  # bytes; a longer log line is cut into pieces
SHORT = 64  # bytes; a shorter line costs as much: each is an event, and a log of nothing but newlines would hold up all
FEWEST = 1000  # lines that a log may have in any case
GRACE = 2.0  # seconds between SIGTERM and SIGKILL
CLEANUP = 20.0  # seconds that a launch's own clean-up may take
RUN_NAME = "{run}"  # stands for the run's own name in a command line
_PRIVATE = ("HOME", "TMPDIR", "TRACEPARENT")  # variables that a forked process has of its own
_RESULT_ON_3, _TELL_RESULT = int(Flag.RESULT_ON_3), int(Flag.TELL_RESULT)  # the operators of enumerations are slow
DRAIN = 0.25  # seconds that whatever outlives its answer has to write its last words
OVER = {Why.PROCESSES: "max_pids", Why.DISK: "max_disk"}
NEVER = Ended(0, signal.SIGKILL, Why.KILLED)
"""Of a run that was stopped before there was a process."""


Answered = Callable[[bytearray], bool]
"""Tells whether a result is complete."""

Payload = bytes | tuple[bytes | bytearray | memoryview, ...]
"""What a process reads on stdin: in one piece, or in several that nobody has to put together."""

Mode = Literal["spawn", "standby", "fork", "persistent"]


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What one run may use: bytes of result, of log and of resident memory (0: unbounded)."""

    output: int
    log: int
    memory: int


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """How long processes are kept for requests to come. Ages in seconds, sizes in bytes."""

    warm: int = 1
    warm_min: int = 0
    warm_idle: float = 600.0
    uses: int = 1000
    age: float = 3600.0
    rss: int = 512 << 20
    concurrency: int = 8


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """How to start a process. `argv[0]` is an absolute path; `env` lacks HOME and TMPDIR, as a rule: a run's folder."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    result_on_fd3: bool
    bounds: Bounds
    cleanup: tuple[str, ...] = ()
    """A command line to run after a run that was stopped or died: for what lives outside of our processes."""
    name: str = ""
    """The connector, for messages."""
    key: str = ""
    """Changes with anything that makes it another connector."""
    mode: Mode = "spawn"
    resident: tuple[str, ...] = ()
    """The command line of a process that serves more than one request (modes fork and persistent)."""
    keep: Keep = Keep()
    redact: Redactor = Redactor()
    """Takes secrets out of what its processes say without a request."""
    sandbox: Sandbox = Sandbox()
    """What its cell is asked for."""


class Stop(enum.Enum):
    """Why a run was stopped from outside."""

    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    DRAINED = "drained"
    OUTPUT = "output"


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is over. Times in seconds, sizes in bytes; `status` is None when a signal ended it."""

    pid: int
    bounds: Bounds
    status: int | None
    signal: str | None
    stop: Stop | None
    out_of_memory: bool
    over: str | None
    """The setting that says how much of something it might have, and it had more."""
    cell_died: bool
    cpu_user: float
    cpu_system: float
    peak_rss: int
    result: bytearray
    log_tail: str
    log_bytes: int
    whole: bool = False
    """Its result was closed before it was stopped: it had said all that it would."""
    left_behind: bool = False
    """Something that it had started outlived it, although nobody stopped it."""
    clean: bool = False
    """It ended by itself, with status 0."""


class StartFailed(Exception):
    """The operating system would not start the process."""


class StaleCell(StartFailed):
    """Its cell hides a file no longer that has been replaced; in another cell it can be started."""


class LogPipe:
    """Turns what arrives on a log stream into bounded lines; never holds more than one line and the tail."""

    def __init__(self, bound: int, on_line: Callable[[str], None]) -> None:
        self.total = 0
        self._bound = bound
        self._on_line = on_line
        self._partial = bytearray()
        self._tail = bytearray()
        self._full = False
        self._lines_left = max(FEWEST, bound // SHORT)

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        self.total += len(data)
        self._tail += data
        if len(self._tail) > 2 * LINE:
            del self._tail[:-LINE]
        if self._full:
            return
        if self.total > self._bound:
            data = data[: max(0, len(data) - (self.total - self._bound))]
            self._full = True
        self._partial += data
        *lines, rest = self._partial.split(b"\n")
        if len(lines) > self._lines_left:
            lines, rest, self._full = lines[: self._lines_left], bytearray(), True
        self._lines_left -= len(lines)
        for line in lines:
            self._emit(line)
        while len(rest) > LINE:
            self._emit(rest[:LINE])
            rest = rest[LINE:]
        self._partial = bytearray(rest)
        if self._full:
            self.finish()
            self._on_line(f"... the log goes on over its bound of {self._bound} bytes and is dropped from here")

    def finish(self) -> None:
        """Give out a last line that had no newline."""
        if self._partial:
            self._emit(self._partial)
            self._partial = bytearray()

    def tail(self) -> str:
        """Return the last few kilobytes."""
        return self._tail[-LINE:].decode(errors="replace").strip()

    def _emit(self, line: bytes | bytearray) -> None:
        for start in range(0, len(line) or 1, LINE):
            self._on_line(line[start : start + LINE].decode(errors="replace").rstrip("\r"))


class LogLines:
    """What a child writes beside its result, cut into lines."""

    def __init__(self, bound: int, on_line: OnLine) -> None:
        self.on_line = on_line
        self._bound = bound
        self._pipes: dict[int, LogPipe] = {}

    def feed(self, stream: int, data: bytes) -> None:
        """Take what came of stdout (1) or stderr (2)."""
        pipe = self._pipes.get(stream)
        if pipe is None:
            name = "stdout" if stream == 1 else "stderr"
            pipe = self._pipes[stream] = LogPipe(self._bound, lambda line: self.on_line(name, line))
        pipe.feed(data)

    def finish(self) -> None:
        """Give out last lines that had no newline."""
        for pipe in self._pipes.values():
            pipe.finish()

    def tail(self) -> str:
        """Return the last few kilobytes of stderr."""
        pipe = self._pipes.get(2)
        return pipe.tail() if pipe is not None else ""

    @property
    def total(self) -> int:
        """How many bytes there were."""
        return sum(pipe.total for pipe in self._pipes.values())


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

    def hand_over(self, on_line: OnLine) -> None:
        """Send the log to somebody else from now on: a process that was started ahead has found its request."""
        self._on_line = on_line
        if self._lines is not None:
            self._lines.on_line = on_line

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

    def on_started(self, pid: int) -> None:  # noqa: ARG002
        """Learn that the host has forked it."""
        self._hear_started()

    def on_log(self, stream: int, data: bytes) -> None:
        """Take a piece of log."""
        if self._lines is None:
            self._lines = LogLines(self.launch.bounds.log, self._on_line)
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
    if cell.memo is not None and cell.memo[0] is launch:
        return cell.memo[1:]
    argv = [cell.name_of_next() if word == RUN_NAME else word for word in launch.argv]
    try:
        words = Words.of(argv, launch.env.items())
    except OSError as problem:
        raise StartFailed(str(problem)) from problem
    bounds = limits(launch)
    if RUN_NAME not in launch.argv:
        cell.memo = launch, words, bounds
    return words, bounds


def _nothing() -> None:
    """Have nothing to release."""


def limits(launch: Launch) -> Allowance:
    """Return what a run of a launch may use, as a cell has it."""
    bounds = launch.bounds
    return Allowance(GRACE, bounds.output, bounds.log, bounds.memory, launch.sandbox.max_pids)


def why_stopped(ended: Ended, stop: Stop | None) -> Stop | None:
    """Return why a run was stopped, None when it ended by itself: also when that came before the word to stop."""
    if ended.why == Why.DEADLINE:
        return stop or Stop.DEADLINE
    if ended.why == Why.OUTPUT:
        return Stop.OUTPUT
    return stop if ended.why in (Why.STOPPED, Why.KILLED, Why.CELL_DIED) else None


def completed(ended: Ended, launch: Launch, *, stop: Stop | None, log: tuple[str, int]) -> Completed:
    """Return what a run came to; `log` is its last words and how many bytes there were."""
    number = os.WTERMSIG(ended.status) if ended.status and os.WIFSIGNALED(ended.status) else None
    memory = launch.bounds.memory
    return Completed(
        pid=ended.pid,
        bounds=launch.bounds,
        status=None if number else os.WEXITSTATUS(ended.status),
        signal=signal_name(number) if number else None,
        stop=stop,
        # One that the system refused memory has said so in its own words, and failed.
        out_of_memory=ended.why == Why.MEMORY or (ended.status != 0 and 0 < memory < ended.peak_rss),
        over=OVER.get(ended.why),
        cell_died=ended.why == Why.CELL_DIED,
        cpu_user=ended.cpu_user,
        cpu_system=ended.cpu_system,
        peak_rss=ended.peak_rss,
        result=ended.result,
        log_tail=log[0],
        log_bytes=max(log[1], ended.log_bytes),
        whole=ended.whole,
        left_behind=ended.left_behind,
        clean=stop is None and ended.status == 0 and ended.why is Why.BY_ITSELF,
    )


def pieces(payload: Payload) -> tuple[bytes | bytearray | memoryview, ...]:
    """Return what a payload consists of."""
    return (payload,) if isinstance(payload, bytes) else payload


def signal_name(number: int) -> str:
    """Return a signal's name."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"


async def uncancelled(future: asyncio.Future[Ended] | asyncio.Task[Completed]) -> None:
    """Wait for a future whatever is cancelled meanwhile; its exception is its owner's business."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
