"""A new process for each request."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from gateway.processes.run import Child, StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.cells.cell import Cell
    from gateway.cells.stock import Cells
    from gateway.processes.base import OnLine
    from gateway.processes.run import Launch


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

    def give_back(self, cell: Cell, launch: Launch) -> None:
        """Keep a cell for the connector's next process."""
        self._cells.give_back(cell, keep=launch.keep.concurrency + launch.keep.warm)

    def start(self, launch: Launch, on_line: OnLine, *, ahead: bool = False) -> Child:
        """Return a process in a cell of its own, which is started with its request, or `ahead` of it.

        Raises:
            StartFailed: there is none to be had.
        """
        cell, release = self._taken(launch)
        child = Child(cell, launch, on_line, release, functools.partial(self._taken, launch))
        if ahead:
            try:
                child.begin()
            except StartFailed:
                release()
                raise
        return child

    async def obtain(self, launch: Launch, on_line: OnLine) -> Child:
        """Start a process."""
        return self.start(launch, on_line)

    def _taken(self, launch: Launch) -> tuple[Cell, Callable[[], None]]:
        cell = self.cell(launch)
        return cell, functools.partial(self.give_back, cell, launch)
