"""Clocks that are set, and machines that sleep: nothing is given up, removed or held up by that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from gateway.jobs.clock import JUMP, Clock, WrittenTime
from gateway.jobs.contract import Attempt, JobState, Verdict
from gateway.jobs.held import Held
from gateway.jobs.records import Row, text_of
from gateway.jobs.retention import sweep
from gateway.jobs.settings import CallbacksSection, JobsSection
from gateway.observe.events import ClockJumped
from gateway.units import Duration
from tests.jobs.support import Bench, bench, caller, job
from tests.support import eventually

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86_400.0
WEEK = JobsSection(keep=Duration(7 * DAY))
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


# --- retention


async def change(one: Bench, statement: str) -> None:
    await one.store.database.run((statement, {}), patience=5)


async def listed(one: Bench) -> list[str]:
    return [status.id for status in await one.jobs.list()]


@pytest.mark.parametrize("days", [30, -30])
async def test_a_clock_that_is_set_makes_no_job_older(one: Bench, wall: Wall, days: int) -> None:
    name = await one.ended(await one.accept(job()))
    wall.jump = days * DAY
    assert await sweep(one.store, WEEK) == 0
    assert await one.jobs.purge(older_than=7 * DAY) == 0
    await one.again()
    assert await one.jobs.purge(older_than=7 * DAY) == 0
    assert await listed(one) == [name.id]
    clock = one.store.clock
    clock.catch_up(clock.now + 8 * DAY)  # which have passed
    await sweep(one.store, WEEK)
    assert await listed(one) == []


@pytest.mark.parametrize(("since", "left"), [(8 * DAY, 0), (6 * DAY, 1), (-30 * DAY, 1)])
async def test_over_two_starts_of_the_machine_its_clock_says_what_has_passed(
    one: Bench, since: float, left: int
) -> None:
    await one.ended(await one.accept(job()))
    await sweep(one.store, WEEK)
    await change(one, f"UPDATE clock SET boot = 'earlier', wall = wall - {since}")
    await one.again()
    await one.jobs.list()
    await sweep(one.store, WEEK)
    assert len(await listed(one)) == left


async def test_a_gateway_that_comes_beside_another_counts_nothing_twice(one: Bench) -> None:
    await one.ended(await one.accept(job()))
    await sweep(one.store, WEEK)
    known = one.store.clock.now
    await change(one, f"UPDATE clock SET boot = 'elsewhere', wall = wall - {8 * DAY}")
    await change(one, "INSERT INTO gateways (id, seen) VALUES ('other', 1)")
    await one.store.start_clock()
    assert known <= one.store.clock.now < known + DAY
    await change(one, f"UPDATE clock SET seconds = {known + DAY}")
    await one.store.keep_time()
    assert known + DAY <= one.store.clock.now < known + 2 * DAY


async def test_the_last_that_ended_are_kept_although_the_clock_was_set_back(one: Bench, wall: Wall) -> None:
    await one.ended(await one.accept(job()))
    wall.jump = -2 * DAY
    last = await one.ended(await one.accept(job()))
    assert await sweep(one.store, JobsSection(keep_count=1)) == 1
    assert await listed(one) == [last.id]


async def test_what_an_earlier_version_has_ended_grows_old_from_the_next_sweep_on(one: Bench) -> None:
    await one.ended(await one.accept(job()))
    await change(one, "UPDATE jobs SET ended = NULL")
    assert await sweep(one.store, WEEK) == 0
    clock = one.store.clock
    clock.catch_up(clock.now + 8 * DAY)
    await sweep(one.store, WEEK)
    assert await listed(one) == []


async def test_that_the_clock_was_set_is_told_once(tmp_path: Path, wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.jobs.retention.LOOK", 0.01)
    async with bench(tmp_path) as one:
        await one.ended(await one.accept(job()))
        for jump in (2 * DAY, 0.0):
            wall.jump = jump
            await eventually(lambda: len(one.told(ClockJumped)) == (1 if wall.jump else 2))
        assert [round(event.seconds, -1) for event in one.told(ClockJumped)] == [2 * DAY, -2 * DAY]


def test_what_is_slewed_is_no_jump(wall: Wall) -> None:
    clock = Clock()
    for jump in (JUMP / 2, 2 * JUMP, 0.0):
        wall.jump += jump
        assert clock.jump() == pytest.approx(jump if jump >= JUMP else 0.0, abs=0.1)


@pytest.mark.parametrize(
    ("since", "boot", "passed"), [(-DAY, "earlier", 0), (DAY, "earlier", DAY), (DAY, "this", 5), (None, "earlier", 0)]
)
def test_a_clock_goes_on_with_what_is_known_to_have_passed(since: float | None, boot: str, passed: float) -> None:
    clock, wall = Clock(), time.time()
    kept = WrittenTime(
        100.0, None if since is None else wall - since, clock.boot if boot == "this" else boot, time.monotonic() - 5
    )
    clock.go_on(kept, wall)
    assert 100 + passed <= clock.now < 101 + passed
    clock.catch_up(50.0)
    assert clock.now >= 100 + passed
