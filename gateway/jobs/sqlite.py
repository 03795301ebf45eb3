"""The file of one gateway, and the lock which says that it is ours.

One thread has the connection, and ends with it. It never waits long: what others lock, or are given up meanwhile, stays
in line. What waits when it comes to write is committed together: a sync of the disk is what a write costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

from gateway.files import check_file
from gateway.jobs.contract import StoreAway
from gateway.jobs.database import Effect, Step, not_held, said
from gateway.jobs.futures import looked_at
from gateway.locks import lock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOCK_PATIENCE = 5.0  # seconds for a gateway that is just leaving
BUSY = 2.0  # seconds that a first look may wait for another process
GLANCE = 0.05  # seconds that the thread waits for one; then it looks what else there is to do

_OPEN_JOBS = "SELECT 1 FROM jobs WHERE held = 1 LIMIT 1"


def unfinished(file: Path) -> bool:
    """Tell, without an engine, whether there are jobs to go on with; what cannot be read counts as one."""
    if not file.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=BUSY)) as look:
            return look.execute(_OPEN_JOBS).fetchone() is not None
    except sqlite3.Error:  # no table of ours: one of an earlier version, say
        return True


class _Steps:
    """Steps that wait for the thread."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self.steps = steps
        self.done: asyncio.Future[list[Effect]] = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(looked_at)


class Sqlite:
    """Implements `gateway.jobs.database.Database`."""

    shared = False
    now = "(julianday('now') - 2440587.5) * 86400.0"
    tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
    setup: tuple[str, ...] = ()
    turn = "SELECT :name"

    def __init__(self, file: Path) -> None:
        self.file = file
        self._loop = asyncio.get_running_loop()
        self._change = threading.Condition()
        self._reads: list[_Steps] = []
        self._writes: list[_Steps] = []
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = asyncio.Event()

    async def open(self) -> None:
        """Lock the file and see that it can be written."""
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._main, args=(opened,), name="jobs-store")
        self._thread.start()
        try:
            await opened
        except BaseException:
            await self.close()
            raise

    async def run(self, *steps: Step, patience: float, reads: bool = False) -> list[Effect]:
        """Do all steps in one transaction."""
        asked = _Steps(steps)
        line = self._reads if reads else self._writes
        with self._change:
            if self._closing.is_set():
                raise StoreAway("it is closed")
            line.append(asked)
            self._change.notify()
        done, _ = await asyncio.wait({asked.done}, timeout=patience)
        if done:
            return asked.done.result()
        with self._change:
            waits = asked in line
            if waits:
                line.remove(asked)
        raise StoreAway(f"it did not answer within {patience:g} s", sent=not waits)

    async def close(self) -> None:
        """Do what waits, if that can be done at once, and end the thread."""
        with self._change:
            self._closing.set()
            self._change.notify()
        if self._thread is not None:
            await self._ended.wait()
            self._thread.join()

    # --- in the thread

    def _main(self, opened: asyncio.Future[None]) -> None:
        handle = -1
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            self._take(handle)
            with contextlib.closing(self._prepared()) as connection:
                self._post(_answer, opened, None)
                self._serve(connection)
        except StoreAway as problem:
            self._post(_fail, opened, problem)
        except (OSError, sqlite3.Error) as problem:
            strerror = problem.strerror if isinstance(problem, OSError) else None
            told = f"the jobs' file {self.file} cannot be used: {strerror or said(problem)}"
            self._post(_fail, opened, StoreAway(told))
        finally:
            if handle >= 0:
                os.close(handle)
            self._post(self._ended.set)

    def _take(self, handle: int) -> None:
        """Take the lock. It is on a file beside the store: SQLite's own are of another kind, and may be the same."""
        until = time.monotonic() + LOCK_PATIENCE
        while True:
            if lock(handle, wait=False):
                return
            if time.monotonic() > until or self._closing.wait(0.05):  # a lock has no such wait of its own
                raise StoreAway(
                    f"another gateway uses {self.file}: give this one a state_dir of its own, or both a "
                    "PostgreSQL database (jobs.database)"
                )

    def _prepared(self) -> sqlite3.Connection:
        """Make the file, readable for us alone; a commit is one write to its log, synced."""
        os.close(os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600))
        check_file(self.file)
        connection = sqlite3.connect(self.file, timeout=BUSY, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
            _check(connection)
            connection.execute(f"PRAGMA busy_timeout={round(GLANCE * 1000)}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _serve(self, connection: sqlite3.Connection) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._reads or self._writes or self._closing.is_set())
                reads, self._reads[:] = list(self._reads), []
            for one in reads:
                self._read(connection, one)
            if self._writes:
                self._write_all(connection)
            with self._change:
                if self._closing.is_set() and not self._reads and not self._writes:
                    return

    def _read(self, connection: sqlite3.Connection, one: _Steps) -> None:
        try:
            self._post(_answer, one.done, [_result(connection, step) for step in one.steps])
        except sqlite3.Error as problem:
            self._post(_fail, one.done, _told(problem))

    def _write_all(self, connection: sqlite3.Connection) -> None:
        """Write what is in line. It stays there, and can be given up, until the transaction has begun."""
        problem = self._begin(connection)
        if problem is not None and _is_locked(problem) and not self._closing.is_set():
            return
        with self._change:
            batch, self._writes[:] = list(self._writes), []
        if problem is None:
            self._write(connection, batch)
        else:
            for one in batch:
                self._post(_fail, one.done, StoreAway(said(problem)))

    def _begin(self, connection: sqlite3.Connection) -> sqlite3.Error | None:
        """Begin to write; return what stands against it."""
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as problem:
            return problem
        return None

    def _write(self, connection: sqlite3.Connection, batch: list[_Steps]) -> None:
        """Commit them together, in a transaction that has begun."""
        try:
            results = [[_result(connection, step) for step in one.steps] for one in batch]
            connection.execute("COMMIT")
        except sqlite3.Error as problem:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._write_alone(connection, batch, problem)
        else:
            for one, result in zip(batch, results, strict=True):
                self._post(_answer, one.done, result)

    def _write_alone(self, connection: sqlite3.Connection, batch: list[_Steps], problem: sqlite3.Error) -> None:
        """Have a problem with one of them not cost the others."""
        for one in batch:
            again = self._begin(connection) if len(batch) > 1 else problem
            if again is None:
                self._write(connection, [one])
            else:
                self._post(_fail, one.done, _told(again))

    def _post(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *arguments)


def _result(connection: sqlite3.Connection, step: Step) -> Effect:
    try:
        with contextlib.closing(connection.execute(*step)) as cursor:
            return Effect(cursor.fetchall(), cursor.rowcount)
    except (OverflowError, UnicodeError) as problem:  # a value that it cannot hold; the thread goes on
        raise sqlite3.DataError(said(problem)) from problem


def _told(problem: sqlite3.Error) -> Exception:
    return not_held(problem) if isinstance(problem, sqlite3.DataError) else StoreAway(said(problem))


def _check(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise sqlite3.DatabaseError("database disk image is malformed")


def _is_locked(problem: sqlite3.Error) -> bool:
    return problem.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _answer(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], problem: Exception) -> None:
    if not future.done():
        future.set_exception(problem)
