"""Who works now: as many at once as the processors can work for. Who only waits for something takes no turn."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.cells.effort import Effort

AT_ONCE = min(8, max(4, 2 * len(os.sched_getaffinity(0))))  # a container may have less than what it sees
LOOK = 0.025  # seconds between two looks at who has a turn
IDLE = 3  # looks in a row at which he does not work: then he waits for something
LITTLE = 0.1  # of a processor: who takes less than that does not work
LONGEST = 5.0  # seconds of a turn: who computes for ever is not to keep others waiting


class Turns:
    """The turns of one gateway."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._busy = 0

    @property
    def busy(self) -> bool:
        """Whether somebody has a turn, or waits for one."""
        return self._busy > 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Wait for a turn, and have it until it is given back: at the end of the block, if not before."""
        self._busy += 1
        try:
            await self._free.acquire()
        except BaseException:
            self._busy -= 1
            raise
        turn = Turn(self._back)
        try:
            yield turn
        finally:
            turn.give_back()

    def _back(self) -> None:
        self._busy -= 1
        self._free.release()


class Turn:
    """One turn."""

    def __init__(self, back: Callable[[], None]) -> None:
        self._back = back
        self._held = True

    def give_back(self) -> None:
        """Let somebody else have it; it does no harm to do so again."""
        if self._held:
            self._held = False
            self._back()

    async def watch(self, effort: Callable[[], Effort], running: asyncio.Future[Any]) -> None:
        """Wait until something is done; give the turn back as soon as what does it only waits, or takes too long."""
        clock = asyncio.get_running_loop().time
        begun = last = clock()
        taken, idle = effort().taken, 0
        while idle < IDLE and last - begun < LONGEST:
            if (await asyncio.wait((running,), timeout=LOOK))[0]:
                return
            now, found = clock(), effort()
            works = found.working or found.taken - taken > LITTLE * (now - last)
            idle = 0 if works else idle + 1
            last, taken = now, found.taken
        self.give_back()
        await asyncio.wait((running,))
