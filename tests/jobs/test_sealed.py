"""What is stored of jobs under a key, and what becomes of it when keys come and go."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from gateway.jobs.contract import JobConflict, JobState
from gateway.jobs.records import ROW, Row, values_of
from gateway.jobs.sealed import NO_KEY, PREFIX, Sealing
from gateway.jobs.settings import JobsSection
from gateway.observe.events import JobUnreadable
from gateway.sealing import Broken, Keyring
from tests.jobs.support import Bench, bench, caller, job
from tests.support import Site, eventually, served

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN = "s3cret-of-a-process"
PARAMS, DATA = json.dumps({"hidden": HIDDEN}), json.dumps({"data": HIDDEN})


async def stored(one: Bench, name: str) -> Row:
    """Return a job's row as the database has it."""
    [found] = await one.store.database.run((f"SELECT {ROW} FROM jobs WHERE id = :id", {"id": name}), patience=5)
    return Row(*found.rows[0])


async def test_a_job_is_sealed_where_it_is_kept_and_goes_on_after_a_crash(tmp_path: Path, database: str | None) -> None:
    async with bench(tmp_path, database, encrypt="first") as one:
        one.runner.slot.clear()
        name = await one.accept(job(task="t", params=PARAMS, task_data=DATA))
        row = await stored(one, name)
        assert row.params.startswith(PREFIX)
        assert row.task_data.startswith(PREFIX)
        await one.again()
        one.runner.release.set()
        status = await one.ended(name)
        assert (one.runner.started[0].params, one.runner.started[0].task_data) == (PARAMS, DATA)
        assert status.outcome is not None
        assert msgspec.json.decode(status.outcome.body)["command_response"]["body"] == {"command": "Do"}
        row = await stored(one, name)
        assert row.outcome is not None
        assert row.outcome.startswith(PREFIX)
        [listed] = await one.jobs.list()
        assert (listed.id, listed.task_id, listed.connector) == (name, "t", "fake")
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or HIDDEN.encode() not in file.read_bytes()


async def test_long_values_are_sealed_beside_the_loop(tmp_path: Path, database: str | None) -> None:
    params = json.dumps({"long": "x" * (1 << 20)})
    async with bench(tmp_path, database, encrypt="first") as one:
        one.runner.slot.clear()
        name = await one.accept(job(params=params))
        assert len((await stored(one, name)).params) > len(params)
        await one.again()
        await one.ended(name)
        assert one.runner.started[0].params == params


async def test_keys_are_changed_one_after_the_other(tmp_path: Path, database: str | None) -> None:
    async with bench(tmp_path, database) as one:
        one.runner.slot.clear()
        bare = await one.accept(job("Bare", params=PARAMS))
        await one.again(encrypt="old")
        one.runner.slot.clear()
        old = await one.accept(job("Old", params=PARAMS))
        await one.again(encrypt=["new", "old"])
        new = await one.accept(job("New", params=PARAMS))
        for name in (bare, old, new):
            assert (await one.ended(name)).state is JobState.KEPT
        assert {each.params for each in one.runner.started} == {PARAMS}
        rows = [await stored(one, name) for name in (bare, old, new)]
        assert [row.params.startswith(PREFIX) for row in rows] == [False, True, True]
        await one.again(encrypt="new")
        for name in (bare, old, new):
            status = await one.jobs.status(name)
            assert status.outcome is not None
            assert status.outcome.status == 200


@pytest.mark.parametrize("encrypt", [None, "another"])
async def test_a_job_that_no_key_opens_ends_with_a_clear_error(
    tmp_path: Path, database: str | None, encrypt: str | None
) -> None:
    async with caller() as backend, bench(tmp_path, database, encrypt="first") as one:
        one.runner.slot.clear()
        sealed = await one.accept(job("Sealed", params=PARAMS, callback=backend.url))
        await one.again(encrypt=encrypt)
        other = await one.accept(job("Other"))
        assert (await one.ended(other)).state is JobState.KEPT
        status = await one.ended(sealed)
        assert status.state is JobState.DELIVERED
        assert one.runner.commands == ["Other"]
        [(_, told)] = backend.seen
        assert told["error"] == {"error_code": "job_sealed", "message": f"the job cannot go on: {NO_KEY}"}
        [event] = one.told(JobUnreadable)
        assert (event.id, event.reason) == (sealed, NO_KEY)
        with pytest.raises(JobConflict, match="cannot be done again"):
            await one.jobs.retry(sealed, run=True)
        await one.again(encrypt=["another", "first"])
        again = await one.jobs.retry(sealed, run=True)
        await one.ended(again)
        assert one.runner.started[0].params == PARAMS


async def test_an_outcome_that_no_key_opens_is_a_dead_letter_and_stays(tmp_path: Path, database: str | None) -> None:
    async with caller() as backend, bench(tmp_path, database, encrypt="first") as one:
        backend.answers = [503]
        name = await one.accept(job(callback=backend.url))
        await one.reaches(name, lambda status: status.attempts)
        await one.again(encrypt="second")
        status = await one.ended(name)
        assert (status.state, status.reason) == (JobState.DEAD, NO_KEY)
        assert status.outcome is not None
        assert "job_sealed" in status.outcome.body
        with pytest.raises(JobConflict, match="cannot be done again"):
            await one.jobs.retry(name)
        backend.answers = [200]
        await one.again(encrypt=["second", "first"])
        await one.jobs.retry(name)
        assert (await one.ended(name)).state is JobState.DELIVERED
        assert backend.seen[-1][1]["command_response"]["body"] == {"command": "Do"}


async def test_a_job_whose_outcome_can_be_read_is_delivered_whatever_its_parameters(
    tmp_path: Path, database: str | None
) -> None:
    async with caller() as backend, bench(tmp_path, database, encrypt="first") as one:
        backend.answers = [503]
        one.runner.slot.clear()
        name = await one.accept(job(params=PARAMS, callback=backend.url))
        await one.again(encrypt=["second", "first"])
        await one.reaches(name, lambda status: status.attempts)
        backend.answers = [200]
        await one.again(encrypt="second")
        assert (await one.ended(name)).state is JobState.DELIVERED


async def test_what_is_sealed_belongs_to_its_job_and_its_column() -> None:
    sealing = Sealing(["key"])
    first, second = [
        await sealing.values({**values_of(job(params=PARAMS, task_data=PARAMS, id=name)), "outcome": None})
        for name in "ab"
    ]
    assert first["params"] != second["params"]
    assert first["outcome"] is None
    assert first["connector"] == "fake"

    def row(**columns: str) -> Row:
        return Row("a", "waiting", "me", 0.0, None, 0, "", "{}", **columns)

    assert (await sealing.opened(row(params=first["params"]))).params == PARAMS
    assert (await sealing.opened(row(params=first["params"]))).unreadable == ()
    for wrong in (
        first["task_data"],
        second["params"],
        first["params"][:-8],
        PREFIX,
        f"{PREFIX}?",
        first["params"] + "x",
    ):
        assert (await sealing.opened(row(params=wrong))).unreadable == ("params",)
    assert (await Sealing().opened(row(params=first["params"], outcome=first["params"]))).unreadable == (
        "params",
        "outcome",
    )


@pytest.mark.parametrize("plain", [b"", b"x", b"\0" * 100_000])
def test_a_keyring_opens_what_any_of_its_keys_has_sealed(plain: bytes) -> None:
    old, new, both = Keyring(["old"], "a"), Keyring(["new"], "a"), Keyring(["new", "old"], "a")
    assert both.open(old.close(plain, b"1"), b"1") == both.open(new.close(plain, b"1"), b"1") == plain
    assert new.open(both.close(plain)) == plain
    assert both.close(plain) != both.close(plain)
    sealed = old.close(plain, b"1")
    for keyring, text, about in (
        (new, sealed, b"1"),
        (old, sealed, b"2"),
        (Keyring(["old"], "b"), sealed, b"1"),
        (Keyring([], "a"), sealed, b"1"),
        (old, sealed[:-1], b"1"),
        (old, sealed[:10], b"1"),
        (old, b"", b"1"),
        (old, sealed[:20] + bytes([sealed[20] ^ 1]) + sealed[21:], b"1"),
    ):
        with pytest.raises(Broken):
            keyring.open(text, about)


@pytest.mark.parametrize("encrypt", ["''", "' '", "[]", "[a, '']"])
def test_an_empty_key_is_refused(encrypt: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="encrypt is empty"):
        msgspec.yaml.decode(f"encrypt: {encrypt}".encode(), type=JobsSection)


async def test_a_gateway_seals_with_a_secret_and_shows_neither(site: Site) -> None:
    site.script("slow", 'cat >/dev/null; printf \'{"hidden": "s3cret-outcome"}\'')
    (site.folder / "private").mkdir()
    (site.folder / "private" / "jobs_key").write_text("k3y-of-the-store\n")
    async with caller() as backend:
        site.configure(
            "a: {run: [./slow], commands: {Go: {async: true, additional_parameters: true}}}",
            gateway="jobs: {encrypt: [{secret: jobs_key}]}",
        )
        site.file.write_text("secrets: {dir: private}\n" + site.file.read_text())
        async with served(site) as server:
            body = {"hidden": HIDDEN, "spiff__callback_url": backend.url}
            assert (await server.do("a/Go", body)).status == 202
            await eventually(lambda: backend.seen)
            assert backend.seen[0][1]["command_response"]["body"] == {"hidden": "s3cret-outcome"}
            told = [server.log().encode(), (await server.get("/v1/status")).raw]
            told += [file.read_bytes() for file in site.state.rglob("*") if file.is_file()]
    for text in told:
        assert not [one for one in (HIDDEN, "s3cret-outcome", "k3y-of-the-store") if one.encode() in text]
