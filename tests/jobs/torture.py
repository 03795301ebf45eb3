"""Nodes that are killed and frozen, a database that stops, a caller that fails: what becomes of accepted jobs."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
from aiohttp import web

from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

UNDELIVERED = 100  # jobs at once: more would only take long
ROOT = Path(__file__).parent.parent.parent


class Report(NamedTuple):
    """What came of it. `lost`: accepted and never delivered."""

    accepted: int
    lost: int
    run_again: int
    run_again_though_never: int
    interrupted: int
    delivered_twice: int
    changed_bodies: int
    left_running: int
    kills: int
    freezes: int
    fenced: int


class Receiver:
    """The caller: takes callbacks, answers 25 % with 503 and loses 5 % of its 200s."""

    def __init__(self, chance: random.Random, *, refuses: float = 0.25, drops: float = 0.05) -> None:
        self.taken: Counter[str] = Counter()
        self.bodies: dict[str, set[str]] = {}
        self.times: dict[str, float] = {}
        self._chance = chance
        self._refuses = refuses
        self._drops = drops
        self.url = ""

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_put("/{task}", self._put)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _put(self, request: web.Request) -> web.Response:
        body = (await request.read()).decode()
        if self._chance.random() < self._refuses:
            return web.Response(status=503)
        key = request.headers["Idempotency-Key"]
        self.taken[key] += 1
        self.times.setdefault(key, time.time())
        self.bodies.setdefault(key, set()).add(body)
        if self._chance.random() < self._drops and request.transport is not None:
            request.transport.abort()
        return web.Response()


class Node:
    """One driver process, started again as often as it dies."""

    def __init__(self, folder: Path, events: Path, *more: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        folder.mkdir(exist_ok=True)
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log"
        self._command = [sys.executable, "-m", "tests.jobs.driver", str(self.port), str(folder), str(events), *more]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self) -> int:
        assert self.process is not None
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), 40)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended()

    async def unwell(self, session: aiohttp.ClientSession) -> bool:
        """Tell whether it says that its store is away."""
        async with session.get(f"{self.url}/health", timeout=aiohttp.ClientTimeout(total=10)) as answer:
            return not (await answer.json())["ok"]

    async def healthy(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.url}/health", timeout=aiohttp.ClientTimeout(total=2)) as answer:
                return bool((await answer.json())["state"] in {"running", "asleep"})
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False


class Torture:
    """Submits jobs to nodes while things happen to them."""

    def __init__(self, folder: Path, nodes: list[Node], events: Path, seed: int) -> None:
        self.nodes = nodes
        self.chance = random.Random(seed)
        self.receiver = Receiver(random.Random(seed + 1))
        self.accepted: dict[str, bool] = {}
        self.kills = self.freezes = self.fenced = 0
        self._events = events
        self._folder = folder

    async def submit(self, session: aiohttp.ClientSession, stop: asyncio.Event, workers: int = 4) -> None:
        await asyncio.gather(*(self._submit(session, stop, f"{worker}-") for worker in range(workers)))

    async def _submit(self, session: aiohttp.ClientSession, stop: asyncio.Event, prefix: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            idempotent = self.chance.random() < 0.5
            asked = {
                "task": f"{prefix}{number}", "callback": f"{self.receiver.url}/{prefix}{number}", "idempotent": idempotent,
                "seconds": self.chance.uniform(0.05, 1.5),
            }  # fmt: skip
            await eventually(lambda: stop.is_set() or self.undelivered < UNDELIVERED, 60)
            await eventually(lambda asked=asked: stop.is_set() or self._offer(session, asked), 60)

    async def _offer(self, session: aiohttp.ClientSession, asked: dict[str, Any]) -> bool:
        """Ask one node; tell whether it has accepted."""
        node = self.chance.choice(self.nodes)
        try:
            timeout = aiohttp.ClientTimeout(total=4)
            async with session.post(f"{node.url}/jobs", json=asked, timeout=timeout) as answer:
                if answer.status == 202:
                    self.accepted[(await answer.json())["id"]] = asked["idempotent"]
                return answer.status == 202
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    @property
    def undelivered(self) -> int:
        """How many jobs were accepted, and their caller has nothing yet."""
        return len(self.accepted) - len(self.receiver.taken)

    async def more_accepted(self, number: int) -> None:
        """Wait until so many more jobs have been accepted: the time between two blows is told in work."""
        target = len(self.accepted) + number
        await eventually(lambda: len(self.accepted) >= target, 60)

    async def kill_one(self, session: aiohttp.ClientSession) -> None:
        node = self.chance.choice(self.nodes)
        await node.kill()
        node.start()
        self.kills += 1
        await eventually(lambda: node.healthy(session), 40)

    async def freeze_one(self, session: aiohttp.ClientSession, rows: Callable[[], int]) -> None:
        """Freeze a node until others have taken it for dead: when it wakes it must be gone at once.

        `rows` counts the nodes that are on record as alive.
        """
        alive = len(self.nodes)
        await eventually(lambda: rows() == alive, 40)  # one that was killed before is on record for a while
        node = self.chance.choice(self.nodes)
        node.signal(signal.SIGSTOP)
        self.freezes += 1
        await eventually(lambda: rows() < alive, 40)
        node.signal(signal.SIGCONT)
        try:
            await asyncio.wait_for(asyncio.to_thread(node.process.wait, 8), 10)  # type: ignore[union-attr]
            self.fenced += 1
        except subprocess.TimeoutExpired:
            await node.kill()
        node.start()
        await eventually(lambda: node.healthy(session), 40)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._events.read_text().splitlines()] if self._events.exists() else []

    async def settle(self, session: aiohttp.ClientSession, patience: float) -> None:
        """Wait until everything that was accepted has been delivered and nothing is open."""

        async def done() -> bool:
            for node in self.nodes:
                try:
                    async with session.get(f"{node.url}/health") as answer:
                        if (await answer.json())["open"]:
                            return False
                except (aiohttp.ClientError, OSError):
                    return False
            return all(job in self.receiver.taken for job in self.accepted)

        try:
            await eventually(done, patience)
        except AssertionError:
            print(f"not settled within {patience} s")

    async def report(self, session: aiohttp.ClientSession) -> Report:
        left = 0
        for node in self.nodes:
            async with session.get(f"{node.url}/health") as answer:
                left += (await answer.json())["open"]
        runs: Counter[str] = Counter()
        never: set[str] = set()
        for event in self.events():
            if event["event"] == "run":
                runs[event["job"]] += 1
                if not event["idempotent"]:
                    never.add(event["job"])
        bodies = self.receiver.bodies
        return Report(
            accepted=len(self.accepted),
            lost=sum(job not in self.receiver.taken for job in self.accepted),
            run_again=sum(count > 1 for count in runs.values()),
            run_again_though_never=sum(runs[job] > 1 for job in never),
            interrupted=sum(any("job_interrupted" in body for body in told) for told in bodies.values()),
            delivered_twice=sum(count > 1 for count in self.receiver.taken.values()),
            changed_bodies=sum(len(told) > 1 for told in bodies.values()),
            left_running=left,
            kills=self.kills,
            freezes=self.freezes,
            fenced=self.fenced,
        )

    async def stop(self) -> None:
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                os.kill(node.process.pid, signal.SIGCONT)
                node.signal(signal.SIGTERM)
                try:
                    await node.ended()
                except TimeoutError:
                    await node.kill()
