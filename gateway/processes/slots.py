"""Counts what runs, waits and is kept: in this process alone, or exactly over all workers of one gateway.

Workers share a file of counters. A cell has one writer, a row is read and changed under the file's lock, and who gives
a slot back wakes the workers in which somebody waits. No process stands between a call and its slot.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import mmap
import os
import socket
from typing import TYPE_CHECKING, Protocol, Self

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

ROWS = 4096  # connectors that can be counted, the first row is the sum
NAME = 4  # cells of a row that hold the digest of the connector's name
OWN = 3  # cells of a row that each worker has: running, waiting, kept
CELL = 4  # bytes
FREED, ASKED = b"freed", b"asked "  # what workers tell each other
MESSAGE = 4096  # bytes
HOSTS = ""  # the row of fork hosts with a child in work, which take places that are no connector's


class Slots(Protocol):
    """Who holds how many slots."""

    def take(self, name: str, concurrency: int) -> bool:
        """Take a slot if fewer than `concurrency` of the connector's, and fewer than all, are taken."""

    def give(self, name: str) -> None:
        """Give one back."""

    def wait(self, name: str, change: int) -> None:
        """Note that somebody begins (1) or ends (-1) to wait for one."""

    def running(self, name: str) -> int:
        """Return how many of the connector's are taken."""

    def waiting(self, name: str) -> int:
        """Return how many wait for one of the connector's."""

    def total(self) -> int:
        """Return how many are taken, over all connectors and by hosts."""

    def hosts(self, change: int) -> None:
        """Take a place for each of so many hosts whatever the bound, since they are there already; or give it back."""

    def keep(self, name: str, change: int) -> None:
        """Note that so many more processes, or less, of a connector are kept here; of all where the name is empty."""

    def kept_elsewhere(self, name: str = "") -> int:
        """Return how many other workers keep, of a connector or of all."""

    def ask(self, name: str = "") -> None:
        """Have a worker that keeps some end one of a connector's, or as many of all as are too many."""


class LocalSlots:
    """The counters of a gateway that is one process."""

    def __init__(self, max_processes: int) -> None:
        self._max = max_processes
        self._running: dict[str, int] = {}
        self._waiting: dict[str, int] = {}
        self._total = 0

    def take(self, name: str, concurrency: int) -> bool:
        """See `Slots`."""
        if self._total >= self._max or self._running.get(name, 0) >= concurrency:
            return False
        self._running[name] = self._running.get(name, 0) + 1
        self._total += 1
        return True

    def give(self, name: str) -> None:
        """See `Slots`."""
        self._running[name] -= 1
        self._total -= 1

    def wait(self, name: str, change: int) -> None:
        """See `Slots`."""
        self._waiting[name] = self._waiting.get(name, 0) + change

    def running(self, name: str) -> int:
        """See `Slots`."""
        return self._running.get(name, 0)

    def waiting(self, name: str) -> int:
        """See `Slots`."""
        return self._waiting.get(name, 0)

    def total(self) -> int:
        """See `Slots`."""
        return self._total

    def hosts(self, change: int) -> None:
        """See `Slots`."""
        self._running[HOSTS] = self._running.get(HOSTS, 0) + change
        self._total += change

    def keep(self, name: str, change: int) -> None:
        """See `Slots`: nobody else has to know."""

    def kept_elsewhere(self, name: str = "") -> int:  # noqa: ARG002
        """See `Slots`: there is nobody else."""
        return 0

    def ask(self, name: str = "") -> None:
        """See `Slots`: there is nobody else."""


class Table:
    """The file of counters: a row a connector, in it three cells a worker (running, waiting, kept)."""

    def __init__(self, file: Path | str, workers: int) -> None:
        self.workers = workers
        self._stride = NAME + OWN * workers
        size = ROWS * self._stride * CELL
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size < size:
            os.ftruncate(self._fd, size)
        self._map = mmap.mmap(self._fd, size)
        self._cells = memoryview(self._map).cast("I")
        self._rows: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Lock the file against the other workers."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        """Unlock it."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def row(self, name: str) -> int:
        """Return the row of a connector; a new one must be made under the lock."""
        if name in self._rows:
            return self._rows[name]
        digest = memoryview(hashlib.sha256(name.encode()).digest()[: NAME * CELL]).cast("I").tolist()
        for row in range(1, ROWS):
            start = row * self._stride
            found = self._cells[start : start + NAME].tolist()
            if not any(found):
                for index, part in enumerate(digest):
                    self._cells[start + index] = part
                found = digest
            if found == digest:
                self._rows[name] = row
                return row
        raise GatewayError(f"more than {ROWS - 1} connectors cannot be counted over several workers")

    def add(self, row: int, worker: int, *, running: int = 0, waiting: int = 0, kept: int = 0) -> None:
        """Change a worker's own cells."""
        start = self._start(row, worker)
        for cell, change in enumerate((running, waiting, kept), start):
            self._cells[cell] += change

    def sum(self, row: int) -> tuple[int, int]:
        """Return how many run and how many wait, over all workers."""
        cells = self._cells[self._start(row, 0) : self._start(row, self.workers)].tolist()
        return sum(cells[::OWN]), sum(cells[1::OWN])

    def waiters(self, row: int) -> list[int]:
        """Return the workers in which somebody waits."""
        return [worker for worker in range(self.workers) if self._cells[self._start(row, worker) + 1]]

    def keepers(self, row: int) -> dict[int, int]:
        """Return the workers that keep something, and how much."""
        kept = self._cells[self._start(row, 0) : self._start(row, self.workers)].tolist()[2::OWN]
        return {worker: count for worker, count in enumerate(kept) if count}

    def clear(self, worker: int) -> None:
        """Forget what a worker held: it is dead, and so is everything it ran."""
        with self:
            for row in range(ROWS):
                start = self._start(row, worker)
                self._cells[start] = self._cells[start + 1] = self._cells[start + 2] = 0

    def _start(self, row: int, worker: int) -> int:
        return row * self._stride + NAME + OWN * worker

    def close(self) -> None:
        """Let go of the file."""
        self._cells.release()
        self._map.close()
        os.close(self._fd)


class SharedSlots:
    """One worker's view of the counters."""

    def __init__(self, folder: Path | str, worker: int, workers: int, max_processes: int) -> None:
        """`folder` is short enough for the address of a socket in it."""
        self._max = max_processes
        self._worker = worker
        self._folder = folder
        self._table = Table(f"{folder}/slots", workers)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def open(self, on_freed: Callable[[], None], on_asked: Callable[[str], None]) -> None:
        """Begin to hear of slots that other workers give back, and of what they `ask`."""
        path = _wake_path(self._folder, self._worker)
        if os.path.exists(path):
            os.unlink(path)
        self._socket.bind(path)
        asyncio.get_running_loop().add_reader(self._socket, self._on_wake, on_freed, on_asked)

    def close(self) -> None:
        """Stop hearing."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._table.close()

    def take(self, name: str, concurrency: int) -> bool:
        """See `Slots`."""
        with self._table as table:
            row = table.row(name)
            if table.sum(0)[0] >= self._max or table.sum(row)[0] >= concurrency:
                return False
            for one in (0, row):
                table.add(one, self._worker, running=1)
        return True

    def give(self, name: str) -> None:
        """See `Slots`."""
        self._change(name, -1)

    def hosts(self, change: int) -> None:
        """See `Slots`."""
        self._change(HOSTS, change)

    def wait(self, name: str, change: int) -> None:
        """See `Slots`."""
        with self._table as table:
            for one in (0, table.row(name)):
                table.add(one, self._worker, waiting=change)

    def running(self, name: str) -> int:
        """See `Slots`."""
        with self._table as table:
            return table.sum(table.row(name))[0]

    def waiting(self, name: str) -> int:
        """See `Slots`."""
        with self._table as table:
            return table.sum(table.row(name))[1]

    def total(self) -> int:
        """See `Slots`."""
        return self._table.sum(0)[0]

    def keep(self, name: str, change: int) -> None:
        """See `Slots`."""
        with self._table as table:
            table.add(table.row(name) if name else 0, self._worker, kept=change)

    def kept_elsewhere(self, name: str = "") -> int:
        """See `Slots`."""
        return sum(count for _, count in self._keepers(name))

    def ask(self, name: str = "") -> None:
        """See `Slots`."""
        first = [worker for worker, _ in self._keepers(name)[:1]]  # one by one: two would give up too much
        ring(self._socket, self._folder, first, ASKED + name.encode())

    def _keepers(self, name: str) -> list[tuple[int, int]]:
        row = 0
        if name:
            with self._table as table:
                row = table.row(name)
        return [(worker, count) for worker, count in self._table.keepers(row).items() if worker != self._worker]

    def _change(self, name: str, change: int) -> None:
        with self._table as table:
            row = table.row(name)
            full = table.sum(0)[0] >= self._max
            for one in (0, row):
                table.add(one, self._worker, running=change)
            wake = set(table.waiters(0 if full else row)) - {self._worker} if change < 0 else ()
        ring(self._socket, self._folder, wake)

    def _on_wake(self, on_freed: Callable[[], None], on_asked: Callable[[str], None]) -> None:
        with contextlib.suppress(BlockingIOError):
            while message := self._socket.recv(MESSAGE):
                if message.startswith(ASKED):
                    on_asked(message.removeprefix(ASKED).decode())
        on_freed()


def ring(bell: socket.socket, folder: Path | str, workers: Iterable[int], message: bytes = FREED) -> None:
    """Tell workers that slots may have come free, or what is asked of them."""
    for worker in workers:
        try:
            bell.sendto(message, _wake_path(folder, worker))
        except OSError:  # it is gone, or has not read its last wake-up yet: either will do
            continue


def _wake_path(folder: Path | str, worker: int) -> str:
    return f"{folder}/wake-{worker}"
