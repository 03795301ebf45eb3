"""Several gateway processes behind one port: which of them this one is, and how it hears of the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import time
from pathlib import Path

import msgspec

from gateway.cells import orphans

SWEPT = 15.0  # seconds that a dead worker's cells may take to kill what it ran
KEY_HEADER = "X-Team-Key"
MASTER = 0  # the descriptor that leads from a worker to its master
BEAT = 3.0  # seconds between two signs of life
SIGN = b"\0"


class Team(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's place. `folder` is shared: counters, metrics, and a socket a worker."""

    folder: Path
    worker: int
    workers: int
    generation: int
    settings: int
    """The descriptor on which the master lends its settings."""
    key: str = ""
    """What its workers show each other."""
    handle: int = -1
    """A descriptor of the folder, in the worker itself."""

    @property
    def run_folder(self) -> Path:
        """The worker's own folder; the master waits for its end before it starts a successor."""
        return self._run_folder(self.worker, self.generation)

    async def ended(self, worker: int, generation: int) -> None:
        """Wait until a dead worker's cells have killed everything that it ran, and remove its folder."""
        deadline = time.monotonic() + SWEPT
        folder = self._run_folder(worker, generation)
        while _holds_something(folder) and time.monotonic() < deadline:  # noqa: ASYNC110 - a folder has no event
            await asyncio.sleep(0.02)
        with contextlib.suppress(OSError):
            folder.rmdir()

    @property
    def metrics(self) -> Path:
        """Where prometheus-client keeps what has to be summed up."""
        return metrics_folder(self.folder)

    def socket(self, worker: int) -> str:
        """The socket on which a worker answers the others."""
        return f"{self.short_folder}/worker-{worker}.sock"

    @property
    def short_folder(self) -> str:
        """The folder under a name that leaves room in a socket's address, which holds 107 bytes."""
        return f"/proc/self/fd/{self.handle}"

    @property
    def log_lock(self) -> Path:
        """The file that is locked while a line of log is written."""
        return log_lock(self.folder)

    @property
    def headers(self) -> dict[str, str]:
        """What goes with each request to another worker."""
        return {KEY_HEADER: self.key}

    def others(self) -> list[int]:
        """Every worker but this one."""
        return [worker for worker in range(self.workers) if worker != self.worker]

    def _run_folder(self, worker: int, generation: int) -> Path:
        return self.folder / f"worker-{worker}-{generation}"

    def to_text(self) -> str:
        """Write it as an argument."""
        return f"{self.worker},{self.workers},{self.generation},{self.settings},{self.folder}"

    @classmethod
    def from_text(cls, text: str) -> Team:
        """Read such an argument, and open the folder for as long as the process lives."""
        *numbers, folder = text.split(",", 4)
        worker, workers, generation, settings = map(int, numbers)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return cls(
            folder=Path(folder),
            worker=worker,
            workers=workers,
            generation=generation,
            settings=settings,
            handle=handle,
        )


def follow() -> None:
    """Die when the master does, whatever this worker is doing then: nobody would replace it or pass a signal on."""
    orphans.die_with_parent()
    line = select.poll()
    line.register(MASTER, select.POLLIN)
    if line.poll(0):  # the master says nothing: it is gone already
        raise SystemExit(1)


def beat() -> None:
    """Tell the master again and again that this worker's loop turns."""
    with contextlib.suppress(OSError):  # it has not read the last ones yet
        os.write(MASTER, SIGN)
    asyncio.get_running_loop().call_later(BEAT, beat)


def tell(problem: str) -> None:
    """Tell the master why this worker is about to end."""
    with contextlib.suppress(OSError):
        os.write(MASTER, problem.encode())


def log_lock(folder: Path) -> Path:
    """Return the file that is locked while a line of log is written."""
    return Path(os.path.join(folder, "log"))


def metrics_folder(folder: Path) -> Path:
    """Return where a team's metrics are."""
    return Path(os.path.join(folder, "metrics"))


def _holds_something(folder: Path) -> bool:
    """Tell whether a cell has its private folder there still."""
    try:
        return bool(os.listdir(folder))
    except FileNotFoundError:
        return False
