"""What each of two clients, with keys of their own, may take of one gateway, and what a flood leaves to the other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from bench.harness import percentile
from tests.http.test_clients import as_, client, do
from tests.support import Answer, Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

# Notes who calls, and waits for the gate.
TURN = """
read request
who=${request#*'"client":"'}
echo ${who%%'"'*} >> DIR/begun
while [ ! -e DIR/gate ]; do sleep 0.01; done
echo 1
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return a site with two clients, which share a connector with one slot and another with two."""
    site = Site(tmp_path)
    site.script("turn.sh", TURN.replace("DIR", str(tmp_path)))
    site.script("quick.sh", "echo 1")
    waits = "queue_timeout: 60s, timeout: 90s, sandbox: off"
    site.configure(
        f"turn: {{run: [./turn.sh], concurrency: 1, queue: 4, {waits}, commands: {{Go: {{async: true}}}}}}\n"
        f"quick: {{run: [./quick.sh], concurrency: 2, queue: 8, {waits}, commands: {{Go: {{}}}}}}",
        gateway="api_key: single",
    )
    for name in ("flood", "other"):
        client(site, name, f"keys: [KEY({name})]\n")
    return site


@pytest.fixture
async def server(site: Site) -> AsyncIterator[Server]:
    async with served(site, ready=False) as server:
        yield server


async def load(server: Server, key: str = "single", connector: str = "turn") -> tuple[int, int]:
    status = (await as_(server, key, "GET", "/v1/status")).json["connectors"][connector]
    return status["in_flight"], status["queued"]


async def call(server: Server, key: str, *, then: tuple[int, int]) -> asyncio.Task[Answer]:
    """Begin a call, and wait until so many of its client's run and wait."""
    task = asyncio.create_task(do(server, key, "turn/Go"))

    async def is_there() -> bool:
        return await load(server, key) == then

    await eventually(is_there)
    return task


def begun(site: Site) -> list[str]:
    file = site.folder / "begun"
    return file.read_text().split() if file.exists() else []


async def test_who_floods_a_connector_leaves_every_other_turn_to_another_client(server: Server, site: Site) -> None:
    tasks = [await call(server, "flood", then=(1, number)) for number in range(5)]
    tasks += [await call(server, "other", then=(0, number)) for number in (1, 2)]
    await eventually(lambda: sum(task.done() for task in tasks) == 2)
    sent_away = [task.result() for task in tasks if task.done()]
    assert [(one.status, one.code) for one in sent_away] == [(429, "connector_busy")] * 2
    assert {one.message for one in sent_away} == {"turn/Go: all 1 slots are taken and the queue is full"}
    assert all(int(one.headers["Retry-After"]) >= 1 for one in sent_away)
    assert await load(server, "flood") == (1, 2)
    (site.folder / "gate").touch()
    assert sorted([(await task).status for task in tasks]) == [200] * 5 + [429] * 2
    assert begun(site) == ["flood", "flood", "other", "flood", "other"]


async def test_calls_beside_another_clients_flood_are_all_answered(server: Server, site: Site) -> None:
    (site.folder / "gate").touch()
    refused, answered = 0, asyncio.Condition()

    async def flood() -> None:
        nonlocal refused
        while True:
            if (await do(server, "flood", "quick/Go")).status == 429:
                refused += 1
                async with answered:  # who is sent away comes again beside each further call of the other
                    await answered.wait()

    flooding = [asyncio.create_task(flood()) for _ in range(64)]
    try:
        await eventually(lambda: refused)
        clock, took = asyncio.get_running_loop().time, []
        for _ in range(50):
            since = clock()
            assert (await do(server, "other", "quick/Go")).status == 200
            took.append(clock() - since)
            async with answered:
                answered.notify_all()
    finally:
        for task in flooding:
            task.cancel()
        await asyncio.gather(*flooding, return_exceptions=True)
    p50, p99 = (percentile(took, share) * 1000 for share in (0.5, 0.99))
    print(f"beside a flood, {refused} of which were refused: p50 {p50:.1f} ms, p99 {p99:.1f} ms")


async def test_jobs_of_clients_take_turns(server: Server, site: Site) -> None:
    jobs = []
    for key in ("flood", "flood", "flood", "other"):
        accepted = await do(server, key, "turn/Go", headers={"Prefer": "respond-async"})
        assert accepted.status == 202
        jobs.append((key, accepted.headers["Location"]))
    await eventually(lambda: begun(site))
    (site.folder / "gate").touch()
    for key, job in jobs:
        await eventually(lambda key=key, job=job: ended(server, key, job))
    assert begun(site) == ["flood", "flood", "other", "flood"]


async def ended(server: Server, key: str, job: str) -> bool:
    return (await as_(server, key, "GET", job)).json["state"] == "kept"


async def test_a_client_has_the_limits_of_its_file_and_no_other_has(server: Server, site: Site) -> None:
    (site.folder / "gate").touch()
    client(site, "flood", "keys: [KEY(flood)]\nlimits: {rate: 2/h, burst: 3, max_request: 100B}\n")

    async def too_large() -> Answer | None:
        answer = await as_(server, "flood", "POST", "/v1/do/quick/Go", data=b" " * 99 + b"{}")
        return answer if answer.status == 413 else None

    answer = await eventually(too_large)
    assert answer.message == "the body is larger than 100B (this client's limits.max_request)"
    assert [(await do(server, "flood", "quick/Go")).status for _ in range(3)] == [200, 200, 429]
    refused = await do(server, "flood", "quick/Go")
    assert (refused.status, refused.code) == (429, "rate_limited")
    assert 1700 < int(refused.headers["Retry-After"]) <= 1800
    assert refused.message == "this client sends more than 2/h (its limits.rate)"
    assert [(await do(server, "other", "quick/Go")).status for _ in range(5)] == [200] * 5
    [told] = server.events("calls_refused")
    assert (told["client"], told["limit"], told["refused"], told["level"]) == ("flood", "rate", 1, "warning")


async def test_what_is_at_work_counts_on_after_a_reload(server: Server, site: Site) -> None:
    first = await call(server, "flood", then=(1, 0))
    clients = (await as_(server, "single", "GET", "/v1/status")).json["clients"]
    assert [clients[name]["at_work"] for name in ("flood", "other")] == [1, 0]
    client(site, "flood", "keys: [KEY(flood)]\nlimits: {concurrency: 1}\n")

    async def refused() -> Answer | None:
        answer = await do(server, "flood", "quick/Go")
        return answer if answer.status == 429 else None

    answer = await eventually(refused)
    assert answer.message == "1 calls of this client are at work (its limits.concurrency)"
    assert (await do(server, "other", "quick/Go")).status == 200
    (site.folder / "gate").touch()
    assert (await first).status == 200
    assert (await do(server, "flood", "quick/Go")).status == 200


async def test_limits_that_cannot_be_understood_change_nothing(server: Server, site: Site) -> None:
    client(site, "flood", "keys: [KEY(flood)]\nlimits: {rate: 2}\n")

    async def told() -> str | None:
        return (await as_(server, "single", "GET", "/v1/status")).json["clients"]["flood"]["problem"]

    problem = await eventually(told)
    assert "limits.rate: 2 is not a rate: write 50/s, 3000/min or 100/h" in problem
    assert [(await do(server, "flood", "quick/Go")).status for _ in range(3)] == [200] * 3
