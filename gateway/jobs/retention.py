"""Removes jobs that ended, by age and by number."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from gateway.jobs.contract import StoreAway

if TYPE_CHECKING:
    from gateway.jobs.settings import JobsSection
    from gateway.jobs.store import Store

SWEEP = 60.0  # seconds between two sweeps


async def sweep(store: Store, settings: JobsSection) -> int:
    """Remove what is too old and what is too much; return how many."""
    removed = await store.purge(time.time() - float(settings.keep))
    return removed + await store.purge_beyond(settings.keep_count)


async def sweep_for_ever(store: Store, settings: JobsSection) -> None:
    """Sweep now and then."""
    while True:
        with contextlib.suppress(StoreAway):  # others tell
            await sweep(store, settings)
        await asyncio.sleep(SWEEP)
