"""The cells of a gateway: made when a connector needs one, used by it again and again, and by nobody else."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
from typing import TYPE_CHECKING

from gateway.cells import orphans, program
from gateway.cells.cell import OVERDUE, Cell, CellState
from gateway.cells.groups import Groups
from gateway.cells.removing import remove
from gateway.sandbox import needs_judging, options, refused

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.sandbox import Sandbox

BEAT = 1.0  # seconds between two looks
IDLE = 60.0  # seconds without a run after which a cell goes
IDLE_MOST = 128  # cells without a run at most; the one that has been so for longest goes first
MODE = 0o700


class Cells:
    """All cells of one gateway, those that are in use and those that wait for their connector's next run."""

    def __init__(self, folder: Path, *, cgroup: bool = True) -> None:
        """`folder` exists when the first cell is made: the private folders are below it."""
        self.folder = folder
        self.cgroup = False
        """Each cell has a control group of its own."""
        self.bounded = False
        """The kernel holds memory and processes of these."""
        self._want_cgroup = cgroup
        self._groups: Groups | None = None
        self._opened = False
        self._last = 0
        self._idle: dict[str, list[Cell]] = {}
        self._living: set[Cell] = set()
        self._leaving: set[Cell] = set()
        """Closed, and maybe not reaped yet."""
        self._clearing: set[asyncio.Future[bool]] = set()
        self._beat: asyncio.TimerHandle | None = None

    @property
    def pids(self) -> list[int]:
        """The process ids of all cells."""
        return [cell.process.pid for cell in (*self._living, *self._leaving)]

    def open(self) -> None:
        """Begin. Called by the first `take` where nobody did before.

        Raises:
            NoCell: the cell's program is not there and cannot be built, which is done here where it has to be.
        """
        program.path()
        self._opened = True
        orphans.become_subreaper()
        orphans.be_unreadable()
        if self._want_cgroup:
            self._groups = Groups.open(self.folder.name)
        self.cgroup = self._groups is not None
        self.bounded = self._groups is not None and self._groups.bounds
        self._tick()

    def take(self, key: str, sandbox: Sandbox, memory: int) -> Cell:
        """Return a cell without a run: one that `key` has used already, with this sandbox, or a new one.

        `memory` is what a run may use, 0 for no bound.

        Raises:
            OSError: there is none to be had.
        """
        idle = self._idle.get(key)
        while idle:
            cell = idle.pop()
            if cell.alive and (cell.sandbox is sandbox or cell.sandbox == sandbox):
                if cell.group is not None and cell.group.runs != 1:
                    cell.group.bound(1)
                return cell
            self._let_go(cell)
        cell = self._make(sandbox, memory)
        cell.key = key
        return cell

    def give_back(self, cell: Cell, *, keep: int) -> None:
        """Keep a cell for its connector's next run: of each connector, at most so many wait."""
        if cell.state is CellState.STALE:
            self.forget(cell.key)
        idle = self._idle.get(cell.key)
        if idle is None:
            idle = self._idle[cell.key] = []
        if cell.state is not CellState.FIT or not cell.key or len(idle) >= keep:
            self._let_go(cell)
            return
        cell.idle_since = cell.loop.time()
        idle.append(cell)

    def of(self, key: str) -> list[Cell]:
        """Return those in which something of a connector lives."""
        return [cell for cell in self._living if cell.key == key and cell.busy]

    def forget(self, key: str) -> None:
        """Let those cells go that wait for a connector which is no more."""
        for cell in self._idle.pop(key, ()):
            self._let_go(cell)

    async def close(self) -> None:
        """Have everything killed, and wait for the end of it."""
        if self._beat is not None:
            self._beat.cancel()
        self._idle.clear()
        for cell in list(self._living):
            self._let_go(cell)
        await asyncio.sleep(0)  # their ends are heard of in the next turn
        if self._leaving:
            await asyncio.to_thread(self._wait)
        if self._clearing:
            await asyncio.wait(self._clearing)
        if self._groups is not None:
            self._groups.close()
            self._groups = None
        self._opened = False

    # --- private

    def _make(self, sandbox: Sandbox, memory: int) -> Cell:
        if not self._opened:
            self.open()
        self._last += 1
        folder = f"{self.folder}/{self._last}"
        os.mkdir(folder, MODE)
        group = self._groups.make(memory=memory, processes=sandbox.max_pids) if self._groups is not None else None
        judge = functools.partial(refused, sandbox) if needs_judging(sandbox) else None
        try:
            cell = Cell((program.path(), *options(sandbox, memory)), folder, judge, group)
        except BaseException:
            os.rmdir(folder)
            if group is not None:
                group.remove()
            raise
        cell.sandbox = sandbox
        self._living.add(cell)
        cell.on_death.add_done_callback(lambda _: self._on_death(cell))
        return cell

    def _let_go(self, cell: Cell) -> None:
        if cell.alive:
            cell.close()

    def _on_death(self, cell: Cell) -> None:
        self._living.discard(cell)
        self._leaving.add(cell)
        waiting = self._idle.get(cell.key, [])
        if cell in waiting:
            waiting.remove(cell)
        self._reap()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._beat = loop.call_later(BEAT, self._tick)
        now = loop.time()
        for cell in [cell for cell in self._living if cell.busy and cell.overdue(now)]:
            cell.destroy()
        waiting = sorted((cell for idle in self._idle.values() for cell in idle), key=lambda cell: cell.idle_since)
        surplus = len(waiting) - IDLE_MOST
        for number, cell in enumerate(waiting):
            if number < surplus or now - cell.idle_since > IDLE:
                self._let_go(cell)
        self._idle = {key: idle for key, idle in self._idle.items() if idle}
        self._reap()

    def _reap(self) -> None:
        dead = [cell for cell in self._leaving if cell.process.poll() is not None]
        for cell in dead:
            self._leaving.discard(cell)
            if not self._clear_up(cell):
                clearing = asyncio.get_running_loop().run_in_executor(None, remove, cell.folder)
                self._clearing.add(clearing)
                clearing.add_done_callback(self._clearing.discard)
        if not all(cell.state is CellState.CLOSED for cell in dead):
            orphans.sweep(self.pids)

    def _wait(self) -> None:
        for cell in list(self._leaving):
            try:
                cell.process.wait(OVERDUE)
            except subprocess.TimeoutExpired:
                cell.destroy()
                cell.process.wait()
            self._leaving.discard(cell)
            if not self._clear_up(cell):
                remove(cell.folder)

    def _clear_up(self, cell: Cell) -> bool:
        """Take away what a cell that is dead has left; tell whether its folder is gone."""
        if cell.group is not None:
            cell.group.kill()
            cell.group.remove()
        try:
            os.rmdir(cell.folder)  # as a rule it has removed it itself
        except OSError:
            return not os.path.lexists(cell.folder)
        return True
