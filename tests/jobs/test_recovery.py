"""Many jobs that an earlier gateway left."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest
from gateway.jobs.recovery import Found, fitting

from gateway.errors import ConnectorBusy
from gateway.jobs import recovery
from gateway.jobs.contract import State
from gateway.jobs.settings import CallbacksSection, JobsSection
from gateway.units import Duration
from tests.jobs.support import Bench, bench, caller, job
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(recovery, "COUNT", 3)
    async with bench(tmp_path) as made:
        made.limit = 1
        yield made


async def leave(one: Bench, count: int) -> list[str]:
    """Accept jobs, and begin none."""
    one.runner.slot.clear()
    names = [await one.accept(job(f"Job{number}", idempotent=True)) for number in range(count)]
    await one.jobs.stop(grace=0)
    return names


async def test_more_jobs_than_fit_into_a_batch_are_all_taken_up(one: Bench) -> None:
    names = await leave(one, 8)
    await one.again()
    for name in names:
        assert (await one.ended(name)).state is State.KEPT
    assert sorted(one.runner.commands) == [f"Job{number}" for number in range(8)]


async def test_a_new_job_does_not_wait_for_those_that_were_left(one: Bench) -> None:
    await leave(one, 8)
    one.jobs = one.make()
    await one.jobs.accept(job("New", connector="other"))
    assert one.jobs.health().open == 9
    one.runner.slot.set()
    await eventually(lambda: len(one.runner.started) == 9)


async def test_jobs_that_are_not_taken_up_yet_are_open(one: Bench) -> None:
    one._options["jobs"] = JobsSection(backlog=8)
    names = await leave(one, 8)
    one.jobs = one.make()
    with pytest.raises(ConnectorBusy, match="8 jobs"):
        await one.jobs.accept(job("New"))
    await one.jobs.cancel(names[-1])
    await eventually(lambda: one.jobs.health().open == 7)
    one.runner.slot.set()
    for name in names[:-1]:
        await one.ended(name)
    await eventually(lambda: one.jobs.health().open == 0)
    assert len(one.runner.started) == 7


async def test_those_that_wait_for_their_next_delivery_do_not_hold_up_the_others(tmp_path: Path) -> None:
    slow = CallbacksSection(first_delay=Duration(600))
    async with bench(tmp_path, callbacks=slow) as one, caller() as backend:
        backend.answers = [503]
        waiting = [await one.accept(job(callback=backend.url)) for _ in range(10)]
        for name in waiting:
            await one.reaches(name, lambda status: status.attempts)
        one.runner.slot.clear()
        last = await one.accept(job("Last"))
        await one.again()
        assert (await one.ended(last)).state is State.KEPT


async def test_jobs_are_taken_up_though_the_store_fails_at_first(one: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    [name] = await leave(one, 1)
    real, failed = recovery.Recovery.take_up, []

    def fail_once(self, nodes):
        if not failed:
            failed.append(nodes)
            raise recovery.sqlalchemy.exc.OperationalError("select", {}, sqlite3.OperationalError("disk I/O error"))
        return real(self, nodes)

    monkeypatch.setattr(recovery.Recovery, "take_up", fail_once)
    await one.again()
    assert (await one.ended(name)).state is State.KEPT
    assert failed == [None]


def test_a_batch_is_bounded_by_size_and_holds_at_least_one() -> None:
    found = [Found("a", 60), Found("b", 30), Found("c", 30)]
    assert fitting(found, 100) == ["a", "b"]
    assert fitting(found, 10) == ["a"]
    assert fitting([], 10) == []
