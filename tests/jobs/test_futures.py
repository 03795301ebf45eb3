"""What is awaited by more than one, or by nobody."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

from gateway.jobs.futures import Tasks, looked_at, unbroken

if TYPE_CHECKING:
    import pytest


async def test_whoever_stops_waiting_does_not_stop_it() -> None:
    may, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await may.wait()
        done.set()

    waiting = asyncio.create_task(unbroken(work()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    may.set()
    await asyncio.wait_for(done.wait(), 10)


async def test_a_failure_that_nobody_waits_for_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.add_done_callback(looked_at)
    future.set_exception(ValueError("nobody asks"))
    await asyncio.sleep(0)
    del future
    gc.collect()
    assert caplog.records == []


async def test_tasks_end_together_and_none_begins_after_that() -> None:
    tasks, ended = Tasks(), []

    async def work(name: str) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(name)

    for name in ("a", "b"):
        tasks.begin(work(name))
    await asyncio.sleep(0)
    await tasks.end()
    assert sorted(ended) == ["a", "b"]
    late = tasks.begin(work("late"))
    await asyncio.gather(late, return_exceptions=True)
    assert late.cancelled()
    assert "late" not in ended
