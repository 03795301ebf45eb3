"""How many processes are alive: slots per connector, a bounded fair queue, one cap over all, and the drain."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from gateway.errors import ConnectorBusy, GatewayDraining
from gateway.observe.events import Bus, DrainFinished, DrainStarted
from gateway.processes.run import GRACE, Stop
from gateway.processes.slots import HOSTS, LocalSlots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from gateway.processes.base import Worker
    from gateway.processes.slots import Slots
    from gateway.settings import Limits


class State(enum.Enum):
    """Whether new work is taken."""

    SERVING = "serving"
    DRAINING = "draining"
    CLOSED = "closed"


MOVES = {State.SERVING: {State.DRAINING, State.CLOSED}, State.DRAINING: {State.CLOSED}, State.CLOSED: set()}


class Lane:
    """One connector's slots and those who wait for them. `typical` is a moving average of seconds a run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.concurrency = 1
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.typical = 1.0

    def retry_after(self) -> float:
        """Return when a place should be free, in seconds."""
        return min(60.0, max(1.0, self.typical * (len(self.waiting) + 1) / self.concurrency))


class Supervisor:
    """Hands out slots: at most `concurrency` a connector, at most `max_processes` over all of them.

    Whoever waits is served in order within a connector, and the connectors in turn.
    """

    def __init__(self, max_processes: int, bus: Bus, slots: Slots | None = None) -> None:
        self.state = State.SERVING
        self.slots = slots or LocalSlots(max_processes)
        self.shared = slots is not None
        self.max_processes = max_processes
        self._bus = bus
        self._lanes: dict[str, Lane] = {}
        self._turns: OrderedDict[str, Lane] = OrderedDict()  # those in which somebody waits
        self._children: set[Worker] = set()
        self._invocations = 0
        self._sending = 0
        self._less = asyncio.Event()
        self._stopping = False
        self._stopped = 0
        self.settle: Callable[[str], None] = lambda _: None
        """Told of a connector whose run is over, before its slot is given back."""

    def in_flight(self, name: str) -> int:
        """Return how many runs of a connector hold a slot."""
        return self.slots.running(name)

    def queued(self, name: str) -> int:
        """Return how many calls of a connector wait for one."""
        return self.slots.waiting(name)

    @property
    def running(self) -> int:
        """How many runs hold a slot, over all connectors."""
        return self.slots.total() - self.slots.running(HOSTS)

    def free(self, idle: int) -> int:
        """Return how many more processes there may be beside `idle` ones that can give way."""
        if self.state is not State.SERVING:
            return 0
        return self.max_processes - self.slots.total() - idle - self.slots.kept_elsewhere()

    def present(self, name: str) -> int:
        """Return how many processes of a connector have a request, or are kept by other workers."""
        return self.slots.running(name) + self.slots.kept_elsewhere(name)

    def keep(self, name: str, change: int) -> None:
        """Tell other workers how many more, or less, are kept here: of a connector, or of all where it has no name."""
        if self.state is not State.CLOSED:
            self.slots.keep(name, change)

    def ask(self, name: str = "") -> None:
        """Ask another worker to give up one of a connector that it keeps, or what is too much."""
        self.slots.ask(name)

    def hosts(self, change: int) -> None:
        """Count so many fork hosts more, or less, that cannot give way: each takes the place of a run."""
        if self.state is State.CLOSED:
            return
        self.slots.hosts(change)
        if change < 0:
            self.grant()

    @contextlib.contextmanager
    def invocation(self) -> Iterator[None]:
        """Count one call in flight, from its acceptance to its end.

        Raises:
            GatewayDraining: no new work is taken.
        """
        if self.state is not State.SERVING:
            raise GatewayDraining(retry_after=5)
        self._invocations += 1
        try:
            yield
        finally:
            self._invocations -= 1
            self._less.set()

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Count an answer that is being sent: a drain gives it the time that it gives to calls."""
        self._sending += 1
        try:
            yield
        finally:
            self._sending -= 1
            self._less.set()

    @contextlib.asynccontextmanager
    async def slot(self, name: str, limits: Limits, *, patience: float) -> AsyncIterator[None]:
        """Hold a slot of a connector; wait for one at most `queue_timeout` and `patience` seconds.

        Raises:
            ConnectorBusy: the queue is full, or the wait ran out.
        """
        lane = self._lanes.setdefault(name, Lane(name))
        lane.concurrency = limits.concurrency
        if lane.waiting or not self.slots.take(name, lane.concurrency):
            await self._wait(lane, limits, min(limits.queue_timeout, patience))
        begun = time.monotonic()
        try:
            yield
        finally:
            lane.typical += 0.2 * (time.monotonic() - begun - lane.typical)
            self.settle(name)
            self.slots.give(name)
            self.grant()

    @contextlib.contextmanager
    def attended(self, child: Worker) -> Iterator[None]:
        """Know a child while it runs, so that a shutdown can stop it."""
        self._children.add(child)
        if self._stopping:
            child.stop(Stop.DRAINED)
        try:
            yield
        finally:
            self._children.discard(child)

    def drain(self, grace: float) -> None:
        """Take no new work from now on."""
        self._move(State.DRAINING)
        self._bus.publish(DrainStarted(in_flight=self._invocations, grace=grace))

    async def drained(self, grace: float) -> None:
        """Wait for calls in flight and for their answers, `grace` seconds; then stop the calls that are left."""
        try:
            await asyncio.wait_for(self._over(), grace)
        except TimeoutError:
            self.stop_all(GRACE)
            await self._over()
        self._bus.publish(DrainFinished(stopped=self._stopped))

    def stop_all(self, grace: float) -> None:
        """Stop everything in flight: those that wait are refused, those that run are killed within `grace` seconds."""
        if not self._stopping:
            self._stopping = True
            self._stopped = self._invocations
            self._less.set()
        for lane in self._lanes.values():
            for waiter in lane.waiting:
                if not waiter.done():
                    waiter.set_exception(GatewayDraining(retry_after=5))
        for child in list(self._children):
            child.stop(Stop.DRAINED, grace=grace)

    def close(self) -> None:
        """Refuse everything."""
        if self.state is not State.CLOSED:
            self._move(State.CLOSED)

    # --- private

    async def _over(self) -> None:
        while self._invocations or (self._sending and not self._stopping):
            self._less.clear()
            await self._less.wait()

    def _move(self, state: State) -> None:
        if state not in MOVES[self.state]:
            raise RuntimeError(f"a supervisor cannot go from {self.state} to {state}")
        self.state = state

    async def _wait(self, lane: Lane, limits: Limits, patience: float) -> None:
        queued = self.queued(lane.name)
        if queued >= limits.queue:
            taken = f"all {limits.concurrency} slots are taken"
            if self.in_flight(lane.name) < limits.concurrency:
                taken = f"all {self.max_processes} processes of the gateway (max_processes) are taken"
            raise ConnectorBusy(
                f"{taken} and {queued} calls wait (the queue holds {limits.queue})",
                retry_after=math.ceil(lane.retry_after()),
            )
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lane.waiting.append(waiter)
        self.slots.wait(lane.name, 1)
        self._turns.setdefault(lane.name, lane)
        self.grant()
        try:
            async with asyncio.timeout(patience):
                await waiter
        except TimeoutError:
            if waiter.done() and not waiter.cancelled():  # granted, or refused, in the same turn of the loop
                waiter.result()
                return
            raise ConnectorBusy(
                f"no slot came free within {patience:.3g} s", retry_after=math.ceil(lane.retry_after())
            ) from None
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.slots.give(lane.name)
            raise
        finally:
            if waiter in lane.waiting:
                lane.waiting.remove(waiter)
            self.slots.wait(lane.name, -1)
            self.grant()

    def grant(self) -> None:
        """Give free slots to those who wait, the connectors in turn."""
        progress = True
        while progress:
            progress = False
            for name, lane in list(self._turns.items()):
                while lane.waiting and lane.waiting[0].done():
                    lane.waiting.popleft()
                if not lane.waiting:
                    del self._turns[name]
                elif self.slots.take(name, lane.concurrency):
                    lane.waiting.popleft().set_result(None)
                    self._turns.move_to_end(name)
                    progress = True
