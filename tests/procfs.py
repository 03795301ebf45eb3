"""What /proc says about processes. Standard library only: the warden runs without site-packages."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from typing import NamedTuple

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


class Stat(NamedTuple):
    """One process. `started` is in clock ticks since boot, `resident` and `shared` are bytes."""

    pid: int
    state: str
    ppid: int
    session: int
    started: int


class Memory(NamedTuple):
    """Resident bytes of one process, and how many of them it shares with others."""

    resident: int
    shared: int


def stat(pid: int) -> Stat | None:
    """Return the process' facts, or None when it is gone."""
    fields = _fields(pid)
    if not fields:
        return None
    return Stat(pid, fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))


def memory(pid: int) -> Memory:
    """Return the resident and shared bytes of a process (zeros when it is gone)."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            fields = file.read(128).split()
    except OSError:
        return Memory(0, 0)
    if len(fields) < 3:
        return Memory(0, 0)
    return Memory(int(fields[1]) * PAGE, int(fields[2]) * PAGE)


def unreaped(pid: int, parent: int) -> int | None:
    """Return the wait status of a process that has ended and waits for its parent; None when there is no such one."""
    fields = _fields(pid)
    return int(fields[49]) if fields and fields[0] == b"Z" and int(fields[1]) == parent else None


def _fields(pid: int) -> list[bytes]:
    """Return what follows the name in a process' stat, from the state on; nothing when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            raw = file.read(1024)
    except OSError:
        return []
    return raw[raw.rfind(b")") + 2 :].split()


class Cpu(NamedTuple):
    """Seconds that a process has used so far, in steps of the clock's ticks."""

    user: float
    system: float


def cpu(pid: int) -> Cpu:
    """Return what a process has used, its reaped children included (zeros when it is gone)."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            raw = file.read(1024)
    except OSError:
        return Cpu(0.0, 0.0)
    fields = raw[raw.rfind(b")") + 2 :].split()
    return Cpu((int(fields[11]) + int(fields[13])) / TICKS, (int(fields[12]) + int(fields[14])) / TICKS)


def high_water() -> int:
    """Return the most bytes that the calling process has had resident since its exec (0 where that is not told)."""
    return peak("self")


def peak(pid: int | str) -> int:
    """Return the most bytes that a process has had resident since its exec (0 when that is not told)."""
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            _, _, rest = file.read(8192).partition(b"\nVmHWM:")
    except OSError:
        return 0
    return int(rest.split(None, 1)[0]) * 1024 if rest else 0


def now() -> int:
    """Return the clock in which a process' start is told."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS)


def scan() -> dict[int, Stat]:
    """Return every process on the machine that can be seen."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            one = stat(int(name))
            if one is not None:
                found[one.pid] = one
    return found


def children() -> set[int]:
    """Return the pids of the calling (single-threaded) process' children, zombies included."""
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children", "rb", buffering=0) as file:
            return set(map(int, file.readall().split()))
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return {one.pid for one in scan().values() if one.ppid == me}


def below(roots: set[int]) -> set[int]:
    """Return the roots and everything below them, without a look at every process of the machine."""
    me = os.getpid()
    if not os.path.exists(f"/proc/{me}/task/{me}/children"):  # a kernel without CONFIG_PROC_CHILDREN
        return descendants(roots, scan())
    found = set(roots)
    todo = list(roots)
    while todo:
        new = _started_by(todo.pop()) - found
        found |= new
        todo += new
    return found


def _started_by(pid: int) -> set[int]:
    """Return the children of a process, whichever of its threads has started them."""
    pids: set[int] = set()
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                pids.update(map(int, file.readall().split()))
    return pids


def descendants(roots: set[int], table: dict[int, Stat]) -> set[int]:
    """Return the roots and everything below them in a table made by `scan`."""
    return set(parents_first(roots, table))


def parents_first(roots: set[int], table: dict[int, Stat]) -> list[int]:
    """Return the roots and everything below them in the order to kill them in: nobody hears of a child's death."""
    by_parent: dict[int, list[int]] = {}
    for one in table.values():
        by_parent.setdefault(one.ppid, []).append(one.pid)
    below = {child for root in _below(roots, by_parent) for child in by_parent.get(root, ())}
    return _below(roots - below, by_parent)


def _below(roots: set[int], by_parent: dict[int, list[int]]) -> list[int]:
    found = dict.fromkeys(roots)
    todo = deque(found)
    while todo:
        for child in by_parent.get(todo.popleft(), ()):
            if child not in found:
                found[child] = None
                todo.append(child)
    return list(found)


def mentions(pid: int, folder: str) -> bool:
    """Tell whether a process was started with TMPDIR at or below `folder`, or works there."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            for setting in file.readall().split(b"\0"):
                if (setting + b"/").startswith(f"TMPDIR={folder}/".encode()):
                    return True
        return (os.readlink(f"/proc/{pid}/cwd") + "/").startswith(folder + "/")
    except OSError:
        return False


def kill_exactly(pid: int, seen: Stat | None) -> None:
    """SIGKILL a process if it still is the one that was seen: a number may be somebody else's by now."""
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            now = stat(pid)
            if seen is not None and now is not None and now.started == seen.started:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def become_subreaper() -> None:
    """Have whatever the calling process' descendants leave behind become its children."""
    _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER, linux/prctl.h


def die_with_parent() -> None:
    """Have the kernel kill the calling process when the thread that started it ends, whatever it does then."""
    _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _prctl(option: int, value: int) -> None:
    import ctypes  # noqa: PLC0415 - a fifth of the warden's memory; unloaded it cannot be, but only here is it needed

    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")
