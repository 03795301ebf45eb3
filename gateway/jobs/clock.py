"""The store's own time, by which ended jobs grow old: it runs on while a gateway is awake, and no clock moves it.

A machine's clock can be set, and one that slept wakes up days later: neither may remove what nobody could look at.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import NamedTuple

LOOK = 5.0  # seconds between looks at the machine's clock
JUMP = 5.0  # seconds by which it is set at once, when that is told


class WrittenTime(NamedTuple):
    """What a store knows of its time. All are seconds but `boot`, a start of a machine."""

    seconds: float
    """Its time, when a gateway wrote it down last."""
    wall: float | None
    """What the clock said then, since 1970; None: there was no gateway, or there is another that goes on with it."""
    boot: str
    uptime: float
    """How long the machine had been awake."""


class Clock:
    """The time of a store, as a gateway counts it."""

    def __init__(self) -> None:
        self.boot = _boot()
        self._seconds = 0.0
        self._since = time.monotonic()
        self._ahead = _ahead()

    @property
    def now(self) -> float:
        """The store's time, in seconds since whenever."""
        return self._seconds + time.monotonic() - self._since

    def catch_up(self, seconds: float) -> None:
        """Go on from there, if that is later."""
        self._seconds, self._since = max(seconds, self.now), time.monotonic()

    def go_on(self, kept: WrittenTime, wall: float) -> None:
        """Go on from what the store has, at `wall` seconds since 1970.

        What passed meanwhile is known where the machine was not started anew; otherwise the clock says it.
        """
        passed = 0.0
        if kept.boot == self.boot:
            passed = time.monotonic() - kept.uptime
        elif kept.wall is not None:
            passed = wall - kept.wall
        self.catch_up(kept.seconds + max(0.0, passed))

    def jump(self) -> float:
        """Return by how many seconds the machine's clock was set since the last look; 0 for what may pass as none."""
        known, self._ahead = self._ahead, _ahead()
        jump = self._ahead - known
        return jump if abs(jump) >= JUMP else 0.0


def _ahead() -> float:
    return time.time() - time.monotonic()


def _boot() -> str:
    """Return what names this start of the machine, or nothing that any other has."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"unknown since {time.time_ns()}"
