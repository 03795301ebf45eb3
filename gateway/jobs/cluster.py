"""Which gateways that share a database are alive, and who goes on with the jobs of the others.

Each has a row, and changes it with each beat. One whose row stays the same is declared dead by another that has seen it
stay so, which deletes the row and takes its jobs over. A gateway that finds its row gone was declared dead, was only
frozen, and must die at once: its jobs run elsewhere. No clock is asked, neither the database's nor anybody's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.jobs.contract import StoreAway
from gateway.jobs.database import said

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.jobs.store import Store
    from gateway.jobs.trouble import Trouble

FENCED = 70  # exit status
_LOOK = 0.1  # seconds between looks whether we can still be alive


class Pace(NamedTuple):
    """Seconds: between two beats, and from a beat to death."""

    beat: float = 1.5
    lease: float = 6.0


PACE = Pace()


def passed() -> float:
    """Return seconds that pass, for a machine that sleeps too: nobody waits for it meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """This gateway's row. `steady` begins with each beat in time, unless it goes on; no beat waits for it."""

    def __init__(
        self,
        store: Store,
        *,
        pace: Pace,
        trouble: Trouble,
        beaten: Callable[[], Awaitable[None]],
        steady: Callable[[], Awaitable[None]],
        die: Callable[[int], Any] = os._exit,
    ) -> None:
        """`store` has a connection that nobody else waits for. `beaten` is awaited with each beat."""
        self._store = store
        self._pace = pace
        self._trouble = trouble
        self._beaten = beaten
        self._steady = steady
        self._die = die
        self._beating: asyncio.Task[None] | None = None
        self._taking: asyncio.Task[None] | None = None
        self._stuck = False
        """The last `steady` has failed."""
        self._seen = 0.0
        self._silent: dict[str, tuple[float, float]] = {}
        """Of each other gateway what its row says, and since when it does."""
        self.away = ""
        """Why it does not beat, if it does not."""

    async def start(self) -> None:
        """Write the row, before anything is promised under its name, and beat from now on."""
        await self._store.enter()
        self._seen = passed()
        self._beating = asyncio.create_task(self._beat_for_ever())

    async def sure(self) -> None:
        """Wait until nobody can have declared this gateway dead: a frozen one must not act before it knows."""
        while passed() - self._seen >= self._pace.lease:  # noqa: ASYNC110 - time passes, nobody tells
            await asyncio.sleep(_LOOK)

    async def stop(self) -> None:
        """Stop beating, and delete the row, so that others go on with what is left at once."""
        for task in (self._beating, self._taking):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        with contextlib.suppress(StoreAway):
            await self._store.leave()

    async def _beat_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._pace.beat)
            try:
                await self._beat()
            except Exception as problem:  # noqa: BLE001 - a lease that stops beating is a dead gateway
                self._silent.clear()
                self.away = f"the jobs' database does not answer: {said(problem)}"
                self._trouble.failed(self.away)
            else:
                if self.away:
                    self.away = ""
                    self._trouble.worked()

    async def _beat(self) -> None:
        begun = passed()
        if not await self._store.beat():
            self._die(FENCED)
            return
        now = passed()
        late = now - begun > self._pace.beat or begun - self._seen > self._pace.lease / 2
        self._seen = begun
        await self._beaten()
        if late:  # after an outage nobody has beaten: all have the time of a lease, from then on
            self._silent.clear()
            return
        await self._judge()
        if self._taking is None or self._taking.done():
            self._taking = asyncio.create_task(self._take_over())

    async def _take_over(self) -> None:
        """Take over what the dead have left. One that is frozen may hold some of it, until it is declared dead too."""
        try:
            await self._steady()
        except Exception as problem:  # noqa: BLE001 - the next beat tries it again
            self._stuck = True
            self._trouble.failed(f"what dead gateways have left cannot be taken over: {said(problem)}")
        else:
            if self._stuck:
                self._stuck = False
                self._trouble.worked()

    async def _judge(self) -> None:
        """Declare dead whoever was silent for the time of a lease, from one look to another."""
        asked = passed()
        found = await self._store.others()
        known, self._silent = self._silent, {}
        for other, seen in found.items():
            before, since = known.get(other, (None, 0.0))
            if before != seen:
                self._silent[other] = seen, passed()
                continue
            self._silent[other] = seen, since
            if asked - since >= self._pace.lease:
                await self._store.bury(other, seen)
