"""Takes runs that are over, and has a thread write them: whoever hands one over neither waits nor fails."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import JournalUnavailable, RunNotFound
from gateway.observe.events import JournalChanged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.journal.file import RunsFile
    from gateway.journal.records import Ran, RunDetail, RunSummary, Wanted
    from gateway.observe.events import Event
    from gateway.sealing import Keyring
    from gateway.sections import JournalSection

FILE = "runs.sqlite"
QUEUE = 16 << 20  # bytes of runs that wait at most; what comes then is dropped, and counted
BATCH = 1000  # runs that are written at once
BATCH_SIZE = 2 << 20  # bytes of them, about
FACTS = 1000  # bytes of all that is small of a run, or somewhat less
LOOK = 60.0  # seconds after which to look for what is too old, where nothing happens
GATHER = 0.25  # seconds from a run to its write, for others that come meanwhile: waking the thread costs
AGAIN = 5.0  # seconds until the next try to open a file that could not be opened
PATIENCE = 10.0  # seconds for an answer
LAST_WORDS = 5.0  # seconds that the end waits for what is queued
BEHIND = "it cannot be written as fast as runs end"


class JournalHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Whether runs are written."""

    node: str
    problem: str | None
    dropped: int
    """Runs that are missing since the start."""


class Journal:
    """The latest runs of one gateway."""

    def __init__(
        self,
        section: JournalSection,
        folder: Path,
        keys: Keyring,
        publish: Callable[[Event], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`now` is seconds since 1970, by which runs grow old."""
        self.section = section
        self.node = f"{socket.gethostname()}:{folder.parent}"
        """Whose runs these are."""
        self.dropped = 0
        """Runs that are missing since the start."""
        self.problem: str | None = None
        """Why runs cannot be written at the moment."""
        self._path = folder / FILE
        self._keys = keys
        self._publish = publish
        self._now = now
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: collections.deque[Ran] = collections.deque()
        self._put = 0
        """Bytes of all runs that were queued; each of the two is written in one thread alone."""
        self._taken = 0
        """Bytes of those that are queued no more."""
        self._asked: collections.deque[tuple[Callable[[RunsFile], Any], asyncio.Future[Any]]] = collections.deque()
        self._seen = 0
        """How many were missing at the latest write."""
        self._idle = False
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._file: RunsFile | None = None
        self._tried = float("-inf")

    def health(self) -> JournalHealth:
        """Return whether runs are written, for the status view."""
        return JournalHealth(node=self.node, problem=self.problem, dropped=self.dropped)

    def put(self, ran: Ran) -> None:
        """Have a run written soon, or drop it where too many wait."""
        ran.size = size = _held(ran)
        if self._put - self._taken + size > QUEUE:
            self.dropped += 1
            self._tell(BEHIND)
            return
        try:
            if self._thread is None:
                self._start()
        except RuntimeError as problem:  # there are no more threads
            self.dropped += 1
            self._tell(str(problem))
            return
        self._put += size
        self._queue.append(ran)
        if self._idle:
            self._idle = False
            self._wake.set()

    async def list(self, wanted: Wanted, *, limit: int, offset: int) -> list[RunSummary]:
        """Return runs, the latest first, those included that ended a moment ago.

        Raises:
            JournalUnavailable: the file cannot be read.
        """
        found: list[RunSummary] = await self._ask(lambda file: file.select(wanted, limit, offset))
        return found

    async def find(self, name: str) -> RunDetail:
        """Return all that is kept of a run.

        Raises:
            RunNotFound: there is none.
            JournalUnavailable: the file cannot be read.
        """
        found: RunDetail | None = await self._ask(lambda file: file.find(name))
        if found is None:
            raise RunNotFound
        return found

    def close(self) -> None:
        """Write what is queued, as far as that is possible within seconds, and end the thread."""
        self._closing = True
        self._hurry.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(LAST_WORDS)

    # --- private

    async def _ask(self, question: Callable[[RunsFile], Any]) -> Any:
        if self._closing:
            raise JournalUnavailable("the gateway ends")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            if self._thread is None:
                self._start()
        except RuntimeError as problem:
            raise JournalUnavailable(f"the journal cannot be read: {problem}") from problem
        self._asked.append((question, future))
        self._hurry.set()
        self._wake.set()
        try:
            async with asyncio.timeout(PATIENCE):
                return await future
        except TimeoutError as problem:
            raise JournalUnavailable(f"the journal did not answer within {PATIENCE:g} s") from problem

    def _start(self) -> None:
        """Have the thread.

        Raises:
            RuntimeError: there are no more.
        """
        self._loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._main, name="journal", daemon=True)
        thread.start()
        self._thread = thread

    def _tell(self, problem: str | None) -> None:
        """Say once that something is the matter, and once that it is over; in the loop's thread."""
        before, self.problem = self.problem, problem
        if (problem is None) == (before is None):
            return
        self._publish(JournalChanged(ok=problem is None, reason=problem or "", dropped=self.dropped))

    # --- in the thread

    def _main(self) -> None:
        more = False
        while not (self._closing and not self._queue and not self._asked):
            self._idle = True
            if not (self._queue or self._asked or self._closing or more):
                self._wake.wait(None if self._file is None else LOOK)
            self._wake.clear()
            self._idle = False
            if self._queue and not (self._asked or self._closing):
                self._hurry.wait(GATHER)
            self._hurry.clear()
            self._write_all()
            more = self._look()
            for _ in range(len(self._asked)):
                question, future = self._asked.popleft()
                self._write_all()  # what has come before somebody asked; and meanwhile nothing waits for long
                self._answer(question, future)
        if self._file is not None:
            self._file.close()

    def _write_all(self) -> None:
        """Write what is queued by now."""
        left = len(self._queue)
        while left > 0:
            left -= self._write()

    def _write(self) -> int:
        """Write a batch of what is queued; return how many runs that were."""
        batch: list[Ran] = []
        size = 0
        while self._queue and len(batch) < BATCH and size < BATCH_SIZE:
            batch.append(self._queue.popleft())
            size += batch[-1].size
        try:
            self._opened().add(batch)
            problem = None
        except Exception as failure:  # noqa: BLE001 - whatever it is, the runs of the next batch may be written
            problem = self._failed(failure)
        self._taken += size
        self._soon(self._written, problem, len(batch))
        return len(batch)

    def _look(self) -> bool:
        """Remove some of what is too old, or too much; tell whether there is more. What cannot be is tried again."""
        try:
            return self._file is not None and self._file.look(self._now())
        except Exception as failure:  # noqa: BLE001 - the next write tells
            self._failed(failure)
            return False

    def _answer(self, question: Callable[[RunsFile], Any], future: asyncio.Future[Any]) -> None:
        try:
            found = question(self._opened())
        except JournalUnavailable as problem:
            self._soon(_fail, future, problem)
        except Exception as failure:  # noqa: BLE001 - whoever asked hears of it
            self._soon(_fail, future, JournalUnavailable(f"the journal cannot be read: {self._failed(failure)}"))
        else:
            self._soon(_settle, future, found)

    def _opened(self) -> RunsFile:
        """Open the file when it is first needed, and again when it was damaged or is not there any more.

        Raises:
            OSError, sqlite3.Error: it cannot be.
        """
        if self._file is not None and self._file.is_gone():
            self._file.close()
            self._file = None
        if self._file is None:
            if time.monotonic() - self._tried < AGAIN and self.problem is not None and not self._closing:
                raise OSError(0, self.problem)
            self._tried = time.monotonic()
            # Imported here: a gateway that has not run anything has no SQLite.
            from gateway.journal.file import RunsFile  # noqa: PLC0415

            self._file = RunsFile(self._path, self.section, self._keys)
        return self._file

    def _failed(self, failure: Exception) -> str:
        """Return what is said of a failure; a file that is damaged is put aside, and one made anew."""
        from gateway.journal.file import is_damage  # noqa: PLC0415

        if self._file is not None and is_damage(failure):
            with contextlib.suppress(Exception):
                self._file.give_up()
            self._file, self._tried = None, float("-inf")
        strerror = failure.strerror if isinstance(failure, OSError) else None
        return strerror or str(failure) or type(failure).__name__

    def _soon(self, do: Callable[..., object], *arguments: object) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: nobody waits any more
                self._loop.call_soon_threadsafe(do, *arguments)

    def _written(self, problem: str | None, runs: int) -> None:
        """Take, in the loop's thread, what became of a batch."""
        if problem is not None:
            self.dropped += runs
        if problem is not None or self.dropped == self._seen:  # as long as some are dropped it is not over
            self._tell(problem)
        self._seen = self.dropped


def _held(ran: Ran) -> int:
    """Return about how many bytes a run holds; of what callers have typed each may be thousands."""
    caller, told = ran.caller, ran.event
    names = len(caller.task_id or "") + len(caller.process_model_identifier or "")
    if caller.process_instance_id is not None:
        names += len(str(caller.process_instance_id))
    payload = 0 if ran.payload is None else ran.payload.size
    return FACTS + names + len(told.command) + len(told.message or "") + len(ran.log) + payload


def _settle(future: asyncio.Future[Any], found: object) -> None:
    if not future.done():
        future.set_result(found)


def _fail(future: asyncio.Future[Any], problem: Exception) -> None:
    if not future.done():
        future.set_exception(problem)
