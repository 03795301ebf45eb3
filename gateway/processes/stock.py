"""Processes that are kept for requests to come: taken, given back, retired."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.cells.cell import Ended
    from gateway.observe.redact import Redactor
    from gateway.processes.base import OnLine
    from gateway.processes.places import Places
    from gateway.processes.run import Child


class Kept(Protocol):
    """A process without a request."""

    @property
    def ready(self) -> bool:
        """Whether it can take one."""

    @property
    def gone(self) -> asyncio.Future[Ended]:
        """Done when nothing of it is left."""

    async def end(self) -> None:
        """Kill it, and wait until nothing of it is left."""


K = TypeVar("K", bound=Kept)


class Stock(Generic[K]):
    """The kept processes of one connector, in the order in which they came. Each has a place that gives way."""

    def __init__(self, places: Places, on_unfit: Callable[[K], None]) -> None:
        """`on_unfit` hears of each one that turned out not to be ready, and was retired."""
        self._places = places
        self._on_unfit = on_unfit
        self._loop = asyncio.get_running_loop()
        self._kept: deque[K] = deque()
        self._expected = 0
        self._unwanted = 0
        """How many of those that are on their way are wanted, and how many have been given up meanwhile."""
        self._ending: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Count those that are there, and those that are on their way."""
        return len(self._kept) + self._expected

    @property
    def leaving(self) -> int:
        """How many were retired and are not gone yet."""
        return len(self._ending)

    def take(self, *, latest: bool = False) -> K | None:
        """Return one that is ready, the one that came first or the `latest`; None when none is there."""
        while self._kept:
            one = self._kept.pop() if latest else self._kept.popleft()
            self._places.kept -= 1
            if one.ready:
                return one
            self._unfit(one)
        return None

    def give_back(self, one: K) -> None:
        """Put one in that has no request, or no request yet."""
        self._kept.append(one)
        self._places.kept += 1

    def watch(self, one: K) -> None:
        """Retire one as soon as it ends by itself while it is here. To be said once for each."""
        one.gone.add_done_callback(lambda _: self._look_at(one))

    def look(self) -> None:
        """Retire those that are not ready any more."""
        for one in list(self._kept):
            if not one.ready:
                self._look_at(one)

    def expect(self) -> None:
        """Count one that is on its way."""
        self._expected += 1
        self._places.kept += 1

    def arrived(self, one: K | None) -> None:
        """Put one in that was on its way, unless it was given up; None: it does not come."""
        if self._unwanted:
            self._unwanted -= 1
        else:
            self._expected -= 1
            self._places.kept -= 1
            if one is not None:
                if one.ready:
                    self.give_back(one)
                else:
                    self._unfit(one)
                return
        if one is not None:
            self.end(one)

    def retire(self, one: K | None = None) -> bool:
        """Give one up: the one that has waited longest, unless one is named; tell whether there was one."""
        if one is not None:
            self._kept.remove(one)
        elif self._kept:
            one = self._kept.popleft()
        elif self._expected:
            self._expected -= 1
            self._unwanted += 1
        else:
            return False
        self._places.kept -= 1
        if one is not None:
            self.end(one)
        return True

    def retire_all(self) -> None:
        """Give all up."""
        while self.retire():
            pass

    def end(self, one: K) -> None:
        """Have one ended that is not here: it had a request and is not to have another, say."""
        task = self._loop.create_task(one.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def one_less(self, patience: float) -> None:
        """Wait until one that was retired is gone, so many seconds at most."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=patience, return_when=asyncio.FIRST_COMPLETED)

    async def close(self) -> None:
        """Give all up, and wait until those that were are gone. Those on their way are somebody else's to wait for."""
        self.retire_all()
        while self._ending:
            await asyncio.wait(self._ending)

    def __iter__(self) -> Iterator[K]:
        """Give those that are there; they may be retired meanwhile."""
        return iter(list(self._kept))

    # --- private

    def _look_at(self, one: K) -> None:
        if one in self._kept and not one.ready:
            self._kept.remove(one)
            self._places.kept -= 1
            self._unfit(one)

    def _unfit(self, one: K) -> None:
        self.end(one)
        self._on_unfit(one)


class Waiting:
    """A process that was started ahead, or forked; what it logs meanwhile is kept for the request that gets it."""

    child: Child

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []

    def on_line(self, stream: str, line: str) -> None:
        """Keep a line."""
        self._lines.append((stream, line))

    @property
    def ready(self) -> bool:
        """Whether it lives, and has done nothing yet."""
        return self.child.untouched

    @property
    def gone(self) -> asyncio.Future[Ended]:
        """Done when nothing of it is left."""
        return self.child.gone

    async def end(self) -> None:
        """Kill it, and wait until nothing of it is left."""
        await self.child.discard()

    def hand_over(self, on_line: OnLine, redact: Redactor) -> Child:
        """Give the process, and what it has said, to a request."""
        self.child.hand_over(on_line, redact)
        for stream, line in self._lines:
            on_line(stream, redact(line))
        return self.child
