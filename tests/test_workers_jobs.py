"""Durable jobs of a gateway with several workers: one of them has the engine, the others hand over."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from gateway.jobs.port import JobConflict
from gateway.jobs.remote import PREFIX, Failure
from tests import procfs
from tests.jobs.support import Backend, caller
from tests.support import Answer, Server, Site, eventually, gone, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WORKERS = 3
WHICH = pytest.mark.parametrize("worker", range(WORKERS))

# Notes each run and how many are alive at once; leaves a child behind; ends when there is a file `gate`.
SLOW = """
echo run >> $DIR/runs
mkdir -p $DIR/alive; one=$(mktemp -p $DIR/alive); ls $DIR/alive | wc -l >> $DIR/counts
sleep 1000 &
while [ ! -e $DIR/gate ]; do sleep 0.02; done
rm $one
echo '{"done": true}'
"""


class Team:
    """A gateway with workers, each of which can be asked by itself."""

    def __init__(self, server: Server, site: Site, callbacks: Backend, stack: contextlib.AsyncExitStack) -> None:
        self.server = server
        self.site = site
        self.callbacks = callbacks
        self._stack = stack
        self._sessions: list[aiohttp.ClientSession] = []

    async def open(self) -> None:
        (folder,) = (self.site.state / "run").glob("team-*")
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # short enough for a socket's address
        self._stack.callback(os.close, handle)
        for worker in range(WORKERS):
            connector = aiohttp.UnixConnector(f"/proc/self/fd/{handle}/worker-{worker}.sock", force_close=True)
            session = aiohttp.ClientSession("http://worker", connector=connector)
            self._sessions.append(await self._stack.enter_async_context(session))

    async def ask(self, worker: int, method: str, path: str, **options: Any) -> Answer:
        async with self._sessions[worker].request(method, path, **options) as response:
            return Answer(response.status, response.headers.copy(), await response.read())

    async def do(self, worker: int, target: str, *, task: str | None = None, **params: Any) -> Answer:
        context = {"spiff__callback_url": self.callbacks.url, "spiff__task_id": task}
        return await self.ask(worker, "POST", f"/v1/do/{target}", json={**params, **context})

    async def submit(self, worker: int, target: str, **options: Any) -> str:
        """Have a job accepted; return its id."""
        answer = await self.do(worker, target, **options)
        assert answer.status == 202, answer.raw
        return answer.headers["Location"].rpartition("/")[2]

    async def job(self, name: str, worker: int = 0) -> Any:
        return (await self.ask(worker, "GET", f"/v1/jobs/{name}")).json

    async def running(self, count: int = 1) -> None:
        await eventually(lambda: self.lines("runs") >= count)

    def lines(self, name: str) -> int:
        file = self.site.folder / name
        return len(file.read_text().splitlines()) if file.exists() else 0

    def open_gate(self) -> None:
        (self.site.folder / "gate").touch()

    def told(self) -> dict[str, Any]:
        """Return the callbacks, the latest of each job."""
        return {headers["Idempotency-Key"]: body for headers, body in self.callbacks.seen}

    async def told_of(self, name: str) -> Any:
        return await eventually(lambda: self.told().get(name))

    async def pid(self, worker: int) -> int:
        answer = await self.ask(worker, "GET", "/v1/status?alone")
        return answer.json["workers"][0]["pid"]

    async def kill(self, worker: int) -> None:
        pid = await self.pid(worker)
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: self.server.events("worker_died", pid=pid))


@pytest.fixture
async def team(site: Site) -> AsyncIterator[Team]:
    site.script("echo.sh", "cat")
    site.script("size.sh", "wc -c")
    site.script("slow.sh", SLOW)
    commands = "{Once: {}, Again: {idempotent: true}, Queued: {async: true, idempotent: true}}"
    site.configure(
        f"""
        echo: {{run: [./echo.sh], commands: {{Go: {{async: true, additional_parameters: true}}}}}}
        size: {{run: [./size.sh], commands: {{Go: {{async: true, additional_parameters: true}}}}}}
        slow: {{run: [./slow.sh], env: {{DIR: {site.folder}}}, concurrency: 3, promote_after: 100ms, commands: {commands}}}
        """,
        gateway=f"workers: {WORKERS}\ndrain: 10s\ncallbacks: {{first_delay: 100ms, hosts: {{127.0.0.1: {{}}}}}}",
    )
    async with contextlib.AsyncExitStack() as stack:
        callbacks = await stack.enter_async_context(caller())
        server = await stack.enter_async_context(served(site))
        await eventually(lambda: len(server.events("listening")) == WORKERS)
        made = Team(server, site, callbacks, stack)
        await made.open()
        yield made


def has_open(pid: int, end: str) -> bool:
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return any(one.endswith(end) for one in found)


async def test_every_worker_accepts_jobs_and_one_engine_runs_them(team: Team) -> None:
    names = [await team.submit(worker, "echo/Go", n=worker) for worker in (*range(WORKERS), *range(WORKERS))]
    for name, number in zip(names, (*range(WORKERS), *range(WORKERS)), strict=True):
        body = await team.told_of(name)
        assert body["command_response"]["body"]["params"] == {"n": number}
    pids = [await team.pid(worker) for worker in range(WORKERS)]
    assert [has_open(pid, "jobs.lock") for pid in pids] == [True, False, False]
    assert [has_open(pid, "jobs.sqlite") for pid in pids] == [True, False, False]


async def test_large_parameters_are_handed_over(team: Team) -> None:
    size = 3 << 20
    text = '"' * size  # twice as large as JSON
    body = json.dumps({"text": text, "spiff__callback_url": team.callbacks.url}).encode()
    answer = await team.ask(1, "POST", "/v1/do/size/Go", data=io.BytesIO(body))
    name = answer.headers["Location"].rpartition("/")[2]
    assert 2 * size < (await team.told_of(name))["command_response"]["body"] < 2 * size + 1000


async def test_a_task_joins_its_open_job_whichever_worker_is_asked(team: Team) -> None:
    name = await team.submit(1, "slow/Queued", task="t-1")
    again = await team.do(2, "slow/Queued", task="t-1")
    assert again.headers["Location"] == f"/v1/jobs/{name}"
    assert await team.submit(0, "slow/Queued", task="t-1") == name
    await team.running()
    assert await team.submit(1, "slow/Again", task="t-2") == await team.submit(2, "slow/Again", task="t-2")
    team.open_gate()
    await team.told_of(name)
    await eventually(lambda: len(team.told()) == 2)
    assert team.lines("runs") == 2


@WHICH
async def test_jobs_are_shown_listed_cancelled_and_run_again_from_any_worker(team: Team, worker: int) -> None:
    done = await team.submit(0, "echo/Go")
    await team.told_of(done)
    held = await team.submit(1, "slow/Queued")
    await team.running()
    shown = await team.job(held, worker)
    assert (shown["state"], shown["connector"]) == ("running", "slow")
    jobs = (await team.ask(worker, "GET", "/v1/jobs")).json["jobs"]
    assert [one["id"] for one in jobs] == [held, done]
    some = (await team.ask(worker, "GET", "/v1/jobs?state=running&connector=slow")).json["jobs"]
    assert [one["id"] for one in some] == [held]
    missing = await team.ask(worker, "GET", "/v1/jobs/none")
    assert (missing.status, missing.code) == (404, "job_not_found")
    conflict = await team.ask(worker, "POST", f"/v1/jobs/{done}/cancel")
    assert (conflict.status, conflict.code) == (409, "job_conflict")
    assert (await team.ask(worker, "POST", f"/v1/jobs/{held}/cancel")).status == 200
    assert (await team.told_of(held))["error"]["error_code"] == "job_cancelled"
    again = await team.ask(worker, "POST", f"/v1/jobs/{done}/retry?run=true")
    assert again.status == 202
    await team.told_of(again.json["id"])
    for path in ("/v1/status", "/v1/status?alone"):
        await eventually(lambda path=path: healthy(team, worker, path))


async def healthy(team: Team, worker: int, path: str) -> bool:
    return (await team.ask(worker, "GET", path)).json["jobs"]["ok"]


async def test_a_run_in_another_worker_becomes_a_job_without_being_started_again(team: Team) -> None:
    name = await team.submit(1, "slow/Once")

    async def runs() -> bool:
        return (await team.job(name, 2))["state"] == "running"

    await eventually(runs)
    team.open_gate()
    body = await team.told_of(name)
    assert body["command_response"]["body"]["body"] == {"done": True}
    assert team.lines("runs") == 1
    (run,) = team.server.events("run", connector="slow")
    assert run["outcome"] == "ok"


@WHICH
async def test_cancelling_a_promoted_run_kills_all_of_it_wherever_it_runs(team: Team, worker: int) -> None:
    name = await team.submit(worker, "slow/Once")
    tree = await eventually(lambda: found if len(found := team.server.connectors()) >= 2 else None)
    assert (await team.ask((worker + 1) % WORKERS, "POST", f"/v1/jobs/{name}/cancel")).status == 200
    await gone(tree)
    assert (await team.told_of(name))["error"]["error_code"] == "job_cancelled"
    assert (await team.job(name))["state"] == "cancelled"


async def test_limits_are_exact_over_calls_and_jobs_of_all_workers(team: Team) -> None:
    jobs = [asyncio.create_task(team.submit(number % WORKERS, "slow/Queued")) for number in range(4)]
    calls = [asyncio.create_task(team.do(number % WORKERS, "slow/Again")) for number in range(6)]
    await asyncio.gather(*jobs)
    await team.running(3)
    status = (await team.ask(1, "GET", "/v1/status")).json["connectors"]["slow"]
    assert status["in_flight"] == 3
    team.open_gate()
    await asyncio.gather(*calls)
    await eventually(lambda: team.lines("runs") == 10)
    await eventually(lambda: team.lines("counts") == 10)
    assert max(int(line) for line in (team.site.folder / "counts").read_text().split()) <= 3


async def test_the_engines_worker_is_replaced_and_no_job_is_lost(team: Team) -> None:
    names = [await team.submit(worker, "slow/Queued") for worker in range(WORKERS)]
    await team.running(3)
    before = team.server.connectors()
    await team.kill(0)
    meanwhile = await team.do(1, "echo/Go")
    assert (meanwhile.status, meanwhile.code if meanwhile.status != 202 else None) in {
        (202, None), (503, "jobs_unavailable"),
    }  # fmt: skip
    await gone(before)
    team.open_gate()
    for name in names:
        assert (await team.told_of(name))["command_response"]["body"] == {"done": True}
    assert team.lines("runs") == 6
    late = await team.submit(2, "echo/Go")
    await team.told_of(late)


async def test_a_promoted_run_of_a_worker_that_dies_is_told_or_run_again(team: Team) -> None:
    once, again = await team.submit(1, "slow/Once"), await team.submit(1, "slow/Again")
    await team.running(2)
    before = team.server.connectors()
    await team.kill(1)
    body = await team.told_of(once)
    assert body["error"]["error_code"] == "job_interrupted"
    await team.running(3)
    assert not before & team.server.connectors()
    team.open_gate()
    assert (await team.told_of(again))["command_response"]["body"]["body"] == {"done": True}
    assert team.lines("runs") == 3
    assert (await team.job(again, 2))["interrupted"] == 1


async def test_a_promoted_run_ends_with_the_engines_worker(team: Team) -> None:
    once = await team.submit(2, "slow/Once")
    await team.running()
    before = team.server.connectors()
    await team.kill(0)
    await gone(before)
    assert (await team.told_of(once))["error"]["error_code"] == "job_interrupted"
    assert team.lines("runs") == 1
    assert await team.pid(2)


async def test_what_a_worker_is_stopped_in_is_interrupted(team: Team) -> None:
    once = await team.submit(1, "slow/Once")
    pid = await team.pid(1)
    os.kill(pid, signal.SIGTERM)
    await eventually(lambda: team.server.events("drain_started"))
    os.kill(pid, signal.SIGTERM)
    assert (await team.told_of(once))["error"]["error_code"] == "job_interrupted"


async def test_a_drain_waits_for_promoted_runs_and_takes_no_new_jobs(team: Team) -> None:
    name = await team.submit(1, "slow/Once")
    team.server.signal(signal.SIGTERM)
    await eventually(lambda: len(team.server.events("drain_started")) == WORKERS)
    for worker in (0, 1):  # the third had nothing to wait for
        refused = await team.do(worker, "echo/Go")
        assert (refused.status, refused.code) == (503, "gateway_draining")
    team.open_gate()
    assert await team.server.ended() == 0
    async with served(team.site):
        assert (await team.told_of(name))["command_response"]["body"]["body"] == {"done": True}
    assert team.lines("runs") == 1


async def test_a_worker_that_is_away_answers_503_after_a_while(team: Team) -> None:
    pids = [await team.pid(worker) for worker in range(WORKERS)]
    os.kill(team.server.pid, signal.SIGSTOP)  # nobody replaces it
    try:
        os.kill(pids[0], signal.SIGKILL)
        await eventually(lambda: not has_socket(pids[0]))
        refused = await team.do(1, "echo/Go")
        assert (refused.status, refused.code) == (503, "jobs_unavailable")
        assert int(refused.headers["Retry-After"]) >= 1
        status = (await team.ask(1, "GET", "/v1/status")).json
        assert (status["jobs"]["ok"], status["jobs"]["open"]) == (False, None)
        metrics = (await team.ask(1, "GET", "/metrics")).raw.decode()
        assert "# TYPE gateway_jobs_open gauge" in metrics
        assert "\ngateway_jobs_open " not in metrics  # rather than a 0 that nobody has counted
    finally:
        os.kill(team.server.pid, signal.SIGCONT)
    await team.told_of(await eventually(lambda: accepted(team)))


def has_socket(pid: int) -> bool:
    facts = procfs.stat(pid)
    return facts is not None and os.path.exists(f"/proc/{pid}/exe") and os.listdir(f"/proc/{pid}/fd") != []


async def accepted(team: Team) -> str | None:
    answer = await team.do(1, "echo/Go")
    return answer.headers["Location"].rpartition("/")[2] if answer.status == 202 else None


async def test_every_worker_tells_of_the_jobs_of_all(team: Team) -> None:
    jobs = [await team.submit(worker, "slow/Queued") for worker in range(WORKERS)]
    jobs.append(await team.submit(1, "slow/Once"))  # a call that becomes a job
    await team.running(3)
    for worker in range(WORKERS):
        lines = (await team.ask(worker, "GET", "/metrics")).raw.decode().splitlines()
        assert "gateway_jobs_open 4.0" in lines
        assert 'gateway_in_flight{connector="slow"} 3.0' in lines
        assert (await team.ask(worker, "GET", "/v1/status")).json["jobs"]["open"] == 4
    team.open_gate()
    for name in jobs:
        await team.told_of(name)

    async def counted() -> bool:
        texts = [(await team.ask(worker, "GET", "/metrics")).raw.decode() for worker in range(WORKERS)]
        wanted = ('gateway_jobs_total{state="delivered"} 4.0', 'verdict="done"} 4.0')
        return all("gateway_jobs_open 0.0" in text for text in texts) and all(one in texts[0] for one in wanted)

    await eventually(counted)


async def test_the_routes_between_workers_do_not_exist_over_tcp(site: Site) -> None:
    site.configure(gateway="workers: 2\napi_key: the-key")
    async with served(site) as server:
        for path in ("offer", "health", "cancel"):
            method = "GET" if path == "offer" else "POST"
            assert (await server.request(method, f"{PREFIX}/{path}")).status == 401
            keyed = {"Authorization": "Bearer the-key"}
            assert (await server.request(method, f"{PREFIX}/{path}", headers=keyed)).status == 404


def test_an_error_keeps_its_class_on_the_way() -> None:
    problem = Failure.of(JobConflict("it has ended", retry_after=3)).error()
    assert type(problem) is JobConflict
    assert (problem.message, problem.retry_after) == ("it has ended", 3)
