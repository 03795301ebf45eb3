"""A new process for each request."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from gateway.processes.completed import StartFailed
from gateway.processes.run import Child

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.cells.cell import Cell
    from gateway.cells.cells import Cells
    from gateway.processes.base import OnLine
    from gateway.processes.launch import Keep, Launch


class SpawnPool:
    """Starts the executable when it is asked."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells

    def cell(self, launch: Launch) -> Cell:
        """Return a cell for a launch's process.

        Raises:
            StartFailed: there is none to be had.
        """
        try:
            return self._cells.take(launch.key, launch.sandbox, launch.bounds.memory)
        except OSError as problem:
            raise StartFailed(f"no cell: {problem}") from problem

    def cells_of(self, launch: Launch) -> list[Cell]:
        """Return the cells in which a launch's processes live."""
        return self._cells.of(launch.key)

    def give_back(self, cell: Cell, launch: Launch) -> None:
        """Keep a cell for the connector's next process."""
        self._cells.give_back(cell, keep=launch.keep.concurrency + launch.keep.warm)

    def obtain(self, launch: Launch, on_line: OnLine) -> Child:
        """Return a process in a cell of its own, which is started with its request.

        Raises:
            StartFailed: there is none to be had.
        """
        cell, release = self._taken(launch)
        return Child(cell, launch, on_line, release, functools.partial(self._taken, launch))

    def ahead(self, launch: Launch, on_line: OnLine) -> Child:
        """Return a process that is started ahead of its request.

        Raises:
            StartFailed: it cannot be.
        """
        child = self.obtain(launch, on_line)
        try:
            child.begin()
        except StartFailed:
            child.let_go()
            raise
        return child

    @staticmethod
    def keeps(_keep: Keep) -> str:
        """See `Source`."""
        return "nothing"

    @staticmethod
    def counts(_keep: Keep) -> tuple[int, int]:
        """See `Source`."""
        return 0, 0

    def _taken(self, launch: Launch) -> tuple[Cell, Callable[[], None]]:
        cell = self.cell(launch)
        return cell, functools.partial(self.give_back, cell, launch)
