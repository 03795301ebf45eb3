"""Ways out for lines: at once where that takes no wait, or by a thread. Who puts a line in neither waits nor fails."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import signal
import stat
import threading
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STDOUT, STDERR = 1, 2
QUEUE = 4 << 20  # bytes that wait at most; what comes then is dropped, and counted
BATCH = 1 << 16  # bytes of a write of the thread's at most
FITS = 4096  # bytes that a pipe or a socket takes without a wait when it takes any (a page of a pipe), and in one piece
GATHER = 0.01  # seconds from a line that may wait to its write, for others that come meanwhile: waking the thread costs
AGAIN = 1.0  # seconds until the next try to write what could not be written
STALLED = 5.0  # seconds that a write takes no longer where somebody reads
LAST_WORDS = 2.0  # seconds that the end of the process waits for what is queued
NOBODY = "nobody reads it"
OWN = 0o600  # what may be done with a file that is made
FAR = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "gluster", "lustre", "afs", "gfs", "ocfs", "virtiofs")
"""How the names of file systems begin that may wait for another machine, or for another process."""


class LineWriter:
    """Lines stay in their order, and one that could not be written is tried again.

    A descriptor that does not block would do without a thread, but standard error and standard output are shared with
    others, and so would be that it does not block; and files that lie far away block all the same.
    """

    def __init__(
        self,
        name: str,
        *,
        lost: Callable[[int], None],
        changed: Callable[[], None] = lambda: None,
        gather: float = GATHER,
    ) -> None:
        """`name` is the thread's, which calls `lost` with how many lines are missing, where they would have been.

        It calls `changed` whenever it has written something, or could not. For `gather` seconds it waits for more.
        """
        self.dropped = 0
        """Lines that found the queue full."""
        self.taken = 0
        """Bytes of all others."""
        self.written = 0
        """How many of them are written."""
        self._name = name
        self._lost = lost
        self._changed = changed
        self._gather = gather
        self._path: Path | None = None
        self._inode = (0, 0)
        self._failure: str | None = None
        self._begin(STDERR)
        self._turn = threading.Condition()  # reentrant: what the collector finds in the middle of a line may log, too
        self._waiting = bytearray()
        self._begun = 0
        """Bytes of the first line in it that are written already."""
        self._writing = 0
        """Bytes that are being written."""
        self._gap = 0
        """Lines dropped since the queue was full. Until it is empty again none is taken: where they miss is told."""
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._since = 0.0
        """When the thread's writing of what is being written got on, 0 when nothing is."""

    def begin(self, descriptor: int) -> None:
        """Write to a descriptor from now on."""
        self.close()
        self._path = None
        self._begin(descriptor)

    def follow(self, path: Path) -> None:
        """Append to what has a name from now on, whatever that is at the moment: a file is made where there is none."""
        self.close()
        self._path, self._descriptor, self._inode = path, -1, (0, 0)
        self.reopen()

    def reopen(self) -> None:
        """Leave the file that had the name for the one that has it now, at the next line where opening it may wait."""
        if self._path is None:
            return
        with self._turn:
            self._stale = True
            if self._writing or self._failure or self._far:
                return
            try:
                self._follow(self._path)
            except OSError as problem:
                self._failure = _why(problem)
                self._wake()

    @property
    def problem(self) -> str | None:
        """Why lines cannot be written at the moment."""
        since = self._since
        stalled = since and time.monotonic() - since > STALLED
        return self._failure or (NOBODY if stalled else None)

    def put(self, line: bytes, *, later: bool = False) -> int:
        """Write a line, or queue it where it may come `later`, or would wait; drop it where the queue is full.

        Returns: as much as `written` will be once it is; 0 when it was dropped.
        """
        with self._turn:
            if self._gap or len(self._waiting) + self._writing + len(line) > QUEUE:
                self._gap += 1
                self.dropped += 1
                return 0
            self._waiting += line
            self.taken = mark = self.taken + len(line)
            if self._writing:
                return mark
            if not later and not self._failure and self._fits():
                self._write_now()
            if self._waiting:
                self._wake()
            return mark

    def close(self) -> None:
        """Write what is queued, as far as that is possible within seconds, and end the thread."""
        thread = self._thread
        if thread is not None and not self._closing.is_set():
            self._closing.set()
            with self._turn:
                self._turn.notify_all()
            thread.join(LAST_WORDS)
            if not thread.is_alive():  # or else it ends with the process
                self._thread = None
                self._closing.clear()
        if self._thread is None:
            self._leave()

    # --- private

    def _begin(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._failure = None
        self._stale = False
        self._room = select.poll()
        self._file = False
        self._far = False
        with contextlib.suppress(OSError):
            facts = os.fstat(descriptor)
            self._inode = facts.st_dev, facts.st_ino
            self._file = stat.S_ISREG(facts.st_mode)
            self._far = self._file and _is_far(facts.st_dev)
            self._room.register(descriptor, select.POLLOUT)

    def _leave(self) -> None:
        """Close what was opened here."""
        if self._path is not None and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _follow(self, path: Path) -> bool:
        """Open what has the name now, unless that is open; tell whether it is another file than before.

        Raises:
            OSError: it cannot be opened, or not be written.
        """
        if self._descriptor >= 0 and not self._stale:
            with contextlib.suppress(OSError):
                facts = os.stat(path)
                if (facts.st_dev, facts.st_ino) == self._inode:
                    return False
        before, failure = self._inode, self._failure
        self._leave()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        self._begin(os.open(path, flags, OWN))
        self._failure = failure
        try:
            other = self._inode != before
            ends = (
                not other or not self._file or _ends_with_a_line(path)
            )  # one that was killed may have left half a line
            os.write(self._descriptor, b"" if ends else b"\n")  # where nothing can be written, nothing is refused, too
        except OSError:
            self._leave()
            raise
        return other

    def _fits(self) -> bool:
        """Tell whether all that waits can be written without a wait."""
        if self._file:
            return not self._far
        return len(self._waiting) <= FITS and bool(self._room.poll(0))

    def _write_now(self) -> None:
        batch, self._waiting = self._waiting, bytearray()
        self._writing, begun = len(batch), self._begun
        try:
            if self._path is not None and self._follow(self._path):
                begun = 0
            begun += os.write(self._descriptor, memoryview(batch)[begun:] if begun else batch)
        except OSError as problem:
            if not isinstance(problem, BlockingIOError):  # for room, the thread waits
                self._failure = _why(problem)
        finally:
            self._writing = 0
            self._begun = 0
            if begun < len(batch):
                self._keep(batch, begun)
            self.written = self.taken - len(self._waiting) + self._begun

    def _keep(self, batch: bytearray, written: int) -> None:
        """Put what could not be written before what waits, from the beginning of its line."""
        line = batch.rfind(b"\n", 0, written) + 1
        self._begun = written - line
        self._waiting[:0] = batch[line:]

    def _wake(self) -> None:
        if self._thread is not None:
            self._turn.notify_all()
            return
        thread = threading.Thread(target=self._main, name=self._name, daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the first thread's
        try:
            thread.start()
            self._thread = thread
        except RuntimeError as problem:  # no more threads can be had: the next line tries again
            self._failure = str(problem)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _main(self) -> None:
        while (batch := self._next()) or self._gap or not self._closing.is_set():
            self._write_out(batch)
            with self._turn:
                self._writing = 0
                if self._gap and not self._waiting:
                    missing, self._gap = self._gap, 0
                    self._lost(missing)

    def _next(self) -> bytearray:
        """Wait for lines; nothing when the end has come, lines are missing here, or it is to be tried again."""
        while True:
            with self._turn:
                while not (self._waiting or self._failure or self._closing.is_set()):
                    self._turn.wait()
                much = len(self._waiting) >= BATCH
            if not much:
                self._closing.wait(self._gather)
            with self._turn:
                if self._file and not self._far and self._waiting and not self._failure:
                    self._write_now()  # who has a line meanwhile has it written, too
                batch = self._waiting[: self._end()]
                del self._waiting[: len(batch)]
                self._writing = len(batch)
            if batch or self._gap or self._failure or self._closing.is_set():
                return batch

    def _end(self) -> int:
        """Return where the next batch ends: between two lines, since others may write to the same place."""
        most = FITS if self._path is not None and not self._file else BATCH
        if len(self._waiting) <= most:
            return len(self._waiting)
        return self._waiting.rfind(b"\n", 0, most) + 1 or self._waiting.find(b"\n") + 1 or most

    def _write_out(self, batch: bytearray) -> None:
        begin, end = self._begun, len(batch)
        self._begun = 0
        while begin < end or self._failure:
            self._since = self._since or time.monotonic()
            try:
                if self._path is not None and self._follow(self._path):
                    line = batch.rfind(b"\n", 0, begin) + 1
                    self.written -= begin - line
                    begin = line
                count = os.write(self._descriptor, batch[begin:])
            except BlockingIOError:  # somebody else has made it so
                self._room.poll(AGAIN * 1000)
            except OSError as problem:
                self._failure = _why(problem)
                self._changed()
                if self._closing.is_set():
                    break
                self._closing.wait(AGAIN)
            else:
                begin += count
                self.written += count
                self._failure = None
                self._since = 0.0
                self._changed()
        self._since = 0.0


class LogWriter(LineWriter, io.TextIOBase):
    """The stream of the log. Who logs does not hear of failure."""

    def __init__(self) -> None:
        super().__init__("log", lost=_tell_dropped)

    def write(self, text: str) -> int:
        """Write a text of whole lines."""
        self.put(text.encode(errors="backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """Do nothing: nothing that can be written is held back."""


def _tell_dropped(lines: int) -> None:
    structlog.get_logger().warning("log_dropped", lines=lines)


def _why(problem: OSError) -> str:
    nobody = problem.errno == errno.ENXIO  # a FIFO that nobody has open
    return NOBODY if nobody else problem.strerror or type(problem).__name__


def _ends_with_a_line(path: Path) -> bool:
    """Tell whether nothing stands behind the last line of a file, as far as that can be seen."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    return True


def _is_far(device: int) -> bool:
    """Tell whether a file system is one of `FAR`."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError, ValueError), open("/proc/self/mountinfo", errors="replace") as mounts:
        for words in map(str.split, mounts):
            if words[2] == number:
                return words[words.index("-") + 1].startswith(FAR)
    return False
