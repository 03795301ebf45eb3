"""Which calls are let in, and how they end with the gateway."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from gateway.calls.admission import Admission, AdmissionState
from gateway.errors import GatewayDraining
from gateway.observe.events import Bus, DrainFinished, DrainStarted, Event
from gateway.processes.completed import Stop
from gateway.processes.places import Places
from gateway.sections import Limits
from gateway.units import Duration
from tests.processes.slots import slot
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

ONE = Limits(concurrency=1, queue=5)


@contextlib.contextmanager
def inside(admission: Admission) -> Iterator[None]:
    """Be a call."""
    admission.enter()
    try:
        yield
    finally:
        admission.leave()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def admission(events: list[Event]) -> Admission:
    bus = Bus()
    bus.listen(events.append)
    return Admission(Places(4), bus)


async def test_a_drain_refuses_new_work_and_ends_with_the_last_call(admission: Admission, events: list[Event]) -> None:
    with inside(admission):
        admission.drain(60)
        with pytest.raises(GatewayDraining), inside(admission):
            pass
        drained = asyncio.create_task(admission.drained(60))
        async with slot(admission.places, "fax", ONE, patience=60):  # what is in flight may still take its slot
            pass
        assert not drained.done()
    await drained
    assert events == [DrainStarted(in_flight=1, grace=60), DrainFinished(stopped=0)]


async def test_a_drain_with_nothing_in_flight_is_over_at_once(admission: Admission, events: list[Event]) -> None:
    admission.drain(60)
    await admission.drained(60)
    assert events == [DrainStarted(in_flight=0, grace=60), DrainFinished(stopped=0)]


async def test_a_drain_that_takes_too_long_refuses_those_who_wait(admission: Admission, events: list[Event]) -> None:
    places = admission.places
    lane = places.lane("fax")

    async def queued() -> None:
        with inside(admission):
            async with slot(places, "fax", ONE, patience=60):
                pass

    async with slot(places, "fax", ONE, patience=60):
        call = asyncio.create_task(queued())
        await eventually(lambda: lane.queued == 1)
        admission.drain(0)
        await admission.drained(Duration(0))
        with pytest.raises(GatewayDraining):
            await call
        assert events[-1] == DrainFinished(stopped=1)
    assert (lane.queued, places.running) == (0, 0)


async def test_a_process_that_starts_while_all_is_being_stopped_is_stopped_too(admission: Admission) -> None:
    stopped: list[Stop] = []

    class Listening:
        def stop(self, why: Stop, **_: object) -> None:
            stopped.append(why)

    admission.stop_all(grace=0)
    admission.attend(Listening())  # type: ignore[arg-type]
    assert stopped == [Stop.DRAINED]


async def test_an_admission_only_moves_forward(admission: Admission) -> None:
    admission.drain(1)
    with pytest.raises(RuntimeError, match="cannot go from"):
        admission.drain(1)
    admission.close()
    admission.close()
    assert admission.state is AdmissionState.CLOSED
    with pytest.raises(RuntimeError, match="cannot go from"):
        admission.drain(1)
    with pytest.raises(GatewayDraining), inside(admission):
        pass
