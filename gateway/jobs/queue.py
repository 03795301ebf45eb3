"""The one queue: which waiting job of a connector goes next.

It is one of the client with the fewest that run there, the clients in turn; of a client's own the one with the highest
priority, and then the first. A job that waits is no task, and nothing but an entry here.
"""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from gateway.calls.quotas import Quotas

T = TypeVar("T", bound="Hashable")


class _Line(Generic[T]):
    def __init__(self) -> None:
        self.running = 0
        self.runs: dict[str, int] = {}
        """Those that run of each client that has any."""
        self.waiting: dict[str, list[tuple[int, int, T]]] = {}
        """A heap for each client that has any, whose turn it is next first."""


class Queue(Generic[T]):
    """Lets at most `limit(connector)` of a connector's jobs go on at once, and of a client's what its quota lets.

    `go` is called with each that may.
    """

    def __init__(self, limit: Callable[[str], int], go: Callable[[T], None], quotas: Quotas) -> None:
        self._limit = limit
        self._go = go
        self._quotas = quotas
        self._lanes: dict[str, _Line[T]] = {}  # whose turn it is next first
        self._order = itertools.count()
        self._removed: set[T] = set()
        self._closed = False
        quotas.on_room = self._on_room

    def put(self, connector: str, client: str, priority: int, one: T) -> None:
        """Have one wait for its turn; whoever has had it must `leave`."""
        lane = self._lanes.setdefault(connector, _Line())
        heapq.heappush(lane.waiting.setdefault(client, []), (-priority, next(self._order), one))
        self._grant(connector, lane)

    def remove(self, one: T) -> None:
        """Let one that waits never have its turn."""
        self._removed.add(one)

    def leave(self, connector: str, client: str) -> None:
        """Give a turn back."""
        lane = self._lanes[connector]
        lane.running -= 1
        lane.runs[client] -= 1
        if not lane.runs[client]:
            del lane.runs[client]
        self._quotas.give(client)
        self._grant(connector, lane)

    def close(self) -> None:
        """Let nobody go on any more."""
        self._closed = True

    def waiting(self, connector: str) -> int:
        """Return how many wait for their turn."""
        lane = self._lanes.get(connector)
        heaps = lane.waiting.values() if lane is not None else ()
        return sum(one not in self._removed for heap in heaps for _, _, one in heap)

    # --- private

    def _on_room(self, client: str) -> None:
        """Go on with the jobs of a client that was at its concurrency, the connectors in turn."""
        for connector, lane in list(self._lanes.items()):
            if client in lane.waiting:
                self._grant(connector, lane)

    def _grant(self, connector: str, lane: _Line[T]) -> None:
        full: set[str] = set()  # clients that may have no more now
        while not self._closed and lane.running < max(1, self._limit(connector)):
            client = self._next(lane, full)
            if client is None:
                break
            if not self._quotas.take(client):
                full.add(client)
                continue
            heap = lane.waiting.pop(client)
            _, _, one = heapq.heappop(heap)
            if heap:
                lane.waiting[client] = heap
            lane.running += 1
            lane.runs[client] = lane.runs.get(client, 0) + 1
            self._lanes[connector] = self._lanes.pop(connector)
            self._go(one)
        if not lane.waiting and not lane.running:
            self._lanes.pop(connector, None)

    def _next(self, lane: _Line[T], full: set[str]) -> str | None:
        """Return whose job is next, which is the first in its heap; None where there is none that may go on."""
        for client, heap in list(lane.waiting.items()):
            while heap and heap[0][2] in self._removed:
                self._removed.discard(heapq.heappop(heap)[2])
            if not heap:
                del lane.waiting[client]
        fitting = (client for client in lane.waiting if client not in full)
        return min(fitting, key=lambda client: lane.runs.get(client, 0), default=None)
