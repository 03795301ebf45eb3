"""The one counter: which processes run, who waits to have one, and what is kept without a request.

There is a place for each of `most` processes. A run takes one, in its connector's lane, and so does a host that has
work; what is kept without a request has those that nobody takes, and gives way. Who waits is served by client: in a
lane the one with the fewest runs there, over all lanes the one with the fewest runs, and then in turn.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from gateway.errors import ConnectorBusy
from gateway.identity import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.errors import GatewayError
    from gateway.sections import Limits

    Waiter = asyncio.Future[None]

WEIGHT = 0.2  # of the latest run in the moving average
SOONEST, LATEST = 1.0, 60.0  # seconds after which a refused caller may come again


class Lane:
    """One connector's runs, and those who wait for one. `typical` is a moving average of seconds a run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.concurrency = 1
        self.running = 0
        self.queued = 0
        """Those who wait, over all clients."""
        self.runs: dict[str, int] = {}
        """The runs of each client that has any."""
        self.waiting: dict[str, deque[Waiter]] = {}
        """Those of each client that has any, whose turn it is next first."""
        self.typical = SOONEST

    def running_of(self, client: str) -> int:
        """Return how many runs a client has."""
        return self.runs.get(client, 0)

    def waiting_of(self, client: str) -> int:
        """Return how many of a client's calls wait."""
        return len(self.waiting.get(client, ()))

    def of(self, client: str) -> int:
        """Return how many runs a client has or waits for."""
        return self.running_of(client) + self.waiting_of(client)

    def shared(self, client: str) -> bool:
        """Tell whether there is another client."""
        return bool((self.runs.keys() | self.waiting.keys()) - {client})

    def retry_after(self, client: str) -> int:
        """Return when a place should be free for a client, in seconds: the clients take turns."""
        clients = len(self.runs.keys() | self.waiting.keys() | {client})
        expected = self.typical * (self.waiting_of(client) + 1) * clients / self.concurrency
        return math.ceil(min(LATEST, max(SOONEST, expected)))


class Places:
    """All places of a gateway."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept = 0
        """Processes without a request, which give way."""
        self.hosts = 0
        """Hosts that have work: each takes the place of a run."""
        self.running = 0
        """Runs, over all connectors."""
        self.open = True
        """Something may be started ahead."""
        self._runs: dict[str, int] = {}  # of each client that has any
        self._lanes: dict[str, Lane] = {}
        self._turns: OrderedDict[str, Lane] = OrderedDict()  # those in which somebody waits

    def lane(self, name: str) -> Lane:
        """Return a connector's lane."""
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(name)
        return lane

    def free(self) -> int:
        """Return how many more processes there may be; negative when some that are kept have to go."""
        return self.most - self.running - self.hosts - self.kept if self.open else 0

    def host(self, change: int) -> None:
        """Count so many hosts with work more, or less."""
        was_full = self.running + self.hosts >= self.most
        self.hosts += change
        if was_full and change < 0:
            self._grant_all()

    def take(self, lane: Lane, concurrency: int, client: str = DEFAULT) -> bool:
        """Take a place for a run, if fewer than `concurrency` of the connector's, and fewer than all, are taken."""
        lane.concurrency = concurrency
        return not lane.waiting and self._take(lane, client)

    async def wait(self, lane: Lane, limits: Limits, patience: float, client: str = DEFAULT) -> None:
        """Take a place as soon as there is one: at most `queue_timeout` and `patience` seconds from now.

        Raises:
            ConnectorBusy: the queue is full, or the wait ran out, or another client has less in the queue.
        """
        if lane.queued >= limits.queue and not self._make_room(lane, limits, client):
            raise self._full(lane, limits, client, shared=lane.shared(client))
        patience = min(limits.queue_timeout, patience)
        waiter: Waiter = asyncio.get_running_loop().create_future()
        lane.waiting.setdefault(client, deque()).append(waiter)
        lane.queued += 1
        self._turns.setdefault(lane.name, lane)
        self._grant(lane)
        try:
            async with asyncio.timeout(patience):
                await waiter
        except TimeoutError:
            if waiter.done() and not waiter.cancelled():  # granted, or refused, in the same turn of the loop
                waiter.result()
                return
            wanted = f"no slot came free within {patience:.3g} s"
            raise ConnectorBusy(wanted, retry_after=lane.retry_after(client)) from None
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give(lane, client)
            raise
        finally:
            if waiter in lane.waiting.get(client, ()):
                lane.waiting[client].remove(waiter)
                self._less(lane, client)

    def give(self, lane: Lane, seconds: float, client: str = DEFAULT) -> None:
        """Give the place of a run back that took so long."""
        lane.typical += WEIGHT * (seconds - lane.typical)
        self._give(lane, client)

    def refuse(self, problem: type[GatewayError]) -> None:
        """Send everybody away who waits."""
        for lane in self._turns.values():
            for waiting in lane.waiting.values():
                for waiter in waiting:
                    if not waiter.done():
                        waiter.set_exception(problem(retry_after=5))

    def busy(self) -> Iterator[tuple[str, str, int, int]]:
        """Yield connector, client, runs and calls that wait, of each that has any."""
        for lane in self._lanes.values():
            if lane.running or lane.queued:
                for client in lane.runs.keys() | lane.waiting.keys():
                    yield lane.name, client, lane.running_of(client), lane.waiting_of(client)

    # --- private: places

    def _take(self, lane: Lane, client: str) -> bool:
        if lane.running >= lane.concurrency or self.running + self.hosts >= self.most:
            return False
        lane.running += 1
        self.running += 1
        for runs in (lane.runs, self._runs):
            runs[client] = runs.get(client, 0) + 1
        return True

    def _give(self, lane: Lane, client: str) -> None:
        was_full = self.running + self.hosts >= self.most
        lane.running -= 1
        self.running -= 1
        for runs in (lane.runs, self._runs):
            runs[client] -= 1
            if not runs[client]:
                del runs[client]
        if self._turns:
            if was_full:
                self._grant_all()
            else:  # there was room for all others
                self._grant(lane)

    # --- private: who is next

    def _grant_all(self) -> None:
        """Give free places to those who wait in any lane."""
        while self.running + self.hosts < self.most and (lane := self._next_lane()) is not None:
            self._serve(lane)

    def _grant(self, lane: Lane) -> None:
        """Give free places to those who wait in a lane."""
        while lane.waiting and lane.running < lane.concurrency and self.running + self.hosts < self.most:
            self._serve(lane)

    def _next_lane(self) -> Lane | None:
        """Return the lane, of those with a slot, whose next client has the fewest runs over all; the lanes in turn."""
        found, fewest = None, 0
        for lane in self._turns.values():
            if lane.running < lane.concurrency:
                runs = self._runs.get(self._next_client(lane), 0)
                if found is None or runs < fewest:
                    found, fewest = lane, runs
                    if not runs:
                        break
        return found

    def _next_client(self, lane: Lane) -> str:
        """Return who is next in a lane: with the fewest runs there, or over all where slots are not what is scarce."""
        if len(lane.waiting) == 1:
            return next(iter(lane.waiting))
        runs = lane.runs if lane.running + 1 >= lane.concurrency else self._runs
        return min(lane.waiting, key=lambda client: runs.get(client, 0))

    def _serve(self, lane: Lane) -> None:
        """Give a place to the first of a lane's next client."""
        client = self._next_client(lane)
        waiting = lane.waiting[client]
        waiter = waiting.popleft()
        if not waiter.done():  # otherwise its caller has gone, and it was nobody's turn
            self._take(lane, client)
            waiter.set_result(None)
            lane.waiting[client] = lane.waiting.pop(client)
            self._turns.move_to_end(lane.name)
        self._less(lane, client)

    def _less(self, lane: Lane, client: str) -> None:
        """Count one less who waits."""
        lane.queued -= 1
        if not lane.waiting[client]:
            del lane.waiting[client]
            if not lane.waiting:
                del self._turns[lane.name]

    # --- private: a full queue

    def _make_room(self, lane: Lane, limits: Limits, client: str) -> bool:
        """Send the latest away of whoever has most in a lane, if a client has less even with one more."""
        most = max(lane.waiting, key=lane.of, default=client)
        if lane.of(most) < lane.of(client) + 2:
            return False
        waiter = lane.waiting[most].pop()
        if not waiter.done():
            waiter.set_exception(self._full(lane, limits, most, shared=True))
        self._less(lane, most)
        return True

    def _full(self, lane: Lane, limits: Limits, client: str, *, shared: bool) -> ConnectorBusy:
        """Return what a client is told: how many calls wait only where all of them are its own."""
        taken = f"all {limits.concurrency} slots are taken"
        if lane.running < limits.concurrency:
            taken = f"all {self.most} processes of the gateway (max_processes) are taken"
        queue = "the queue is full" if shared else f"{lane.queued} calls wait (the queue holds {limits.queue})"
        return ConnectorBusy(f"{taken} and {queue}", retry_after=lane.retry_after(client))
