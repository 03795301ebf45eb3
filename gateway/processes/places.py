"""The one counter: which processes run, who waits to have one, and what is kept without a request.

There is a place for each of `most` processes. A run takes one, in its connector's lane, and so does a host that has
work; what is kept without a request has those that nobody takes, and gives way.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from gateway.errors import ConnectorBusy

if TYPE_CHECKING:
    from gateway.errors import GatewayError
    from gateway.settings import Limits

WEIGHT = 0.2  # of the latest run in the moving average
SOONEST, LATEST = 1.0, 60.0  # seconds after which a refused caller may come again


class Lane:
    """One connector's runs, and those who wait for one. `typical` is a moving average of seconds a run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.concurrency = 1
        self.running = 0
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.typical = SOONEST

    def running_of(self, _client: str) -> int:
        """Return how many runs of one client it has."""
        return self.running

    def waiting_of(self, _client: str) -> int:
        """Return how many calls of one client wait."""
        return len(self.waiting)

    def retry_after(self) -> int:
        """Return when a place should be free, in seconds."""
        expected = self.typical * (len(self.waiting) + 1) / self.concurrency
        return math.ceil(min(LATEST, max(SOONEST, expected)))


class Places:
    """All places of a gateway. Who waits is served in order within a connector, and the connectors in turn."""

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
        self.hosts += change
        if change < 0:
            self.grant()

    def take(self, lane: Lane, concurrency: int) -> bool:
        """Take a place for a run, if fewer than `concurrency` of the connector's, and fewer than all, are taken."""
        lane.concurrency = concurrency
        return not lane.waiting and self._take(lane)

    async def wait(self, lane: Lane, limits: Limits, patience: float) -> None:
        """Take a place as soon as there is one: at most `queue_timeout` and `patience` seconds from now.

        Raises:
            ConnectorBusy: the queue is full, or the wait ran out.
        """
        self._check_queue(lane, limits)
        patience = min(limits.queue_timeout, patience)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lane.waiting.append(waiter)
        self._turns.setdefault(lane.name, lane)
        self.grant()
        try:
            async with asyncio.timeout(patience):
                await waiter
        except TimeoutError:
            if waiter.done() and not waiter.cancelled():  # granted, or refused, in the same turn of the loop
                waiter.result()
                return
            raise ConnectorBusy(f"no slot came free within {patience:.3g} s", retry_after=lane.retry_after()) from None
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give(lane)
            raise
        finally:
            if waiter in lane.waiting:
                lane.waiting.remove(waiter)
                self.grant()

    def give(self, lane: Lane, seconds: float) -> None:
        """Give the place of a run back that took so long."""
        lane.typical += WEIGHT * (seconds - lane.typical)
        self._give(lane)

    def refuse(self, problem: type[GatewayError]) -> None:
        """Send everybody away who waits."""
        for lane in self._turns.values():
            for waiter in lane.waiting:
                if not waiter.done():
                    waiter.set_exception(problem(retry_after=5))

    def grant(self) -> None:
        """Give free places to those who wait, the connectors in turn."""
        progress = bool(self._turns)
        while progress:
            progress = False
            for name, lane in list(self._turns.items()):
                while lane.waiting and lane.waiting[0].done():
                    lane.waiting.popleft()
                if not lane.waiting:
                    del self._turns[name]
                elif self._take(lane):
                    lane.waiting.popleft().set_result(None)
                    self._turns.move_to_end(name)
                    progress = True

    # --- private

    def _take(self, lane: Lane) -> bool:
        if lane.running >= lane.concurrency or self.running + self.hosts >= self.most:
            return False
        lane.running += 1
        self.running += 1
        return True

    def _give(self, lane: Lane) -> None:
        lane.running -= 1
        self.running -= 1
        if self._turns:
            self.grant()

    def _check_queue(self, lane: Lane, limits: Limits) -> None:
        queued = len(lane.waiting)
        if queued < limits.queue:
            return
        taken = f"all {limits.concurrency} slots are taken"
        if lane.running < limits.concurrency:
            taken = f"all {self.most} processes of the gateway (max_processes) are taken"
        raise ConnectorBusy(
            f"{taken} and {queued} calls wait (the queue holds {limits.queue})", retry_after=lane.retry_after()
        )
