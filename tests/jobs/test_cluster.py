"""Gateways that share a database."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import psycopg
import pytest
from gateway.jobs.pauses import Clock

from gateway.jobs.cluster import FENCED, Lease, Pace
from gateway.jobs.contract import JobsUnavailable, State
from gateway.jobs.settings import JobsSection
from tests.jobs.postgres import Postgres
from tests.jobs.support import bench, job
from tests.jobs.torture import Node, Torture
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

PACE = Pace(beat=0.05, lease=0.5)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    made = Postgres()
    yield made
    made.close()


@pytest.fixture
def database(server: Postgres) -> str:
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS gateway_jobs CASCADE")
    return server.url


@pytest.fixture
def fragile() -> Iterator[Postgres]:
    """A server that the test stops."""
    made = Postgres()
    yield made
    made.close()


class Member:
    """A lease whose consequences are written down."""

    def __init__(self, url: str, name: str) -> None:
        self.taken: list[str] = []
        self.changes: list[bool] = []
        self.died = threading.Event()
        self.lease = Lease(
            url,
            name,
            pace=PACE,
            take_over=self.taken.extend,
            changed=lambda ok, _reason: self.changes.append(ok),
            die=self._die,
        )

    def _die(self, status: int) -> None:
        assert status == FENCED
        self.died.set()
        self.lease._stop.set()


@contextlib.contextmanager
def members(url: str, *names: str) -> Iterator[list[Member]]:
    made = [Member(url, name) for name in names]
    for one in made:
        one.lease.join()
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS gateway_jobs.workflow_status (workflow_uuid text, status text, executor_id text)"
        )
    for one in made:
        one.lease.start()
    try:
        yield made
    finally:
        for one in made:
            one.lease.leave()


def rows(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(query).fetchall()]  # type: ignore[arg-type]


def execute(url: str, query: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(query)  # type: ignore[arg-type]


NODES = "SELECT id FROM gateway_jobs.gateway_node"


def test_a_node_is_on_record_before_it_promises_anything(database: str) -> None:
    one = Member(database, "one")
    one.lease.join()
    assert rows(database, NODES) == ["one"]
    one.lease.leave()
    assert rows(database, NODES) == []


async def test_a_node_that_stops_beating_is_removed_and_its_jobs_are_taken_over(database: str) -> None:
    with members(database, "one") as [one]:
        execute(database, "INSERT INTO gateway_jobs.gateway_node (id) VALUES ('dead')")
        execute(database, "INSERT INTO gateway_jobs.workflow_status VALUES ('j', 'PENDING', 'dead')")
        await eventually(lambda: "dead" in one.taken)
        assert rows(database, NODES) == ["one"]


async def test_jobs_of_a_node_that_has_no_row_are_taken_over_too(database: str) -> None:
    with members(database, "one") as [one]:
        execute(database, "INSERT INTO gateway_jobs.workflow_status VALUES ('j', 'PENDING', 'half reaped')")
        execute(database, "INSERT INTO gateway_jobs.workflow_status VALUES ('k', 'SUCCESS', 'ended')")
        await eventually(lambda: len(one.taken) > 2)  # with every beat, until they are gone
        assert set(one.taken) == {"half reaped"}


async def test_a_node_whose_row_is_gone_dies_at_once(database: str) -> None:
    with members(database, "one", "two") as [one, two]:
        execute(database, "DELETE FROM gateway_jobs.gateway_node WHERE id = 'one'")
        await eventually(one.died.is_set)
        assert not two.died.is_set()


async def test_an_outage_makes_nobody_look_dead(fragile: Postgres) -> None:
    server, database = fragile, fragile.url
    with members(database, "one", "two") as both:
        await eventually(lambda: rows(database, NODES))
        server.stop()
        await eventually(lambda: all(one.changes == [False] for one in both))
        await eventually(lambda: not any(one.lease.sure() for one in both))
        server.start()
        await eventually(lambda: all(one.changes == [False, True] for one in both))
        await eventually(lambda: all(one.lease.sure() for one in both))
        seen = rows(database, "SELECT now() + interval '1 s'")[0]
        await eventually(lambda: rows(database, "SELECT now()")[0] > seen)
        assert not any(one.died.is_set() for one in both)
        assert sorted(rows(database, NODES)) == ["one", "two"]


async def test_slots_are_counted_over_all_nodes_and_a_dead_nodes_are_free(database: str) -> None:
    with members(database, "one", "two") as [one, two]:
        assert one.lease.take("c", 2, "j1")
        assert two.lease.take("c", 2, "j2")
        assert not two.lease.take("c", 2, "j3")
        assert two.lease.take("other", 1, "j4")
        one.lease.give("j1")
        assert two.lease.take("c", 2, "j3")
        execute(database, "DELETE FROM gateway_jobs.gateway_node WHERE id = 'two'")
        assert one.lease.take("c", 2, "j5")
        assert one.lease.take("c", 2, "j6")


async def test_a_slot_that_could_not_be_given_back_is_given_back_by_a_beat(database: str) -> None:
    with members(database, "one") as [one]:
        assert one.lease.take("c", 1, "j1")
        one.lease._held.discard("j1")
        await eventually(lambda: one.lease.take("c", 1, "j2"))


def test_a_database_that_does_not_answer_is_told() -> None:
    with pytest.raises(JobsUnavailable, match="does not answer"):
        Member("postgresql://gateway@127.0.0.1:1/gateway", "one").lease.join()


# --- the engine on PostgreSQL


async def test_a_database_that_goes_away_is_told_and_costs_no_result(fragile: Postgres, tmp_path: Path) -> None:
    server, settings = fragile, JobsSection(database=fragile.url)
    async with bench(tmp_path, jobs=settings, pace=Pace(0.1, 1.0), patience=1.0) as one:
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
    monkeypatch.setattr("gateway.jobs.pauses.LONGEST", 0.2)
    asked: list[float] = []
    sleep = Clock.sleep
    monkeypatch.setattr(Clock, "sleep", lambda self, seconds: (asked.append(seconds), sleep(self, seconds))[1])
    settings = JobsSection(database=fragile.url)
    async with bench(tmp_path, jobs=settings, pace=Pace(0.1, 1.0), patience=1.0) as one:
        one.runner.hold()
        name = await one.accept(job())
        await eventually(lambda: one.runner.started)
        fragile.stop()
        one.runner.release.set()
        await eventually(lambda: max(asked, default=0) > 20)  # so DBOS would wait before it tries again
        fragile.start()
        status = await eventually(lambda: ended(one, name), 10)
        assert status.outcome is not None
        assert one.runner.commands == ["Do"]


async def ended(one, name):
    try:
        status = await one.jobs.status(name)
    except JobsUnavailable:
        return None
    return status if status.state is State.KEPT else None


async def test_the_slots_of_a_connector_hold_over_all_gateways(database: str, tmp_path: Path) -> None:
    settings = JobsSection(database=database)
    async with bench(tmp_path, jobs=settings) as one:
        one.runner.hold()
        first = await one.accept(job("First", cluster_concurrency=1))
        await eventually(lambda: one.runner.started)
        second = await one.accept(job("Second", cluster_concurrency=1))
        other = await one.accept(job("Other", connector="other", cluster_concurrency=1))
        await eventually(lambda: "Other" in one.runner.commands)
        assert "Second" not in one.runner.commands
        one.runner.release.set()
        for name in (first, second, other):
            await one.ended(name)
        assert rows(database, "SELECT count(*) FROM gateway_jobs.gateway_slot") == [0]


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
async def two(database: str, tmp_path: Path) -> AsyncIterator[tuple[Torture, aiohttp.ClientSession]]:
    events = tmp_path / "events"
    nodes = [Node(tmp_path / name, events, database) for name in ("one", "two")]
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
    await asyncio.sleep(0)


def test_a_job_that_one_node_has_joined_is_not_withdrawn_by_another(database: str) -> None:
    with members(database, "one", "two") as [one, two]:
        assert one.lease.verdict("j", "joined") == "joined"
        assert two.lease.verdict("j", "withdrawn") == "joined"


def test_a_job_that_one_node_has_withdrawn_is_not_joined_by_another(database: str) -> None:
    with members(database, "one", "two") as [one, two]:
        assert one.lease.verdict("j", "withdrawn") == "withdrawn"
        assert two.lease.verdict("j", "joined") == "withdrawn"
        assert two.lease.verdict("k", "joined") == "joined"
