"""Gateways that share a database."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import psycopg
import pytest

from gateway.jobs.cluster import FENCED, Lease, Pace, passed
from gateway.jobs.contract import JobState, JobsUnavailable, StoreAway
from gateway.jobs.postgres import Postgres as Database
from gateway.jobs.store import Store
from gateway.jobs.trouble import Trouble
from gateway.observe.events import JobFinished
from tests.jobs.support import bench, caller, job
from tests.jobs.torture import Node, Torture
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.jobs.postgres import Postgres

PACE = Pace(beat=0.05, lease=0.5)


class Member:
    """A lease whose consequences are written down."""

    def __init__(self, url: str, name: str) -> None:
        self.taken: list[str] = []
        self.changes: list[bool] = []
        self.cancelled: list[str] = []
        self.died = asyncio.Event()
        self.database = Database(url)
        self.store = Store(self.database, name)
        self.lease = Lease(
            self.store,
            pace=PACE,
            trouble=Trouble(lambda event: self.changes.append(event.ok)),  # type: ignore[attr-defined]
            beaten=self._beaten,
            steady=self._steady,
            die=self._die,
        )

    async def _beaten(self) -> None:
        self.cancelled += await self.store.cancelled()

    async def _steady(self) -> None:
        self.taken += [owner for _, owner, _ in await self.store.orphans(10)]

    def _die(self, status: int) -> None:
        assert status == FENCED
        self.died.set()

    def sure(self) -> bool:
        return passed() - self.lease._seen < PACE.lease


@contextlib.asynccontextmanager
async def members(url: str, *names: str) -> AsyncIterator[list[Member]]:
    made = [Member(url, name) for name in names]
    try:
        for one in made:
            await one.database.open()
            await one.store.migrate()
            await one.lease.start()
        yield made
    finally:
        for one in made:
            await one.lease.stop()
            await one.database.close()


def rows(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(query).fetchall()]  # type: ignore[arg-type]


def execute(url: str, query: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(query)  # type: ignore[arg-type]


NODES = "SELECT id FROM gateway_jobs.gateways ORDER BY id"
JOB = """
INSERT INTO gateway_jobs.jobs (id, owner, state, held, finished, connector, accepted, size, job, params, task_data)
VALUES ('{id}', '{owner}', '{state}', {held}, {finished}, 'c', 1, 0, '{{}}', '{{}}', '{{}}')
"""


def left_by(owner: str) -> str:
    return JOB.format(id=f"of {owner}", owner=owner, state="waiting", held=1, finished="NULL")


async def test_a_gateway_is_on_record_until_it_leaves(url: str) -> None:
    async with members(url, "one"):
        assert rows(url, NODES) == ["one"]
    assert rows(url, NODES) == []


async def test_a_gateway_that_stops_beating_is_removed_and_its_jobs_are_taken_over(url: str) -> None:
    async with members(url, "one") as [one]:
        execute(url, "INSERT INTO gateway_jobs.gateways VALUES ('dead', extract(epoch FROM now()))")
        execute(url, left_by("dead"))
        await eventually(lambda: "dead" in one.taken)
        assert rows(url, NODES) == ["one"]


async def test_what_cannot_be_taken_over_keeps_nobody_from_being_declared_dead(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen gateway may hold rows that others want, until it is dead."""
    async with members(url, "one") as [one]:

        async def held(_count: int) -> list[tuple[str, str, int]]:
            if "frozen" in rows(url, NODES):
                await asyncio.Event().wait()
            raise StoreAway("lock timeout")

        monkeypatch.setattr(one.store, "orphans", held)
        execute(url, "INSERT INTO gateway_jobs.gateways VALUES ('frozen', 1)")
        await eventually(lambda: rows(url, NODES) == ["one"])
        assert not one.died.is_set()


async def test_that_nothing_can_be_taken_over_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with members(url, "one") as [one]:

        async def held(_count: int) -> list[tuple[str, str, int]]:
            raise StoreAway("lock timeout")

        with monkeypatch.context() as locked:
            locked.setattr(one.store, "orphans", held)
            await eventually(lambda: one.changes == [False])
            assert one.lease.away == ""
        await eventually(lambda: one.changes == [False, True])


async def test_no_clock_is_asked_who_is_alive(url: str) -> None:
    async with members(url, "one"):
        execute(url, "INSERT INTO gateway_jobs.gateways VALUES ('dead', 1e12), ('behind', 1)")

        async def judged() -> bool:
            execute(url, "UPDATE gateway_jobs.gateways SET seen = seen - 1 WHERE id = 'behind'")
            return "dead" not in rows(url, NODES)

        await eventually(judged)
        assert rows(url, NODES) == ["behind", "one"]


async def test_jobs_of_a_gateway_that_has_no_row_are_taken_over_too(url: str) -> None:
    async with members(url, "one") as [one]:
        execute(url, left_by("half buried"))
        execute(url, JOB.format(id="ended", owner="gone", state="kept", held=0, finished=1))
        await eventually(lambda: len(one.taken) > 2)  # with every beat, until they are gone
        assert set(one.taken) == {"half buried"}


async def test_a_gateway_whose_row_is_gone_dies_at_once(url: str) -> None:
    async with members(url, "one", "two") as [one, two]:
        execute(url, "DELETE FROM gateway_jobs.gateways WHERE id = 'one'")
        await eventually(one.died.is_set)
        assert not two.died.is_set()


async def test_a_gateway_is_told_of_its_jobs_that_others_have_cancelled(url: str) -> None:
    async with members(url, "one", "two") as [one, two]:
        execute(url, JOB.format(id="j", owner="one", state="cancelled", held=1, finished=1))
        await eventually(lambda: "j" in one.cancelled)
        assert two.cancelled == []


async def test_an_outage_makes_nobody_look_dead(fragile: Postgres) -> None:
    url = fragile.url
    async with members(url, "one", "two") as both:
        await asyncio.to_thread(fragile.stop)
        await eventually(lambda: all(one.changes == [False] for one in both))
        assert all("does not answer" in one.lease.away for one in both)
        await eventually(lambda: not any(one.sure() for one in both))
        waiting = [asyncio.create_task(one.lease.sure()) for one in both]
        await asyncio.to_thread(fragile.start)
        await asyncio.gather(*waiting)
        await eventually(lambda: all(one.changes == [False, True] for one in both))
        seen = rows(url, "SELECT now() + interval '1 s'")[0]
        await eventually(lambda: rows(url, "SELECT now()")[0] > seen)
        assert not any(one.died.is_set() for one in both)
        assert rows(url, NODES) == ["one", "two"]


async def test_a_fault_of_ours_does_not_end_the_beat(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with members(url, "one") as [one]:
        monkeypatch.setattr(one.store, "cancelled", lambda: 1 / 0)
        await eventually(lambda: one.changes == [False])
        monkeypatch.undo()
        await eventually(lambda: one.changes == [False, True])


# --- the engine on PostgreSQL


async def test_a_database_that_goes_away_is_told_and_costs_no_result(fragile: Postgres, tmp_path: Path) -> None:
    server = fragile
    async with bench(tmp_path, fragile.url, pace=Pace(0.1, 1.0), patience=1.0) as one:
        one.runner.hold()
        name = await one.accept(job())
        await eventually(lambda: one.runner.started)
        server.stop()
        await eventually(lambda: not one.jobs.health().ok)
        with pytest.raises(JobsUnavailable):
            await one.accept(job("Refused"))
        one.runner.release.set()
        server.start()
        await eventually(lambda: one.jobs.health().ok)
        status = await eventually(lambda: ended(one, name), 40)
        assert status.outcome is not None
        assert one.runner.commands == ["Do"]


async def test_what_ends_in_a_long_outage_is_recorded_soon_after_it(
    fragile: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.jobs.work.AGAIN", 0.2)
    asked: list[str] = []
    record = Store.record
    monkeypatch.setattr(Store, "record", lambda self, job, *more: (asked.append(job), record(self, job, *more))[1])
    async with bench(tmp_path, fragile.url, pace=Pace(0.1, 1.0), patience=1.0) as one:
        one.runner.hold()
        name = await one.accept(job())
        await eventually(lambda: one.runner.started)
        fragile.stop()
        one.runner.release.set()
        await eventually(lambda: len(asked) > 12)  # so that doubled pauses would be long
        fragile.start()
        status = await eventually(lambda: ended(one, name), 10)
        assert status.outcome is not None
        assert one.runner.commands == ["Do"]


async def ended(one, name):
    try:
        status = await one.jobs.status(name)
    except JobsUnavailable:
        return None
    return status if status.state is JobState.KEPT else None


async def test_the_slots_of_a_connector_hold_over_all_gateways(url: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with bench(tmp_path, url) as one, bench(tmp_path / "other", url) as two:
        one.runner.hold()
        first = await one.accept(job("First", cluster_concurrency=1))
        await eventually(lambda: one.runner.started)
        second = await two.accept(job("Second", cluster_concurrency=1))
        other = await two.accept(job("Other", connector="other", cluster_concurrency=1))
        await eventually(lambda: "Other" in two.runner.commands)
        assert "Second" not in two.runner.commands
        assert two.runner.taken == 0  # whoever waits for the others holds no slot
        one.runner.release.set()
        for name in (first, second, other):
            await one.ended(name)
        assert rows(url, "SELECT sum(slot) FROM gateway_jobs.jobs") == [0]


async def test_of_two_that_begin_at_once_one_has_the_slot(url: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with bench(tmp_path, url) as one, bench(tmp_path / "other", url) as two:
        for each in (one, two):
            each.runner.hold()
            each.runner.slot.clear()
        names = [await each.accept(job(cluster_concurrency=1)) for each in (one, two)]
        await eventually(lambda: one.runner.queued and two.runner.queued)
        for each in (one, two):
            each.runner.slot.set()
        await eventually(lambda: len(one.runner.started) + len(two.runner.started) == 1)
        await eventually(lambda: one.runner.taken + two.runner.taken == 1)
        for each in (one, two):
            each.runner.release.set()
        for name in names:
            assert (await one.ended(name)).interrupted == 0


async def test_a_job_is_cancelled_by_whichever_gateway_is_asked(url: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with (
        caller() as backend,
        bench(tmp_path, url, pace=PACE) as one,
        bench(tmp_path / "other", url, pace=PACE) as two,
    ):
        one.runner.hold()
        name = await one.accept(job(callback=backend.url, cluster_concurrency=1))
        await eventually(lambda: one.runner.started)
        await two.jobs.cancel(name)
        assert (await two.jobs.status(name)).state is JobState.CANCELLED
        await eventually(lambda: one.runner.cancelled == [name])
        await eventually(lambda: backend.seen)
        await eventually(lambda: one.jobs.health().open == 0)
        assert backend.seen[0][1]["error"]["error_code"] == "job_cancelled"
        assert [event.state for event in one.told(JobFinished)] == ["cancelled"]
        assert rows(url, "SELECT slot FROM gateway_jobs.jobs") == [0]


async def test_a_task_joins_its_job_in_another_gateway(url: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with bench(tmp_path, url) as one, bench(tmp_path / "other", url) as two:
        one.runner.hold()
        name = await one.accept(job(task="t"))
        again = await two.jobs.accept(job(task="t"))
        assert (again.id, again.joined) == (name, True)
        assert await two.jobs.find_open(job(task="t")) == again
        assert await two.jobs.find_open(job(task="other")) is None
        assert two.jobs.health().open == 0


async def test_a_gateway_can_be_stopped_while_its_database_is_away(fragile: Postgres, tmp_path: Path) -> None:
    node = Node(tmp_path / "one", tmp_path / "events", fragile.url)
    torture = Torture(tmp_path, [node], tmp_path / "events", 1)
    async with aiohttp.ClientSession() as session:
        try:
            node.start()
            await eventually(lambda: node.healthy(session), 60)
            name = await accepted_by(torture, session, node, 0.3)
            await eventually(lambda: runs(torture, name))
            fragile.stop()
            await eventually(lambda: [event for event in torture.events() if event["event"] == "ran"])
            node.signal(signal.SIGTERM)
            assert await node.ended() == 0
        finally:
            await torture.stop()


@pytest.fixture
async def two(url: str, tmp_path: Path) -> AsyncIterator[tuple[Torture, aiohttp.ClientSession]]:
    events = tmp_path / "events"
    nodes = [Node(tmp_path / name, events, url) for name in ("one", "two")]
    torture = Torture(tmp_path, nodes, events, 1)
    receiver = await torture.receiver.start()
    async with aiohttp.ClientSession() as session:
        try:
            for node in nodes:
                node.start()
            for node in nodes:
                await eventually(lambda node=node: node.healthy(session), 60)
            yield torture, session
        finally:
            await torture.stop()
            await receiver.cleanup()


async def accepted_by(torture: Torture, session: aiohttp.ClientSession, node: Node, seconds: float) -> str:
    asked = {"task": None, "callback": f"{torture.receiver.url}/x", "idempotent": True, "seconds": seconds}
    async with session.post(f"{node.url}/jobs", json=asked) as answer:
        return (await answer.json())["id"]


def runs(torture: Torture, name: str) -> list[float]:
    return [event["at"] for event in torture.events() if event["event"] == "run" and event["job"] == name]


async def test_the_work_of_a_killed_gateway_is_taken_over_within_fifteen_seconds(two, capsys) -> None:
    torture, session = two
    name = await accepted_by(torture, session, torture.nodes[0], 60)
    await eventually(lambda: runs(torture, name))
    killed = time.time()
    await torture.nodes[0].kill()
    await eventually(lambda: len(runs(torture, name)) == 2)
    took = runs(torture, name)[1] - killed
    with capsys.disabled():
        print(f"\ntaken over after {took:.1f} s")
    assert took < 15


async def test_a_rolling_restart_loses_nothing_and_hands_over_at_once(two) -> None:
    torture, session = two
    names = [await accepted_by(torture, session, node, 0.5) for node in torture.nodes for _ in range(5)]
    waits = await accepted_by(torture, session, torture.nodes[0], 30)
    await eventually(lambda: runs(torture, waits))
    stopped = time.time()
    torture.nodes[0].signal(signal.SIGTERM)
    await eventually(lambda: len(runs(torture, waits)) == 2, 30)
    assert runs(torture, waits)[1] - stopped < 15
    await torture.nodes[0].ended()
    torture.nodes[0].start()
    await eventually(lambda: torture.nodes[0].healthy(session), 60)
    await eventually(lambda: all(name in torture.receiver.taken for name in names), 30)
    assert all(len(runs(torture, name)) == 1 for name in names)
