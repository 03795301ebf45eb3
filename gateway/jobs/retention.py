"""Removes jobs that ended, by age and by number; the age is by the store's own time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from gateway.jobs.clock import LOOK
from gateway.jobs.contract import StoreAway
from gateway.observe.events import ClockJumped

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.jobs.clock import Clock
    from gateway.jobs.settings import JobsSection
    from gateway.jobs.store import Store
    from gateway.observe.events import Event

SWEEP = 60.0  # seconds between two sweeps


async def sweep(store: Store, settings: JobsSection) -> int:
    """Remove what is too old and what is too much; return how many."""
    await store.keep_time()
    removed = await store.purge(float(settings.keep))
    return removed + await store.purge_beyond(settings.keep_count)


async def sweep_for_ever(store: Store, settings: JobsSection) -> None:
    """Sweep now and then."""
    while True:
        with contextlib.suppress(StoreAway):  # others tell
            await sweep(store, settings)
        await asyncio.sleep(SWEEP)


async def watch_for_ever(clock: Clock, publish: Callable[[Event], None]) -> None:
    """Tell when the machine's clock was set. Nothing else comes of it."""
    while True:
        await asyncio.sleep(LOOK)
        jump = clock.jump()
        if jump:
            publish(ClockJumped(seconds=round(jump, 1)))
