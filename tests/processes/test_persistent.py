"""Processes that stay, where none can be started."""

from __future__ import annotations

import asyncio

import pytest

from gateway.processes.completed import StartFailed
from gateway.processes.launch import Keep
from gateway.processes.persistent import Persistent
from tests.processes.kept import Machine


def made(machine: Machine) -> Persistent:
    return Persistent(machine.launch, machine.spawn, machine, machine.notices)


async def test_what_cannot_be_started_ahead_is_not_tried_again_until_somebody_asks() -> None:
    machine = Machine()
    source = made(machine)
    source.warm()
    assert machine.cells.asked == 1
    source.tend(asyncio.get_running_loop().time())
    assert (machine.cells.asked, machine.places.kept, machine.told) == (1, 0, [])
    source.warm()  # the connector was changed
    assert machine.cells.asked == 2
    await source.close()


async def test_a_request_tells_why_nothing_can_be_started_and_holds_no_place() -> None:
    machine = Machine(Keep(concurrency=1))
    source = made(machine)
    for _ in range(3):  # as many as there may be at once, and more
        session = source.obtain(machine.launch, lambda *_: None)
        with pytest.raises(StartFailed, match="no cell"):
            await session.run(b"{}", deadline=asyncio.get_running_loop().time() + 5)
    assert (machine.cells.asked, machine.places.kept) == (3, 0)
    await source.close()


async def test_none_is_light_and_without_any_none_can_be_retired() -> None:
    source = made(Machine())
    assert not source.retire(light=True)
    assert not source.retire()
    await source.close()
