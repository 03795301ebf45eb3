"""What is kept of jobs that ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.jobs.contract import StoreAway
from gateway.jobs.retention import sweep
from gateway.jobs.settings import JobsSection
from gateway.jobs.store import Store
from gateway.units import Duration
from tests.jobs.support import bench, job
from tests.support import eventually

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_what_has_ended_is_removed_by_age_and_by_number(tmp_path: Path, database: str | None) -> None:
    async with bench(tmp_path, database, keep_count=3) as one:
        for _ in range(5):
            await one.ended(await one.accept(job()))
        one.runner.hold()
        running = await one.accept(job())
        await eventually(lambda: len(one.runner.started) == 6)
        assert await sweep(one.store, JobsSection(keep_count=3)) == 2
        assert await one.jobs.purge(older_than=-10) == 3
        assert [status.id for status in await one.jobs.list()] == [running]


async def test_what_is_too_old_is_removed_and_nothing_else(tmp_path: Path, database: str | None) -> None:
    async with bench(tmp_path, database, keep=Duration(1000)) as one:
        for _ in range(3):
            await one.ended(await one.accept(job(task="t")))
        old = (await one.jobs.list())[0].id
        aged = "UPDATE jobs SET ended = ended - 2000 WHERE id = :id", {"id": old}
        await one.store.database.run(aged, patience=5)
        one.runner.hold()
        await one.accept(job(task="t"))
        assert await sweep(one.store, JobsSection(keep=Duration(1000))) == 1
        assert old not in {status.id for status in await one.jobs.list()}
        assert len(await one.jobs.list()) == 3


async def test_a_sweep_that_fails_is_made_again(
    tmp_path: Path, database: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.jobs.retention.SWEEP", 0.05)
    purge, failed = Store.purge, []

    async def fail_once(self, *arguments):
        if not failed:
            failed.append(arguments)
            raise StoreAway("disk I/O error")
        return await purge(self, *arguments)

    monkeypatch.setattr(Store, "purge", fail_once)
    async with bench(tmp_path, database, keep=Duration(0.1)) as one:
        await one.ended(await one.accept(job()))

        async def swept() -> bool:
            return not await one.jobs.list()

        await eventually(swept)
        assert failed
