"""Where jobs are kept: one file for one gateway, or a PostgreSQL database that several share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING

from gateway.jobs.port import JobsUnavailable

if TYPE_CHECKING:
    from pathlib import Path

LOCK_PATIENCE = 5.0  # seconds for a gateway that is just leaving
BUSY = 2.0  # seconds that a first look may wait for another process

_OPEN_JOBS = "SELECT 1 FROM workflow_status WHERE status IN ('PENDING', 'ENQUEUED', 'DELAYED') LIMIT 1"


class SqliteStore:
    """The file, and the lock which says that it is ours.

    Two engines on one file would run each other's jobs. The lock is on a file beside it: SQLite's own are of another
    kind, and on some file systems they are the same.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.url = f"sqlite:///{file}"
        self._lock = -1

    def unfinished(self) -> bool:
        """Tell, without an engine, whether there are open jobs; what cannot be read counts as one."""
        if not self.file.exists():
            return False
        try:
            with contextlib.closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True, timeout=BUSY)) as look:
                return look.execute(_OPEN_JOBS).fetchone() is not None
        except sqlite3.Error:
            return True

    def open(self) -> None:
        """Lock the file and see that it can be written. It blocks.

        Raises:
            JobsUnavailable: it cannot.
        """
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take()
            self._prepare()
        except (OSError, sqlite3.Error) as problem:
            self.close()
            said = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
            raise JobsUnavailable(f"the jobs' file {self.file} cannot be used: {said}") from problem
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the file up."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take(self) -> None:
        self._lock = os.open(self.file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        until = time.monotonic() + LOCK_PATIENCE
        pause = threading.Event()  # a lock has none of its own
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise JobsUnavailable(
                        f"another gateway uses {self.file}: give this one a state_dir of its own, or both a "
                        "PostgreSQL database (jobs.database)"
                    ) from None
                pause.wait(0.05)
            else:
                return

    def _prepare(self) -> None:
        """Make the file, readable for us alone; a commit is one write to its log, synced."""
        os.close(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600))
        with contextlib.closing(sqlite3.connect(self.file, timeout=BUSY, isolation_level=None)) as first:
            first.execute("PRAGMA journal_mode=WAL")
            first.execute("BEGIN IMMEDIATE")
            first.execute("ROLLBACK")
            if first.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("database disk image is malformed")
