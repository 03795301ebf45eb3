"""What counts as begun: nothing that has no slot, and everything before its process is started."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import TYPE_CHECKING

import psycopg

from gateway.errors import ConnectorBusy, ConnectorStartFailed, ConnectorUnavailable
from gateway.jobs.callbacks import Callbacks
from gateway.jobs.contract import JobState
from gateway.observe.events import JobFault
from tests.jobs.support import Bench, Runner, caller, job
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from gateway.jobs.contract import JobStatus, Outcome


@contextlib.contextmanager
def locked(one: Bench) -> Iterator[None]:
    """Let nobody write into the store."""
    with contextlib.ExitStack() as stack:
        if one.database is None:
            file = one.folder / "jobs/jobs.sqlite"
            outside = stack.enter_context(contextlib.closing(sqlite3.connect(file, isolation_level=None)))
            outside.execute("BEGIN IMMEDIATE")
        else:
            server = stack.enter_context(psycopg.connect(one.database))
            server.execute("LOCK TABLE gateway_jobs.jobs IN SHARE MODE")
        yield


async def waits_for_a_slot(one: Bench, **more: str) -> str:
    """Accept a job, which gets its turn and no slot."""
    one.runner.slot.clear()
    name = await one.accept(job(**more))
    await eventually(lambda: one.runner.queued)
    return name


def ran_well(status: JobStatus) -> bool:
    assert status.outcome is not None
    return status.outcome.status == 200 and status.interrupted == 0


async def test_a_job_that_waits_for_a_slot_has_not_begun(one: Bench) -> None:
    name = await waits_for_a_slot(one)
    assert (await one.jobs.status(name)).state is JobState.WAITING
    one.runner.slot.set()
    assert ran_well(await one.ended(name))


async def test_a_crash_while_it_waits_for_a_slot_is_no_interruption(one: Bench) -> None:
    name = await waits_for_a_slot(one)
    for _ in range(3):
        await one.again()
        one.runner.slot.clear()
        await eventually(lambda: one.runner.queued)
    assert one.runner.started == []
    one.runner.slot.set()
    assert ran_well(await one.ended(name))
    assert one.runner.commands == ["Do"]


async def test_no_process_is_started_before_the_beginning_is_recorded(one: Bench) -> None:
    name = await waits_for_a_slot(one)
    with locked(one):
        one.runner.slot.set()
        await eventually(lambda: one.runner.taken)
        assert one.runner.started == []
        assert (await one.jobs.status(name)).state is JobState.WAITING
    assert ran_well(await one.ended(name))


async def test_a_slot_is_given_back_when_the_beginning_cannot_be_recorded(
    one: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.jobs.work.BEGIN", 0.1)
    name = await waits_for_a_slot(one)
    with locked(one):
        one.runner.slot.set()
        await eventually(lambda: one.runner.taken)
        one.runner.slot.clear()
        await eventually(lambda: not one.runner.taken)
        assert one.runner.started == []
    monkeypatch.undo()
    await eventually(lambda: len(one.runner.queued) == 2)
    assert (await one.jobs.status(name)).state is JobState.WAITING
    await one.again()  # what may have been recorded of the first beginning is no interruption
    assert ran_well(await one.ended(name))
    assert one.runner.commands == ["Do"]


async def test_a_job_that_is_cancelled_gives_its_place_in_the_queue_back(one: Bench) -> None:
    one.limit = 1
    async with caller() as backend:
        name = await waits_for_a_slot(one, callback=backend.url)
        await one.jobs.cancel(name)
        await eventually(lambda: backend.seen)
        await eventually(lambda: one.jobs.health().open == 0)
    one.runner.slot.set()
    await one.ended(await one.accept(job("Next")))
    assert one.runner.commands == ["Next"]
    assert backend.seen[0][1]["error"]["error_code"] == "job_cancelled"


async def test_a_drain_ends_the_wait_for_a_slot(one: Bench) -> None:
    name = await waits_for_a_slot(one)
    ended = one.runner
    waiting = len(asyncio.all_tasks())
    one.jobs.drain()
    await eventually(lambda: len(asyncio.all_tasks()) < waiting)
    assert ended.taken == 0
    assert (await one.jobs.status(name)).state is JobState.WAITING
    await one.again()
    assert ran_well(await one.ended(name))
    assert (ended.commands, one.runner.commands) == ([], ["Do"])


async def test_a_job_that_gets_its_slot_when_a_drain_has_begun_gives_it_back(one: Bench) -> None:
    name = await waits_for_a_slot(one)
    before: Runner = one.runner
    before.slot.set()
    one.jobs.drain()  # in the same turn of the loop
    await eventually(lambda: before.queued and not before.taken)
    await one.again()
    status = await one.ended(name)
    assert status.interrupted == 0
    assert before.commands + one.runner.commands == ["Do"]


async def test_what_comes_to_something_without_a_slot_is_an_outcome(one: Bench) -> None:
    one.runner.refusals = [ConnectorStartFailed("no such file")]
    status = await one.ended(await one.accept(job()))
    assert status.outcome is not None
    assert "connector_start_failed" in status.outcome.body
    assert one.runner.started == []


async def test_an_adopted_run_that_found_no_slot_is_tried_again_as_a_job(one: Bench) -> None:
    running: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    running.set_exception(ConnectorBusy("no slot came free"))
    status = await one.ended(await one.accept(job(), running))
    assert ran_well(status)
    assert one.runner.commands == ["Do"]


async def test_a_connector_that_cannot_be_served_for_long_is_told(one: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.jobs.work.UNAVAILABLE", 0.0)
    one.runner.refusals = [ConnectorUnavailable("open circuit")]
    status = await one.ended(await one.accept(job()))
    assert status.outcome is not None
    assert status.outcome.status == 503
    assert "connector_unavailable" in status.outcome.body
    assert one.runner.started == []


async def test_a_run_that_could_not_be_started_after_all_has_not_begun(one: Bench) -> None:
    one.runner.problems = [ConnectorUnavailable("open circuit")]
    name = await one.accept(job())
    await eventually(lambda: len(one.runner.started) == 1)
    await one.reaches(name, lambda status: status.state is JobState.WAITING)
    assert ran_well(await one.ended(name))
    assert len(one.runner.started) == 2


async def test_a_fault_of_ours_in_a_delivery_is_told_and_costs_no_job(
    one: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.jobs.recovery.REMEMBER", 0.05)
    deliver, failed = Callbacks.deliver, []

    async def fail_once(self, *arguments):
        if not failed:
            failed.append(arguments)
            raise ZeroDivisionError
        return await deliver(self, *arguments)

    monkeypatch.setattr(Callbacks, "deliver", fail_once)
    async with caller() as backend:
        name = await one.accept(job(callback=backend.url))
        assert (await one.ended(name)).state is JobState.DELIVERED
    assert "ZeroDivisionError" in one.told(JobFault)[0].traceback
    assert one.runner.commands == ["Do"]
