"""The children of a fork host that wait: forked ahead of their requests, each in its folder, and blocked on stdin."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.processes.completed import StartFailed
from gateway.processes.stock import Stock, Waiting

if TYPE_CHECKING:
    from gateway.processes.base import OnLine, Room
    from gateway.processes.fork_host import Host
    from gateway.processes.launch import Launch
    from gateway.processes.run import Child


class Ahead:
    """Those of one connector."""

    def __init__(self, launch: Launch, room: Room) -> None:
        self.stock: Stock[_Forked] = Stock(room.places, self._on_unfit)
        self._launch = launch
        self._places = room.places
        self._loop = asyncio.get_running_loop()
        self._forking: set[asyncio.Task[None]] = set()
        self._host: Host | None = None
        self._held = False
        """One could not be forked, or died while it waited: the next request will tell why."""

    def take(self, launch: Launch, on_line: OnLine) -> Child | None:
        """Return one that waits, for a request with this launch and log; None when none does."""
        one = self.stock.take()
        self._held = False
        if one is None:
            return None
        child = one.hand_over(on_line, launch.redact)
        one.host.hand_over(child)
        return child

    def fill(self, host: Host) -> None:
        """Have the host fork until `warm` wait, as far as there is room."""
        if self._host is not host:
            self._host, self._held = host, False
        while not self._held and len(self.stock) < self._launch.keep.warm and self._places.free() > 0:
            self.stock.expect()
            task = self._loop.create_task(self._fork(host))
            self._forking.add(task)
            task.add_done_callback(self._forking.discard)

    def leave(self, host: Host) -> None:
        """Give those of one host up."""
        if self._host is host:
            self._host = None
            self.stock.retire_all()

    async def close(self) -> None:
        """Give all up, and wait for the end of those that were."""
        self.stock.retire_all()
        while self._forking:
            await asyncio.wait(self._forking)
        await self.stock.close()

    async def _fork(self, host: Host) -> None:
        one = _Forked(host)
        try:
            one.child = await host.fork(self._launch, one.on_line, ahead=True)
        except StartFailed:
            self._held = self._held or self._host is host  # that another host died says nothing of this one
            self.stock.arrived(None)
            return
        if self._host is host:
            self.stock.watch(one)
            self.stock.arrived(one)
        else:
            self.stock.arrived(None)
            self.stock.end(one)

    def _on_unfit(self, _one: _Forked) -> None:
        self._held = True


class _Forked(Waiting):
    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host
