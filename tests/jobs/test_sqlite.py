"""The file, the lock that says whose it is, and the thread that has it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import pytest

from gateway.errors import InvalidRequest
from gateway.jobs.contract import StoreAway
from gateway.jobs.sqlite import Sqlite, unfinished
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

FOR_EVER = 20.0  # seconds, in which it is done


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.jobs.sqlite.LOCK_PATIENCE", 0.1)
    monkeypatch.setattr("gateway.jobs.sqlite.BUSY", 0.1)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Sqlite]:
    """One with a table `t` of numbers."""
    async with opened(tmp_path / "jobs/jobs.sqlite") as made:
        await change(made, "CREATE TABLE t (n integer UNIQUE)")
        yield made


@contextlib.asynccontextmanager
async def opened(file: Path) -> AsyncIterator[Sqlite]:
    made = Sqlite(file)
    await made.open()
    try:
        yield made
    finally:
        await made.close()


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Let nobody write into it."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as outside:
        outside.execute("BEGIN IMMEDIATE")
        yield
        outside.execute("ROLLBACK")


async def change(store: Sqlite, statement: str, patience: float = FOR_EVER, **values: Any) -> int:
    return (await store.run((statement, values), patience=patience))[-1].changed


async def numbers(store: Sqlite) -> list[int]:
    [result] = await store.run(("SELECT n FROM t ORDER BY n", {}), patience=FOR_EVER, reads=True)
    return [row[0] for row in result.rows]


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    assert not unfinished(tmp_path / "jobs/jobs.sqlite")
    assert list(tmp_path.iterdir()) == []


async def test_the_folder_and_the_file_are_private(store: Sqlite) -> None:
    assert store.file.parent.stat().st_mode & 0o777 == 0o700
    for file in store.file.parent.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("impatient")
async def test_a_file_has_one_owner_at_a_time(tmp_path: Path) -> None:
    async with opened(tmp_path / "jobs.sqlite"):
        with pytest.raises(StoreAway, match="another gateway"):
            await Sqlite(tmp_path / "jobs.sqlite").open()
    async with opened(tmp_path / "jobs.sqlite"):
        pass


async def test_a_gateway_that_is_just_leaving_is_waited_for(tmp_path: Path) -> None:
    one, two = Sqlite(tmp_path / "jobs.sqlite"), Sqlite(tmp_path / "jobs.sqlite")
    await one.open()
    opening = asyncio.create_task(two.open())
    await eventually(lambda: len(threads()) == 2)
    await one.close()
    await opening
    await two.close()


async def test_whoever_waits_for_a_gateway_to_leave_can_be_told_to_stop(tmp_path: Path) -> None:
    async with opened(tmp_path / "jobs.sqlite"):
        opening = asyncio.create_task(Sqlite(tmp_path / "jobs.sqlite").open())
        await eventually(lambda: len(threads()) == 2)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert len(threads()) == 1


@pytest.mark.usefixtures("impatient")
async def test_a_file_that_another_program_holds_is_told(tmp_path: Path) -> None:
    async with opened(tmp_path / "jobs.sqlite") as store:
        pass
    with locked(store.file), pytest.raises(StoreAway, match="locked"):
        await Sqlite(store.file).open()
    assert threads() == []


@pytest.mark.usefixtures("impatient")
async def test_a_file_that_is_broken_is_told_and_counts_as_unfinished(tmp_path: Path) -> None:
    file = tmp_path / "jobs.sqlite"
    file.write_bytes(b"SQLite format 3\0" + os.urandom(4000))
    assert unfinished(file)
    with pytest.raises(StoreAway, match="cannot be used"):
        await Sqlite(file).open()
    assert threads() == []


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file")
    with pytest.raises(StoreAway, match="cannot be used"):
        await Sqlite(tmp_path / "jobs/jobs.sqlite").open()


async def test_all_steps_are_done_or_none(store: Sqlite) -> None:
    with pytest.raises(StoreAway, match="UNIQUE"):
        await store.run(("INSERT INTO t VALUES (1)", {}), ("INSERT INTO t VALUES (1)", {}), patience=FOR_EVER)
    assert await numbers(store) == []
    assert [one.changed for one in await store.run(*two(1, 2), patience=FOR_EVER)] == [1, 1]
    assert await numbers(store) == [1, 2]


def two(first: int, second: int) -> tuple[tuple[str, dict[str, int]], ...]:
    return tuple(("INSERT INTO t VALUES (:n)", {"n": number}) for number in (first, second))


async def test_one_that_fails_does_not_cost_those_that_are_committed_with_it(store: Sqlite) -> None:
    with locked(store.file):  # so that they wait together
        asked = [asyncio.create_task(change(store, "INSERT INTO t VALUES (:n)", n=number)) for number in (1, 2, 2, 3)]
        await eventually(lambda: len(store._writes) == 4)
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(one, StoreAway) for one in done] == [False, False, True, False]
    assert await numbers(store) == [1, 2, 3]


async def test_what_is_asked_while_others_lock_the_file_waits_and_whoever_reads_does_not(store: Sqlite) -> None:
    with locked(store.file):
        writing = asyncio.create_task(change(store, "INSERT INTO t VALUES (1)"))
        await eventually(lambda: store._writes)
        assert await numbers(store) == []
        assert not writing.done()
    assert await writing == 1


async def test_what_was_given_up_before_it_was_begun_is_never_done(store: Sqlite) -> None:
    with locked(store.file):
        with pytest.raises(StoreAway, match="did not answer within") as raised:
            await change(store, "INSERT INTO t VALUES (1)", patience=0.2)
        assert not raised.value.sent
    await change(store, "INSERT INTO t VALUES (2)")
    assert await numbers(store) == [2]


async def test_closing_does_what_waits(store: Sqlite) -> None:
    asked = asyncio.create_task(change(store, "INSERT INTO t VALUES (1)"))
    await asyncio.sleep(0)
    await store.close()
    assert await asked == 1
    with pytest.raises(StoreAway, match="closed"):
        await change(store, "INSERT INTO t VALUES (2)")


async def test_closing_does_not_wait_for_whoever_locks_the_file(store: Sqlite) -> None:
    with locked(store.file):
        asked = asyncio.create_task(change(store, "INSERT INTO t VALUES (1)"))
        await eventually(lambda: store._writes)
        await store.close()
        with pytest.raises(StoreAway, match="locked"):
            await asked
    assert threads() == []


async def test_a_read_that_fails_is_told(store: Sqlite) -> None:
    with pytest.raises(StoreAway, match="no such table"):
        await store.run(("SELECT 1 FROM missing", {}), patience=FOR_EVER, reads=True)


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "jobs-store"]


async def test_a_value_that_it_cannot_hold_costs_that_statement_alone(store: Sqlite) -> None:
    for value in (1 << 70, "\ud800"):
        for reads in (True, False):
            with pytest.raises(InvalidRequest, match="cannot hold a value"):
                await store.run(("SELECT :value", {"value": value}), patience=FOR_EVER, reads=reads)
    assert (await store.run(("SELECT 1", {}), patience=FOR_EVER))[0].rows == [(1,)]
