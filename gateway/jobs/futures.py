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


class Tasks:
    """Tasks that end together. After their end no other begins."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = False

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin one; after the end, one that is cancelled already."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._ended:
            task.cancel()
        return task

    async def end(self) -> None:
        """Cancel them, and wait for their end."""
        self._ended = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
