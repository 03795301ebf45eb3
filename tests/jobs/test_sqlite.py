"""The file, and the lock that says whose it is."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from typing import TYPE_CHECKING

import pytest

from gateway.jobs.contract import JobsUnavailable
from gateway.jobs.store import SqliteStore
from tests.support import eventually

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.jobs.store.LOCK_PATIENCE", 0.1)
    monkeypatch.setattr("gateway.jobs.store.BUSY", 0.1)


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    assert not SqliteStore(tmp_path / "jobs/jobs.sqlite").unfinished()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_and_the_file_are_private(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs/jobs.sqlite")
    store.open()
    try:
        assert store.file.parent.stat().st_mode & 0o777 == 0o700
        assert store.file.stat().st_mode & 0o777 == 0o600
    finally:
        store.close()


@pytest.mark.usefixtures("impatient")
def test_a_file_has_one_owner_at_a_time(tmp_path: Path) -> None:
    one, two = SqliteStore(tmp_path / "jobs.sqlite"), SqliteStore(tmp_path / "jobs.sqlite")
    one.open()
    with pytest.raises(JobsUnavailable, match="another gateway"):
        two.open()
    one.close()
    two.open()
    two.close()


async def test_a_gateway_that_is_just_leaving_is_waited_for(tmp_path: Path) -> None:
    one, two = SqliteStore(tmp_path / "jobs.sqlite"), SqliteStore(tmp_path / "jobs.sqlite")
    one.open()
    opening = asyncio.create_task(asyncio.to_thread(two.open))
    await eventually(lambda: two._lock >= 0)
    one.close()
    await opening
    two.close()


@pytest.mark.usefixtures("impatient")
def test_a_file_that_another_program_holds_is_told(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.sqlite")
    store.open()
    store.close()
    holder = sqlite3.connect(store.file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(JobsUnavailable, match="locked"):
        store.open()
    holder.close()


@pytest.mark.usefixtures("impatient")
def test_a_file_that_is_broken_is_told_and_counts_as_unfinished(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.sqlite")
    store.file.write_bytes(b"SQLite format 3\0" + os.urandom(4000))
    assert store.unfinished()
    with pytest.raises(JobsUnavailable, match="cannot be used"):
        store.open()
    assert store._lock == -1


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file")
    with pytest.raises(JobsUnavailable, match="cannot be used"):
        SqliteStore(tmp_path / "jobs/jobs.sqlite").open()
