"""A run in progress whose process is lost, while the gateway that has the job lives on."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from gateway.jobs.port import Outcome, RunLost, State
from gateway.jobs.settings import JobsSection
from tests.jobs.support import Bench, bench, job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path, jobs=JobsSection(max_interruptions=2)) as made:
        yield made


def lost() -> asyncio.Future[Outcome]:
    running: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    running.set_exception(RunLost("worker 2 died"))
    return running


async def test_an_idempotent_job_is_run_again(one: Bench) -> None:
    name = await one.accept(job(idempotent=True), lost())
    status = await one.ended(name)
    assert (status.state, status.interrupted) == (State.KEPT, 1)
    assert status.outcome is not None
    assert status.outcome.status == 200
    assert one.runner.commands == ["Do"]


async def test_any_other_is_told_as_interrupted_and_not_run_again(one: Bench) -> None:
    status = await one.ended(await one.accept(job(), lost()))
    assert status.outcome is not None
    assert json.loads(status.outcome.body)["error"]["error_code"] == "job_interrupted"
    assert one.runner.commands == []


async def test_one_that_is_lost_again_and_again_is_told_so(one: Bench) -> None:
    one.runner.problems = [RunLost("and again"), RunLost("and again")]
    status = await one.ended(await one.accept(job(idempotent=True), lost()))
    assert status.outcome is not None
    body = json.loads(status.outcome.body)
    assert body["error"]["error_code"] == "job_interrupted"
    assert "2 times" in body["error"]["message"]
    assert one.runner.commands == ["Do"]


async def test_a_run_that_was_lost_counts_after_a_restart_too(one: Bench) -> None:
    one.runner.hold()
    name = await one.accept(job(idempotent=True), lost())
    await one.reaches(name, lambda status: status.interrupted == 1 and status.state is State.RUNNING)
    await one.again()
    status = await one.ended(name)
    assert status.outcome is not None
    assert json.loads(status.outcome.body)["error"]["error_code"] == "job_interrupted"
