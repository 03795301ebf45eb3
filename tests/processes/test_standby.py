"""Processes that wait for a request, where none can be started."""

from __future__ import annotations

import asyncio

import pytest

from gateway.processes.completed import StartFailed
from gateway.processes.standby import Standby
from tests.processes.kept import Machine


async def test_what_cannot_be_started_ahead_is_not_tried_again_until_somebody_asks() -> None:
    machine = Machine()
    source = Standby(machine.launch, machine.spawn, machine, machine.notices)
    source.warm()
    source.tend(asyncio.get_running_loop().time())
    assert (machine.cells.asked, machine.places.kept, machine.told) == (1, 0, [])
    with pytest.raises(StartFailed, match="no cell"):
        source.obtain(machine.launch, lambda *_: None)
    source.tend(asyncio.get_running_loop().time())
    assert (machine.cells.asked, source.mode) == (3, "standby"), "it was no fault of the connector"
    await source.close()


async def test_none_is_light_and_without_any_none_can_be_retired() -> None:
    machine = Machine()
    source = Standby(machine.launch, machine.spawn, machine, machine.notices)
    assert not source.retire(light=True)
    assert not source.retire()
    await source.close()
