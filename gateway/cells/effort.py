"""What the processes below one do now, as /proc tells it."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds
PAGE = os.sysconf("SC_PAGE_SIZE")  # bytes
WORKING = {"R", "D"}  # on a processor or waiting for one, or for a disk


class Effort(NamedTuple):
    """What a process and its descendants have taken so far, in seconds of processors, and whether one works now."""

    taken: float
    working: bool


class ProcessFacts(NamedTuple):
    """One process. `taken` is in seconds of processors, with what its children took which are over."""

    pid: int
    parent: int
    state: str
    taken: float
    begun: float
    """In seconds of `time.CLOCK_BOOTTIME`."""
    resident: int
    """Bytes, those included that it shares with others."""

    @property
    def age(self) -> float:
        """Return its age in seconds."""
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - self.begun)


def effort(pid: int) -> Effort:
    """Look at a process and all its descendants; those that end meanwhile do not count."""
    taken, working = 0.0, False
    for one in tree(pid):
        taken += one.taken
        working = working or one.state in WORKING
    return Effort(taken, working)


def tree(pid: int) -> Iterator[ProcessFacts]:
    """Look at a process and all its descendants, each after its parent; those that end meanwhile are left out."""
    pids = [pid]
    while pids:
        pid = pids.pop()
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                facts = file.read().rpartition(")")[2].split()
            yield ProcessFacts(
                pid=pid,
                parent=int(facts[1]),
                state=facts[0],
                taken=TICK * sum(map(int, facts[11:15])),
                begun=TICK * int(facts[19]),
                resident=PAGE * int(facts[21]),
            )
            pids += _children(pid)


def name_within(pid: int) -> int:
    """Return a process' id as it is in its own namespace; 0 where it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return next((int(line.split()[-1]) for line in file if line.startswith("NSpid:")), pid)
    return 0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
            found += map(int, file.read().split())
    return found
