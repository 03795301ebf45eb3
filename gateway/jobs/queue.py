"""The one queue: which waiting job of a connector goes next, the one with the highest priority, and then the first.

A job that waits is no task, and nothing but an entry here.
"""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T", bound="Hashable")


class _Line(Generic[T]):
    def __init__(self) -> None:
        self.running = 0
        self.waiting: list[tuple[int, int, T]] = []


class Queue(Generic[T]):
    """Lets at most `limit(connector)` of a connector's jobs go on at once; `go` is called with each that may."""

    def __init__(self, limit: Callable[[str], int], go: Callable[[T], None]) -> None:
        self._limit = limit
        self._go = go
        self._lanes: dict[str, _Line[T]] = {}
        self._order = itertools.count()
        self._removed: set[T] = set()
        self._closed = False

    def put(self, connector: str, priority: int, one: T) -> None:
        """Have one wait for its turn; whoever has had it must `leave`."""
        lane = self._lanes.setdefault(connector, _Line())
        heapq.heappush(lane.waiting, (-priority, next(self._order), one))
        self._grant(connector, lane)

    def remove(self, one: T) -> None:
        """Let one that waits never have its turn."""
        self._removed.add(one)

    def leave(self, connector: str) -> None:
        """Give a turn back."""
        lane = self._lanes[connector]
        lane.running -= 1
        self._grant(connector, lane)

    def close(self) -> None:
        """Let nobody go on any more."""
        self._closed = True

    def waiting(self, connector: str) -> int:
        """Return how many wait for their turn."""
        lane = self._lanes.get(connector)
        return 0 if lane is None else sum(one not in self._removed for _, _, one in lane.waiting)

    def _grant(self, connector: str, lane: _Line[T]) -> None:
        while lane.waiting and not self._closed:
            one = lane.waiting[0][2]
            if one not in self._removed and lane.running >= max(1, self._limit(connector)):
                return
            heapq.heappop(lane.waiting)
            if one in self._removed:
                self._removed.discard(one)
            else:
                lane.running += 1
                self._go(one)
        if not lane.waiting and not lane.running:
            self._lanes.pop(connector, None)
