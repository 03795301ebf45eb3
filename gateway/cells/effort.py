"""What the processes below one do now, as /proc tells it."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds
WORKING = {"R", "D"}  # on a processor or waiting for one, or for a disk


class Effort(NamedTuple):
    """What a process and its descendants have taken so far, in seconds of processors, and whether one works now."""

    taken: float
    working: bool


def effort(pid: int) -> Effort:
    """Look at a process and all its descendants; those that end meanwhile do not count."""
    taken, working = 0.0, False
    pids = [pid]
    while pids:
        pid = pids.pop()
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                facts = file.read().rpartition(")")[2].split()
            taken += TICK * sum(map(int, facts[11:15]))  # its own, and that of its children which are over
            working = working or facts[0] in WORKING
            pids += _children(pid)
    return Effort(taken, working)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
            found += map(int, file.read().split())
    return found
