"""Processes started ahead: they boot, block on stdin, serve one request and are replaced.

Works for any executable that reads its request before it does anything. One that does not is found out, told, and
spawned from then on.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from typing import TYPE_CHECKING

from gateway.cells.wire import Why
from gateway.processes.ahead import Waiting
from gateway.processes.run import GRACE, Child, Launch, StartFailed, Stop

if TYPE_CHECKING:
    from gateway.cells.cell import Ended
    from gateway.processes.base import OnLine, Room, Worker
    from gateway.processes.notices import Notices
    from gateway.processes.run import Answered, Completed, Mode, Payload
    from gateway.processes.spawn import SpawnPool

HEAD_START = 0.02  # seconds that a request has the processor for itself before its successor boots
STRIKES = 2  # processes in a row that did not wait


class Standby:
    """One connector's processes in waiting."""

    def __init__(self, launch: Launch, spawn: SpawnPool, room: Room, notices: Notices) -> None:
        self.launch = launch
        self._spawn = spawn
        self._room = room
        self.notices = notices
        self._loop = asyncio.get_running_loop()
        self.used = self._loop.time()
        self._waiting: deque[Waiting] = deque()
        self._strikes = 0
        self._held = True
        """Nobody has asked for processes ahead yet, or the latest could not be started."""
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def mode(self) -> Mode:
        """How processes are obtained now."""
        return "standby" if self._strikes < STRIKES else "spawn"

    async def obtain(self, launch: Launch, on_line: OnLine) -> Worker:
        """Return a process that waits, or a new one where none does."""
        self.used = self._loop.time()
        self._held = False
        while self._waiting:
            waiting = self._waiting.popleft()
            if waiting.child.untouched:
                self._strikes = 0
                waiting.hand_over(on_line)
                return _Served(waiting.child, self)
            self._dismiss(waiting)
        return _Served(self._spawn.start(launch, on_line), self)

    def idle(self) -> int:
        """Return how many processes wait."""
        return len(self._waiting)

    def warm(self, *, idle: bool = False) -> None:
        """Start processes until `warm` wait, or `warm_min` after idleness, as far as there is room."""
        self._held = False
        keep = self.launch.keep
        wanted = min(keep.warm, keep.warm_min) if idle else keep.warm
        while len(self._waiting) < wanted and self._strikes < STRIKES and self._room.free() > 0:
            waiting = Waiting()
            try:
                waiting.child = self._spawn.start(self.launch, waiting.on_line, ahead=True)
            except StartFailed:
                self._held = True  # the next request will tell
                return
            waiting.child.gone.add_done_callback(functools.partial(self._on_gone, waiting))
            self._waiting.append(waiting)

    def tend(self, now: float) -> None:
        """Shrink after idleness; replace the ones that did not wait, or had to give way."""
        for waiting in [one for one in self._waiting if not one.child.untouched]:
            self._waiting.remove(waiting)
            self._dismiss(waiting)
        idle = now - self.used > self.launch.keep.warm_idle
        while idle and len(self._waiting) > self.launch.keep.warm_min:
            self.evict()
        if not self._held:
            self.warm(idle=idle)

    def evict(self) -> bool:
        """Give up one that waits."""
        if not self._waiting:
            return False
        self._end(self._waiting.popleft())
        return True

    async def close(self) -> None:
        """Kill those that wait."""
        self._strikes = STRIKES
        while self.evict():
            pass
        await asyncio.gather(*self._ending, return_exceptions=True)

    def replenish(self, *, soon: bool) -> None:
        """Replace one that has been taken."""
        if soon:
            self._loop.call_later(HEAD_START, self.warm)
        else:
            self._loop.call_soon(self.warm)  # after the answer

    def _on_gone(self, waiting: Waiting, _gone: asyncio.Future[Ended]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            self._dismiss(waiting)

    def _dismiss(self, waiting: Waiting) -> None:
        """Draw the conclusion from one that did not wait."""
        self._end(waiting)
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

    def _end(self, waiting: Waiting) -> None:
        task = self._loop.create_task(waiting.child.discard())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


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
