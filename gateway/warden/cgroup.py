"""Control groups (version 2): one reusable directory a slot, so that nothing a run starts can get away.

Standard library only. Where no version 2 tree is writable the warden does without and sweeps by ancestry.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Slot:
    """One control group that holds one run at a time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = os.path.basename(path)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be in the group ourselves meanwhile: what is started now is born inside, and has no time to get away."""
        with contextlib.suppress(OSError):
            _write(f"{self.path}/cgroup.procs", "0")
        try:
            yield
        finally:
            _write(f"{os.path.dirname(os.path.dirname(self.path))}/cgroup.procs", "0")

    def add(self, pid: int) -> None:
        """Move a process in. One that is gone already needs no group."""
        with contextlib.suppress(OSError):
            _write(f"{self.path}/cgroup.procs", str(pid))

    def pids(self) -> list[int]:
        """Return the processes inside, without zombies' children that left."""
        try:
            with open(f"{self.path}/cgroup.procs", "rb", buffering=0) as file:
                return [int(pid) for pid in file.readall().split()]
        except OSError:
            return []

    def kill(self) -> None:
        """SIGKILL everything inside at once (Linux 5.14; before that the sweep has to do)."""
        with contextlib.suppress(OSError):
            _write(f"{self.path}/cgroup.kill", "1")


class Groups:
    """The slots of one warden, below the control group that the warden itself is in."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._free: list[Slot] = []
        self._made = 0

    @classmethod
    def open(cls, name: str) -> Groups | None:
        """Make the warden's own directory, or return None where that is not allowed."""
        parent = _own_group()
        if parent is None:
            return None
        root = f"{parent}/gateway-{name}"
        try:
            os.mkdir(root)
            groups = cls(root)
            groups._free.append(groups._make())
        except OSError:
            with contextlib.suppress(OSError):
                os.rmdir(root)
            return None
        return groups

    def take(self) -> Slot | None:
        """Return an empty slot; None when the kernel refuses another one."""
        if self._free:
            return self._free.pop()
        try:
            return self._make()
        except OSError:
            return None

    def give_back(self, slot: Slot) -> None:
        """Keep an emptied slot for the next run."""
        self._free.append(slot)

    def owner(self, pid: int) -> str | None:
        """Return the name of the slot that holds a process, if it is one of ours."""
        try:
            with open(f"/proc/{pid}/cgroup", encoding="ascii", errors="replace") as file:
                for line in file:
                    if line.startswith("0::"):
                        head, _, name = line.strip().rpartition("/")
                        return name if head.endswith(os.path.basename(self.root)) else None
        except OSError:
            return None
        return None

    def close(self) -> None:
        """Remove the directories; what is still populated stays for the operator to see."""
        remove(self.root)

    def _make(self) -> Slot:
        path = f"{self.root}/slot-{self._made}"
        os.mkdir(path)
        self._made += 1
        return Slot(path)


def kill(root: str) -> None:
    """SIGKILL everything in the groups of a warden that is dead itself."""
    with contextlib.suppress(OSError):
        _write(f"{root}/cgroup.kill", "1")


def remove(root: str) -> None:
    """Remove a warden's directories as far as nothing lives in them."""
    with contextlib.suppress(OSError):
        for name in os.listdir(root):
            if name.startswith("slot-"):
                with contextlib.suppress(OSError):
                    os.rmdir(f"{root}/{name}")
        os.rmdir(root)


def _own_group() -> str | None:
    mount = None
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if right.startswith("cgroup2 "):
                mount = left.split()[4]
                break
    if mount is None:
        return None
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            if line.startswith("0::"):
                path = mount + line.strip()[3:].rstrip("/")
                return path if os.access(f"{path}/cgroup.procs", os.W_OK) else None
    return None


def _write(path: str, text: str) -> None:
    handle = os.open(path, os.O_WRONLY)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)
