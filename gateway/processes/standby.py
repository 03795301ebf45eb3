"""Processes started ahead: they boot, block on stdin, serve one request and are replaced.

Works for any executable that reads its request before it does anything. One that does not is found out, told, and
spawned from then on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

from gateway.cells.wire import Why
from gateway.processes.base import processes
from gateway.processes.completed import StartFailed, Stop
from gateway.processes.launch import GRACE, Launch
from gateway.processes.stock import Stock, Waiting

if TYPE_CHECKING:
    from gateway.cells.cell import Listener
    from gateway.processes.base import OnLine, Process, Room
    from gateway.processes.completed import Completed
    from gateway.processes.launch import Answered, Keep, Payload
    from gateway.processes.notices import Notices
    from gateway.processes.run import Child
    from gateway.processes.spawn import SpawnPool
    from gateway.sections import Mode

HEAD_START = 0.02  # seconds that a request has the processor for itself before its successor boots
STRIKES = 2  # processes in a row that did not wait


class Standby:
    """One connector's processes in waiting."""

    least: ClassVar[int] = 1

    def __init__(self, launch: Launch, spawn: SpawnPool, room: Room, notices: Notices) -> None:
        self.launch = launch
        self.notices = notices
        self._spawn = spawn
        self._places = room.places
        self._loop = asyncio.get_running_loop()
        self.used = self._loop.time()
        self._stock: Stock[Waiting] = Stock(room.places, self._on_unfit)
        self._strikes = 0
        self._held = True
        """Nobody has asked for processes ahead yet, or the latest could not be started."""

    @property
    def mode(self) -> Mode:
        """How processes are obtained now."""
        return "standby" if self._strikes < STRIKES else "spawn"

    def obtain(self, launch: Launch, on_line: OnLine) -> Process:
        """Return a process that waits, or a new one where none does."""
        self.used = self._loop.time()
        self._held = False
        waiting = self._stock.take()
        if waiting is None:
            return _Served(self._spawn.obtain(launch, on_line), self)
        self._strikes = 0
        return _Served(waiting.hand_over(on_line, launch.redact), self)

    def warm(self, *, idle: bool = False) -> None:
        """Start processes until `warm` wait, or `warm_min` after idleness, as far as there is room."""
        self._held = False
        keep = self.launch.keep
        wanted = min(keep.warm, keep.warm_min) if idle else keep.warm
        while len(self._stock) < wanted and self._strikes < STRIKES and self._places.free() > 0:
            waiting = Waiting()
            try:
                waiting.child = self._spawn.ahead(self.launch, waiting.on_line)
            except StartFailed:
                self._held = True  # the next request will tell
                return
            self._stock.watch(waiting)
            self._stock.give_back(waiting)

    def tend(self, now: float) -> None:
        """Shrink after idleness; replace the ones that did not wait, or had to give way."""
        self._stock.look()
        idle = now - self.used > self.launch.keep.warm_idle
        while idle and len(self._stock) > self.launch.keep.warm_min:
            self._stock.retire()
        if not self._held:
            self.warm(idle=idle)

    def retire(self, *, light: bool = False) -> bool:
        """Give up one that waits; none is light."""
        return not light and self._stock.retire()

    def kept(self) -> dict[Listener, str]:
        """Return those that wait."""
        return {one.child: "started ahead, waits for a call" for one in self._stock}

    async def close(self) -> None:
        """Kill those that wait."""
        self._strikes = STRIKES
        await self._stock.close()

    def replenish(self, *, soon: bool) -> None:
        """Replace one that has been taken."""
        if soon:
            self._loop.call_later(HEAD_START, self.warm)
        else:
            self._loop.call_soon(self.warm)  # after the answer

    @staticmethod
    def keeps(keep: Keep) -> str:
        """See `Source`."""
        return processes(keep) if keep.warm else "nothing"

    @staticmethod
    def counts(keep: Keep) -> tuple[int, int]:
        """See `Source`."""
        return keep.warm, keep.warm

    def _on_unfit(self, waiting: Waiting) -> None:
        """Draw the conclusion from one that did not wait."""
        gone = waiting.child.gone
        if gone.done() and gone.exception() is not None:
            self._held = True  # it cannot be started, which the next request will tell
        elif not gone.done() or gone.result().why != Why.CELL_DIED:
            self._strikes += 1
            if self._strikes == STRIKES:
                self._warn()

    def _warn(self) -> None:
        self.notices.warn(
            "does not wait for its request on stdin (it ended, or wrote a result, before there was one): "
            "its processes are no longer started ahead; say mode: spawn, or mend it"
        )


class _Served:
    """A process that has its request; its successor is started a moment later, or when it is done."""

    def __init__(self, child: Child, standby: Standby) -> None:
        self._child = child
        self._standby = standby

    async def run(self, payload: Payload, *, deadline: float, answered: Answered | None = None) -> Completed:
        self._standby.replenish(soon=True)
        try:
            return await self._child.run(payload, deadline=deadline, answered=answered)
        finally:
            self._standby.replenish(soon=False)

    def stop(self, why: Stop, *, grace: float = GRACE) -> None:
        self._child.stop(why, grace=grace)
