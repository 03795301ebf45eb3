"""Control groups (version 2), where there is such a tree: one a cell, so that the kernel bounds and kills it.

The cell joins its group before it does anything else, and all that it starts is born there: whoever moved it in from
outside would come too late for its process 1. Where the tree has the controllers for it, memory and processes are
bounded by the kernel too.
"""

from __future__ import annotations

import contextlib
import os

OWN_MEMORY = 8 << 20  # bytes that the cell itself may take beside what it runs
OWN_PROCESSES = 4


class Group:
    """The control group of one cell."""

    def __init__(self, path: str, *, memory: int, processes: int) -> None:
        """Make it; bounds of 0 are none.

        Raises:
            OSError: the kernel does not allow it.
        """
        self.path = path
        self._memory = memory
        self._processes = processes
        self.runs = 1
        """How many at once it has room for."""
        self._killed = 0
        os.mkdir(path)
        self._set_bounds()

    def bound(self, runs: int) -> None:
        """Have room for so many runs at once, each with what one may use."""
        if runs != self.runs:
            self.runs = runs
            self._set_bounds()

    def has_killed(self) -> bool:
        """Tell whether the kernel has killed something inside, since no memory was left, after the latest look."""
        before, self._killed = self._killed, _number_after("oom_kill ", f"{self.path}/memory.events") or self._killed
        return self._killed > before

    def kill(self) -> None:
        """SIGKILL everything inside at once (Linux 5.14)."""
        _set(f"{self.path}/cgroup.kill", 1)

    def remove(self) -> None:
        """Remove it, as far as nothing lives in it."""
        with contextlib.suppress(OSError):
            os.rmdir(self.path)

    def _set_bounds(self) -> None:
        if self._memory:
            _set(f"{self.path}/memory.max", self._memory * self.runs + OWN_MEMORY)
            _set(f"{self.path}/memory.swap.max", 0)
        if self._processes:
            _set(f"{self.path}/pids.max", self._processes * self.runs + OWN_PROCESSES)


class Groups:
    """The groups of one gateway, below the one that it was started in, or beside it where that is its own."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._made = 0

    @classmethod
    def open(cls, name: str) -> Groups | None:
        """Make the gateway's own folder, or return None where that is not allowed."""
        for parent in _parents():
            _remove_dead(parent)
            root = f"{parent}/gateway-{name}-{os.getpid()}"
            try:
                os.mkdir(root)
                # A group that has processes of its own hands no controllers on: then there are none, and that is all.
                _set(f"{parent}/cgroup.subtree_control", "+memory +pids")
                _set(f"{root}/cgroup.subtree_control", "+memory +pids")
                probe = Group(f"{root}/probe", memory=0, processes=0)
            except OSError:
                with contextlib.suppress(OSError):
                    os.rmdir(root)
                continue
            probe.remove()
            return cls(root)
        return None

    @property
    def bounds(self) -> bool:
        """Whether the kernel bounds memory and processes of a group."""
        return os.path.exists(f"{self.root}/cgroup.controllers") and _has_controllers(self.root)

    def make(self, *, memory: int, processes: int) -> Group | None:
        """Return a group; None when the kernel refuses another one."""
        self._made += 1
        try:
            return Group(f"{self.root}/cell-{self._made}", memory=memory, processes=processes)
        except OSError:
            return None

    def close(self) -> None:
        """Remove what is empty; what is still populated stays for the operator to see."""
        _remove(self.root)


def _remove(root: str) -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir(root):
            if name.startswith("cell-"):
                with contextlib.suppress(OSError):
                    os.rmdir(f"{root}/{name}")
        os.rmdir(root)


def _remove_dead(parent: str) -> None:
    """Remove what gateways have left that were killed: their process ids are in the names."""
    for name in os.listdir(parent):
        pid = name.rpartition("-")[2]
        if name.startswith("gateway-") and not (pid.isdigit() and os.path.exists(f"/proc/{pid}")):
            _remove(f"{parent}/{name}")


def _has_controllers(root: str) -> bool:
    with open(f"{root}/cgroup.subtree_control", encoding="ascii") as file:
        return {"memory", "pids"} <= set(file.read().split())


def _parents() -> list[str]:
    """Return where groups may be made: beside our own (a service manager's delegated tree), else below it."""
    mount = None
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if right.startswith("cgroup2 "):
                mount = left.split()[4]
                break
    if mount is None:
        return []
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        path = next((line.strip()[3:] for line in file if line.startswith("0::")), None)
    if path is None:
        return []
    own = (mount + path).rstrip("/")
    beside = [os.path.dirname(own)] if own != mount and os.path.dirname(own) != mount else []
    return [parent for parent in (*beside, own) if os.access(f"{parent}/cgroup.procs", os.W_OK)]


def _number_after(word: str, path: str) -> int:
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        return next((int(line.removeprefix(word)) for line in file if line.startswith(word)), 0)
    return 0


def _set(path: str, value: int | str) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_WRONLY)
        try:
            os.write(handle, str(value).encode())
        finally:
            os.close(handle)
