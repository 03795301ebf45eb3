"""What /proc says about processes."""

from __future__ import annotations

import os
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


def peak(pid: int | str) -> int:
    """Return the most bytes that a process has had resident since its exec (0 when that is not told)."""
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            _, _, rest = file.read(8192).partition(b"\nVmHWM:")
    except OSError:
        return 0
    return int(rest.split(None, 1)[0]) * 1024 if rest else 0


def scan() -> dict[int, Stat]:
    """Return every process on the machine that can be seen."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            one = stat(int(name))
            if one is not None:
                found[one.pid] = one
    return found


def descendants(roots: set[int], table: dict[int, Stat]) -> set[int]:
    """Return the roots and everything below them in a table made by `scan`."""
    by_parent: dict[int, list[int]] = {}
    for one in table.values():
        by_parent.setdefault(one.ppid, []).append(one.pid)
    found, todo = set(roots), list(roots)
    while todo:
        for child in by_parent.get(todo.pop(), ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


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
