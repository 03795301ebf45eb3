"""What earlier gateways left, and what came to us although nobody said so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from gateway.errors import ConnectorBusy
from gateway.jobs.contract import JobState, JobsUnavailable, StoreAway
from gateway.jobs.recovery import fitting
from gateway.jobs.settings import CallbacksSection
from gateway.jobs.store import Store
from gateway.units import Duration
from tests.jobs.support import Bench, bench, caller, job
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def few(tmp_path: Path, database: str | None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """An engine that takes up few jobs at once, and runs them one by one."""
    monkeypatch.setattr("gateway.jobs.recovery.COUNT", 3)
    async with bench(tmp_path, database) as made:
        made.limit = 1
        yield made


@pytest.fixture
async def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """One on a file: what others left can be nobody's but its own."""
    monkeypatch.setattr("gateway.jobs.recovery.COUNT", 3)
    async with bench(tmp_path) as made:
        made.limit = 1
        yield made


async def leave(one: Bench, count: int) -> list[str]:
    """Accept jobs, and begin none."""
    one.runner.slot.clear()
    names = [await one.accept(job(f"Job{number}", idempotent=True)) for number in range(count)]
    await one.jobs.stop(grace=0)
    return names


async def test_more_jobs_than_fit_into_a_batch_are_all_taken_up(few: Bench) -> None:
    names = await leave(few, 8)
    await few.again()
    for name in names:
        assert (await few.ended(name)).state is JobState.KEPT
    assert sorted(few.runner.commands) == [f"Job{number}" for number in range(8)]


async def test_a_new_job_does_not_wait_for_those_that_were_left(alone: Bench) -> None:
    await leave(alone, 8)
    alone.jobs = alone.make()
    await alone.jobs.accept(job("New", connector="other"))
    assert alone.jobs.health().open == 9
    alone.runner.slot.set()
    await eventually(lambda: len(alone.runner.started) == 9)


async def test_jobs_that_are_not_taken_up_yet_are_open(alone: Bench) -> None:
    alone._section["backlog"] = 8
    names = await leave(alone, 8)
    alone.jobs = alone.make()
    with pytest.raises(ConnectorBusy, match="8 jobs"):
        await alone.jobs.accept(job("New"))
    await alone.jobs.cancel(names[-1])
    await eventually(lambda: alone.jobs.health().open == 7)
    alone.runner.slot.set()
    for name in names[:-1]:
        await alone.ended(name)
    await eventually(lambda: alone.jobs.health().open == 0)
    assert len(alone.runner.started) == 7


async def test_those_that_wait_for_their_next_delivery_do_not_hold_up_the_others(
    tmp_path: Path, database: str | None
) -> None:
    slow = CallbacksSection(first_delay=Duration(600))
    async with bench(tmp_path, database, callbacks=slow) as one, caller() as backend:
        backend.answers = [503]
        waiting = [await one.accept(job(callback=backend.url)) for _ in range(10)]
        for name in waiting:
            await one.reaches(name, lambda status: status.attempts)
        one.runner.slot.clear()
        last = await one.accept(job("Last"))
        await one.again()
        assert (await one.ended(last)).state is JobState.KEPT


async def test_jobs_are_taken_up_though_the_store_fails_at_first(few: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    [name] = await leave(few, 1)
    real, failed = Store.take, []

    async def fail_once(self, jobs):
        if failed:
            return await real(self, jobs)
        failed.append(jobs)
        raise StoreAway("disk I/O error")

    monkeypatch.setattr(Store, "take", fail_once)
    await few.again()
    assert (await few.ended(name)).state is JobState.KEPT
    assert failed == [[name]]


async def test_jobs_that_were_taken_up_though_nobody_said_so_are_gone_on_with(
    few: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = await leave(few, 2)
    real, failed = Store.take, []

    async def take(self, jobs):
        taken = await real(self, jobs)
        if not failed:
            failed.append(jobs)
            raise StoreAway("the connection was lost", sent=True)
        return taken

    monkeypatch.setattr(Store, "take", take)
    await few.again()
    for name in names:
        assert (await few.ended(name)).state is JobState.KEPT


async def test_what_is_ours_and_forgotten_is_remembered(
    tmp_path: Path, database: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that nobody waited for may have been done late."""
    monkeypatch.setattr("gateway.jobs.recovery.REMEMBER", 0.05)
    async with bench(tmp_path, database) as one:
        await one.accept(job("First"))
        late = msgspec.structs.replace(job("Late"), id="late")
        assert await one.store.add(late, JobState.WAITING, accepted=1.0)
        assert (await one.ended("late")).state is JobState.KEPT
        assert one.runner.commands == ["First", "Late"]


async def test_a_delivery_of_which_nobody_knows_whether_it_was_asked_for_is_made(
    one: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = Store.deliver_again

    async def lost(self, job):
        await again(self, job)
        raise StoreAway("the connection was lost", sent=True)

    async with caller() as backend:
        backend.answers = [404, 200]
        name = await one.accept(job(callback=backend.url))
        await one.ended(name)
        monkeypatch.setattr(Store, "deliver_again", lost)
        with pytest.raises(JobsUnavailable):
            await one.jobs.retry(name)
        await one.reaches(name, lambda status: status.state is JobState.DELIVERED)


def test_a_batch_is_bounded_by_size_and_holds_at_least_one() -> None:
    found = [("a", 60), ("b", 30), ("c", 30)]
    assert fitting(found, 100) == ["a", "b"]
    assert fitting(found, 10) == ["a"]
    assert fitting([], 10) == []
