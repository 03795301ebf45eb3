"""What a cell without namespaces leaves when it is killed: it becomes the gateway's, which is its next subreaper."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

ROUNDS = 200  # looks at most: something may be forking while it is killed

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Have whatever the calling process' descendants leave behind become its children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def be_unreadable() -> None:
    """Have no process of the same user read the memory, the environment or the descriptors of the calling one."""
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent() -> None:
    """Have the kernel kill the calling process when the thread that started it ends, whatever it does then."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def sweep(known: Container[int]) -> None:
    """Kill and reap our children but for the known ones, until there are none.

    What is of our own session we have started ourselves: a cell leads one of its own, and there is no way back.
    """
    for _ in range(ROUNDS):
        orphans = [pid for pid in children() if pid not in known and not _is_own(pid)]
        if not orphans:
            return
        for pid in orphans:
            with contextlib.suppress(OSError):  # it is our child and not reaped yet: nobody else has its number
                os.kill(pid, signal.SIGKILL)
        for pid in orphans:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def children() -> set[int]:
    """Return the process ids of our children, dead ones included."""
    pids: set[int] = set()
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children", "rb") as file:
                pids.update(map(int, file.read().split()))
    return pids


def _is_own(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return os.getsid(pid) == os.getsid(0)
    return True  # it has just been reaped


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")
