"""The processes of all connectors: one source a connector, as its mode says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.processes.alive import Leader, Occupied
from gateway.processes.fork import ForkHost
from gateway.processes.notices import Notices
from gateway.processes.persistent import Persistent
from gateway.processes.resident import Resident
from gateway.processes.run import Child
from gateway.processes.spawn import SpawnPool
from gateway.processes.standby import Standby

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from gateway.cells.cell import Listener
    from gateway.cells.cells import Cells
    from gateway.observe.events import Bus
    from gateway.processes.base import OnLine, Process, Room, Source
    from gateway.processes.launch import Launch
    from gateway.processes.places import Places
    from gateway.sections import Mode

    Made = Callable[[Launch, SpawnPool, Room, Notices], Source]

BEAT = 1.0  # seconds between two looks at what is kept

KEEPING: dict[Mode, type[Standby | ForkHost | Persistent]] = {
    "standby": Standby,
    "fork": ForkHost,
    "persistent": Persistent,
}
"""The modes that keep processes: each a source for one connector."""
MODES: dict[Mode, type[SpawnPool | Standby | ForkHost | Persistent]] = {"spawn": SpawnPool, **KEEPING}


class Pools:
    """Routes a launch to its connector's source, and keeps the sources up to date with the registry."""

    def __init__(self, cells: Cells, bus: Bus, places: Places) -> None:
        self.spawn = SpawnPool(cells)
        self.places = places
        self._bus = bus
        self._sources: dict[str, Source] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._beat: asyncio.Task[None] | None = None
        self._keeping = False

    def open(self) -> None:
        """Start tending."""
        self._beat = asyncio.create_task(self._tend(), name="pools")

    async def close(self) -> None:
        """Give up everything that is idle."""
        if self._beat is not None:
            self._beat.cancel()
        self.keep(())
        await asyncio.gather(*self._closing, return_exceptions=True)

    def obtain(self, launch: Launch, on_line: OnLine) -> Process:
        """Return a process of the launch's mode.

        Raises:
            StartFailed: there is none to be had.
        """
        source = self._source(launch)
        process = (source or self.spawn).obtain(launch, on_line)
        # Only now is it known whether there is one process more, or one of those that were there has got a request.
        if self.places.kept:
            self._shrink()
        return process

    def keep(self, launches: Iterable[Launch]) -> None:
        """Take over a new state of the registry: old processes go when they are done, new ones may be started ahead."""
        self._keeping = True
        wanted = {launch.name: launch for launch in launches if launch.mode in KEEPING}
        for name in [name for name, source in self._sources.items() if wanted.get(name) != source.launch]:
            self._close_soon(self._sources.pop(name).close())
        for launch in wanted.values():
            if launch.name not in self._sources:
                self._make(launch).warm()

    def told(self, launch: Launch) -> tuple[Mode, list[str]]:
        """Return the mode that a connector's processes are obtained in, and what there is to know of them."""
        source = self._sources.get(launch.name)
        return (source.mode, list(source.notices)) if source is not None else (launch.mode, [])

    def occupied(self, launch: Launch, busy: str) -> list[Occupied]:
        """Return the cells in which a connector's processes live, and what is known of these without looking.

        Those that do nothing else are `busy`.
        """
        source = self._sources.get(launch.name)
        kept = source.kept() if source is not None else {}
        return [
            Occupied(cell.process.pid, tuple(_leader(one, kept.get(one, busy)) for one in cell.listeners))
            for cell in self.spawn.cells_of(launch)
        ]

    def make_room(self) -> bool:
        """Have a process without a request given up, of whoever has not needed his for longest.

        What is forked ahead goes first, whosever it is: it is there again in no time. Returns whether there was one.
        """
        sources = sorted(self._sources.values(), key=lambda one: one.used)
        return any(one.retire(light=True) for one in sources) or any(one.retire() for one in sources)

    # --- private

    def _source(self, launch: Launch) -> Source | None:
        """Return where a launch's processes come from; None where nothing is kept."""
        if launch.mode not in KEEPING:
            return None
        source = self._sources.get(launch.name)
        if source is None and not self._keeping:  # a verb of the command line: nobody says what is wanted
            source = self._make(launch)
        # A call that waited in the queue while its connector was replaced, or removed, is spawned.
        return source if source is not None and _same(source.launch, launch) else None

    def _make(self, launch: Launch) -> Source:
        made = KEEPING[launch.mode]
        if made.least > self.places.most:
            made = Standby
        source = self._sources[launch.name] = made(launch, self.spawn, self, Notices(launch, self._bus))
        return source

    def _shrink(self) -> None:
        """Have what is too much given up."""
        while self.places.free() < 0 and self.make_room():
            pass

    def _close_soon(self, closing: Awaitable[None]) -> None:
        task = asyncio.ensure_future(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _tend(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(BEAT)
            # Hosts come last: what they fork ahead takes what room the others leave.
            for source in sorted(self._sources.values(), key=lambda one: one.least):
                source.tend(loop.time())
            self._shrink()


def _leader(listener: Listener, does: str) -> Leader:
    assert isinstance(listener, Child | Resident)
    return Leader(listener.pid, does, listener.uses if isinstance(listener, Resident) else None)


def _same(kept: Launch, launch: Launch) -> bool:
    """Tell whether they differ at most in what one request adds to the environment."""
    return (kept.key, kept.mode, kept.bounds, kept.keep) == (launch.key, launch.mode, launch.bounds, launch.keep)
