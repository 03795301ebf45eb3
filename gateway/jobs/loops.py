"""A thread with an event loop of its own, and the way across between two loops.

The engine sets its loop's default executor and blocks its threads while a database is away. In a loop of its own it
cannot reach the gateway's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")


class LoopThread:
    """Runs coroutines in its own thread."""

    def __init__(self, name: str) -> None:
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()
        self._ready.wait()

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there. Whoever stops waiting for it does not stop it."""
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        return await asyncio.shield(asyncio.wrap_future(future))

    def post(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function there, some time."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(function, *arguments)

    async def stop(self) -> None:
        """Cancel what runs there, wait for its end, and end the thread."""
        if self._stop is not None:
            self.post(self._stop.set)
        await asyncio.to_thread(self._thread.join)

    def _main(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._ready.set()
        await self._stop.wait()


async def across(loop: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[T]]) -> T:
    """Run something in another loop. When it is cancelled here it is cancelled there, and its end is waited for."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    tasks: list[asyncio.Task[T]] = []

    async def body() -> T:
        return await work()

    def finish(task: asyncio.Task[T]) -> None:
        if task.cancelled():
            done.set_exception(Gone("it was cancelled"))
        elif (problem := task.exception()) is not None:
            done.set_exception(problem)
        else:
            done.set_result(task.result())

    def begin() -> None:
        task = loop.create_task(body())
        tasks.append(task)
        task.add_done_callback(finish)

    def cancel() -> None:
        for task in tasks:
            task.cancel()

    loop.call_soon_threadsafe(begin)
    there = asyncio.ensure_future(asyncio.wrap_future(done))
    there.add_done_callback(looked_at)
    try:
        return await asyncio.shield(there)
    except asyncio.CancelledError:
        loop.call_soon_threadsafe(cancel)
        await asyncio.wait({there})  # whoever cancels once more stops waiting, and nothing else
        raise


def looked_at(future: asyncio.Future[Any]) -> None:
    """Look at how something ended, for a future that whoever waited for it may have left."""
    if not future.cancelled():
        future.exception()


class Gone(Exception):
    """What was to be waited for in another loop was cancelled there."""
