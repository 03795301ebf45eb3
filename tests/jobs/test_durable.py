"""An engine that sleeps until it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from gateway.jobs.contract import JobNotFound, JobState
from gateway.jobs.settings import JobsSection
from tests.jobs.support import bench, job
from tests.support import eventually

ROOT = Path(__file__).parent.parent.parent
HEAVY = "{'sqlite3', 'psycopg', 'gateway.jobs.engine'}"


def test_what_sleeps_imports_no_engine_and_no_driver(unmeasured: None) -> None:
    code = f"import sys, gateway.gateway, gateway.jobs.durable; assert not {HEAVY} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


async def test_a_gateway_without_jobs_writes_nothing_and_answers(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        await one.jobs.start()
        assert one.jobs.health().state == "asleep"
        assert await one.jobs.list() == []
        with pytest.raises(JobNotFound):
            await one.jobs.status("x")
        assert list(tmp_path.iterdir()) == []
    assert one.jobs.health().state == "stopped"


async def test_a_start_wakes_the_engine_only_for_open_jobs(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        await one.ended(await one.accept(job()))
        await one.again()
        assert one.jobs.health().state == "asleep"
        assert [status.state for status in await one.jobs.list()] == [JobState.KEPT]
        one.runner.hold()
        await one.accept(job(idempotent=True))
        await eventually(lambda: one.runner.started)
        await one.again()
        await eventually(lambda: one.runner.commands == ["Do"])


async def test_a_database_that_is_away_at_the_start_is_told(tmp_path: Path) -> None:
    async with bench(tmp_path, "postgresql://gateway:hunter2@127.0.0.1:1/gateway") as one:
        await one.jobs.start()
        await eventually(lambda: one.jobs.health().state == "unavailable")
        assert "does not answer" in one.jobs.health().reason
        assert "hunter2" not in one.jobs.health().reason


def test_a_database_that_is_none_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="postgresql"):
        msgspec.convert({"database": "mysql://x"}, JobsSection)
