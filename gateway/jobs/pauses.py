"""Bounds the pauses after which the engine tries again to reach a store that is away.

DBOS doubles them up to 90 s and has no setting for it: what ended in an outage would be recorded as late as that after
it. It sleeps through its module's name `time`, which is made to mean this.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any

import dbos._sys_db

if TYPE_CHECKING:
    from dbos._sys_db import SystemDatabase

LONGEST = 3.0  # seconds, give or take


class Clock:
    """The module `time`, but for its sleep."""

    def __init__(self) -> None:
        self.database: SystemDatabase | None = None
        """The engine's own, once there is one."""
        self._over = threading.Event()

    def __getattr__(self, name: str) -> Any:
        """Be the module for everything else."""
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Sleep, and not for long."""
        longest = LONGEST * random.uniform(0.7, 1.3)  # noqa: S311 - spreads load
        self._over.wait(min(seconds, longest))

    def end(self) -> None:
        """Have whoever tries again fail: a thread that tries for ever outlives its engine, and holds its process."""
        if self.database is not None:
            self.database._retry_connection_errors = False  # noqa: SLF001
        self._over.set()


def bound() -> Clock:
    """Bound them, for this process; return what ends them."""
    clock = Clock()
    dbos._sys_db.time = clock  # type: ignore[attr-defined,assignment] # noqa: SLF001
    return clock
