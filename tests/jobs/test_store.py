"""What the tables hold, on both databases: whose a job is, and where it can go from where it is."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from gateway.jobs import store as module
from gateway.jobs.contract import MOVES, Attempt, Job, JobState, Outcome, Query, StoreAway, Verdict
from gateway.jobs.postgres import Postgres
from gateway.jobs.sqlite import Sqlite, unfinished
from gateway.jobs.store import Store
from gateway.protocol.request import Caller
from tests.jobs.support import job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.jobs.database import Database

OUTCOME = Outcome(status=200, body='{"a": "\\u0000"}', run={"wall": 0.1})
TRIED = Attempt(at=1.0, took=0.1, verdict=Verdict.AGAIN, status=503, wait=2.0)


@contextlib.asynccontextmanager
async def opened(folder: Path, url: str | None) -> AsyncIterator[Database]:
    made = Sqlite(folder / "jobs.sqlite") if url is None else Postgres(url)
    await made.open()
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def tables(tmp_path: Path, database: str | None) -> AsyncIterator[Database]:
    """A database with empty tables."""
    async with opened(tmp_path, database) as made:
        await Store(made, "one").migrate()
        yield made


@pytest.fixture
async def one(tables: Database) -> Store:
    made = Store(tables, "one")
    await made.enter()
    return made


@pytest.fixture
def other(tables: Database) -> Store:
    """What a gateway sees that is on nobody's record."""
    return Store(tables, "other")


async def added(store: Store, name: str = "j", state: JobState = JobState.WAITING, **more: Any) -> Job:
    """Add a job that stands there, by the ways that lead there."""
    made = replaced(job(callback="http://127.0.0.1:9/", **more), name)
    begins = state in {JobState.WAITING, JobState.RUNNING}
    assert await store.add(made, state if begins else JobState.WAITING, accepted=time.time())
    if state is JobState.CANCELLED:
        assert await store.cancel(name) == store.owner
        assert await store.told(name, [], ends=True)
    elif not begins:
        assert await store.record(name, OUTCOME, JobState.KEPT if state is JobState.KEPT else JobState.DELIVERING)
        if state not in {JobState.KEPT, JobState.DELIVERING}:
            assert await store.tried(name, [TRIED], state, "why")
    return made


def replaced(one: Job, name: str) -> Job:
    return Job(**{**{field: getattr(one, field) for field in one.__struct_fields__}, "id": name})


async def state(store: Store, name: str = "j") -> JobState:
    row = await store.read(name)
    assert row is not None
    return JobState(row.state)


async def test_what_is_added_is_read_as_it_was(one: Store) -> None:
    context = Caller(
        request_id="r", client="c\0", task_id="t\0", process_instance_id=7, process_model_identifier="m",
        callback_url="http://x/",
    )  # fmt: skip
    made = Job(
        connector="c", command="Do", context=context, params='{"a": "ä\\u0000"}', task_data='{"b": 2}', priority=3,
        timeout=1.5, idempotent=True, promoted=True, cluster_concurrency=2, id="j",
    )  # fmt: skip
    assert await one.add(made, JobState.WAITING, accepted=12.5)
    row = await one.read("j")
    assert row is not None
    assert row.read_job() == made
    told = row.status()
    assert (told.accepted, told.finished, told.state, told.node) == (12.5, None, JobState.WAITING, "one")
    assert (told.client, told.task_id, told.process_instance_id, told.callback) == ("c\0", "t\0", 7, True)
    assert await one.read("nothing") is None


async def test_a_task_has_one_open_job(one: Store, other: Store) -> None:
    await added(one, task="t")
    second = replaced(job(task="t"), "second")
    assert not await other.add(second, JobState.WAITING, accepted=1.0)
    assert await other.join(second) == "j"
    assert await other.find_open(second, 5) == "j"
    assert await one.record("j", OUTCOME, JobState.KEPT)
    assert await other.join(second) is None
    assert await other.find_open(second, 5) is None
    assert await other.add(second, JobState.WAITING, accepted=1.0)
    assert await one.find_open(job(), 5) is None


async def test_what_nobody_has_joined_can_be_withdrawn(one: Store, other: Store) -> None:
    lonely = await added(one, "lonely", task="t")
    joined = await added(one, "joined", task="u")
    assert await other.join(job(task="u")) == "joined"
    assert await one.withdraw(lonely)
    assert not await one.withdraw(joined)
    row = await one.read("lonely")
    assert row is not None
    assert (row.state, row.read_job()) == ("dead", lonely)
    assert "never accepted" in row.reason
    assert await one.find_open(lonely, 5) is None


async def test_what_is_withdrawn_before_it_arrives_never_does(one: Store) -> None:
    late = replaced(job(task="t"), "late")
    assert await one.withdraw(late)
    with pytest.raises(StoreAway):
        await one.add(late, JobState.WAITING, accepted=1.0)
    assert await state(one, "late") is JobState.DEAD


async def test_whoever_does_not_have_a_job_changes_nothing(one: Store, other: Store) -> None:
    made = await added(one)
    assert not await other.begin(made, 0, None, 5)
    assert not await other.record("j", OUTCOME, JobState.DELIVERING)
    assert not await other.take_back("j", 1)
    assert not await other.owns("j")
    assert await one.record("j", OUTCOME, JobState.DELIVERING)
    assert not await other.tried("j", [TRIED], JobState.DELIVERED, "")
    assert await other.cancel("j") == "one"  # whoever has it in its hands ends it
    assert not await other.told("j", [], ends=True)
    assert await one.cancelled() == ["j"]
    assert await one.told("j", [TRIED], ends=True)
    assert await one.cancelled() == []


BY_VERB = {
    "begin": JobState.RUNNING, "record": JobState.DELIVERING, "tried": JobState.DELIVERED, "cancel": JobState.CANCELLED,
    "deliver_again": JobState.DELIVERING, "take_back": JobState.WAITING,
}  # fmt: skip


@pytest.mark.parametrize("verb", BY_VERB)
@pytest.mark.parametrize("begun", list(JobState))
async def test_a_job_goes_only_where_the_table_of_moves_lets_it(one: Store, begun: JobState, verb: str) -> None:
    made = await added(one, state=begun)
    calls = {
        "begin": lambda: one.begin(made, 0, None, 5),
        "record": lambda: one.record("j", OUTCOME, JobState.DELIVERING),
        "tried": lambda: one.tried("j", [TRIED], JobState.DELIVERED, ""),
        "cancel": lambda: one.cancel("j"),
        "deliver_again": lambda: one.deliver_again(made),
        "take_back": lambda: one.take_back("j", 1),
    }
    await calls[verb]()
    now = await state(one)
    assert now in {begun, BY_VERB[verb]}
    if now is not begun and (verb, begun) != ("record", JobState.KEPT):
        assert now in MOVES[begun]


async def test_what_is_said_twice_is_done(one: Store) -> None:
    """Nobody may know whether the first time was."""
    made = await added(one, state=JobState.RUNNING)
    for _ in range(2):
        assert await one.record("j", OUTCOME, JobState.DELIVERING)
    for _ in range(2):
        assert await one.tried("j", [TRIED], JobState.DEAD, "why\0")
    row = await one.read("j")
    assert row is not None
    assert (row.read_attempts(), row.reason, row.read_outcome()) == ((TRIED,), "why\ufffd", OUTCOME)
    for _ in range(2):
        assert await one.cancel("j") is None
    assert made.id == "j"


async def test_a_beginning_is_taken_back_also_one_that_comes_late(one: Store) -> None:
    made = await added(one)
    assert await one.begin(made, 0, None, 5)
    for _ in range(2):
        assert await one.take_back("j", 1)
    assert await state(one) is JobState.WAITING
    assert not await one.begin(made, 0, None, 5)
    assert await one.begin(made, 1, None, 5)
    assert not await one.take_back("j", 0)
    assert await state(one) is JobState.RUNNING


async def test_a_run_begins_only_within_the_limit_over_all(one: Store) -> None:
    first, second, third = [await added(one, name) for name in ("a", "b", "c")]
    assert await one.begin(first, 0, 2, 5)
    assert await one.begin(second, 0, 2, 5)
    assert await one.busy("fake") == 2
    assert not await one.begin(third, 0, 2, 5)
    assert await one.cancel("a") == "one"
    assert not await one.begin(third, 0, 2, 5)  # its process may be alive
    assert await one.told("a", [], ends=False)
    assert await one.begin(third, 0, 2, 5)


async def test_what_has_ended_is_delivered_again_with_its_outcome_alone(one: Store, other: Store) -> None:
    dead = await added(one, "dead", state=JobState.DEAD, task="t")
    kept = await added(one, "kept", state=JobState.KEPT)
    cancelled = await added(one, "cancelled", state=JobState.CANCELLED)
    again = await other.deliver_again(dead)
    assert again is not None
    assert (again.state, again.owner, again.reason, again.read_attempts()) == ("delivering", "other", "", ())
    assert again.read_outcome() == OUTCOME
    assert await one.find_open(dead, 5) == "dead"
    assert await other.deliver_again(dead) is None
    assert await other.deliver_again(kept) is None
    assert await other.deliver_again(cancelled) is None


async def test_a_job_that_is_delivered_again_leaves_its_task_to_the_one_that_is_open(one: Store) -> None:
    dead = await added(one, "dead", state=JobState.DEAD, task="t")
    await added(one, "open", task="t")
    assert await one.deliver_again(dead) is not None
    assert await one.find_open(dead, 5) == "open"


async def test_lists_can_be_narrowed_and_turned(one: Store) -> None:
    for number in range(3):
        context = Caller(request_id="r", process_instance_id=number, task_id=f"t{number}", client="c")
        made = Job(connector=f"c{number}", command="Do", context=context, id=f"j{number}")
        assert await one.add(made, JobState.WAITING, accepted=float(number))
    await one.cancel("j1")

    async def found(limit: int = 10, offset: int = 0, **query: Any) -> list[str]:
        return [row.id for row in await one.listed(Query(**query), limit, offset)]

    assert await found() == ["j2", "j1", "j0"]
    assert await found(limit=1, offset=1) == ["j1"]
    assert await found(state=JobState.CANCELLED) == ["j1"]
    assert await found(connector="c2", client="c") == ["j2"]
    assert await found(process_instance="0", task="t0") == ["j0"]
    assert await found(client="nobody") == []


async def test_what_is_in_somebodys_hands_is_never_removed(one: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PURGE", module.PURGE.replace(f"LIMIT {module.BATCH}", "LIMIT 2"))
    monkeypatch.setattr(module, "BATCH", 2)
    for number, ends in enumerate(
        (JobState.DEAD, JobState.KEPT, JobState.DELIVERED, JobState.UNWANTED, JobState.CANCELLED)
    ):
        await added(one, f"j{number}", state=ends)
    await added(one, "open")
    await added(one, "told", state=JobState.RUNNING)
    assert await one.cancel("told") == "one"  # it is not told yet
    assert await one.purge(-1, JobState.DEAD) == 1
    assert await one.purge_beyond(3) == 1
    assert await one.purge(-1) == 3
    assert {row.id for row in await one.listed(Query(), 10, 0)} == {"open", "told"}


async def test_jobs_of_the_dead_are_taken_once_with_their_interruptions(one: Store, other: Store) -> None:
    await added(other, "waiting")
    await added(other, "running", state=JobState.RUNNING)
    await added(other, "delivering", state=JobState.DELIVERING)
    await added(other, "ended", state=JobState.DEAD)
    await added(one, "mine")
    assert [name for name, _, _ in await one.orphans(2)] == ["waiting", "running"]
    found = await one.orphans(10)
    assert {owner for _, owner, _ in found} == {"other"}
    assert await one.count_orphans() == 3
    taken = {row.id: row for row in await one.take([name for name, _, _ in found])}
    assert {name: (row.state, row.interrupted) for name, row in taken.items()} == {
        "waiting": ("waiting", 0), "running": ("waiting", 1), "delivering": ("delivering", 0),
    }  # fmt: skip
    assert await one.take(["waiting"]) == []
    mine = await one.mine("running")
    assert mine is not None
    assert mine.owner == "one"
    assert await one.mine("ended") is None


async def test_with_a_file_every_other_gateway_is_dead(tmp_path: Path) -> None:
    async with opened(tmp_path, None) as file:
        await Store(file, "one").migrate()
        await Store(file, "one").enter()
        await added(Store(file, "one"))
        assert unfinished(tmp_path / "jobs.sqlite")
        await Store(file, "two").enter()
        assert not await Store(file, "one").beat()
        assert await Store(file, "two").beat()
        assert [name for name, _, _ in await Store(file, "two").orphans(10)] == ["j"]


async def test_dead_letters_are_counted_by_client(one: Store) -> None:
    for number, client in enumerate(("acme", "acme", None, "acme")):
        made = msgspec.structs.replace(job(), id=f"j{number}")
        made = msgspec.structs.replace(made, context=msgspec.structs.replace(made.context, client=client))
        assert await one.add(made, JobState.RUNNING, accepted=1.0)
        state = JobState.KEPT if number == 3 else JobState.DELIVERING
        assert await one.record(made.id, OUTCOME, state)
        if state is JobState.DELIVERING:
            assert await one.tried(made.id, [TRIED], JobState.DEAD, "it was refused")
    assert await one.count_dead() == {"acme": 2, None: 1}


async def test_tables_are_made_once(tables: Database) -> None:
    await Store(tables, "one").migrate()
    assert {"jobs", "gateways", "versions"} <= await Store(tables, "one").tables()


async def test_what_is_missing_is_made_version_by_version(tables: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tables, "one")
    await added(store)
    more = ("ALTER TABLE jobs ADD COLUMN more text", "CREATE INDEX jobs_more ON jobs (more)")
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, more))
    await store.migrate()
    [found] = await tables.run(("SELECT more FROM jobs", {}), patience=5, reads=True)
    assert found.rows == [(None,)]
    monkeypatch.undo()
    with pytest.raises(StoreAway, match="later version"):
        await store.migrate()


async def test_what_ended_before_the_store_had_a_time_of_its_own_is_as_old_as_it_was(
    tmp_path: Path, database: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = """
    INSERT INTO jobs (id, owner, state, held, finished, connector, accepted, size, job, params, task_data)
    VALUES ('{0}', 'one', 'kept', 0, {1}, 'c', 1, 0, '{{}}', '{{}}', '{{}}')
    """
    async with opened(tmp_path, database) as made:
        store = Store(made, "one")
        with monkeypatch.context() as earlier:
            earlier.setattr(module, "MIGRATIONS", module.MIGRATIONS[:1])
            await store.migrate()
        for name, finished in (("old", 1000), ("new", 5000)):
            await made.run((ended.format(name, finished), {}), patience=5)
        await store.migrate()
        await store.start_clock()
        assert await store.purge(3000) == 1
        assert [row.id for row in await store.listed(Query(), 10, 0)] == ["new"]
        assert await store.purge(3000) == 0


async def test_gateways_that_start_at_once_make_the_tables_once(tmp_path: Path, url: str) -> None:
    async with opened(tmp_path, url) as database:
        done = await asyncio.gather(*(Store(database, f"{n}").migrate() for n in range(4)), return_exceptions=True)
        assert None in done
        await Store(database, "one").migrate()  # whoever was too late tries again
        assert await Store(database, "one").count_orphans() == 0


async def test_what_the_code_should_never_say_the_tables_refuse(tables: Database) -> None:
    row = """
    INSERT INTO jobs (id, owner, state, held, finished, task, connector, accepted, size, job, params, task_data)
    VALUES ('j', 'one', '{}', {}, {}, {}, 'c', 1, 0, '', '', '')
    """
    wrong = {
        "a state that is none": ("gone", 1, "NULL", "NULL"),
        "an open job that has ended": ("running", 1, "1", "NULL"),
        "an end without a time": ("dead", 0, "NULL", "NULL"),
        "an open job in nobody's hands": ("waiting", 0, "NULL", "NULL"),
        "an end that holds its task": ("kept", 0, "1", "'t'"),
    }
    for name, values in wrong.items():
        [said] = await asyncio.gather(tables.run((row.format(*values), {}), patience=5), return_exceptions=True)
        assert "check constraint" in str(said).lower(), name


def test_a_file_without_jobs_to_go_on_with_is_finished(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as store:
        store.execute("CREATE TABLE jobs (held integer)")
    assert not unfinished(tmp_path / "jobs.sqlite")
