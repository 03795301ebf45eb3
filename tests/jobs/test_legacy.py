"""Jobs that an earlier version of the gateway has recorded, with the engine that it had: see fixtures/dbos.sql."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from gateway.jobs.cluster import Pace
from gateway.jobs.contract import JobState, Query
from tests.jobs.support import Backend, Bench, bench, caller, job
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.jobs.contract import JobStatus

LEFT = (Path(__file__).parent.parent / "fixtures/dbos.sql").read_text()
QUICK = Pace(0.05, 0.3)
EXECUTOR = "gateway-474bd0dbbed0"
"""The gateway that had what is open."""


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    async with caller() as made:
        yield made


def leave(folder: Path, database: str | None, backend: Backend) -> None:
    """Make the store that an earlier version has left."""
    script = LEFT.replace("CALLBACK", backend.url)
    if database is None:
        (folder / "jobs").mkdir()
        with contextlib.closing(sqlite3.connect(folder / "jobs/jobs.sqlite")) as store:
            store.executescript(script)
        return
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA gateway_jobs")
        connection.execute("SET search_path = gateway_jobs")
        connection.execute("CREATE TABLE gateway_node (id text PRIMARY KEY, seen timestamptz NOT NULL DEFAULT now())")
        connection.execute(script)  # type: ignore[arg-type]


@pytest.fixture
async def one(tmp_path: Path, database: str | None, backend: Backend) -> AsyncIterator[Bench]:
    """An engine on such a store; what is open has not begun to go on."""
    leave(tmp_path, database, backend)
    async with bench(tmp_path, database) as made:
        made.runner.hold()
        yield made


async def by_command(one: Bench) -> dict[str, JobStatus]:
    listed = {status.command: status for status in await one.jobs.list()}
    return {command: await one.jobs.status(status.id) for command, status in listed.items()}


def code(status: JobStatus) -> str | None:
    assert status.outcome is not None
    error = json.loads(status.outcome.body)["error"]
    return error["error_code"] if error else None


async def test_what_has_ended_stays_visible(one: Bench) -> None:
    await one.jobs.start()
    ends = {
        "Kept": JobState.KEPT, "Adopted": JobState.KEPT, "Delivered": JobState.DELIVERED, "Failed": JobState.DELIVERED,
        "Dead": JobState.DEAD, "Unwanted": JobState.UNWANTED, "Cancelled": JobState.CANCELLED, "InDelivery": JobState.CANCELLED,
        "ToTell": JobState.CANCELLED,
    }  # fmt: skip

    async def told() -> dict[str, JobStatus] | None:
        found = await by_command(one)
        return found if ends.keys() <= found.keys() else None

    found = await eventually(told)
    assert {command: found[command].state for command in ends} == ends
    assert len(await one.jobs.list()) == 15
    assert len(await one.jobs.list(Query(task="t-1"))) == 2
    kept = found["Kept"]
    assert kept.outcome is not None
    assert (kept.outcome.status, kept.outcome.run, code(kept)) == (200, {"wall": 0.1}, None)
    assert (kept.accepted, kept.finished, kept.request_id) == (1795975782.0, 1795975782.0, "r-1")
    assert found["Dead"].reason == "the caller answered 404"
    assert "nobody waits" in found["Unwanted"].reason
    assert found["Failed"].reason.endswith("its process failed: division by zero")
    assert [attempt.status for attempt in found["Dead"].attempts] == [404]
    assert (code(found["Adopted"]), found["Adopted"].interrupted) == ("job_interrupted", 1)


async def test_what_was_open_goes_on_as_the_rules_say(one: Bench, backend: Backend) -> None:
    await one.jobs.start()
    await eventually(lambda: {"Safe", "Twice", "Waiting"} <= set(one.runner.commands))
    waiting = next(job for job in one.runner.started if job.command == "Waiting")
    assert (waiting.params, waiting.priority) == ('{"w": 1}', 5)
    one.runner.release.set()
    ends = {"Waiting": JobState.KEPT, "Safe": JobState.KEPT, "Twice": JobState.KEPT}

    async def ended() -> dict[str, JobStatus] | None:
        found = await by_command(one)
        return found if all(found[command].state is state for command, state in ends.items()) else None

    found = await eventually(ended)
    assert {command: found[command].interrupted for command in ends} == {"Waiting": 0, "Safe": 2, "Twice": 2}
    assert set(one.runner.commands) == set(ends)


async def test_what_was_to_be_told_is_told(one: Bench, backend: Backend) -> None:
    await one.jobs.start()
    errors = {"Delivering": None, "Once": "job_interrupted", "ToTell": "job_cancelled"}

    async def told() -> dict[str, str | None] | None:
        names = {status.id: command for command, status in (await by_command(one)).items()}
        taken = {names[headers["Idempotency-Key"]]: body["error"] for headers, body in backend.seen}
        return taken if taken.keys() == errors.keys() else None

    taken = await eventually(told)
    assert {command: error and error["error_code"] for command, error in taken.items()} == errors
    for command in ("Delivering", "Once"):
        status = await one.reaches((await by_command(one))[command].id, lambda told: told.state is JobState.DELIVERED)
        assert [attempt.status for attempt in status.attempts] == [503, 200]  # the first one was on record


async def test_a_dead_letter_is_delivered_again_on_demand(one: Bench, backend: Backend) -> None:
    await one.jobs.start()

    async def dead() -> list[JobStatus]:
        return await one.jobs.list(Query(state=JobState.DEAD))

    [letter] = await eventually(dead)
    assert await one.jobs.retry(letter.id) == letter.id
    ended = await one.reaches(letter.id, lambda status: status.state is JobState.DELIVERED)
    assert [attempt.status for attempt in ended.attempts] == [200]
    assert one.runner.started == [] or "Dead" not in one.runner.commands
    assert letter.id in {headers["Idempotency-Key"] for headers, _ in backend.seen}


async def test_a_task_joins_what_was_open(one: Bench) -> None:
    accepted = await one.jobs.accept(job("Waiting", task="t-3"))
    assert (accepted.id, accepted.joined) == ("bb42a8db89b1b858a15195c6-0", True)


async def test_what_was_moved_is_moved_once(one: Bench) -> None:
    await one.jobs.start()

    async def all_moved() -> bool:
        return len(await one.jobs.list()) == 15

    await eventually(all_moved)
    assert await rows(one, "SELECT count(*) FROM workflow_status") == [(0,)]
    assert await rows(one, "SELECT count(*) FROM operation_outputs") == [(0,)]
    await one.again()
    assert len(await one.jobs.list()) == 15


async def test_a_start_finds_what_an_earlier_version_has_left(one: Bench) -> None:
    assert one.jobs.health().state == "asleep"
    await one.jobs.start()
    assert one.jobs.health().state == "starting"


async def test_what_cannot_be_read_stays_where_it_is(tmp_path: Path, database: str | None, backend: Backend) -> None:
    leave(tmp_path, database, backend)
    broken = "UPDATE workflow_input SET inputs = 'gASV' WHERE workflow_uuid = '10ff25b81535438b8aee2b4c4b1114c4'"
    if database is None:
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs/jobs.sqlite")) as store, store:
            store.execute(broken)
    else:
        with psycopg.connect(database, options="-c search_path=gateway_jobs") as connection:
            connection.execute(broken)  # type: ignore[arg-type]
    async with bench(tmp_path, database) as one:
        one.runner.hold()
        await one.jobs.start()

        async def all_moved() -> bool:
            return len(await one.jobs.list()) == 14

        await eventually(all_moved)
        assert await rows(one, "SELECT count(*) FROM workflow_status") == [(1,)]


async def rows(one: Bench, statement: str) -> list[Any]:
    [result] = await one.store.database.run((statement, {}), patience=5, reads=True)
    return result.rows


# --- beside a gateway of the earlier version, during an upgrade


async def test_a_gateway_of_the_earlier_version_that_lives_keeps_its_jobs(
    tmp_path: Path, url: str, backend: Backend
) -> None:
    leave(tmp_path, url, backend)
    with psycopg.connect(url, autocommit=True, options="-c search_path=gateway_jobs") as there:
        there.execute("INSERT INTO gateway_node (id) VALUES (%s)", (EXECUTOR,))
        async with bench(tmp_path, url, pace=QUICK) as one:
            one.runner.hold()
            await one.jobs.start()
            await eventually(lambda: one.jobs.health().state == "running")
            beats = await rows(one, "SELECT seen + 1 FROM gateways")
            beaten = f"SELECT 1 FROM gateways WHERE seen > {beats[0][0]}"
            while not await rows(one, beaten):  # so that it has judged others meanwhile
                there.execute("UPDATE gateway_node SET seen = clock_timestamp()")
            assert await one.jobs.list() == []
            there.execute("UPDATE gateway_node SET seen = seen - interval '1 minute'")
            await eventually(lambda: "Waiting" in one.runner.commands)
            assert there.execute("SELECT count(*) FROM gateway_node").fetchone() == (0,)

            async def all_moved() -> bool:
                return len(await one.jobs.list()) == 15

            await eventually(all_moved)
