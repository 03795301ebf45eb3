"""A loop in a thread of its own, and the way across."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gateway.jobs.loops import Gone, LoopThread, across


@pytest.fixture
async def other():
    thread = LoopThread("other")
    thread.start()
    yield thread
    await thread.stop()


async def test_a_call_runs_there_and_its_result_comes_back(other: LoopThread) -> None:
    async def where() -> str:
        return threading.current_thread().name

    assert await other.call(where()) == "other"


async def test_whoever_stops_waiting_does_not_stop_it(other: LoopThread) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        await asyncio.to_thread(release.wait)
        ended.set()

    release = threading.Event()
    calling = asyncio.create_task(other.call(work()))
    await asyncio.to_thread(begun.wait)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    release.set()
    assert await asyncio.to_thread(ended.wait, 10)


async def test_cancelling_across_waits_for_the_end_there(other: LoopThread) -> None:
    here = asyncio.get_running_loop()
    log: list[str] = []
    begun, cleaning, may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await here.create_future()
        finally:
            cleaning.set()
            await may_end.wait()
            log.append("cleaned up")

    async def caller() -> None:
        task = asyncio.create_task(across(here, work))
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(begun.wait(), here))
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            log.append("cancelled")

    calling = asyncio.ensure_future(other.call(caller()))
    await cleaning.wait()
    assert log == []
    may_end.set()
    await calling
    assert log == ["cleaned up", "cancelled"]


async def test_an_error_and_a_cancellation_there_come_across(other: LoopThread) -> None:
    here = asyncio.get_running_loop()

    async def fails() -> None:
        raise KeyError("x")

    async def gone() -> None:
        raise asyncio.CancelledError

    with pytest.raises(KeyError):
        await other.call(across(here, fails))
    with pytest.raises(Gone):
        await other.call(across(here, gone))


async def test_stopping_cancels_what_runs_there() -> None:
    thread = LoopThread("short")
    thread.start()
    begun, cancelled = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    tasks: list[asyncio.Future[None]] = []
    thread.post(lambda: tasks.append(asyncio.ensure_future(work())))
    await asyncio.to_thread(begun.wait)
    await thread.stop()
    assert cancelled.is_set()


async def test_a_second_cancellation_ends_the_wait_and_nothing_else(
    other: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    here = asyncio.get_running_loop()
    started, ends, goes_on = threading.Event(), threading.Event(), asyncio.Event()

    async def slow_to_end() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ends.set()
            await goes_on.wait()

    async def wait_across() -> None:
        waiting = asyncio.ensure_future(across(here, slow_to_end))
        for moment in (started, ends):
            await asyncio.to_thread(moment.wait)
            waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()

    await other.call(wait_across())
    goes_on.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert caplog.records == []
