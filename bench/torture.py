"""A torture of durable jobs: gateways that are killed and frozen, a database that stops, a caller that fails.

    python bench/torture.py [SECONDS] [--sqlite] [--seed N]

Two gateways on one PostgreSQL (Debian's, as an unprivileged user), or with --sqlite one gateway on its file. Prints
what was accepted and what became of it; the exit status is 1 when something was lost, left running, or run again that
must not be.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests import procfs
from tests.jobs.postgres import Postgres
from tests.jobs.torture import Receiver
from tests.support import Site, eventually, is_cell, reaped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).resolve().parent.parent
SEED = 20261124
LEASE = 6.0  # seconds of silence after which the others take a gateway for dead
START = 60.0  # seconds that a gateway may take to be there again
SUBMITTERS = 4
CONNECTOR = """\
import json, os, sys, time
request = json.load(sys.stdin)
def note(what):
    line = json.dumps({{"event": what, "request": request["context"]["request_id"], "command": request["command"]}})
    events = os.open({events!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(events, line.encode() + b"\\n")
note("run")
time.sleep(request["params"]["seconds"])
note("ran")
print(json.dumps({{"request": request["context"]["request_id"]}}))
"""


class Report(NamedTuple):
    """What came of it. `lost`: accepted and never told to the caller."""

    accepted: int
    lost: int
    left_running: int
    run_again: int
    run_again_though_never: int
    interrupted: int
    delivered_twice: int
    changed_bodies: int
    kills: int
    freezes: int
    fenced: int
    outages: int

    @property
    def wrong(self) -> list[str]:
        """The promises that were broken."""
        none = ("lost", "left_running", "run_again_though_never", "changed_bodies")
        return [f"{name} {getattr(self, name)}" for name in none if getattr(self, name)]


class Node:
    """One `gateway serve`, started again as often as it dies."""

    def __init__(self, folder: Path, events: Path, database: str | None) -> None:
        self.site = Site(folder)
        self.site.script("connector.py", CONNECTOR.format(events=str(events)))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        jobs = f"database: '{database}', " if database else ""
        self.site.configure(
            f"""
            work:
              run: [{sys.executable}, -SE, ./connector.py]
              write: [{events.parent}]
              concurrency: 8
              promote_after: 300ms
              commands:
                Never: {{async: true, retry: never, additional_parameters: true}}
                Safe: {{async: true, idempotent: true, additional_parameters: true}}
                Call: {{additional_parameters: true}}
            """,
            gateway=f"listen: 127.0.0.1:{self.port}\ndrain: 2s\njobs: {{{jobs}max_interruptions: 50}}\n"
            "callbacks: {first_delay: 300ms, timeout: 5s, hosts: {127.0.0.1: {}}}",
        )
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--config", str(self.site.file), "--log-format", "json"],
                cwd=self.site.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self, patience: float = START) -> int | None:
        """Return the exit status; None when it has not ended in time."""
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return await asyncio.to_thread(self.process.wait, patience)
        return None

    async def health(self, session: aiohttp.ClientSession) -> dict[str, Any] | None:
        """Return what /v1/status says of jobs; None when nobody answers."""
        try:
            async with session.get(f"{self.url}/v1/status", timeout=aiohttp.ClientTimeout(total=3)) as answer:
                told: dict[str, Any] = (await answer.json())["jobs"]
                return told
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def up(self, session: aiohttp.ClientSession) -> None:
        """Wait until it takes jobs."""

        async def ready() -> bool:
            health = await self.health(session)
            return health is not None and health["state"] in {"running", "asleep"}

        await eventually(ready, START)

    def connectors(self) -> set[int]:
        """Return the living processes that its calls have started."""
        state = str(self.site.state)
        return {pid for pid in procfs.scan() if procfs.mentions(pid, state) and not is_cell(pid) and not reaped(pid)}


class Torture:
    """Submits jobs to gateways while things happen to them."""

    def __init__(self, folder: Path, *, nodes: int, database: Postgres | None, seed: int) -> None:
        self.events = folder / "events" / "all"
        self.events.parent.mkdir(parents=True, exist_ok=True)
        url = database.url if database else None
        self.nodes = [Node(folder / f"node-{number}", self.events, url) for number in range(nodes)]
        self.receiver = Receiver(random.Random(seed + 1))
        self.accepted: set[str] = set()
        self.kills = self.freezes = self.fenced = self.outages = 0
        self._database = database
        self._chance = random.Random(seed)
        self._stop = asyncio.Event()

    async def run(self, seconds: float, *, settle: float = 120.0) -> Report:
        """Torture for so long, wait until all is settled, and tell what came of it."""
        receiver = await self.receiver.start()
        async with aiohttp.ClientSession() as session:
            try:
                for node in self.nodes:
                    node.start()
                for node in self.nodes:
                    await node.up(session)
                submitting = [asyncio.create_task(self._submit(session, f"{n}")) for n in range(SUBMITTERS)]
                await self._torment(session, seconds)
                self._stop.set()
                await asyncio.gather(*submitting)
                for node in self.nodes:
                    await node.up(session)
                left = await self._settled(session, settle)
                for job in self.accepted - self.receiver.taken.keys():
                    print(f"lost: {await self._told(session, job)}", flush=True)
            finally:
                await self._end()
                await receiver.cleanup()
        return self._report(left)

    # --- what happens to gateways

    async def _torment(self, session: aiohttp.ClientSession, seconds: float) -> None:
        until = time.monotonic() + seconds
        outage = time.monotonic() + seconds / 2 if self._database else float("inf")
        while time.monotonic() < until:
            await asyncio.sleep(self._chance.uniform(0.5, 4.0))
            node = self._chance.choice(self.nodes)
            if time.monotonic() > outage:
                outage = float("inf")
                await self._outage()
            elif self._chance.random() < 0.25:
                await self._freeze(node)
            else:
                node.signal(signal.SIGKILL)
                self.kills += 1
                await node.ended()
                node.start()
            await node.up(session)

    async def _freeze(self, node: Node) -> None:
        """Freeze a gateway; one that others have taken for dead meanwhile must be gone when it wakes."""
        self.freezes += 1
        node.signal(signal.SIGSTOP)
        await asyncio.sleep(LEASE + 3 if self._database else self._chance.uniform(0.5, 2.0))
        node.signal(signal.SIGCONT)
        if self._database:
            status = await node.ended(8.0)
            self.fenced += status is not None
            if status is None:
                node.signal(signal.SIGKILL)
                await node.ended()
            node.start()

    async def _outage(self) -> None:
        assert self._database is not None
        self.outages += 1
        await asyncio.to_thread(self._database.stop)
        await asyncio.sleep(5.0)
        await asyncio.to_thread(self._database.start)

    # --- the caller

    async def _submit(self, session: aiohttp.ClientSession, prefix: str) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            task = f"{prefix}-{number}"
            command = self._chance.choice(["Never", "Safe", "Call"])
            asked = {
                "seconds": round(self._chance.uniform(0.05, 1.5), 3),
                "spiff__task_id": task,
                "spiff__callback_url": f"{self.receiver.url}/{task}",
            }
            while not self._stop.is_set():
                if await self._post(session, command, asked):
                    break
                await asyncio.sleep(0.05)
            await asyncio.sleep(self._chance.uniform(0.02, 0.3))

    async def _post(self, session: aiohttp.ClientSession, command: str, asked: dict[str, Any]) -> bool:
        """Tell whether it was answered or accepted; a call that breaks off is repeated, as a caller would."""
        node = self._chance.choice(self.nodes)
        timeout = aiohttp.ClientTimeout(total=8)
        try:
            async with session.post(f"{node.url}/v1/do/work/{command}", json=asked, timeout=timeout) as answer:
                told = await answer.json()
                if answer.status == 202:
                    self.accepted.add(told["command_response"]["body"]["job_id"])
                return answer.status in {200, 202}
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    # --- afterwards

    async def _settled(self, session: aiohttp.ClientSession, patience: float) -> int:
        """Wait until all that was accepted is delivered and nothing is open; return what is left."""
        left = 0

        async def done() -> bool:
            nonlocal left
            healths = [await node.health(session) for node in self.nodes]
            connectors = {pid for node in self.nodes for pid in node.connectors()}
            left = sum(1 if health is None or health["open"] is None else health["open"] for health in healths) + len(
                connectors
            )
            return left == 0 and self.accepted <= self.receiver.taken.keys()

        with contextlib.suppress(AssertionError):
            await eventually(done, patience)
        return left

    async def _told(self, session: aiohttp.ClientSession, job: str) -> str:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with session.get(f"{self.nodes[0].url}/v1/jobs/{job}") as answer:
                return await answer.text()
        return job

    async def _end(self) -> None:
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                node.signal(signal.SIGCONT)
                node.signal(signal.SIGTERM)
                if await node.ended(20.0) is None:
                    node.signal(signal.SIGKILL)
                    await node.ended()

    def _report(self, left: int) -> Report:
        runs: Counter[tuple[str, str]] = Counter()
        lines = self.events.read_text().splitlines() if self.events.exists() else []
        for event in map(json.loads, lines):
            if event["event"] == "run":
                runs[event["request"], event["command"]] += 1
        again = [command for (_, command), count in runs.items() if count > 1]
        told = self.receiver.bodies
        return Report(
            accepted=len(self.accepted),
            lost=len(self.accepted - self.receiver.taken.keys()),
            left_running=left,
            run_again=len(again),
            run_again_though_never=sum(command != "Safe" for command in again),
            interrupted=sum(any("job_interrupted" in body for body in bodies) for bodies in told.values()),
            delivered_twice=sum(count > 1 for count in self.receiver.taken.values()),
            changed_bodies=sum(len(bodies) > 1 for bodies in told.values()),
            kills=self.kills,
            freezes=self.freezes,
            fenced=self.fenced,
            outages=self.outages,
        )


@contextlib.asynccontextmanager
async def tortured(folder: Path, *, postgres: bool, seed: int) -> AsyncIterator[Torture]:
    """Have a torture, and its database for as long."""
    database = await asyncio.to_thread(Postgres) if postgres else None
    try:
        yield Torture(folder, nodes=2 if postgres else 1, database=database, seed=seed)
    finally:
        if database is not None:
            await asyncio.to_thread(database.close)


async def _main(seconds: float, *, postgres: bool, seed: int, keep: Path | None) -> int:
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        async with tortured(keep or Path(folder), postgres=postgres, seed=seed) as torture:
            report = await torture.run(seconds)
    where = "two gateways, PostgreSQL" if postgres else "one gateway, SQLite"
    print(f"{where}, {seconds:.0f} s, seed {seed}")
    for name, value in report._asdict().items():
        print(f"  {name.replace('_', ' '):24} {value:6}")
    for broken in report.wrong:
        print(f"  BROKEN: {broken}")
    return min(len(report.wrong), 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", nargs="?", type=float, default=90.0)
    parser.add_argument("--sqlite", action="store_true", help="one gateway on a file")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    options = parser.parse_args()
    raise SystemExit(
        asyncio.run(
            _main(options.seconds, postgres=not options.sqlite, seed=options.seed, keep=options.keep),
        )
    )
