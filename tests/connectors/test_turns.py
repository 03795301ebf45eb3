"""Turns: who computes has one, who waits has none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

from gateway.cells.effort import Effort, effort
from gateway.connectors import turns as module
from gateway.connectors.turns import Turns
from tests.support import eventually
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def waiting() -> Effort:
    return Effort(0.0, working=False)


def computing() -> Effort:
    return Effort(0.0, working=True)


async def take(turns: Turns, look: Callable[[], Effort], running: asyncio.Future[object]) -> None:
    async with turns.turn() as turn:
        await turn.watch(look, running)


async def second(look: Callable[[], Effort]) -> tuple[bool, bool]:
    """Return whether a second one had the only turn while the first, which does this, was not done, and afterwards."""
    loop = asyncio.get_running_loop()
    turns, first, other, begun = Turns(1), loop.create_future(), loop.create_future(), loop.create_future()
    looks = 0

    def counted() -> Effort:
        nonlocal looks
        looks += 1
        return look()

    def begin() -> Effort:
        if not begun.done():
            begun.set_result(None)
        return waiting()

    tasks = [asyncio.create_task(take(turns, counted, first)), asyncio.create_task(take(turns, begin, other))]
    await eventually(lambda: begun.done() or looks > 4 * module.IDLE)
    before = begun.done()
    first.set_result(None)
    await begun
    other.set_result(None)
    await asyncio.gather(*tasks)
    assert not turns.busy
    return before, begun.done()


async def test_who_waits_gives_his_turn_back_and_who_computes_does_not() -> None:
    assert await second(waiting) == (True, True)
    assert await second(computing) == (False, True)


async def test_who_computes_for_ever_has_no_turn_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", 0.05)
    assert await second(computing) == (True, True)


async def test_who_takes_time_between_two_looks_computes() -> None:
    taken = 0.0

    def bursts() -> Effort:
        nonlocal taken
        taken += 1.0
        return Effort(taken, working=False)

    assert await second(bursts) == (False, True)


async def test_a_turn_that_is_not_waited_for_any_more_is_nobodys() -> None:
    loop = asyncio.get_running_loop()
    turns, running = Turns(1), loop.create_future()
    first = asyncio.create_task(take(turns, computing, running))
    queued = asyncio.create_task(take(turns, computing, running))
    await eventually(lambda: turns.busy)
    queued.cancel()
    first.cancel()
    await asyncio.wait((first, queued))
    assert not turns.busy
    running.set_result(None)
    await take(turns, computing, running)


def test_effort_is_that_of_all_descendants() -> None:
    spin = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    for code, works in ((spin, True), ("import time; time.sleep(1000)", False)):
        process = subprocess.Popen([sys.executable, "-IS", "-c", code], start_new_session=True)
        try:
            if works:
                assert until(lambda pid=process.pid: effort(pid).working and effort(pid).taken > 0.3, 20)
            else:
                assert until(lambda pid=process.pid: not effort(pid).working, 20)
        finally:
            subprocess.run(["kill", "-9", "--", f"-{process.pid}"], check=True)
            process.wait()
    assert effort(process.pid) == Effort(0.0, working=False)
