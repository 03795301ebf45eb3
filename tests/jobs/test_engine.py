"""What the engine promises, on a file and on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
from typing import TYPE_CHECKING

import msgspec
import pytest
from aiohttp import web

from gateway.errors import ConnectorBusy, ConnectorStartFailed, ConnectorUnavailable, GatewayDraining, InvalidRequest
from gateway.jobs.contract import (
    Job,
    JobConflict,
    JobNotFound,
    JobState,
    JobsUnavailable,
    Outcome,
    Query,
    StoreAway,
    Verdict,
)
from gateway.jobs.settings import CallbacksSection
from gateway.jobs.store import Store
from gateway.observe.events import CallbackTried, JobAccepted, JobFault, JobFinished, JobRan, StoreChanged
from gateway.protocol.request import Caller
from gateway.units import Duration, Size
from tests.jobs.support import Bench, bench, caller, envelope, job
from tests.support import eventually

if TYPE_CHECKING:
    from pathlib import Path


def code(outcome: Outcome | None) -> str | None:
    assert outcome is not None
    error = json.loads(outcome.body)["error"]
    return error["error_code"] if error else None


# --- the way of a job


async def test_a_job_without_a_callback_keeps_its_outcome(one: Bench) -> None:
    name = await one.accept(job(params='{"a": 1}', task_data='{"b": 2}'))
    status = await one.ended(name)
    assert status.state is JobState.KEPT
    assert status.outcome == Outcome(status=200, body=envelope({"command": "Do"}), run={"wall": 0.1})
    assert one.runner.started[0].params == '{"a": 1}'
    assert one.runner.started[0].task_data == '{"b": 2}'
    assert one.runner.started[0].id == name


async def test_a_job_is_delivered_with_its_key(one: Bench) -> None:
    async with caller() as backend:
        name = await one.accept(job(callback=backend.url))
        status = await one.ended(name)
    assert status.state is JobState.DELIVERED
    [(headers, body)] = backend.seen
    assert headers["Idempotency-Key"] == name
    assert headers["Content-Type"] == "application/json"
    assert body == json.loads(envelope({"command": "Do"}))


async def test_what_happened_is_told_in_events(one: Bench) -> None:
    async with caller() as backend:
        backend.answers = [503, 200]
        name = await one.accept(job(callback=backend.url))
        await one.ended(name)
    await eventually(lambda: one.told(JobFinished))
    assert [event.joined for event in one.told(JobAccepted)] == [False]
    assert [event.status for event in one.told(JobRan)] == [200]
    assert [(event.status, event.verdict) for event in one.told(CallbackTried)] == [(503, "again"), (200, "done")]
    assert [event.state for event in one.told(JobFinished)] == ["delivered"]


async def test_every_try_is_on_record_with_the_same_body_and_key(one: Bench) -> None:
    async with caller() as backend:
        backend.answers = [503, 429, 409, 200]
        name = await one.accept(job(callback=backend.url))
        status = await one.ended(name)
    assert [attempt.status for attempt in status.attempts] == [503, 429, 409, 200]
    assert [attempt.verdict for attempt in status.attempts][-1] is Verdict.DONE
    assert len({headers["Idempotency-Key"] for headers, _ in backend.seen}) == 1
    assert len({json.dumps(body) for _, body in backend.seen}) == 1


async def test_a_final_answer_makes_a_dead_letter_that_says_why(one: Bench) -> None:
    async with caller() as backend:
        backend.answers = [401]
        name = await one.accept(job(callback=backend.url))
        status = await one.ended(name)
    assert status.state is JobState.DEAD
    assert "401" in status.reason
    assert "credentials" in status.reason
    assert code(status.outcome) is None


async def test_a_dead_letter_can_be_delivered_again_without_a_second_run(one: Bench) -> None:
    async with caller() as backend:
        backend.answers = [404]
        name = await one.accept(job(callback=backend.url))
        await one.ended(name)
        backend.answers = [200]
        assert await one.jobs.retry(name) == name
        status = await one.reaches(name, lambda status: status.state is JobState.DELIVERED)
    assert one.runner.commands == ["Do"]
    assert status.outcome is not None
    assert len({headers["Idempotency-Key"] for headers, _ in backend.seen}) == 1


async def test_a_retry_can_wake_a_delivery_that_waits(tmp_path: Path, database: str | None) -> None:
    slow = CallbacksSection(first_delay=Duration(600))
    async with bench(tmp_path, database, callbacks=slow) as one, caller() as backend:
        backend.answers = [503, 200]
        name = await one.accept(job(callback=backend.url))
        await one.reaches(name, lambda status: status.attempts)
        await one.jobs.retry(name)
        assert (await one.ended(name)).state is JobState.DELIVERED


async def test_a_job_can_be_run_again_as_a_new_one(one: Bench) -> None:
    name = await one.accept(job(task="t"))
    await one.ended(name)
    again = await one.jobs.retry(name, run=True)
    assert again != name
    assert (await one.ended(again)).state is JobState.KEPT
    assert one.runner.commands == ["Do", "Do"]


async def test_lists_tell_the_latest_first_and_can_be_narrowed(one: Bench) -> None:
    async with caller() as backend:
        backend.answers = [404]
        dead = await one.accept(job(callback=backend.url, connector="other"))
        await one.ended(dead)
    kept = await one.accept(job())
    await one.ended(kept)
    assert {status.id for status in await one.jobs.list()} == {dead, kept}
    assert [status.id for status in await one.jobs.list(Query(state=JobState.DEAD))] == [dead]
    assert [status.id for status in await one.jobs.list(Query(connector="fake"))] == [kept]
    assert await one.jobs.list(Query(state=JobState.DELIVERED)) == []
    assert len(await one.jobs.list(limit=1)) == 1


async def test_lists_can_be_narrowed_to_a_process_instance_a_task_and_a_client(one: Bench) -> None:
    for number in (7, 8):
        context = Caller(request_id="r", process_instance_id=number, task_id=f"t-{number}", client=f"c-{number}")
        await one.ended(await one.accept(Job(connector="fake", command="Do", context=context)))
    for query in (Query(process_instance="7"), Query(task="t-7"), Query(client="c-7")):
        (found,) = await one.jobs.list(query)
        assert (found.process_instance_id, found.task_id, found.client) == (7, "t-7", "c-7")
    assert await one.jobs.list(Query(process_instance="7", task="t-8")) == []


async def test_an_outcome_that_nobody_waits_for_is_unwanted_and_no_dead_letter(
    one: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.jobs.callbacks.RACE", 0.2)

    async def not_waiting(_request: web.Request) -> web.Response:
        return web.json_response({"error_code": "not_waiting_for_callback"}, status=400)

    async with caller() as backend:
        backend.answers = [not_waiting]
        name = await one.accept(job(callback=backend.url))
        ended = await one.ended(name)
    assert ended.state is JobState.UNWANTED
    assert "not_waiting_for_callback" in ended.reason
    assert [found.id for found in await one.jobs.list(Query(state=JobState.UNWANTED))] == [name]
    assert await one.jobs.list(Query(state=JobState.DEAD)) == []
    (event,) = one.told(JobFinished)
    assert (event.state, event.severity()) == ("unwanted", "info")


async def test_a_callback_that_was_taken_by_a_process_that_failed_is_delivered_with_the_reason(one: Bench) -> None:
    async def failed(_request: web.Request) -> web.Response:
        body = {"error_code": "unexpected_workflow_exception", "message": "division by zero", "task_data": {"a": 1}}
        return web.json_response(body, status=400)

    async with caller() as backend:
        backend.answers = [failed]
        name = await one.accept(job(callback=backend.url))
        ended = await one.ended(name)
    assert ended.state is JobState.DELIVERED
    assert ended.reason.endswith("its process failed: division by zero")
    assert [found.reason for found in await one.jobs.list()] == [ended.reason]
    (event,) = one.told(JobFinished)
    assert (event.state, event.severity()) == ("delivered", "warning")


async def test_a_dead_letter_is_a_warning(one: Bench) -> None:
    async with caller() as backend:
        backend.answers = [404]
        await one.ended(await one.accept(job(callback=backend.url)))
    (event,) = one.told(JobFinished)
    assert (event.state, event.severity()) == ("dead", "warning")


async def test_what_does_not_exist_is_not_found(one: Bench) -> None:
    with pytest.raises(JobNotFound):
        await one.jobs.status("nothing")
    await one.ended(await one.accept(job()))
    for verb in (one.jobs.status, one.jobs.cancel, one.jobs.retry):
        with pytest.raises(JobNotFound):
            await verb("nothing")


# --- one job a task


async def test_a_second_accept_of_an_open_task_joins_it(one: Bench) -> None:
    one.runner.hold()
    first = await one.jobs.accept(job(task="t1"))
    second = await one.jobs.accept(job(task="t1"))
    other = await one.jobs.accept(job("Other", task="t1"))
    assert (second.id, second.joined) == (first.id, True)
    assert other.id != first.id
    one.runner.release.set()
    await one.ended(first.id)
    await one.ended(other.id)
    assert sorted(one.runner.commands) == ["Do", "Other"]


async def test_accepts_of_one_task_at_the_same_moment_start_one_job(one: Bench) -> None:
    await one.ended(await one.accept(job()))
    one.runner.hold()
    accepted = await asyncio.gather(*(one.jobs.accept(job(task="t1")) for _ in range(10)))
    assert len({each.id for each in accepted}) == 1
    assert sum(not each.joined for each in accepted) == 1
    one.runner.release.set()
    await one.ended(accepted[0].id)
    assert one.runner.commands == ["Do", "Do"]


async def test_a_task_whose_job_has_ended_runs_anew(one: Bench) -> None:
    first = await one.accept(job(task="t1"))
    await one.ended(first)
    second = await one.accept(job(task="t1"))
    await one.ended(second)
    assert first != second
    assert one.runner.commands == ["Do", "Do"]


async def test_a_task_of_another_client_is_another(one: Bench) -> None:
    one.runner.hold()
    mine = job(task="t1")
    first = await one.accept(mine)
    second = await one.accept(of_client(mine, client="somebody"))
    one.runner.release.set()
    await one.ended(first)
    await one.ended(second)
    assert first != second


def of_client(one: Job, client: str) -> Job:
    return msgspec.structs.replace(one, context=msgspec.structs.replace(one.context, client=client))


# --- what a run may raise


async def test_busy_is_no_outcome(one: Bench) -> None:
    one.runner.refusals = [ConnectorBusy("full", retry_after=0.01), ConnectorUnavailable("open circuit")]
    status = await one.ended(await one.accept(job()))
    assert status.outcome is not None
    assert status.outcome.status == 200
    assert len(one.runner.queued) == 3
    assert len(one.runner.started) == 1


async def test_an_error_is_an_outcome(one: Bench) -> None:
    one.runner.problems = [ConnectorStartFailed("no such file")]
    assert code((await one.ended(await one.accept(job()))).outcome) == "connector_start_failed"


async def test_a_fault_of_ours_is_told_without_its_text(one: Bench) -> None:
    one.runner.problems = [ZeroDivisionError("hunter2")]
    status = await one.ended(await one.accept(job()))
    assert code(status.outcome) == "job_failed"
    assert "hunter2" not in status.outcome.body  # type: ignore[union-attr]
    (fault,) = one.told(JobFault)
    assert fault.id == status.id
    assert "ZeroDivisionError: hunter2" in fault.traceback


# --- crashes (an engine that is closed leaves exactly what is committed, as a crash does)


async def test_an_interrupted_job_that_is_not_idempotent_is_told_and_not_run_again(one: Bench) -> None:
    async with caller() as backend:
        one.runner.hold()
        name = await one.accept(job(callback=backend.url))
        await eventually(lambda: one.runner.started)
        await one.again()
        status = await one.ended(name)
    assert one.runner.started == []
    assert status.state is JobState.DELIVERED
    assert backend.seen[0][1]["error"]["error_code"] == "job_interrupted"
    assert "not declared idempotent" in backend.seen[0][1]["error"]["message"]


async def test_an_interrupted_idempotent_job_is_run_again(one: Bench) -> None:
    one.runner.hold()
    name = await one.accept(job(idempotent=True))
    await eventually(lambda: one.runner.started)
    await one.again()
    status = await one.ended(name)
    assert one.runner.commands == ["Do"]
    assert code(status.outcome) is None
    assert status.interrupted == 1


async def test_a_job_that_takes_its_gateway_down_every_time_is_told_in_the_end(
    tmp_path: Path, database: str | None
) -> None:
    async with bench(tmp_path, database, max_interruptions=2) as one:
        one.runner.hold()
        name = await one.accept(job(idempotent=True))
        for _ in range(2):
            await eventually(lambda: one.runner.started)
            folder_runner = one.runner
            await one.jobs.stop(grace=0)
            one.jobs = one.make()
            one.runner.started.clear()
            assert folder_runner is one.runner
            await one.jobs.start()
        status = await one.ended(name)
    assert code(status.outcome) == "job_interrupted"
    assert "2 times" in status.outcome.body  # type: ignore[union-attr]
    assert status.interrupted == 2


async def test_a_job_that_waited_is_not_interrupted_by_a_crash(one: Bench) -> None:
    one.limit = 1
    one.runner.hold()
    await one.accept(job("First"))
    await eventually(lambda: one.runner.started)
    waiting = await one.accept(job("Second"))
    await one.again()
    status = await one.ended(waiting)
    assert "Second" in one.runner.commands
    assert code(status.outcome) is None


async def test_a_crash_while_delivering_does_not_run_again(one: Bench) -> None:
    async with caller() as backend:
        backend.answers = [503]
        name = await one.accept(job(callback=backend.url))
        await one.reaches(name, lambda status: status.attempts)
        await one.again()
        backend.answers = [200]
        status = await one.ended(name)
    assert one.runner.started == []
    assert status.state is JobState.DELIVERED
    assert status.attempts[0].status == 503


async def test_a_restart_many_times_is_no_fault_of_a_job(one: Bench) -> None:
    async with caller() as backend:
        backend.answers = [503]
        name = await one.accept(job(callback=backend.url))
        for number in range(4):
            await one.reaches(name, lambda status, number=number: len(status.attempts) > number)
            await one.again()
        backend.answers = [200]
        assert (await one.ended(name)).state is JobState.DELIVERED


async def test_drain_starts_nothing_and_leaves_what_waits_to_the_next_start(one: Bench) -> None:
    one.limit = 1
    one.runner.hold()
    running = await one.accept(job("First"))
    await eventually(lambda: one.runner.started)
    waiting = await one.accept(job("Second"))
    one.jobs.drain()
    one.runner.release.set()
    with pytest.raises(GatewayDraining):
        await one.accept(job("Third"))
    assert (await one.ended(running)).state is JobState.KEPT
    assert one.runner.commands == ["First"]
    await one.again()
    await one.ended(waiting)
    assert one.runner.commands == ["Second"]


async def test_a_run_that_a_shutdown_refuses_stays_open(one: Bench) -> None:
    one.runner.refusals = [GatewayDraining()]
    name = await one.accept(job(idempotent=True))
    await eventually(lambda: one.runner.queued)
    assert (await one.jobs.status(name)).outcome is None
    await one.again()
    assert code((await one.ended(name)).outcome) is None


async def test_stopping_waits_for_a_run_to_be_recorded(one: Bench) -> None:
    one.runner.hold()
    name = await one.accept(job())
    await eventually(lambda: one.runner.started)
    stopping = asyncio.create_task(one.jobs.stop(grace=10))
    one.runner.release.set()
    await stopping
    await one.again()
    assert code((await one.ended(name)).outcome) is None


async def test_stopping_kills_a_run_that_goes_on(one: Bench) -> None:
    one.runner.hold()
    name = await one.accept(job())
    await eventually(lambda: one.runner.started)
    await one.jobs.stop(grace=0)
    assert one.runner.cancelled == [name]


# --- promotion


async def test_a_run_in_progress_is_adopted(one: Bench) -> None:
    running: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    name = await one.accept(job(), running)
    assert (await one.reaches(name, lambda status: status.state is JobState.RUNNING)).outcome is None
    running.set_result(Outcome(status=200, body=envelope("adopted")))
    status = await one.ended(name)
    assert one.runner.started == []
    assert "adopted" in status.outcome.body  # type: ignore[union-attr]


async def test_an_adopted_run_that_a_crash_interrupts_follows_the_policy(one: Bench) -> None:
    loop = asyncio.get_running_loop()
    never = await one.accept(job("Never"), loop.create_future())
    twice = await one.accept(job("Twice", idempotent=True), loop.create_future())
    for name in (never, twice):
        await one.reaches(name, lambda status: status.state is JobState.RUNNING)
    await one.again()
    assert code((await one.ended(never)).outcome) == "job_interrupted"
    assert code((await one.ended(twice)).outcome) is None
    assert one.runner.commands == ["Twice"]


async def test_an_adopted_run_that_fails_is_an_outcome(one: Bench) -> None:
    running: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    name = await one.accept(job(), running)
    running.set_exception(ConnectorStartFailed("no such file"))
    assert code((await one.ended(name)).outcome) == "connector_start_failed"


async def test_an_adopted_run_that_somebody_cancels_is_told(one: Bench) -> None:
    running: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    name = await one.accept(job(), running)
    await one.reaches(name, lambda status: status.state is JobState.RUNNING)
    running.cancel()
    assert code((await one.ended(name)).outcome) == "job_interrupted"


async def test_cancelling_a_job_cancels_the_run_that_it_adopted(one: Bench) -> None:
    running: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    name = await one.accept(job(), running)
    await one.reaches(name, lambda status: status.state is JobState.RUNNING)
    await one.jobs.cancel(name)
    await eventually(running.cancelled)


# --- cancelling


async def test_cancelling_kills_the_run_and_tells_the_caller(one: Bench) -> None:
    async with caller() as backend:
        one.runner.hold()
        name = await one.accept(job(callback=backend.url))
        await eventually(lambda: one.runner.started)
        await one.jobs.cancel(name)
        await eventually(lambda: one.runner.cancelled)
        status = await one.reaches(name, lambda status: status.attempts)
        await eventually(lambda: one.jobs.health().open == 0)
    assert status.state is JobState.CANCELLED
    assert [(headers["Idempotency-Key"], body["error"]["error_code"]) for headers, body in backend.seen] == [
        (name, "job_cancelled")
    ]
    with pytest.raises(JobConflict):
        await one.jobs.cancel(name)


async def test_cancelling_a_job_that_waits_gives_its_place_away(one: Bench) -> None:
    one.limit = 1
    one.runner.hold()
    await one.accept(job("First"))
    await eventually(lambda: one.runner.started)
    second, third = await one.accept(job("Second")), await one.accept(job("Third"))
    await one.jobs.cancel(second)
    one.runner.release.set()
    await one.ended(third)
    assert one.runner.commands == ["First", "Third"]


async def test_cancelling_ends_a_delivery(tmp_path: Path, database: str | None) -> None:
    slow = CallbacksSection(first_delay=Duration(600))
    async with bench(tmp_path, database, callbacks=slow) as one, caller() as backend:
        backend.answers = [503]
        name = await one.accept(job(callback=backend.url))
        await one.reaches(name, lambda status: status.attempts)
        await one.jobs.cancel(name)
        await eventually(lambda: one.jobs.health().open == 0)
        status = await one.jobs.status(name)
    assert status.state is JobState.CANCELLED
    assert len(backend.seen) == 1
    assert status.outcome is not None


async def test_a_cancelled_job_logs_no_traceback(one: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        one.runner.hold()
        name = await one.accept(job())
        await eventually(lambda: one.runner.started)
        await one.jobs.cancel(name)
        await eventually(lambda: one.jobs.health().open == 0)
    assert [record for record in caplog.records if record.name != "asyncio" or record.levelno > logging.DEBUG] == []


# --- limits


async def test_a_full_backlog_is_busy(tmp_path: Path, database: str | None) -> None:
    async with bench(tmp_path, database, backlog=2) as one:
        one.runner.hold()
        for _ in range(2):
            await one.accept(job())
        with pytest.raises(ConnectorBusy) as raised:
            await one.accept(job())
        assert raised.value.retry_after
        one.runner.release.set()
        await eventually(lambda: one.jobs.health().open == 0)
        await one.accept(job())


async def test_large_parameters_fill_the_backlog_too(tmp_path: Path, database: str | None) -> None:
    async with bench(tmp_path, database, backlog_size=Size(100)) as one:
        one.runner.hold()
        await one.accept(job(params=json.dumps({"a": "x" * 200})))
        with pytest.raises(ConnectorBusy):
            await one.accept(job())


async def test_a_higher_priority_goes_first(one: Bench) -> None:
    one.limit = 1
    one.runner.hold()
    names = [await one.accept(job("First"))]
    await eventually(lambda: one.runner.started)
    for command, priority in (("Low", -1), ("Usual", 0), ("High", 5), ("Later", 0)):
        names.append(await one.accept(job(command, priority=priority)))
    await eventually(lambda: waiting(one) == 4)
    one.runner.release.set()
    for name in names:
        await one.ended(name)
    assert one.runner.commands == ["First", "High", "Usual", "Later", "Low"]


def waiting(one: Bench) -> int:
    assert one.jobs._engine is not None
    return one.jobs._engine.hands.queue.waiting("fake")


async def test_a_connector_that_is_full_does_not_hold_up_another(one: Bench) -> None:
    one.limit = 1
    one.runner.hold()
    await one.accept(job("First"))
    await eventually(lambda: one.runner.started)
    await one.accept(job("Second"))
    await one.accept(job("Other", connector="other"))
    await eventually(lambda: "Other" in one.runner.commands)
    assert "Second" not in one.runner.commands


# --- the store


async def test_what_is_accepted_is_synced(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        await one.accept(job())
        assert await said(one, "PRAGMA synchronous") == 2  # FULL
        assert await said(one, "PRAGMA journal_mode") == "wal"


async def test_what_is_accepted_is_synced_by_a_server_too(tmp_path: Path, url: str) -> None:
    async with bench(tmp_path, url) as one:
        await one.accept(job())
        assert await said(one, "SHOW synchronous_commit") == "on"


async def said(one: Bench, statement: str):
    [result] = await one.store.database.run((statement, {}), patience=5, reads=True)
    return result.rows[0][0]


async def test_the_store_is_readable_for_its_owner_only(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        await one.ended(await one.accept(job()))
        for file in (one.folder / "jobs").iterdir():
            assert file.stat().st_mode & 0o077 == 0, file


async def test_a_full_disk_is_told_at_once_and_costs_no_result(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        one.runner.hold()
        name = await one.accept(job())
        await eventually(lambda: one.runner.started)
        await said(one, f"PRAGMA max_page_count={await said(one, 'PRAGMA page_count')}")  # it grows no further
        one.runner.release.set()

        async def accept_many() -> None:
            for _ in range(50):
                await one.accept(job(params=json.dumps({"a": "x" * 10_000})))

        with pytest.raises(JobsUnavailable, match="full"):
            await accept_many()
        assert not one.jobs.health().ok
        assert "full" in one.jobs.health().reason
        await said(one, "PRAGMA max_page_count=1000000")
        status = await one.ended(name)
        assert status.outcome is not None
        assert one.runner.commands.count("Do") == 1
        await one.accept(job("After"))
        assert one.jobs.health().ok


async def test_a_store_that_is_locked_is_told_and_what_was_refused_does_not_run(tmp_path: Path) -> None:
    async with bench(tmp_path, patience=0.5) as one:
        await one.ended(await one.accept(job("Before")))
        other = sqlite3.connect(one.folder / "jobs/jobs.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JobsUnavailable, match="did not answer"):
            await one.accept(job("Refused"))
        assert not one.jobs.health().ok
        other.execute("ROLLBACK")
        other.close()
        await eventually(lambda: one.jobs.health().open == 0)
        await one.ended(await one.accept(job("After")))
        assert one.runner.commands == ["Before", "After"]
        assert len(await one.jobs.list()) == 2


async def test_a_task_that_was_refused_and_asked_for_again_runs_once(tmp_path: Path) -> None:
    async with bench(tmp_path, patience=0.3) as one:
        await one.ended(await one.accept(job("Before")))
        other = sqlite3.connect(one.folder / "jobs/jobs.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JobsUnavailable):
            await one.accept(job("Asked", task="t"))
        again = asyncio.create_task(one.accept(job("Asked", task="t")))
        await asyncio.sleep(0)
        other.execute("ROLLBACK")
        other.close()

        async def accepted() -> str | None:
            try:
                return await (again if not again.done() else one.accept(job("Asked", task="t")))
            except JobsUnavailable:
                return None

        status = await one.ended(await eventually(accepted))
        assert status.state is JobState.KEPT
        assert one.runner.commands == ["Before", "Asked"]


async def test_a_store_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/jobs.sqlite").write_bytes(b"this is no database" * 1000)
    async with bench(tmp_path) as one:
        with pytest.raises(JobsUnavailable, match="not a database"):
            await one.accept(job())
        assert not one.jobs.health().ok
        (tmp_path / "jobs/jobs.sqlite").unlink()
        await one.accept(job())
        assert one.jobs.health().ok


async def test_a_second_gateway_on_the_same_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.jobs.sqlite.LOCK_PATIENCE", 0.1)
    async with bench(tmp_path) as one, bench(tmp_path) as other:
        await one.accept(job())
        with pytest.raises(JobsUnavailable, match="another gateway"):
            await other.accept(job())


async def test_what_has_ended_is_purged_by_age_and_by_end(one: Bench) -> None:
    assert await one.jobs.count_ended(older_than=0, most=9) == 0
    assert await one.jobs.purge(older_than=0) == 0  # and the engine sleeps on
    async with caller() as taker:
        delivered = await one.accept(job(callback=taker.url, task="t"))
        await one.ended(delivered)
        kept = await one.accept(job())
        await one.ended(kept)
        one.runner.hold()
        cancelled, running = await one.accept(job(callback=taker.url)), await one.accept(job())
        await eventually(lambda: len(one.runner.started) == 4)
        await one.jobs.cancel(cancelled)
        await eventually(lambda: len(taker.seen) == 2)
        await eventually(lambda: one.jobs.health().open == 1)
        assert await one.jobs.count_ended(older_than=3600, most=9) == 0
        assert await one.jobs.count_ended(older_than=-10, most=9) == 3
        assert await one.jobs.count_ended(older_than=-10, most=2) == 2
        assert await one.jobs.count_ended(older_than=-10, state=JobState.KEPT, most=9) == 1
        assert await one.jobs.purge(older_than=3600) == 0
        assert await one.jobs.purge(older_than=-10, state=JobState.DEAD) == 0
        assert await one.jobs.purge(older_than=-10, state=JobState.KEPT) == 1
        assert {status.id for status in await one.jobs.list()} == {delivered, cancelled, running}
        assert await one.jobs.purge(older_than=-10) == 2
        assert [status.id for status in await one.jobs.list()] == [running]


# --- what was refused, and may have been committed


async def refused(one: Bench, monkeypatch: pytest.MonkeyPatch, *, before: bool) -> None:
    """Have an accept fail, whose commit comes before that is told, or never."""
    add = Store.add

    async def lost(self, job, state, **more):
        if before:
            assert await add(self, job, state, **more)
        raise StoreAway("the connection was lost", sent=True)

    monkeypatch.setattr(Store, "add", lost)
    with pytest.raises(JobsUnavailable, match="connection was lost"):
        await one.accept(job("Refused", task="t"))
    monkeypatch.setattr(Store, "add", add)


@pytest.mark.parametrize("before", [True, False])
async def test_what_was_refused_and_committed_all_the_same_is_withdrawn(
    one: Bench, monkeypatch: pytest.MonkeyPatch, *, before: bool
) -> None:
    await refused(one, monkeypatch, before=before)
    await eventually(lambda: one.jobs.health().open == 0)
    assert one.runner.queued == []
    [withdrawn] = await one.jobs.list(Query(state=JobState.DEAD))
    assert "never accepted" in withdrawn.reason
    assert [event.state for event in one.told(JobFinished)] == ["dead"]
    again = await one.jobs.accept(job("Refused", task="t"))
    assert not again.joined
    await one.ended(again.id)


async def test_what_was_refused_and_joined_before_it_was_withdrawn_runs(
    one: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw, may = Store.withdraw, asyncio.Event()

    async def later(self, job):
        await may.wait()
        return await withdraw(self, job)

    monkeypatch.setattr(Store, "withdraw", later)
    await refused(one, monkeypatch, before=True)
    joined = await one.jobs.accept(job("Refused", task="t"))
    assert joined.joined
    may.set()
    assert (await one.ended(joined.id)).state is JobState.KEPT
    assert one.runner.commands == ["Refused"]


async def test_a_full_backlog_lets_a_task_join_its_job(tmp_path: Path, database: str | None) -> None:
    async with bench(tmp_path, database, backlog=1) as one:
        one.runner.hold()
        name = await one.accept(job(task="t"))
        assert (await one.jobs.accept(job(task="t"))).id == name
        for other in (job(), job(task="u")):
            with pytest.raises(ConnectorBusy):
                await one.accept(other)


# --- values that no database holds


@pytest.mark.parametrize("name", ["x\0y", "\ud800", "x\udcff"])
async def test_an_id_that_no_database_holds_is_the_callers_mistake(one: Bench, name: str) -> None:
    await one.ended(await one.accept(job()))
    verbs = (one.jobs.status, one.jobs.cancel, one.jobs.retry)
    for verb in verbs:
        with pytest.raises((InvalidRequest, JobNotFound)):  # a file can be asked for a NUL
            await verb(name)
    for field in ("connector", "process_instance", "task", "client"):
        with contextlib.suppress(InvalidRequest):
            assert await one.jobs.list(Query(**{field: name})) == []
    assert one.jobs.health().ok
    assert one.told(StoreChanged) == []


async def test_a_job_that_no_database_holds_is_refused_and_forgotten(one: Bench) -> None:
    await one.ended(await one.accept(job()))
    with pytest.raises(InvalidRequest):
        await one.accept(job(params='"\ud800"'))
    health = one.jobs.health()
    assert (health.ok, health.open) == (True, 0)


async def test_values_with_a_nul_are_a_job_whose_result_is_kept(one: Bench) -> None:
    context = Caller(
        request_id="r\0", client="c\0", task_id="t\0", process_instance_id="7\0", process_model_identifier="m\0"
    )
    made = Job(
        connector="fake",
        command="Do\0",
        context=context,
        params='{"a\\u0000": "\\u0000"}',
        task_data='{"b": "\\u0000"}',
    )
    status = await one.ended(await one.accept(made))
    assert (status.state, status.task_id, status.client) == (JobState.KEPT, "t\0", "c\0")
    assert status.outcome is not None
    assert json.loads(status.outcome.body)["command_response"]["body"] == {"command": "Do\0"}
    assert one.runner.started[0].params == made.params
    assert one.told(StoreChanged) == []
