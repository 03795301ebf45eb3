"""What docs/upgrading.md promises of saving, restoring and going back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.http.test_problems import CALLBACKS, JOBS, dead_letter
from tests.jobs.support import caller
from tests.support import eventually, served

if TYPE_CHECKING:
    from tests.support import Server, Site

PAGE = (Path(__file__).parent.parent / "docs/upgrading.md").read_text()


async def listed(gateway: Server) -> list[tuple[str, str]]:
    return [(one["id"], one["state"]) for one in (await gateway.get("/v1/jobs")).json["jobs"]]


async def test_jobs_that_were_saved_while_a_gateway_ran_are_there_after_a_restore(site: Site) -> None:
    [command] = re.findall(r"```sh\n(python3 -c .*?)```", PAGE, flags=re.DOTALL)
    site.configure(JOBS, gateway=CALLBACKS)
    copy = site.folder / "jobs-backup.sqlite"
    async with caller() as backend, served(site) as gateway:
        saved = await dead_letter(gateway, backend)
        subprocess.run(shlex.split(command.replace("\\\n", "")), cwd=site.folder, check=True, timeout=60)
        await dead_letter(gateway, backend)
        before = await listed(gateway)
    shutil.rmtree(site.state / "jobs")
    (site.state / "jobs").mkdir(mode=0o700)
    os.chmod(copy, 0o600)
    copy.rename(site.state / "jobs/jobs.sqlite")
    async with served(site) as gateway:
        assert await listed(gateway) == [(saved, "dead")]
    assert len(before) == 2


async def test_runs_that_were_saved_while_a_gateway_ran_are_there_after_a_restore_of_everything(site: Site) -> None:
    [command] = re.findall(r"```sh\n(python3 -c .*?)```", PAGE, flags=re.DOTALL)
    assert "in the same way, from `.gateway/journal/runs.sqlite`" in PAGE
    saves = [command, command.replace("jobs/jobs.sqlite", "journal/runs.sqlite").replace("jobs-backup", "runs-backup")]
    site.configure(JOBS, gateway=CALLBACKS)
    async with caller() as backend, served(site) as gateway:
        job = await dead_letter(gateway, backend)
        assert (await gateway.do("plain/Go", {"spiff__task_id": "saved"})).status == 200
        kept = await runs(gateway)
        for one in saves:
            subprocess.run(shlex.split(one.replace("\\\n", "")), cwd=site.folder, check=True, timeout=60)
        assert (await gateway.do("plain/Go", {"spiff__task_id": "later"})).status == 200
    shutil.rmtree(site.state)
    site.state.mkdir()
    for folder, name in (("jobs", "jobs"), ("journal", "runs")):
        (site.state / folder).mkdir(mode=0o700)
        copy = site.folder / f"{name}-backup.sqlite"
        os.chmod(copy, 0o600)
        copy.rename(site.state / folder / f"{name}.sqlite")
    async with served(site) as gateway:
        assert await runs(gateway) == kept
        assert await listed(gateway) == [(job, "dead")]
        assert (await gateway.do("plain/Go")).status == 200
        assert len(await runs(gateway)) == len(kept) + 1


async def runs(gateway: Server) -> list[str]:
    return [one["id"] for one in (await gateway.get("/v1/runs")).json["runs"]]


async def test_a_journal_of_another_version_is_put_aside_and_runs_are_kept_anew(site: Site) -> None:
    site.configure(JOBS)
    async with served(site) as gateway:
        assert (await gateway.do("plain/Go")).status == 200
        assert len(await runs(gateway)) == 1
    with contextlib.closing(sqlite3.connect(site.state / "journal/runs.sqlite")) as journal:
        [(version,)] = journal.execute("PRAGMA user_version").fetchall()
        journal.execute(f"PRAGMA user_version = {version + 1}")
    async with served(site) as gateway:
        assert (await gateway.do("plain/Go")).status == 200
        assert len(await runs(gateway)) == 1
    assert (site.state / "journal/runs.damaged").exists()
    assert "`journal/runs.damaged`" in PAGE


async def test_a_store_that_a_later_version_has_changed_is_refused_and_calls_go_on(site: Site) -> None:
    site.configure(JOBS, gateway=CALLBACKS)
    async with caller() as backend:
        async with served(site) as gateway:
            await dead_letter(gateway, backend)
        with contextlib.closing(sqlite3.connect(site.state / "jobs/jobs.sqlite")) as store:
            store.execute("INSERT INTO versions (version) SELECT max(version) + 1 FROM versions")
            store.commit()
        async with served(site) as gateway:
            refused = await gateway.do("fax/Send", {"spiff__callback_url": backend.url})
            assert (refused.status, refused.code) == (503, "jobs_unavailable")
            assert "the jobs' store was written by a later version of the gateway" in refused.message
            assert (await gateway.do("plain/Go")).status == 200

            async def told() -> bool:
                problems = (await gateway.status())["problems"]
                return any(one["kind"] == "jobs_away" and "later version" in one["text"] for one in problems)

            await eventually(told)
    assert "jobs_unavailable" in PAGE
    assert "the jobs' store was written by a later version of the gateway" in PAGE


def test_the_tables_of_jobs_are_those_that_are_named(site: Site) -> None:
    async def tables() -> set[str]:
        site.configure(JOBS, gateway=CALLBACKS)
        async with caller() as backend, served(site) as gateway:
            await dead_letter(gateway, backend)
        with contextlib.closing(sqlite3.connect(site.state / "jobs/jobs.sqlite")) as store:
            return {row[0] for row in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    [named] = re.findall(r"The tables (.*?) of the database", PAGE)
    assert set(re.findall(r"`(\w+)`", named)) == asyncio.run(tables())
