"""Durable jobs: how soon they are accepted and started, how many a second, with thousands in the queue; take-over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
from aiohttp import web

from bench.harness import Plan, percentile, use_of
from bench.report import milliseconds
from bench.servers import Site, gateway
from bench.torture import Torture, tortured
from tests.jobs.postgres import binaries
from tests.support import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from bench.servers import Server

QUEUED = 5000
AT_ONCE = 16
PATIENCE = 300.0  # seconds
TICK = """\
#!/bin/sh
date +%s.%N >> {folder}/started
echo 1
"""


class Receiver:
    """The caller."""

    def __init__(self) -> None:
        self.url = ""
        self.taken: dict[str, float] = {}

    async def put(self, request: web.Request) -> web.Response:
        self.taken[request.headers["Idempotency-Key"]] = time.time()
        return web.Response()


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_put("/", made.put)
    async with listening(app) as url:
        made.url = f"{url}/"
        yield made


class Figures(NamedTuple):
    """Seconds and bytes."""

    accept: list[float]
    start: list[float]
    end: list[float]
    rate: float
    resident: int


def run(plan: Plan) -> None:
    """Measure one gateway on its file, then the ways to go on after a death."""
    queued = 200 if plan.quick else QUEUED
    calls, burst = (20, 50) if plan.quick else (200, 500)
    site = Site(plan.folder / "jobs")
    tick = site.folder / "tick.sh"
    tick.write_text(TICK.format(folder=site.folder))
    tick.chmod(0o755)
    site.configure(
        """
        tick: {run: [./tick.sh], concurrency: 16, commands: {Go: {async: true}}}
        held: {run: [sleep, "1000"], concurrency: 1, commands: {Go: {async: true}}}
        """,
        gateway="jobs: {backlog: 20000}\ndrain: 500ms",
    )
    rows = []
    with gateway(site) as server:
        rows.append(("asleep, before the first job", "", "", "", "", "", _mib(use_of(server.pid).resident)))
        empty = asyncio.run(_measure(plan, server, site.folder, calls, burst))
        rows.append(_row("nothing else queued", empty))
        took = asyncio.run(_fill(server, queued))
        plan.report.progress(f"{queued} jobs queued in {took:.1f} s, {queued / took:.0f}/s")
        full = asyncio.run(_measure(plan, server, site.folder, calls, burst))
        rows.append(_row(f"{queued:,} queued for another connector", full))
    plan.report.table(
        f"Jobs on a file ({calls} one by one, from the POST; then {burst} from {AT_ONCE} callers)",
        ("", "202 p50 ms", "p99", "started p50 ms", "p99", "jobs/s to their ends", "RSS MiB"),
        rows,
    )
    deaths = [("restart on the file after kill -9", asyncio.run(_restart(plan.folder / "restart")))]
    if binaries() is None:
        plan.report.note("without PostgreSQL (apt install postgresql) there is no take-over to measure")
    else:
        deaths.append(("take-over by another gateway, PostgreSQL", asyncio.run(_take_over(plan.folder / "take-over"))))
    plan.report.table(
        "From kill -9 in the middle of an idempotent job to its next run",
        ("", "seconds"),
        [(name, f"{seconds:.1f}") for name, seconds in deaths],
    )
    plan.report.at_most("202 with nothing queued, p99", percentile(empty.accept, 0.99) * 1000, 50, " ms")
    plan.report.at_most("take-over, longest", max(seconds for _, seconds in deaths), 12, " s")


async def _measure(plan: Plan, server: Server, folder: Path, calls: int, burst: int) -> Figures:
    accept, start, end = [], [], []
    starts = folder / "started"
    async with receiving() as receiver, aiohttp.ClientSession() as session:
        await _post(session, server, "tick", receiver.url)
        await _until(lambda: len(receiver.taken) == 1)
        for _ in range(calls):
            starts.write_text("")
            begun = time.time()
            job = await _post(session, server, "tick", receiver.url)
            answered = time.time()
            await _until(lambda job=job: job in receiver.taken)
            accept.append(answered - begun)
            start.append(float(starts.read_text()) - begun)
            end.append(receiver.taken[job] - begun)
        plan.report.progress(f"one by one: 202 after {milliseconds(percentile(accept, 0.5))} ms")
        receiver.taken.clear()
        todo, begun = iter(range(burst)), time.time()

        async def submit() -> None:
            for _ in todo:
                await _post(session, server, "tick", receiver.url)

        await asyncio.gather(*(submit() for _ in range(AT_ONCE)))
        await _until(lambda: len(receiver.taken) == burst)
        rate = burst / (max(receiver.taken.values()) - begun)
    return Figures(accept, start, end, rate, use_of(server.pid).resident)


async def _fill(server: Server, count: int) -> float:
    """Queue jobs behind one that does not end."""
    todo, begun = iter(range(count)), time.time()
    async with aiohttp.ClientSession() as session:

        async def submit() -> None:
            for _ in todo:
                await _post(session, server, "held", "http://127.0.0.1:9/")

        await asyncio.gather(*(submit() for _ in range(AT_ONCE)))
    return time.time() - begun


async def _post(session: aiohttp.ClientSession, server: Server, connector: str, callback: str) -> str:
    async with session.post(f"{server.url}/v1/do/{connector}/Go", json={"spiff__callback_url": callback}) as answer:
        if answer.status != 202:
            raise RuntimeError(f"{answer.status}: {(await answer.text())[:300]}")
        job: str = (await answer.json())["command_response"]["body"]["job_id"]
        return job


async def _restart(folder: Path) -> float:
    folder.mkdir()
    async with tortured(folder, postgres=False, seed=1) as made:
        return await _death(made, restart=True)


async def _take_over(folder: Path) -> float:
    folder.mkdir()
    async with tortured(folder, postgres=True, seed=1) as made:
        return await _death(made, restart=False)


async def _death(made: Torture, *, restart: bool) -> float:
    """Kill a gateway in the middle of a job; return the seconds until the job is run again."""
    notes, nodes = made.events, made.nodes
    node = nodes[0]

    def runs() -> int:
        lines = notes.read_text().splitlines() if notes.exists() else []
        return sum(json.loads(line)["event"] == "run" for line in lines)

    try:
        async with aiohttp.ClientSession() as session:
            for one in nodes:
                one.start()
            for one in nodes:
                await one.up(session)
            asked = {"seconds": 2, "spiff__callback_url": "http://127.0.0.1:9/"}
            async with session.post(f"{node.url}/v1/do/work/Safe", json=asked) as answer:
                answer.raise_for_status()
            await _until(lambda: runs() == 1)
            begun = time.monotonic()
            node.signal(signal.SIGKILL)
            await node.ended()
            if restart:
                node.start()
            await _until(lambda: runs() == 2)
            return time.monotonic() - begun
    finally:
        for one in nodes:
            if one.process is not None and one.process.poll() is None:
                one.signal(signal.SIGKILL)
                await one.ended()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it is about other processes
            await asyncio.sleep(0.002)


def _row(name: str, figures: Figures) -> tuple[str, ...]:
    return (
        name, milliseconds(percentile(figures.accept, 0.5)), milliseconds(percentile(figures.accept, 0.99)),
        milliseconds(percentile(figures.start, 0.5)), milliseconds(percentile(figures.start, 0.99)),
        f"{figures.rate:.0f}", _mib(figures.resident),
    )  # fmt: skip


def _mib(resident: int) -> str:
    return f"{resident >> 20}"
