"""Clocks that are set, and machines that sleep: nothing is given up, removed or held up by that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from gateway.jobs.contract import Attempt, JobState, Verdict
from gateway.jobs.held import Held
from gateway.jobs.records import Row, text_of
from gateway.jobs.settings import CallbacksSection
from gateway.units import Duration
from tests.jobs.support import bench, caller, job

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86_400.0
TWO_DAYS = [2 * DAY, -2 * DAY]


class Wall:
    """The machine's clock, which can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jump = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.jump)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    return Wall(monkeypatch)


@pytest.mark.parametrize("jump", TWO_DAYS)
async def test_a_clock_that_is_set_gives_no_delivery_up_and_holds_none_up(
    tmp_path: Path, database: str | None, wall: Wall, jump: float
) -> None:
    section = CallbacksSection(first_delay=Duration(0.2), max_age=Duration(3600))
    async with caller() as backend, bench(tmp_path, database, callbacks=section) as one:
        backend.answers = [503, 503, 503, 503, 200]
        name = await one.accept(job(callback=backend.url))
        await one.reaches(name, lambda status: len(status.attempts) == 2)
        wall.jump = jump
        status = await one.ended(name)
    assert (status.state, len(status.attempts)) == (JobState.DELIVERED, 5)
    ages = [attempt.age for attempt in status.attempts]
    assert ages == sorted(ages)
    assert 0.1 < ages[-1] < 3000


@pytest.mark.parametrize("jump", TWO_DAYS)
async def test_a_restart_between_gives_it_its_time_and_its_tries(
    tmp_path: Path, database: str | None, wall: Wall, jump: float
) -> None:
    section = CallbacksSection(first_delay=Duration(20), max_age=Duration(3600))
    async with caller() as backend, bench(tmp_path, database, callbacks=section) as one:
        backend.answers = [503, 200]
        name = await one.accept(job(callback=backend.url))
        await one.reaches(name, lambda status: status.attempts)
        wall.jump = jump
        await one.again()
        status = await one.ended(name)
    assert [attempt.status for attempt in status.attempts] == [503, 200]
    assert status.attempts[1].age < 10


@pytest.mark.parametrize(
    ("passed", "least", "most"), [(3, 6, 7), (11, -5, 0), (2 * DAY, -2 * DAY, 0), (-2 * DAY, 0, 0)]
)
def test_what_is_left_of_a_wait_that_another_process_began(passed: float, least: float, most: float) -> None:
    last = Attempt(at=time.time() - passed, took=1, age=50.0, verdict=Verdict.AGAIN, wait=10)
    held = Held.of(
        Row("j", "delivering", "gone", 1.0, None, 0, "", text_of(job()), attempts=text_of((last,)), outcome=None)
    )
    assert least - 1 < held.pause <= most
    assert 50 <= held.age < 51


def test_the_first_try_is_of_no_age_however_long_the_run_took() -> None:
    assert Held(job()).age == 0
