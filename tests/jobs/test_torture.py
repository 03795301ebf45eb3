"""Nothing that was accepted is lost, whatever dies."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import aiohttp
import psycopg
import pytest

from tests.jobs.postgres import Postgres
from tests.jobs.torture import Node, Report, Torture
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEED = int(os.environ.get("TORTURE_SEED", "20261124"))


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


def nodes_alive(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM gateway_jobs.gateways").fetchone()
    assert row is not None
    return int(row[0])


def judge(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{report}")
    assert report.accepted > 10
    assert report.lost == 0
    assert report.left_running == 0
    assert report.run_again_though_never == 0
    assert report.changed_bodies == 0


async def test_a_file_survives_kill_9(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = tmp_path / "events"
    node = Node(tmp_path / "one", events)
    torture = Torture(tmp_path, [node], events, SEED)
    receiver = await torture.receiver.start()
    async with aiohttp.ClientSession() as session:
        try:
            node.start()
            await eventually(lambda: node.healthy(session), 40)
            stop = asyncio.Event()
            submitting = asyncio.create_task(torture.submit(session, stop))
            for _ in range(4):
                await torture.more_accepted(torture.chance.randint(3, 12))
                await torture.kill_one(session)
            stop.set()
            await submitting
            await torture.settle(session, 60)
            report = await torture.report(session)
        finally:
            await torture.stop()
            await receiver.cleanup()
    judge(report, capsys)


async def test_two_gateways_survive_kills_freezes_and_an_outage(
    tmp_path: Path, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    events = tmp_path / "events"
    nodes = [Node(tmp_path / name, events, postgres.url, "0.6", "2.4") for name in ("one", "two")]
    torture = Torture(tmp_path, nodes, events, SEED)
    receiver = await torture.receiver.start()
    async with aiohttp.ClientSession() as session:
        try:
            for node in nodes:
                node.start()
            for node in nodes:
                await eventually(lambda node=node: node.healthy(session), 40)
            stop = asyncio.Event()
            submitting = asyncio.create_task(torture.submit(session, stop))
            await torture.more_accepted(8)
            await torture.kill_one(session)
            await torture.more_accepted(20)
            await torture.freeze_one(session, lambda: nodes_alive(postgres.url))
            await torture.more_accepted(5)
            postgres.stop()
            for node in nodes:
                await eventually(lambda node=node: node.unwell(session), 40)
            postgres.start()
            for _ in range(2):
                await torture.more_accepted(torture.chance.randint(5, 15))
                await torture.kill_one(session)
            stop.set()
            await submitting
            for node in nodes:
                await eventually(lambda node=node: node.healthy(session), 40)
            await torture.settle(session, 90)
            report = await torture.report(session)
        finally:
            await torture.stop()
            await receiver.cleanup()
    judge(report, capsys)
    assert report.fenced == report.freezes
