"""One child process: its pipes, its private folder, its deadline, its bounds.

`Child.run` returns only when everything the child ever started is dead and reaped, also when it is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.redact import Redactor
from gateway.warden.client import Failed, Gone, Leftover

if TYPE_CHECKING:
    from gateway.warden.client import Event, Handle, Warden

CHUNK = 1 << 18  # bytes read at once; one read a turn of the loop, so that deadlines fire under any flood
LINE = 8192  # bytes; a longer log line is cut into pieces
GRACE = 2.0  # seconds between SIGTERM and SIGKILL
CLEANUP = 20.0  # seconds that a launch's own clean-up may take
RUN_NAME = "{run}"  # stands for the run's own name in a command line
_PRIVATE = ("HOME", "TMPDIR", "TRACEPARENT")
LISTEN = 0.005  # seconds; whatever is over by then is read once, at its end: a pipe holds 64 KiB
DRAIN = 0.25  # seconds that whatever outlives the leader has to write its last words


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
    """How to start a process. `argv[0]` is an absolute path; `env` lacks only what the folder decides."""

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
    warden_died: bool
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


class StartFailed(Exception):
    """The operating system would not start the process."""


class LogPipe:
    """Turns what arrives on a log stream into bounded lines; never holds more than one line and the tail."""

    def __init__(self, bound: int, on_line: Callable[[str], None]) -> None:
        self.total = 0
        self._bound = bound
        self._on_line = on_line
        self._partial = bytearray()
        self._tail = bytearray()
        self._full = False

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


class _Lines:
    """Where the lines of a child go; apart from the child, which would otherwise keep itself and its request alive."""

    def __init__(self, on_line: Callable[[str, str], None]) -> None:
        self.on_line = on_line

    def stderr(self, line: str) -> None:
        self.on_line("stderr", line)

    def stdout(self, line: str) -> None:
        self.on_line("stdout", line)


class Child:
    """A process that was asked for, from its pipes to its end."""

    def __init__(self, warden: Warden, launch: Launch, folder: str, on_line: Callable[[str, str], None]) -> None:
        self.launch = launch
        self.folder = folder
        self._left_behind = False
        self._name = f"gateway-{'-'.join(folder.split('/')[-2:])}"
        self._warden = warden
        self._loop = asyncio.get_running_loop()
        self._handle: Handle | None = None
        self._gone: asyncio.Future[Gone] = self._loop.create_future()
        self._eof = asyncio.Event()
        self._stop: Stop | None = None
        self._answered: Answered | None = None
        self._goes_on = False
        self._whole = False
        self._stdin = -1
        self._unwritten: deque[memoryview] = deque()
        self._open: dict[int, Callable[[bytes], None]] = {}
        self._listening = False
        self._result = bytearray()
        self._lines = _Lines(on_line)
        self._log = LogPipe(launch.bounds.log, self._lines.stderr)
        self._noise = LogPipe(launch.bounds.log, self._lines.stdout)
        self._timers: list[asyncio.TimerHandle] = []

    @classmethod
    def start(
        cls, warden: Warden, launch: Launch, folder: str, on_line: Callable[[str, str], None], *, ahead: bool = False
    ) -> Child:
        """Make the pipes, and have the process started; `folder` is fresh, and the child's to drop.

        Raises:
            StartFailed: no descriptors, no disk, or arguments too large. (What exec itself refuses comes from `run`.)
        """
        child = cls(warden, launch, folder, on_line)
        with child.prepared() as fds:
            handle = warden.spawn(
                child,
                argv=[child._name if word == RUN_NAME else word for word in launch.argv],
                env=private_env(launch.env, folder),
                cwd=folder,
                memory=launch.bounds.memory,
                fds=fds,
                busy=not ahead,
            )
        child.attach(handle)
        return child

    @contextlib.contextmanager
    def prepared(self) -> Iterator[list[int]]:
        """Make the pipes; give the child's ends of these, which are closed afterwards.

        Raises:
            StartFailed: an OSError happened here or in the block.
        """
        theirs: list[int] = []
        try:
            self._make_pipes(theirs)
            yield theirs
        except OSError as problem:
            self._close()
            self._warden.folders.drop(self.folder)
            raise StartFailed(str(problem)) from problem
        finally:
            for fd in theirs:
                os.close(fd)

    def attach(self, handle: Handle) -> None:
        """Learn how the process is signalled. What was to be stopped before that is killed."""
        self._handle = handle
        if self._stop is not None:
            handle.kill()

    def private_env(self) -> dict[str, str]:
        """Return the environment that this run has beyond what its host was started with."""
        env = private_env(self.launch.env, self.folder)
        return {name: value for name, value in env.items() if name in _PRIVATE}

    async def never_started(self) -> None:
        """Clear up after a process that there never was."""
        if not self._gone.done():
            self._gone.cancel()
        self._close()
        self._warden.folders.drop(self.folder)

    def hand_over(self, on_line: Callable[[str, str], None]) -> None:
        """Send the log to somebody else from now on: a process that was started ahead has found its request."""
        self._lines.on_line = on_line
        if self._handle is not None:
            self._handle.busy(True)

    @property
    def untouched(self) -> bool:
        """Whether it lives and has written no result: a process that was started ahead must wait for its request."""
        return not self._gone.done() and not self._result

    @property
    def gone(self) -> asyncio.Future[Gone]:
        """Done when all of it is dead and reaped."""
        return self._gone

    async def run(self, payload: Payload, *, deadline: float, answered: Answered | None = None) -> Completed:
        """Feed the request, collect the result, and wait until all of it is dead.

        Args:
            payload: what the child reads on stdin, until EOF.
            deadline: a moment of the loop's clock.
            answered: asked whether what there is of the result is all of it, whenever it may be. From then on what the
                child has started may live on, its leader or what that left behind, and end by itself.

        Raises:
            StartFailed: exec refused.
            asyncio.CancelledError: after the whole tree was killed.
        """
        self._timers.append(self._loop.call_at(deadline, self.stop, Stop.DEADLINE))
        self._answered = answered
        self._feed(payload)
        del payload  # it may be large, and is not needed once it is written
        try:
            await asyncio.shield(self._gone)
        except asyncio.CancelledError:
            self.stop(Stop.CANCELLED)
            await uncancelled(self._gone)
            raise
        finally:
            await self._end()
        return self._completed()

    async def discard(self) -> None:
        """Kill it without a request, and wait for its end."""
        self.stop(Stop.CANCELLED, grace=0)
        await uncancelled(self._gone)
        await self._end()

    def stop(self, why: Stop, *, grace: float = GRACE) -> None:
        """Ask the whole group to end, and kill the whole tree after `grace` seconds. The first reason counts."""
        if self._gone.done():
            return
        self._stop = self._stop or why
        if self._handle is None:
            return
        if grace > 0:
            self._handle.signal(signal.SIGTERM)
            self._timers.append(self._loop.call_later(grace, self._handle.kill))
        else:
            self._handle.kill()

    def on_warden(self, event: Event) -> None:
        """Take what the warden says of this run."""
        if isinstance(event, Leftover):
            self._left_behind = self._stop is None
            self._read_on()
            if self._is_answered():
                return
            self._timers.append(self._loop.call_later(DRAIN, self._kill))
            self._leftover = self._loop.create_task(self._kill_at_eof())
        elif self._gone.done():
            return
        elif isinstance(event, Failed):
            self._gone.set_exception(StartFailed(event.message))
            self._gone.exception()  # looked at, also where nobody waits for it
        elif isinstance(event, Gone):
            self._gone.set_result(event)

    # --- private: pipes

    def _make_pipes(self, theirs: list[int]) -> None:
        theirs_stdin, self._stdin = os.pipe()
        theirs.append(theirs_stdin)
        os.set_blocking(self._stdin, False)
        takers = [self._take_result, self._log.feed]
        if self.launch.result_on_fd3:
            takers = [self._noise.feed, self._log.feed, self._take_result]
        for take in takers:
            ours, end = os.pipe()
            theirs.append(end)
            os.set_blocking(ours, False)
            self._open[ours] = take
        self._timers.append(self._loop.call_later(LISTEN, self._listen))

    def _listen(self) -> None:
        self._listening = True
        for fd in self._open:
            self._loop.add_reader(fd, self._on_readable, fd)

    def _feed(self, payload: Payload) -> None:
        self._unwritten.extend(memoryview(piece) for piece in pieces(payload))
        self._on_writable()
        if self._stdin >= 0:
            self._loop.add_writer(self._stdin, self._on_writable)

    def _on_writable(self) -> None:
        try:
            while self._unwritten:
                piece = self._unwritten[0]
                written = os.write(self._stdin, piece)
                if written < len(piece):
                    self._unwritten[0] = piece[written:]
                else:
                    self._unwritten.popleft()
        except BlockingIOError:
            return
        except BrokenPipeError:
            pass  # not reading the request is no error
        self._close_stdin()

    def _close_stdin(self) -> None:
        self._unwritten.clear()
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

    def _on_readable(self, fd: int) -> bool:
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._open[fd](data)
            return True
        self._close_reader(fd)
        return False

    def _take_result(self, data: bytes) -> None:
        bound = self.launch.bounds.output
        if len(self._result) > bound:
            return
        self._result += data
        if len(self._result) > bound:
            self._stop = self._stop or Stop.OUTPUT
            self._kill()
        elif data.endswith(b"\n") and len(self._result) <= CHUNK:  # whoever writes more closes it to be understood
            self._is_answered()

    def _is_answered(self) -> bool:
        """Tell whether the result is there and the rest goes on without it."""
        if self._answered is None or self._stop is not None:
            return False
        self._goes_on = self._goes_on or self._answered(self._result)
        return self._goes_on

    def _close_reader(self, fd: int) -> None:
        if self._listening:
            self._loop.remove_reader(fd)
        os.close(fd)
        if self._open.pop(fd) == self._take_result and not self._gone.done():
            self._whole = self._stop is None
            self._is_answered()
        if not self._open:
            self._eof.set()

    # --- private: the end

    async def _end(self) -> None:
        # Every writer is dead, so what is in the pipes is all there will be.
        self._finish_reading()
        self._close()
        self._warden.folders.drop(self.folder)
        await self._clean_up()

    def _read_on(self) -> None:
        for fd in list(self._open):
            while fd in self._open and self._on_readable(fd):
                pass

    async def _kill_at_eof(self) -> None:
        await self._eof.wait()
        self._kill()

    def _kill(self) -> None:
        if self._handle is not None and not self._gone.done():
            self._handle.kill()

    def _finish_reading(self) -> None:
        self._read_on()
        self._log.finish()
        self._noise.finish()

    def _close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._close_stdin()
        for fd in list(self._open):
            self._close_reader(fd)
        self._eof.set()

    async def _clean_up(self) -> None:
        launch = self.launch
        if not launch.cleanup or (self._stop is None and not self._gone.exception() and not self._gone.result().status):
            return
        argv = tuple(self._name if word == RUN_NAME else word for word in launch.cleanup)
        cleanup = msgspec.structs.replace(launch, argv=argv, cleanup=())
        with contextlib.suppress(StartFailed, OSError):
            child = Child.start(self._warden, cleanup, self._warden.folders.take(), self._lines.on_line)
            await asyncio.shield(child.run(b"", deadline=self._loop.time() + CLEANUP))

    def _completed(self) -> Completed:
        gone = self._gone.result()
        number = os.WTERMSIG(gone.status) if os.WIFSIGNALED(gone.status) else None
        return Completed(
            pid=gone.pid,
            bounds=self.launch.bounds,
            status=None if number else os.WEXITSTATUS(gone.status),
            signal=signal_name(number) if number else None,
            stop=self._stop,
            out_of_memory=gone.out_of_memory,
            warden_died=gone.warden_died,
            cpu_user=gone.utime,
            cpu_system=gone.stime,
            peak_rss=gone.peak_rss,
            result=self._result,
            log_tail=self._log.tail(),
            log_bytes=self._log.total + self._noise.total,
            whole=self._whole,
            left_behind=self._left_behind,
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


def private_env(env: Mapping[str, str], folder: str) -> dict[str, str]:
    """Return the environment of a process that works in a private folder; what the operator declared stands."""
    return {**env, "HOME": folder, "TMPDIR": folder, **_given(env)}


def _given(env: Mapping[str, str]) -> dict[str, str]:
    """Return what the operator declared of the names that the folder decides."""
    return {name: env[name] for name in _PRIVATE if name in env}


async def uncancelled(future: asyncio.Future[Gone]) -> None:
    """Wait for a future whatever is cancelled meanwhile; its exception is its owner's business."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
