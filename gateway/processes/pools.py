"""All ways of obtaining a process: one set of kept processes a connector, as its mode says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.processes.fork import ForkHost
from gateway.processes.notices import Notices
from gateway.processes.persistent import Persistent
from gateway.processes.spawn import SpawnPool
from gateway.processes.standby import Standby

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from gateway.cells.stock import Cells
    from gateway.observe.events import Bus
    from gateway.processes.base import Cap, Kept, OnLine, Room, Worker
    from gateway.processes.run import Launch, Mode

BEAT = 1.0  # seconds between two looks at what is kept
PATIENCE = 2.0  # seconds that a process of a connector has to go before there is another in its place
LOOK = 0.01  # seconds between two looks whether it has gone


class Pools:
    """Routes a launch to its connector's processes, and keeps those up to date with the registry."""

    def __init__(self, cells: Cells, bus: Bus, cap: Cap) -> None:
        self.spawn = SpawnPool(cells)
        self._bus = bus
        self._cap = cap
        self._hosts = 0
        self._kept: dict[str, Kept] = {}
        self._live: set[Kept] = set()
        """Those of `_kept` that may have processes: what a call costs does not grow with the connectors registered."""
        self._closing: set[asyncio.Task[None]] = set()
        self._beat: asyncio.Task[None] | None = None
        self._keeping = False
        self._told: dict[str, tuple[int, int]] = {}
        """What other workers know of each connector: processes that can give way, and persistent ones."""

    def open(self) -> None:
        """Start tending."""
        self._beat = asyncio.create_task(self._tend(), name="pools")

    async def close(self) -> None:
        """Give up everything that is idle."""
        if self._beat is not None:
            self._beat.cancel()
        self.keep(())
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def obtain(self, launch: Launch, on_line: OnLine) -> Worker:
        """Return a process of the launch's mode.

        Raises:
            StartFailed: there is none to be had.
        """
        if launch.mode == "persistent":
            await self._go_first(launch)
        kept = self._kept_for(launch)
        if kept is not None:
            self._live.add(kept)
        worker = await kept.obtain(launch, on_line) if kept is not None else self.spawn.start(launch, on_line)
        # Only now is it known whether there is one process more, or one of those that were there has got a request.
        self._shrink()
        self.tell(launch.name)
        return worker

    def keep(self, launches: Iterable[Launch], *, ahead: bool = True) -> None:
        """Take over a new state of the registry: old processes go when they are done, new ones may be started ahead."""
        self._keeping = True
        wanted = {launch.name: launch for launch in launches if launch.mode != "spawn"}
        for name in [name for name, kept in self._kept.items() if wanted.get(name) != kept.launch]:
            kept = self._kept.pop(name)
            self._live.discard(kept)
            self._close_soon(kept.close())
        for launch in wanted.values():
            if launch.name not in self._kept:
                kept = self._kept[launch.name] = self._make(launch)
                if ahead:
                    kept.warm()
                if kept.idle():
                    self._live.add(kept)
        self._tell_all()

    def told(self, launch: Launch) -> tuple[Mode, list[str]]:
        """Return the mode that a connector's processes are obtained in, and what there is to know of them."""
        kept = self._kept.get(launch.name)
        return (kept.mode, list(kept.notices)) if kept is not None else (launch.mode, [])

    def idle(self) -> int:
        """Return how many processes are there without a request, and can give way."""
        return sum(kept.idle() for kept in self._live)

    def kept(self) -> int:
        """Return how many processes are there without a request."""
        return self.idle() + self._hosts

    def evict(self) -> bool:
        """Have an idle process given up, of whoever has not needed his for longest; tell whether there was one.

        What is forked ahead goes first, whosever it is: it is there again in no time.
        """
        kept = sorted(self._kept.values(), key=lambda one: one.used)
        found = any(one.shed() for one in kept if isinstance(one, ForkHost)) or any(one.evict() for one in kept)
        self._tell_all()
        return found

    def free(self, launch: Launch | None = None) -> int:
        """Return how many more processes may be started now; of one connector, `concurrency` holds as well."""
        free = self._cap.free(self.idle())
        if launch is None:
            return free
        there = sum(self._there(self._kept.get(launch.name)))
        return min(free, launch.keep.concurrency - self._cap.present(launch.name) - there)

    def tell(self, name: str) -> None:
        """Tell other workers what is kept of a connector."""
        if not self._cap.shared:
            return
        kept = self._kept.get(name)
        idle, there = kept.idle() if kept is not None else 0, sum(self._there(kept))
        before = self._told.get(name, (0, 0))
        if idle != before[0]:
            self._cap.keep("", idle - before[0])
        if there != before[1]:
            self._cap.keep(name, there - before[1])
        if idle or there:
            self._told[name] = idle, there
        else:
            self._told.pop(name, None)

    def on_asked(self, name: str) -> None:
        """Give up what another worker needs: of a connector, or of all where it has no name."""
        kept = self._kept.get(name)
        if not name:
            self._shrink()
        elif isinstance(kept, Persistent):
            if not kept.leaving():
                kept.evict()
            self._close_soon(self._tell_when_left(kept))

    def hosts(self, change: int) -> None:
        """Count so many hosts more, or less, that cannot give way."""
        self._hosts += change
        self._cap.hosts(change)

    def _kept_for(self, launch: Launch) -> Kept | None:
        """Return where a launch's processes are kept; None where they are not."""
        if launch.mode == "spawn":
            return None
        kept = self._kept.get(launch.name)
        if kept is None and not self._keeping:  # a verb of the command line: nobody says what is wanted
            kept = self._kept[launch.name] = self._make(launch)
        # A call that waited in the queue while its connector was replaced, or removed, is spawned.
        return kept if kept is not None and _same(kept.launch, launch) else None

    def _make(self, launch: Launch) -> Kept:
        room: Room = self
        notices = Notices(launch, self._bus)
        if launch.mode == "persistent":
            return Persistent(launch, self.spawn, room, notices)
        standby = Standby(launch, self.spawn, room, notices)
        if launch.mode == "standby" or self._cap.max_processes == 1:  # a host and its child are two
            return standby
        return ForkHost(launch, self.spawn, standby, room, notices)

    def _shrink(self) -> None:
        """Have what is too much given up, here or in another worker."""
        while self.free() < 0:
            if not self.evict():
                self._cap.ask()
                return

    async def _go_first(self, launch: Launch) -> None:
        """Have a process of a connector go, here or in another worker, where one more would be one too many."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while loop.time() < deadline:
            idle, leaving = self._there(self._kept.get(launch.name))
            if idle or self._cap.present(launch.name) + leaving <= launch.keep.concurrency:
                return
            self._cap.ask(launch.name)
            await asyncio.sleep(LOOK)

    def _in_use(self, kept: Kept) -> bool:
        return kept in self._live and self._cap.present(kept.launch.name) > 0

    def _too_many(self, kept: Persistent) -> bool:
        """Tell whether two workers have started a process of a connector at the same time."""
        idle = kept.idle()
        return idle > 0 and idle + self._cap.present(kept.launch.name) > kept.launch.keep.concurrency

    @staticmethod
    def _there(kept: Kept | None) -> tuple[int, int]:
        """Return how many processes of a connector are there without a request, and how many are about to go."""
        return (kept.idle(), kept.leaving()) if isinstance(kept, Persistent) else (0, 0)

    def _tell_all(self) -> None:
        for name in {*self._told, *self._kept}:
            self.tell(name)

    async def _tell_when_left(self, kept: Persistent) -> None:
        await kept.left()
        self.tell(kept.launch.name)

    def _close_soon(self, closing: Awaitable[None]) -> None:
        task = asyncio.ensure_future(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _tend(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(BEAT)
            # Hosts come last: what they fork ahead takes what room the others leave.
            for kept in sorted(self._kept.values(), key=lambda one: isinstance(one, ForkHost)):
                kept.tend(loop.time())
                if isinstance(kept, Persistent) and self._too_many(kept):
                    kept.evict()
            self._live = {kept for kept in self._kept.values() if kept.idle() or self._in_use(kept)}
            self._shrink()
            self._tell_all()


def _same(kept: Launch, launch: Launch) -> bool:
    """Tell whether they differ at most in what one request adds to the environment."""
    return (kept.key, kept.mode, kept.bounds, kept.keep) == (launch.key, launch.mode, launch.bounds, launch.keep)
