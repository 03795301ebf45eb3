"""The log's way out: at once where that takes no wait, or by a thread. Who logs neither waits nor hears of failure."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import stat
import threading
import time

import structlog

STDERR = 2
QUEUE = 4 << 20  # bytes that wait at most; what comes then is dropped, and counted
BATCH = 1 << 16  # bytes of a write of the thread's at most
FITS = 4096  # bytes that a pipe or a socket takes without a wait when it takes any (a page of a pipe)
GATHER = 0.01  # seconds from a line that may wait to its write, for others that come meanwhile: waking the thread costs
AGAIN = 1.0  # seconds until the next try to write what could not be written
STALLED = 5.0  # seconds that a write takes no longer where somebody reads
LAST_WORDS = 2.0  # seconds that the end of the process waits for what is queued


class LogWriter(io.TextIOBase):
    """The stream of the log. Lines stay in their order, and one that could not be written is tried again.

    A descriptor that does not block would do without a thread, but standard error is shared with others, and so would
    be that it does not block.
    """

    def __init__(self) -> None:
        self.dropped = 0
        """Lines that found the queue full."""
        self._begin(STDERR)
        self._turn = threading.Condition()  # reentrant: what the collector finds in the middle of a line may log, too
        self._waiting = bytearray()
        self._writing = 0
        """Bytes that are being written."""
        self._gap = 0
        """Lines dropped since the queue was full. Until it is empty again none is taken: where they miss is told."""
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._failure: str | None = None
        self._since = 0.0
        """When the thread's writing of what is being written got on, 0 when nothing is."""

    def begin(self, descriptor: int) -> None:
        """Write to a descriptor from now on."""
        self.close()
        self._begin(descriptor)

    @property
    def problem(self) -> str | None:
        """Why lines cannot be written at the moment."""
        since = self._since
        stalled = since and time.monotonic() - since > STALLED
        return self._failure or ("nobody reads it" if stalled else None)

    def put(self, line: bytes, *, later: bool = False) -> None:
        """Write a line, or queue it where it may come `later`, or would wait; drop it where the queue is full."""
        with self._turn:
            if self._gap or len(self._waiting) + self._writing + len(line) > QUEUE:
                self._gap += 1
                self.dropped += 1
                return
            self._waiting += line
            if self._writing:
                return
            if not later and not self._failure and self._fits():
                self._write_now()
            if self._waiting:
                self._wake()

    def write(self, text: str) -> int:
        """Write a text of whole lines."""
        self.put(text.encode(errors="backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """Do nothing: nothing that can be written is held back."""

    def close(self) -> None:
        """Write what is queued, as far as that is possible within seconds, and end the thread."""
        thread = self._thread
        if thread is None or self._closing.is_set():
            return
        self._closing.set()
        with self._turn:
            self._turn.notify_all()
        thread.join(LAST_WORDS)
        if not thread.is_alive():  # or else it ends with the process
            self._thread = None
            self._closing.clear()

    # --- private

    def _begin(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._failure = None
        self._room = select.poll()
        self._file = False
        with contextlib.suppress(OSError):
            self._file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            self._room.register(descriptor, select.POLLOUT)

    def _fits(self) -> bool:
        """Tell whether all that waits can be written without a wait."""
        return self._file or (len(self._waiting) <= FITS and bool(self._room.poll(0)))

    def _write_now(self) -> None:
        batch, self._waiting = self._waiting, bytearray()
        self._writing, written = len(batch), 0
        try:
            written = os.write(self._descriptor, batch)
        except OSError as problem:
            if not isinstance(problem, BlockingIOError):  # for room, the thread waits
                self._failure = problem.strerror
        finally:
            self._writing = 0
            self._waiting[:0] = batch[written:]

    def _wake(self) -> None:
        if self._thread is not None:
            self._turn.notify_all()
            return
        thread = threading.Thread(target=self._main, name="log", daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the first thread's
        try:
            thread.start()
            self._thread = thread
        except RuntimeError as problem:  # no more threads can be had: the next line tries again
            self._failure = str(problem)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _main(self) -> None:
        while (batch := self._next()) or self._gap:
            self._write_out(batch)
            with self._turn:
                self._writing = 0
                if self._gap and not self._waiting:
                    lost, self._gap = self._gap, 0
                    structlog.get_logger().warning("log_dropped", lines=lost)

    def _next(self) -> bytearray:
        """Wait for lines; nothing when the end has come, or lines are missing here."""
        while True:
            with self._turn:
                while not self._waiting and not self._closing.is_set():
                    self._turn.wait()
                much = len(self._waiting) >= BATCH
            if not much:
                self._closing.wait(GATHER)
            with self._turn:
                if self._file and self._waiting and not self._failure:  # who logs meanwhile has his line written, too
                    self._write_now()
                batch = self._waiting[:BATCH]
                del self._waiting[:BATCH]
                self._writing = len(batch)
            if batch or self._gap or self._closing.is_set():
                return batch

    def _write_out(self, batch: bytearray) -> None:
        begin, end = 0, len(batch)
        while begin < end:
            self._since = self._since or time.monotonic()
            try:
                begin += os.write(self._descriptor, batch[begin:])
            except BlockingIOError:  # somebody else has made it so
                self._room.poll(AGAIN * 1000)
            except OSError as problem:
                self._failure = problem.strerror
                if self._closing.is_set():
                    break
                self._closing.wait(AGAIN)
            else:
                self._failure = None
                self._since = 0.0
        self._since = 0.0
