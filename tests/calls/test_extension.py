"""A call's first deadline, and what lets it pass."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gateway.calls.extension import Extension
from gateway.processes.completed import Stop
from gateway.processes.launch import GRACE
from tests.support import eventually

if TYPE_CHECKING:
    from gateway.processes.completed import Completed
    from gateway.processes.launch import Answered, Payload


class Child:
    """Notes why it was stopped."""

    def __init__(self) -> None:
        self.stopped: list[Stop] = []

    async def run(self, payload: Payload, *, deadline: float, answered: Answered | None = None) -> Completed:
        raise AssertionError("an extension runs nothing")

    def stop(self, why: Stop, *, grace: float = GRACE) -> None:
        self.stopped.append(why)


@pytest.fixture
async def child() -> Child:
    return Child()


async def turned(times: int = 3) -> None:
    """Let what is due come about."""
    for _ in range(times):
        await asyncio.sleep(0)


async def test_the_first_deadline_stops_the_child(child: Child) -> None:
    extension = Extension()
    extension.limit(child, asyncio.get_running_loop().time())
    await eventually(lambda: child.stopped == [Stop.DEADLINE])
    assert extension.spent


async def test_it_passes_while_a_job_is_being_made_and_strikes_when_there_is_none(child: Child) -> None:
    extension = Extension()
    extension.limit(child, asyncio.get_running_loop().time())
    with extension.held():
        await turned()
        assert child.stopped == []
    await eventually(lambda: child.stopped == [Stop.DEADLINE])


async def test_once_it_is_granted_the_first_deadline_holds_no_more(child: Child) -> None:
    extension = Extension()
    with extension.held():
        extension.limit(child, asyncio.get_running_loop().time())
        extension.granted = True
    await turned()
    assert (child.stopped, extension.spent) == ([], False)


async def test_a_run_that_is_over_is_not_stopped(child: Child) -> None:
    extension = Extension()
    extension.limit(child, asyncio.get_running_loop().time())
    extension.over()
    await turned()
    assert child.stopped == []
