"""A place that is held for the length of a block, as a call holds it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from gateway.identity import DEFAULT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.processes.places import Places
    from gateway.sections import Limits


@contextlib.asynccontextmanager
async def slot(
    places: Places, name: str, limits: Limits, *, patience: float, client: str = DEFAULT
) -> AsyncIterator[None]:
    lane = places.lane(name)
    if not places.take(lane, limits.concurrency, client):
        await places.wait(lane, limits, patience, client)
    try:
        yield
    finally:
        places.give(lane, 0.01, client)
