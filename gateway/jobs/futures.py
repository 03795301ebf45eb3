"""What is awaited by more than one, or by nobody."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


def looked_at(future: asyncio.Future[Any]) -> None:
    """Take note of a future's end, for one that nobody may await: asyncio logs a failure that nobody looks at."""
    if not future.cancelled():
        future.exception()


async def unbroken(work: Coroutine[Any, Any, T]) -> T:
    """Wait for something that goes on, whoever stops waiting for it."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(looked_at)
    return await asyncio.shield(task)
