"""One client that floods a connector without pause, and another that makes one call after the other beside it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from typing import TYPE_CHECKING, NamedTuple

from gateway.calls.call import Call
from gateway.errors import ConnectorBusy, GatewayError
from gateway.protocol.request import Caller
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gateway.gateway import Gateway

CONNECTOR = "filter"
AGAIN = 0.01  # seconds after which the flood asks again that was refused


class Seen(NamedTuple):
    """What the other client saw, one value a call."""

    seconds: list[float]
    """From the call to its answer."""
    passed: list[int]
    """Runs of the flood that got a slot between the call and its own slot."""
    refused: int


class Flood:
    """Calls of a client from so many connections; each is repeated as soon as it is answered, or refused."""

    def __init__(self, gateway: Gateway, client: str, connections: int) -> None:
        self.begun = 0
        """Runs that got a slot."""
        self.over = False
        """One of its calls failed."""
        self._gateway = gateway
        self._client = client
        self._connections = connections

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._calls()) for _ in range(self._connections)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if not isinstance(end, asyncio.CancelledError):
                raise end

    async def _calls(self) -> None:
        for number in itertools.count():
            try:
                await self._gateway.invoker.invoke(_call(f"flood-{number}", self._client, self._begin))
            except ConnectorBusy:
                await asyncio.sleep(AGAIN)
            except GatewayError:
                self.over = True
                raise

    async def _begin(self) -> None:
        self.begun += 1


async def beside(gateway: Gateway, *, other: str, calls: int, flood: str, connections: int) -> Seen:
    """Make calls of a client, one after the other, beside another's flood that has filled slots and queue."""
    flooding = Flood(gateway, flood, connections)
    seen, refused = Seen([], [], 0), 0
    clock = asyncio.get_running_loop().time

    async def begin(before: int) -> None:
        seen.passed.append(flooding.begun - before)

    async with flooding():
        lane = gateway.places.lane(CONNECTOR)
        limits = next(iter(gateway.registry.snapshot.ready())).limits
        full = min(limits.queue, connections - limits.concurrency)
        await eventually(lambda: lane.queued >= full or flooding.over)
        for number in range(calls):
            since, before = clock(), flooding.begun
            try:
                await gateway.invoker.invoke(_call(f"other-{number}", other, functools.partial(begin, before)))
            except ConnectorBusy:
                refused += 1
            else:
                seen.seconds.append(clock() - since)
    return seen._replace(refused=refused)


def _call(name: str, client: str, on_slot: Callable[[], Awaitable[None]]) -> Call:
    caller = Caller(request_id=name, client=client)
    return Call(connector=CONNECTOR, command="Go", params={}, caller=caller, on_slot=on_slot)
