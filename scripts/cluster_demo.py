"""Two gateways that share their jobs in PostgreSQL, behind HAProxy: kills one, restarts both, and counts what is lost.

Everything runs on this machine, on free ports of 127.0.0.1, below one temporary folder, and is gone at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOT = Path(__file__).parent.parent
KEY = "demo-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}
LOAD = 8  # jobs a second during the rolling restart
LONG = 5  # seconds that the jobs run which a kill interrupts
PATIENCE = 60.0  # seconds until a thing that should happen counts as not happening
AGAIN = {429, 502, 503, 504}  # statuses after which a caller asks again, with the same task id

WORK = """#!/bin/sh
# Notes when it was started, and works for a while.
request=$(cat)
field() { echo "$request" | sed "s/.*\\"$1\\": *\\"\\{0,1\\}\\([a-z0-9.-]*\\).*/\\1/"; }
echo "$(date +%s.%N) $(field job)" >> "$RUNS"
sleep "$(field seconds)"
echo "{\\"job\\": \\"$(field job)\\"}"
"""
CONNECTORS = """
gateway:
  connectors_dir: null
  state_dir: {state}
  drain: 5s
  callbacks: {{first_delay: 200ms}}
connectors:
  work:
    run: [{folder}/work.sh]
    env: {{RUNS: {folder}/runs}}
    concurrency: 16
    commands:
      Idempotent: {{async: true, idempotent: true, parameters: {{job: {{type: str}}, seconds: {{type: any}}}}}}
      Once: {{async: true, parameters: {{job: {{type: str}}, seconds: {{type: any}}}}}}
"""


def main() -> int:
    """Run the demo; 0 when everything went as it should."""
    if not have_programs():
        return 1
    folder = Path(tempfile.mkdtemp(prefix="gateway-cluster-"))
    folder.chmod(0o755)  # PostgreSQL's user has to get through
    try:
        return asyncio.run(Cluster(folder).run())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        step(f"stopped everything and removed {folder}")


def have_programs() -> bool:
    """Look for PostgreSQL and HAProxy; as root, install what is missing."""
    missing = [name for name, there in (("postgresql", postgres()), ("haproxy", haproxy())) if not there]
    if missing and os.getuid() == 0 and shutil.which("apt-get"):
        step(f"installing Debian packages: {' '.join(missing)}")
        apt = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        if subprocess.run(apt, stdout=subprocess.DEVNULL, env=environment, check=False).returncode:
            subprocess.run(["apt-get", "-qq", "update"], check=False)
            subprocess.run(apt, stdout=subprocess.DEVNULL, env=environment, check=False)
        missing = [name for name, there in (("postgresql", postgres()), ("haproxy", haproxy())) if not there]
    if missing:
        step(f"missing: {' '.join(missing)}. Install it, for example: sudo apt-get install {' '.join(missing)}")
    return not missing


def postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def haproxy() -> str | None:
    """Return HAProxy's program."""
    return shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Postgres:
    """A database server of our own, run by an unprivileged user."""

    def __init__(self, folder: Path) -> None:
        """Make the cluster."""
        programs = postgres()
        assert programs is not None
        self._programs = programs
        self._user = "postgres" if os.getuid() == 0 else None
        self._folder = folder / "postgres"
        self._folder.mkdir()
        if self._user:
            shutil.chown(self._folder, pwd.getpwnam(self._user).pw_uid)
        self.port = free_port()
        self.url = f"postgresql://gateway@127.0.0.1:{self.port}/gateway"
        self._call("initdb", "-D", f"{self._folder}/data", "-U", "gateway", "-A", "trust", "-N")

    async def __aenter__(self) -> Self:
        """Start it."""
        self._server = spawn(
            self._folder / "log",
            *(self._programs / "postgres", "-D", self._folder / "data", "-p", str(self.port), "-k", self._folder),
            *("-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=32MB"),
            user=self._user,
            cwd="/",
        )
        server = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "gateway")
        await eventually("PostgreSQL answers", lambda: self._call("pg_isready", *server, quiet=True))
        self._call("createdb", *server, "gateway")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop it at once."""
        self._server.send_signal(signal.SIGQUIT)
        await asyncio.to_thread(self._server.wait)

    def _call(self, program: str, *arguments: str, quiet: bool = False) -> bool:
        done = subprocess.run(
            [self._programs / program, *arguments], user=self._user, cwd="/", capture_output=True, check=False
        )
        if done.returncode and not quiet:
            raise RuntimeError(done.stderr.decode())
        return done.returncode == 0


class Gateway:
    """One gateway with a state_dir of its own."""

    def __init__(self, folder: Path, name: str, database: str) -> None:
        """Write its configuration."""
        self.name = name
        self.port = free_port()
        self.log = folder / f"{name}.log"
        self._file = folder / f"{name}.yaml"
        self._file.write_text(CONNECTORS.format(folder=folder, state=folder / name))
        self._environment = {**os.environ, "CONNECTOR_PROXY_API_KEY": KEY, "CONNECTOR_PROXY_JOBS_DATABASE": database}
        self._process: subprocess.Popen[bytes] | None = None
        self.node = ""

    async def start(self, session: aiohttp.ClientSession) -> None:
        """Start it, and wait until it takes jobs."""
        self._process = spawn(
            self.log,
            *(sys.executable, "-m", "gateway", "serve", "--config", self._file),
            *("--listen", f"127.0.0.1:{self.port}", "--log-format", "json"),
            env=self._environment,
            cwd=ROOT,
        )

        async def ready() -> bool:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"http://127.0.0.1:{self.port}/v1/status") as answer:
                    jobs = (await answer.json())["jobs"]
                    self.node = jobs["node"]
                    return bool(jobs["state"] == "running")
            return False

        await eventually(f"gateway {self.name} takes jobs", ready)

    async def stop(self, number: int) -> int:
        """Send a signal and wait for the end; return the exit status."""
        if self._process is None:
            return 0
        self._process.send_signal(number)
        status = await asyncio.to_thread(self._process.wait)
        self._process = None
        return status


class Balancer:
    """HAProxy with deploy/haproxy.cfg, the addresses replaced."""

    def __init__(self, folder: Path, gateways: list[Gateway]) -> None:
        """Write its configuration."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        text = (ROOT / "deploy/haproxy.cfg").read_text()
        text = text.replace("bind :7004", f"bind 127.0.0.1:{self.port}")
        text = text.replace("bind :7005", f"bind 127.0.0.1:{free_port()}")
        text = text.replace(" resolvers containers init-addr libc,none", "")
        for gateway in gateways:
            text = text.replace(f"{gateway.name}:7004", f"127.0.0.1:{gateway.port}")
        self._file = folder / "haproxy.cfg"
        self._file.write_text(text)
        self._log = folder / "haproxy.log"

    async def __aenter__(self) -> Self:
        """Start it."""
        program = haproxy()
        assert program is not None
        self._process = spawn(self._log, program, "-db", "-f", self._file)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop it at once."""
        self._process.kill()
        await asyncio.to_thread(self._process.wait)


class Receiver:
    """The caller that waits for outcomes."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}
        self.times: Counter[str] = Counter()
        self.url = ""

    async def __aenter__(self) -> Self:
        """Listen."""
        app = web.Application()
        app.router.add_put("/{job}", self._put)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _put(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        self.told[job] = await request.json()
        self.times[job] += 1
        return web.Response()

    def code(self, job: str) -> str:
        """Return the error code that was told of a job, or nothing."""
        error = self.told[job]["error"]
        return str(error["error_code"]) if error else ""


class Cluster:
    """All of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = folder / "runs"
        self._numbers = itertools.count(1)
        self._refused: Counter[str] = Counter()
        self._good = True

    async def run(self) -> int:
        """Run the demo."""
        work = self._folder / "work.sh"
        work.write_text(WORK)
        work.chmod(0o755)
        self._runs.touch()
        async with contextlib.AsyncExitStack() as stack:
            self._receiver = await stack.enter_async_context(Receiver())
            step("starting PostgreSQL in a temporary folder")
            database = await stack.enter_async_context(Postgres(self._folder))
            print(f"  {database.url}")
            self._session = await stack.enter_async_context(aiohttp.ClientSession(headers=HEADERS))
            self._gateways = [Gateway(self._folder, name, database.url) for name in ("one", "two")]
            step("starting two gateways, each with a state_dir of its own, and HAProxy with deploy/haproxy.cfg")
            for gateway in self._gateways:
                stack.push_async_callback(gateway.stop, signal.SIGKILL)
            await asyncio.gather(*(gateway.start(self._session) for gateway in self._gateways))
            for gateway in self._gateways:
                print(f"  gateway {gateway.name}: port {gateway.port}, {gateway.node}")
            self._balancer = await stack.enter_async_context(Balancer(self._folder, self._gateways))
            print(f"  HAProxy: {self._balancer.url}")
            await eventually("HAProxy has found both", self._both_answer)
            await self._jobs()
            await self._kill()
            await self._rolling_restart()
            await self._end()
        return 0 if self._good else 1

    async def _jobs(self) -> None:
        step("six jobs through HAProxy")
        jobs = [await self._submit("Idempotent", 0.2) for _ in range(6)]
        await self._delivered(jobs)
        nodes = Counter([await self._node(job) for job in jobs])
        print(f"  6 callbacks arrived; the jobs ran on {', '.join(f'{name} ({n})' for name, n in nodes.items())}")

    async def _kill(self) -> None:
        step(f"jobs of {LONG} s, then kill -9 of a gateway in the middle of them")
        jobs = dict.fromkeys([await self._submit("Idempotent", LONG) for _ in range(4)], True)
        jobs |= dict.fromkeys([await self._submit("Once", LONG) for _ in range(4)], False)
        await eventually("all of them run", lambda: all(self._starts(job) for job in jobs))
        homes = {job: await self._node(job) for job in jobs}
        victim = self._gateways[0]
        mine = [job for job in jobs if homes[job] == victim.name]
        again, once = [job for job in mine if jobs[job]], [job for job in mine if not jobs[job]]
        self._check(bool(again and once), f"{victim.name} runs {len(again)} idempotent jobs and {len(once)} others")
        killed = time.time()
        await victim.stop(signal.SIGKILL)
        print(f"  killed {victim.name}; calls through HAProxy go on:")
        late = [await self._submit("Idempotent", 0.1) for _ in range(3)]
        await self._delivered(late)
        print(f"  3 more jobs accepted and delivered {time.time() - killed:.1f} s after the kill")
        await eventually("they are taken over", lambda: all(len(self._starts(job)) == 2 for job in again))
        first = min(self._starts(job)[1] for job in again) - killed
        last = max(self._starts(job)[1] for job in again) - killed
        print(f"  takeover: {first:.1f} s from the kill to the first command that ran again, {last:.1f} s to the last")
        await self._delivered(list(jobs))
        self._check(
            all(not self._code(job) for job in jobs if jobs[job]),
            f"all {sum(jobs.values())} idempotent jobs ended well, {len(again)} of them with a second run",
        )
        self._check(
            all(self._code(job) == "job_interrupted" and len(self._starts(job)) == 1 for job in once),
            f"the {len(once)} others of {victim.name} were told as job_interrupted and not run again",
        )
        others = [job for job in jobs if homes[job] != victim.name]
        self._check(
            all(len(self._starts(job)) == 1 and not self._code(job) for job in others),
            f"the {len(others)} jobs of the other gateway ran once and noticed nothing",
        )
        await victim.start(self._session)
        await eventually("HAProxy has found it again", self._both_answer)
        print(f"  {victim.name} is back, as {victim.node}")

    async def _rolling_restart(self) -> None:
        step(f"a rolling restart of both gateways with SIGTERM, under {LOAD} jobs a second")
        self._refused.clear()
        jobs: list[str] = []
        stop = asyncio.Event()
        load = asyncio.create_task(self._load(jobs, stop))
        for gateway in self._gateways:
            begun = time.monotonic()
            status = await gateway.stop(signal.SIGTERM)
            drained = time.monotonic() - begun
            await gateway.start(self._session)
            await eventually("HAProxy has found it again", self._both_answer)
            self._check(
                status == 0,
                f"{gateway.name} drained in {drained:.1f} s, was back {time.monotonic() - begun:.1f} s later",
            )
        stop.set()
        await load
        await self._delivered(jobs)
        refused = ", ".join(f"{count} x {what}" for what, count in self._refused.items()) or "none"
        print(f"  answers that made the caller ask again: {refused}")
        bad = [job for job in jobs if self._code(job)]
        delivered = sum(job in self._receiver.told for job in jobs)
        lost = len(jobs) - delivered
        self._check(
            not bad and not lost,
            f"{len(jobs)} jobs accepted, {delivered} delivered, {lost} lost, {len(bad)} with an error",
        )
        twice = sum(len(self._starts(job)) > 1 for job in jobs)
        print(f"  run again: {twice}; callbacks delivered twice: {sum(self._receiver.times[job] > 1 for job in jobs)}")

    async def _load(self, jobs: list[str], stop: asyncio.Event) -> None:
        async def one(seconds: float) -> None:
            jobs.append(await self._submit("Idempotent", seconds))

        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                if stop.is_set():
                    break
                group.create_task(one(0.1 * (number % 8)))
                await asyncio.sleep(1 / LOAD)

    async def _end(self) -> None:
        step("the end: SIGTERM to both")
        statuses = [await gateway.stop(signal.SIGTERM) for gateway in self._gateways]
        self._check(statuses == [0, 0], f"exit statuses {statuses}")

    # --- what callers do

    async def _submit(self, command: str, seconds: float) -> str:
        """Have a job accepted, and ask again with the same task id for as long as that makes sense; return its name."""
        job = f"job-{next(self._numbers)}"
        body = {
            "job": job,
            "seconds": seconds,
            "spiff__task_id": job,
            "spiff__callback_url": f"{self._receiver.url}/{job}",
        }
        for _ in range(200):
            try:
                async with self._session.post(f"{self._balancer.url}/v1/do/work/{command}", json=body) as answer:
                    if answer.status == web.HTTPAccepted.status_code:
                        return job
                    text = await answer.text()
                    if answer.status not in AGAIN:
                        raise RuntimeError(f"{answer.status} {text}")
                    self._refused[f"{answer.status} {_code(text)}".strip()] += 1
            except aiohttp.ClientError as problem:
                self._refused[type(problem).__name__] += 1
            await asyncio.sleep(0.1)
        raise RuntimeError(f"{job} was never accepted")

    async def _delivered(self, jobs: list[str]) -> None:
        await eventually("all callbacks arrive", lambda: all(job in self._receiver.told for job in jobs))

    async def _node(self, job: str) -> str:
        """Return the name of the gateway in whose hands a job is, or was."""
        url = f"{self._balancer.url}/v1/jobs"
        async with self._session.get(url, params={"limit": "500"}) as answer:
            found = (await answer.json())["jobs"]
        node = next(one["node"] for one in found if one["task_id"] == job)
        return next((gateway.name for gateway in self._gateways if gateway.node == node), str(node))

    async def _both_answer(self) -> bool:
        """Tell whether HAProxy sends calls to both: they answer in turn."""
        pids = set()
        for _ in range(6):
            url, headers = f"{self._balancer.url}/v1/status", {"Connection": "close"}
            try:
                async with self._session.get(url, headers=headers, raise_for_status=True) as answer:
                    pids.add((await answer.json())["workers"][0]["pid"])
            except aiohttp.ClientError:
                return False
        return len(pids) == len(self._gateways)

    def _starts(self, job: str) -> list[float]:
        """Return when a job's command was started."""
        lines = [line.split() for line in self._runs.read_text().splitlines()]
        return [float(at) for at, name in lines if name == job]

    def _code(self, job: str) -> str:
        return self._receiver.code(job)

    def _check(self, good: bool, what: str) -> None:  # noqa: FBT001 - reads like an assertion
        self._good = self._good and good
        print(f"  {'ok' if good else 'NOT AS IT SHOULD BE'}: {what}", flush=True)


def _code(text: str) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(text)["error"]["error_code"])
    match = re.search(r"<h1>(.*?)</h1>", text)
    return match[1] if match else ""


async def eventually(what: str, condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until something is so."""
    until = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        if time.monotonic() > until:
            raise TimeoutError(f"did not happen within {PATIENCE:.0f} s: {what}")
        await asyncio.sleep(0.05)


def spawn(log: Path, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start a program that writes into a log."""
    with log.open("ab") as stream:
        return subprocess.Popen(arguments, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, **options)


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def step(text: str) -> None:
    """Say what happens next."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
