"""One child process: its pipes, its private folder, its deadline, its bounds.

`Child.run` returns only when everything the child ever started is dead and reaped, also when it is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import shutil
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from gateway.warden.client import Failed, Gone, Leftover

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.warden.client import Handle, Warden

CHUNK = 1 << 18  # bytes read at once; one read a turn of the loop, so that deadlines fire under any flood
LINE = 8192  # bytes; a longer log line is cut into pieces
GRACE = 2.0  # seconds between SIGTERM and SIGKILL
DRAIN = 0.25  # seconds that whatever outlives the leader has to write its last words


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What one run may use: bytes of result, of log and of resident memory (0: unbounded)."""

    output: int
    log: int
    memory: int


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """How to start a process. `argv[0]` is an absolute path; `env` lacks only what the folder decides."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    result_on_fd3: bool
    bounds: Bounds


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


class Child:
    """A process that was asked for, from its pipes to its end."""

    def __init__(self, launch: Launch, folder: str, on_line: Callable[[str, str], None]) -> None:
        self.launch = launch
        self.folder = folder
        self._loop = asyncio.get_running_loop()
        self._handle: Handle | None = None
        self._gone: asyncio.Future[Gone] = self._loop.create_future()
        self._eof = asyncio.Event()
        self._stop: Stop | None = None
        self._stdin = -1
        self._unwritten: memoryview = memoryview(b"")
        self._open: dict[int, Callable[[bytes], None]] = {}
        self._result = bytearray()
        self._log = LogPipe(launch.bounds.log, lambda line: on_line("stderr", line))
        self._noise = LogPipe(launch.bounds.log, lambda line: on_line("stdout", line))
        self._timers: list[asyncio.TimerHandle] = []

    @classmethod
    def start(cls, warden: Warden, launch: Launch, folder: str, on_line: Callable[[str, str], None]) -> Child:
        """Make the folder and the pipes, and have the process started.

        Raises:
            StartFailed: no descriptors, no disk, or arguments too large. (What exec itself refuses comes from `run`.)
        """
        child = cls(launch, folder, on_line)
        theirs: list[int] = []
        try:
            os.mkdir(folder, 0o700)
            child._make_pipes(theirs)
            child._handle = warden.spawn(
                child,
                argv=launch.argv,
                env={**launch.env, "HOME": folder, "TMPDIR": folder, **_given(launch.env)},
                cwd=folder,
                memory=launch.bounds.memory,
                fds=theirs,
            )
        except OSError as problem:
            child._close()
            shutil.rmtree(folder, ignore_errors=True)
            raise StartFailed(str(problem)) from problem
        finally:
            for fd in theirs:
                os.close(fd)
        return child

    async def run(self, payload: bytes, *, deadline: float) -> Completed:
        """Feed the request, collect the result, and wait until all of it is dead.

        Args:
            payload: what the child reads on stdin, until EOF.
            deadline: a moment of the loop's clock.

        Raises:
            StartFailed: exec refused.
            asyncio.CancelledError: after the whole tree was killed.
        """
        self._timers.append(self._loop.call_at(deadline, self.stop, Stop.DEADLINE))
        self._feed(payload)
        try:
            await asyncio.shield(self._gone)
        except asyncio.CancelledError:
            self.stop(Stop.CANCELLED)
            await _uncancelled(self._gone)
            raise
        finally:
            if self._gone.done():
                self._finish_reading()
                self._close()
                await _remove(self.folder)
        return self._completed()

    def stop(self, why: Stop, *, grace: float = GRACE) -> None:
        """Ask the whole group to end, and kill the whole tree after `grace` seconds. The first reason counts."""
        if self._gone.done() or self._handle is None:
            return
        self._stop = self._stop or why
        if grace > 0:
            self._handle.signal(signal.SIGTERM)
            self._timers.append(self._loop.call_later(grace, self._handle.kill))
        else:
            self._handle.kill()

    def on_warden(self, event: Failed | Leftover | Gone) -> None:
        """Take what the warden says of this run."""
        if isinstance(event, Leftover):
            self._timers.append(self._loop.call_later(DRAIN, self._kill))
            self._leftover = self._loop.create_task(self._kill_at_eof())
        elif self._gone.done():
            return
        elif isinstance(event, Failed):
            self._gone.set_exception(StartFailed(event.message))
        else:
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
            self._loop.add_reader(ours, self._on_readable, ours)

    def _feed(self, payload: bytes) -> None:
        self._unwritten = memoryview(payload)
        self._on_writable()
        if self._stdin >= 0:
            self._loop.add_writer(self._stdin, self._on_writable)

    def _on_writable(self) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._stdin, self._unwritten) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            pass  # not reading the request is no error
        self._close_stdin()

    def _close_stdin(self) -> None:
        self._unwritten = memoryview(b"")
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
        if self._stop is Stop.OUTPUT:
            return
        self._result += data
        if len(self._result) > self.launch.bounds.output:
            self.stop(Stop.OUTPUT, grace=0)

    def _close_reader(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        os.close(fd)
        del self._open[fd]
        if not self._open:
            self._eof.set()

    # --- private: the end

    async def _kill_at_eof(self) -> None:
        await self._eof.wait()
        self._kill()

    def _kill(self) -> None:
        if self._handle is not None and not self._gone.done():
            self._handle.kill()

    def _finish_reading(self) -> None:
        # Every writer is dead, so what is in the pipes is all there will be.
        for fd in list(self._open):
            while fd in self._open and self._on_readable(fd):
                pass
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

    def _completed(self) -> Completed:
        gone = self._gone.result()
        number = os.WTERMSIG(gone.status) if os.WIFSIGNALED(gone.status) else None
        return Completed(
            pid=gone.pid,
            bounds=self.launch.bounds,
            status=None if number else os.WEXITSTATUS(gone.status),
            signal=_signal_name(number) if number else None,
            stop=self._stop,
            out_of_memory=gone.out_of_memory,
            warden_died=gone.warden_died,
            cpu_user=gone.utime,
            cpu_system=gone.stime,
            peak_rss=gone.peak_rss,
            result=self._result,
            log_tail=self._log.tail(),
            log_bytes=self._log.total + self._noise.total,
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"


def _given(env: Mapping[str, str]) -> dict[str, str]:
    """Return what the operator declared of the names that the folder decides."""
    return {name: env[name] for name in ("HOME", "TMPDIR") if name in env}


async def _uncancelled(future: asyncio.Future[Gone]) -> None:
    """Wait for a future whatever is cancelled meanwhile; its exception is its owner's business."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])


async def _remove(folder: str) -> None:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return
    except OSError:
        await asyncio.shield(asyncio.to_thread(_remove_tree, folder))


def _remove_tree(folder: str) -> None:
    def open_up(_function: object, path: str, _info: object) -> None:
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(path), 0o700)
            os.chmod(path, 0o700)
            os.rmdir(path) if os.path.isdir(path) else os.unlink(path)

    shutil.rmtree(folder, onerror=open_up)
