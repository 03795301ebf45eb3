"""Which waiting job of a connector goes next: the one with the highest priority, and among those the first."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class _Lane:
    def __init__(self) -> None:
        self.running = 0
        self.waiting: list[tuple[int, int, asyncio.Future[None]]] = []


class Gate:
    """Lets at most `limit(connector)` jobs of a connector through at once. It lives in one event loop."""

    def __init__(self, limit: Callable[[str], int]) -> None:
        self._limit = limit
        self._lanes: dict[str, _Lane] = {}
        self._order = itertools.count()
        self._closed = False

    async def enter(self, connector: str, priority: int) -> None:
        """Wait for a place; whoever has one must `leave`."""
        lane = self._lanes.setdefault(connector, _Lane())
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(lane.waiting, (-priority, next(self._order), turn))
        self._grant(connector, lane)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(connector)
            raise

    def leave(self, connector: str) -> None:
        """Give a place back."""
        lane = self._lanes[connector]
        lane.running -= 1
        self._grant(connector, lane)

    def close(self) -> None:
        """Let nobody through any more."""
        self._closed = True

    def _grant(self, connector: str, lane: _Lane) -> None:
        while lane.waiting and not self._closed:
            turn = lane.waiting[0][2]
            if turn.done():
                heapq.heappop(lane.waiting)
            elif lane.running < max(1, self._limit(connector)):
                heapq.heappop(lane.waiting)
                lane.running += 1
                turn.set_result(None)
            else:
                break
        if not lane.waiting and not lane.running:
            self._lanes.pop(connector, None)
