"""Control groups (version 2): one reusable directory a slot, so that nothing a run starts can get away.

Standard library only. Where no version 2 tree is writable the warden does without and sweeps by ancestry.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 1 << 14  # bytes


class Slot:
    """One control group that holds one run at a time."""

    def __init__(self, path: str) -> None:
        """Keep its list of processes open: who is inside is asked and changed for each run.

        Raises:
            OSError: there are no more descriptors, or no such group.
        """
        self.path = path
        self.name = os.path.basename(path)
        self._procs = os.open(f"{path}/cgroup.procs", os.O_RDWR | os.O_CLOEXEC)

    def enter(self) -> None:
        """Be in the group ourselves: what is started now is born inside, and has no time to get away.

        Raises:
            OSError: the kernel does not allow it.
        """
        os.write(self._procs, b"0")

    def add(self, pid: int) -> None:
        """Move a process in. One that is gone already needs no group."""
        with contextlib.suppress(OSError):
            os.write(self._procs, str(pid).encode())

    def pids(self) -> list[int]:
        """Return the living processes inside."""
        pids: list[int] = []
        offset = 0
        with contextlib.suppress(OSError):
            while data := os.pread(self._procs, PIECE, offset):
                pids += [int(pid) for pid in data.split()]
                offset += len(data)
        return pids

    def close(self) -> None:
        """Let go of the list."""
        os.close(self._procs)

    def kill(self) -> None:
        """SIGKILL everything inside at once (Linux 5.14; before that the sweep has to do)."""
        with contextlib.suppress(OSError):
            _write(f"{self.path}/cgroup.kill", "1")


class Groups:
    """The slots of one warden, below the control group that the warden was started in.

    The warden waits in the slot that its next process will be born in: one move a process, instead of in and out.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._free: list[Slot] = []
        self._nest: Slot | None = None
        self._made: list[Slot] = []

    @classmethod
    def open(cls, name: str) -> Groups | None:
        """Make the warden's own directory, or return None where that is not allowed."""
        parent = _own_group()
        if parent is None:
            return None
        root = f"{parent}/gateway-{name}"
        try:
            os.mkdir(root)
        except OSError:
            return None
        groups = cls(root)
        groups._nestle()
        if groups._nest is None:
            groups.close()
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

    @contextlib.contextmanager
    def birth(self) -> Iterator[Slot | None]:
        """Return the empty slot that what is started meanwhile is born in; None when there is none to be had."""
        self._nestle()
        slot, self._nest = self._nest, None
        try:
            yield slot
        finally:
            self._nestle()
            if slot is not None and self._nest is None:
                self._leave()

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
        self._leave()
        for slot in self._made:
            slot.close()
        remove(self.root)

    def _nestle(self) -> None:
        if self._nest is not None:
            return
        slot = self.take()
        if slot is None:
            return
        try:
            slot.enter()
        except OSError:
            self.give_back(slot)
        else:
            self._nest = slot

    def _leave(self) -> None:
        with contextlib.suppress(OSError):
            _write(f"{os.path.dirname(self.root)}/cgroup.procs", "0")

    def _make(self) -> Slot:
        path = f"{self.root}/slot-{len(self._made)}"
        os.makedirs(path, exist_ok=True)  # there already is one that there was no descriptor left for
        self._made.append(Slot(path))
        return self._made[-1]


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
