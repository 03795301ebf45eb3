"""Durable jobs as a caller sees them: a real gateway, real connectors, a real receiver of callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from tests import procfs
from tests.jobs.support import Backend, caller
from tests.support import Answer, Server, Site, cli, eventually, gone, listening, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OPEN = {"waiting", "running", "delivering"}
QUICK = "callbacks: {first_delay: 50ms, hosts: {127.0.0.1: {}}}\ndrain: 2s"
ACT = """
request=$(cat)
name=$(printf %s "$request" | sed -n 's/.*"name":"\\([a-z0-9]*\\)".*/\\1/p')
# Whoever has made it removes it: no other run may, whichever of them ends first.
if mkdir DIR/busy 2>/dev/null; then trap 'rmdir DIR/busy' EXIT; else echo overlap >> DIR/overlaps; fi
read id < /proc/sys/kernel/random/uuid
echo "$id $name" >> DIR/events
case $request in
*'"do":"told"'*) echo '{"error": {"error_code": "FaxBusy", "message": "engaged"}, "http_status": 503}' ;;
*'"do":"legacy"'*) echo '{"response": "no such order", "status": 404, "mimetype": "text/plain"}' ;;
*'"do":"crash"'*) kill -SEGV $$ ;;
*'"do":"fail"'*) echo 'no carrier' >&2; exit 3 ;;
*'"do":"hang"'*) (sleep 1000 & setsid sleep 1000 & wait) ;;
*'"do":"wait"'*) while [ ! -e DIR/gate ]; do sleep 0.02; done; echo "{\\"id\\": \\"$id\\"}" ;;
*'"do":"linger"'*) sleep 1.2; echo "{\\"id\\": \\"$id\\"}" ;;
*) echo "{\\"id\\": \\"$id\\"}" ;;
esac
"""
COMMANDS = """
      Go: {additional_parameters: true}
      Job: {async: true, additional_parameters: true}
      Safe: {async: true, idempotent: true, additional_parameters: true}
      Never: {async: true, idempotent: true, retry: never, additional_parameters: true}
      High: {async: true, priority: 5, additional_parameters: true}
      Short: {async: true, timeout: 300ms, additional_parameters: true}
      Strict: {async: true, parameters: {to: {type: str}}}
"""


class Act(Site):
    """A site whose connector `act` does as it is told, and notes each run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.script("act.sh", ACT.replace("DIR", str(folder)))
        self.serve()

    def serve(self, connector: str = "", *, gateway: str = QUICK) -> None:
        keys = "".join(f"\n    {key}" for key in connector.split("; ") if key)
        self.configure(f"act:\n    run: [./act.sh]{keys}\n    commands:{COMMANDS}", gateway=gateway)

    def runs(self) -> list[str]:
        """The names of the runs, in order."""
        file = self.folder / "events"
        return [line.partition(" ")[2] for line in file.read_text().splitlines()] if file.exists() else []

    def ids(self) -> list[str]:
        return [line.partition(" ")[0] for line in (self.folder / "events").read_text().splitlines()]

    def let_go(self) -> None:
        (self.folder / "gate").touch()


@pytest.fixture
def act(tmp_path: Path) -> Act:
    return Act(tmp_path)


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    async with caller() as made:
        yield made


async def post(gateway: Server, command: str, url: str | None = None, task: str | None = None, **params: Any) -> Answer:
    context = {"spiff__callback_url": url, "spiff__task_id": task}
    return await gateway.do(f"act/{command}", params | {name: value for name, value in context.items() if value})


async def accepted(gateway: Server, command: str, url: str | None, task: str | None = None, **params: Any) -> str:
    answer = await post(gateway, command, url, task, **params)
    assert answer.status == 202, answer.raw
    return str(answer.body["job_id"])


async def shown(gateway: Server, job: str) -> Any:
    return (await gateway.get(f"/v1/jobs/{job}")).json


async def reaches(gateway: Server, job: str, *states: str) -> Any:
    async def look() -> Any:
        told = await shown(gateway, job)
        return told if told["state"] in states else None

    return await eventually(look)


async def ended(gateway: Server, job: str) -> Any:
    return await reaches(gateway, job, "delivered", "kept", "cancelled", "dead")


SET_CLOCK = """
import pathlib, time
real, file = time.time, pathlib.Path(__file__).with_name("jump")
time.time = lambda: real() + float(file.read_text())
"""


class Clock:
    """The clock of the gateways that are started with `env`, which can be set."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(SET_CLOCK)
        self._file = folder / "jump"
        self.env = {"PYTHONPATH": f"{folder}:{Path(__file__).parent.parent.parent}"}
        self.set(0)

    def set(self, days: float) -> None:
        draft = self._file.with_suffix(".draft")
        draft.write_text(str(days * 86_400))
        draft.replace(self._file)


async def kill(gateway: Server) -> None:
    """As a crash would."""
    left = gateway.processes()
    gateway.signal(signal.SIGKILL)
    await gateway.ended()
    await gone(left)


# --- accepted


async def test_an_async_command_is_accepted_and_its_outcome_is_put_to_the_caller(act: Act, backend: Backend) -> None:
    async with served(act) as gateway:
        answer = await post(gateway, "Job", backend.url, "task-1", name="one")
        assert answer.status == 202
        job = answer.body["job_id"]
        assert answer.body["status"] == "accepted"
        assert answer.json["error"] is None
        assert answer.json["command_response_version"] == 2
        assert answer.headers["Location"] == f"/v1/jobs/{job}"
        told = await ended(gateway, job)
        assert (told["state"], told["connector"], told["command"], told["task_id"]) == (
            "delivered", "act", "Job", "task-1",
        )  # fmt: skip
        assert told["request_id"] == answer.headers["X-Request-Id"]
        assert [one["verdict"] for one in told["attempts"]] == ["done"]
        [(headers, body)] = backend.seen
        assert headers["Idempotency-Key"] == job
        assert headers["Content-Type"] == "application/json"
        assert body == told["outcome"]["body"]
        assert body["command_response"]["body"] == {"id": act.ids()[0]}
        assert body["error"] is None
        assert act.runs() == ["one"]
        assert (await gateway.status())["jobs"]["ok"] is True

        families = text_string_to_metric_families((await gateway.get("/metrics")).raw.decode())
        samples = {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}
        assert samples["gateway_jobs_total", "delivered"] == 1
        assert samples["gateway_callbacks_total", "done"] == 1
        assert samples[("gateway_jobs_open",)] == 0


async def test_what_cannot_be_run_or_delivered_is_refused_before_it_is_accepted(act: Act, backend: Backend) -> None:
    act.serve(gateway="callbacks: {allow: [127.0.0.1, 169.254.0.7, backend.example]}")
    refused = {
        ("Nope", backend.url): (404, "command_not_found"),
        ("Strict", backend.url): (400, "invalid_parameters"),
        ("Job", "ftp://127.0.0.1/x"): (400, "invalid_request"),
        ("Job", "http://169.254.169.254/latest/meta-data"): (400, "invalid_request"),
        ("Job", "http://[::ffff:169.254.169.254]/x"): (400, "invalid_request"),
        ("Job", "http://name:secret@127.0.0.1/x"): (400, "invalid_request"),
        ("Job", "http://10.1.2.3/x"): (400, "invalid_request"),
        ("Job", "http://127.0.0.1:99999/x"): (400, "invalid_request"),
    }
    async with served(act) as gateway:
        for (command, url), expected in refused.items():
            answer = await post(gateway, command, url, f"task {url}")
            assert (answer.status, answer.code) == expected, url
        answer = await gateway.do("nope/Job", {"spiff__callback_url": backend.url})
        assert (answer.status, answer.code) == (404, "command_not_found")
        assert "secret" not in gateway.log()
        assert (await gateway.get("/v1/jobs")).json["jobs"] == []
        assert act.runs() == []


async def test_metadata_addresses_are_refused_without_a_list_too(act: Act, backend: Backend) -> None:
    act.serve("promote_after: 100ms")
    async with served(act) as gateway:
        answer = await post(gateway, "Job", "http://169.254.169.254/latest")
        assert (answer.status, answer.code) == (400, "invalid_request")
        assert "169.254.169.254" in answer.message
        answer = await post(gateway, "Go", "http://169.254.169.254/latest", do="linger")  # and never becomes a job
        assert answer.status == 200


async def test_a_task_that_asks_again_joins_its_job(act: Act, backend: Backend) -> None:
    async with served(act) as gateway:
        job = await accepted(gateway, "Job", backend.url, "task-1", do="wait")
        again = await post(gateway, "Job", backend.url, "task-1", do="wait")
        assert (again.status, again.body) == (202, {"job_id": job, "status": "joined"})
        other = await accepted(gateway, "Job", backend.url, "task-2")
        assert other != job
        act.let_go()
        await ended(gateway, job)
        await ended(gateway, other)
        assert len(act.runs()) == 2
        fresh = await accepted(gateway, "Job", backend.url, "task-1")
        assert fresh not in {job, other}
        await ended(gateway, fresh)
        assert sorted(headers["Idempotency-Key"] for headers, _ in backend.seen) == sorted([job, other, fresh])


async def test_whoever_prefers_it_gets_a_job_without_a_callback_and_fetches_the_outcome(act: Act) -> None:
    async with served(act) as gateway:
        answer = await gateway.do("act/Go", {"name": "asked"}, headers={"Prefer": "respond-async"})
        assert answer.status == 202
        told = await ended(gateway, answer.headers["Location"].rpartition("/")[2])
        assert told["state"] == "kept"
        assert told["outcome"]["status"] == 200
        assert told["outcome"]["body"]["command_response"]["body"] == {"id": act.ids()[0]}
        assert (await gateway.get("/v1/jobs/no-such")).status == 404
        synchronous = await post(gateway, "Job")  # nobody asked for it, and there is nowhere to deliver
        assert synchronous.status == 200


async def test_jobs_are_listed_by_state_and_connector_in_pages(act: Act, backend: Backend) -> None:
    async with served(act) as gateway:
        jobs = [await accepted(gateway, "Job", backend.url) for _ in range(4)]
        for job in jobs:
            await ended(gateway, job)
        kept = (await gateway.do("act/Go", headers={"Prefer": "respond-async"})).body["job_id"]
        await ended(gateway, kept)

        async def listed(query: str) -> list[str]:
            return [one["id"] for one in (await gateway.get(f"/v1/jobs?{query}")).json["jobs"]]

        latest = [kept, *reversed(jobs)]
        assert await listed("") == latest
        assert await listed("limit=2") + await listed("limit=2&offset=2") + await listed("limit=2&offset=4") == latest
        assert await listed("state=kept") == [kept]
        assert await listed("state=delivered&limit=1&offset=3") == jobs[:1]
        assert await listed("connector=other") == []
        assert len(await listed("connector=act")) == 5
        for wrong in ("state=gone", "limit=x", "offset=-1"):
            assert (await gateway.get(f"/v1/jobs?{wrong}")).status == 400

        async def purged(query: str) -> Answer:
            return await gateway.request("POST", f"/v1/jobs/purge?{query}")

        for wrong in ("", "older_than=7", "older_than=1h&state=running", "older_than=1h&state=gone"):
            assert (await purged(wrong)).status == 400, wrong
        assert (await purged("older_than=1h")).json == {"removed": 0}
        assert (await purged("older_than=0s&state=delivered")).json == {"removed": 4}
        assert await listed("") == [kept]
        assert (await purged("older_than=0s")).json == {"removed": 1}


# --- promoted


async def test_a_call_that_takes_long_becomes_a_job_without_being_started_again(act: Act, backend: Backend) -> None:
    act.serve("promote_after: 1s; timeout: 1500ms; job_timeout: 30s")
    async with served(act) as gateway:
        begun = time.monotonic()
        job = await accepted(gateway, "Go", backend.url, "task-1", do="wait")
        assert time.monotonic() - begun > 1
        await eventually(act.runs)
        other = await accepted(gateway, "Job", backend.url, "task-1")  # another command of the same task is another job
        await ended(gateway, other)
        await eventually(lambda: time.monotonic() - begun > 1.6)  # longer than a call may take
        act.let_go()
        told = await ended(gateway, job)
        assert told["outcome"]["body"]["command_response"]["body"] == {"id": act.ids()[0]}
        assert told["outcome"]["status"] == 200
        assert len(act.runs()) == 2
        quick = await post(gateway, "Go", backend.url)
        assert quick.status == 200


async def test_a_promoted_run_ends_at_the_deadline_of_jobs(act: Act, backend: Backend) -> None:
    act.serve("promote_after: 200ms; timeout: 700ms; job_timeout: 1.5s")
    async with served(act) as gateway:
        job = await accepted(gateway, "Go", backend.url, do="hang")
        told = await ended(gateway, job)
        assert told["outcome"]["status"] == 504
        assert told["outcome"]["body"]["error"]["error_code"] == "connector_timeout"
        assert "1.5s" in told["outcome"]["body"]["error"]["message"]
        await eventually(lambda: not gateway.connectors())


async def test_without_promote_after_a_call_is_a_call(act: Act, backend: Backend) -> None:
    act.serve("promote_after: null; timeout: 5s")
    async with served(act) as gateway:
        assert (await post(gateway, "Go", backend.url, do="linger")).status == 200
    assert backend.seen == []


async def test_a_call_whose_callback_has_no_credentials_is_answered_however_long_it_takes(
    act: Act, backend: Backend
) -> None:
    """The backend would refuse the callback, and its process would wait for ever."""
    act.serve("promote_after: 100ms; timeout: 5s", gateway="callbacks: {first_delay: 50ms}")
    async with served(act) as gateway:
        answer = await post(gateway, "Go", backend.url, task="t", do="linger")
        assert (answer.status, answer.code) == (200, None)
        assert (await gateway.get("/v1/jobs")).json["jobs"] == []
        (notice,) = [one for one in (await gateway.status("act"))["notices"] if one.startswith("async:")]
        assert "callbacks have no credentials" in notice
        assert gateway.events("connector_warning", connector="act", message=notice)
        assert "callbacks have no credentials" in gateway.events("callbacks")[0]["hint"]
    assert backend.seen == []


async def test_a_connector_with_auths_is_never_promoted(act: Act, backend: Backend) -> None:
    urls = "authorize_url: 'http://127.0.0.1:9/a', token_url: 'http://127.0.0.1:9/t', client_id: me"
    act.serve(f"promote_after: 100ms; timeout: 5s; auths: {{OAuth: {{{urls}}}}}")
    async with served(act) as gateway:
        assert (await post(gateway, "Go", backend.url, do="linger")).status == 200
    assert backend.seen == []


@pytest.mark.parametrize(
    ("callbacks", "sent"),
    [
        ("allow: [127.0.0.1], headers: {X-Key: all}", "all"),
        ("allow: [127.0.0.1], headers: {X-Key: all}, hosts: {127.0.0.1: {headers: {X-Key: host}}}", "host"),
        (
            "allow: [127.0.0.1], headers: {X-Key: all}, hosts: {'127.0.0.1:PORT': {headers: {X-Key: port}}, 127.0.0.1: {}}",
            "port",
        ),
        ("hosts: {127.0.0.1: {}}", None),
        (
            "rewrite: {'http://backend.invalid:8000': 'http://127.0.0.1:PORT'}, allow: [127.0.0.1], headers: {X-Key: all}",
            "all",
        ),
    ],
)
async def test_each_host_gets_its_own_credentials(act: Act, backend: Backend, callbacks: str, sent: str | None) -> None:
    port = backend.url.split(":")[2].partition("/")[0]
    url = backend.url
    if "rewrite" in callbacks:
        url = url.replace(f"127.0.0.1:{port}", "backend.invalid:8000")
    act.serve("promote_after: 100ms", gateway=f"callbacks: {{first_delay: 50ms, {callbacks.replace('PORT', port)}}}")
    async with served(act) as gateway:
        job = await accepted(gateway, "Go", url, task="t", do="linger")
        assert (await ended(gateway, job))["state"] == "delivered"
    assert backend.seen[0][0].get("X-Key") == sent


async def test_the_data_of_a_process_do_not_depend_on_how_long_a_call_took(act: Act, backend: Backend) -> None:
    act.serve("promote_after: 200ms")
    async with served(act) as gateway:
        synchronous = await post(gateway, "Go", backend.url)
        job = await accepted(gateway, "Go", backend.url, do="linger")
        await ended(gateway, job)
        told = backend.seen[0][1]["command_response"]["body"]
        kinds = [
            {key: type(value) for key, value in one.items()} for one in (told, synchronous.json["command_response"])
        ]
        assert kinds[0] == {**kinds[1], "operator_identifier": str}
        assert told["operator_identifier"] == "act/Go"
        always = await accepted(gateway, "Job", backend.url)
        await ended(gateway, always)
        assert list(backend.seen[1][1]["command_response"]["body"]) == ["id"]


@pytest.mark.parametrize(("do", "status"), [("crash", 502), ("fail", 502), ("told", 503)])
async def test_a_callback_has_the_status_by_which_the_backend_tries_again(
    act: Act, backend: Backend, do: str, status: int
) -> None:
    async with served(act) as gateway:
        await ended(gateway, await accepted(gateway, "Job", backend.url, do=do))
    assert backend.seen[0][1]["command_response"]["http_status"] == status
    assert backend.seen[0][1]["error"] is not None


async def test_a_task_whose_call_became_a_job_joins_it_without_a_second_run(act: Act, backend: Backend) -> None:
    act.serve("promote_after: 100ms")
    async with served(act) as gateway:
        job = await accepted(gateway, "Go", backend.url, "task", do="wait")
        again = await post(gateway, "Go", backend.url, "task", do="wait")
        assert again.body == {"job_id": job, "status": "joined"}
        act.let_go()
        assert (await ended(gateway, job))["state"] == "delivered"
        assert len(backend.seen) == 1
        assert len(act.runs()) == 1


# --- outcomes


async def test_every_outcome_reaches_the_caller_as_an_envelope(act: Act, backend: Backend) -> None:
    async with served(act) as gateway:
        jobs = {
            what: await accepted(gateway, "Short" if what == "hang" else "Job", backend.url, do=what)
            for what in ("told", "legacy", "crash", "fail", "hang")
        }
        statuses = {what: (await ended(gateway, job))["outcome"]["status"] for what, job in jobs.items()}
        assert statuses == {"told": 200, "legacy": 404, "crash": 502, "fail": 502, "hang": 504}
        bodies = {headers["Idempotency-Key"]: body for headers, body in backend.seen}
        told, legacy, crash, fail, hang = (bodies[job] for job in jobs.values())
        assert told["error"] == {"error_code": "FaxBusy", "message": "engaged"}
        assert told["command_response"]["http_status"] == 503
        assert legacy["command_response"]["body"] == "no such order"
        assert legacy["command_response"]["http_status"] == 404
        for body, code in ((crash, "connector_crashed"), (fail, "connector_failed"), (hang, "connector_timeout")):
            assert body["error"]["error_code"] == code
            assert body["command_response"]["body"] == {}
            assert body["command_response_version"] == 2
        assert fail["spiff__logs"] == ["no carrier"]


async def test_a_connector_that_calls_back_itself_acknowledges_and_makes_no_job(act: Act, backend: Backend) -> None:
    act.script(
        "own.sh",
        """
        case $(cat) in
        *'"op":"describe"'*) echo '{"commands": [{"name": "Start", "parameters": [], "execute_async": true}]}' ;;
        *) sleep 0.5; echo '{"order": 7}' ;;
        esac
        """,
    )
    act.configure("own: {run: [./own.sh], promote_after: 100ms}")
    async with served(act) as gateway:
        answer = await gateway.do("own/Start", {"spiff__callback_url": backend.url})
        assert (answer.status, answer.body) == (202, {"order": 7})

        async def ended() -> bool:  # what goes on after its answer is listed until then
            return not (await gateway.get("/v1/jobs")).json["jobs"]

        await eventually(ended)
    assert not (act.state / "jobs").exists()
    assert backend.seen == []


# --- crashes and drains


async def test_a_crash_in_the_middle_is_told_or_the_command_is_run_again_as_declared(
    act: Act, backend: Backend
) -> None:
    async with served(act) as first:
        jobs = {
            name: await accepted(first, command, backend.url, do="wait", name=name)
            for name, command in (("plain", "Job"), ("never", "Never"), ("safe", "Safe"))
        }
        await eventually(lambda: len(act.runs()) == 3)
        await kill(first)
    act.let_go()
    async with served(act) as second:
        told = {name: await ended(second, job) for name, job in jobs.items()}
    assert {name: one["state"] for name, one in told.items()} == dict.fromkeys(jobs, "delivered")
    codes = {name: (one["outcome"]["body"]["error"] or {}).get("error_code") for name, one in told.items()}
    assert codes == {"plain": "job_interrupted", "never": "job_interrupted", "safe": None}
    assert told["safe"]["interrupted"] == 1
    assert sorted(act.runs()) == ["never", "plain", "safe", "safe"]


async def test_a_promoted_run_survives_a_crash_as_its_command_declares(act: Act, backend: Backend) -> None:
    act.serve("promote_after: 100ms")
    async with served(act) as first:
        job = await accepted(first, "Go", backend.url, do="wait")
        await kill(first)
    async with served(act) as second:
        told = await ended(second, job)
    assert told["outcome"]["body"]["error"]["error_code"] == "job_interrupted"
    assert len(act.runs()) == 1


async def test_a_drain_leaves_what_waits_to_the_next_start(act: Act, backend: Backend) -> None:
    act.serve("concurrency: 1", gateway="callbacks: {first_delay: 50ms, hosts: {127.0.0.1: {}}}\ndrain: 10s")
    async with served(act) as first:
        running = await accepted(first, "Job", backend.url, do="wait", name="running")
        await eventually(act.runs)
        waiting = [await accepted(first, "Job", backend.url, name=f"w{n}") for n in range(3)]
        first.signal(signal.SIGTERM)

        async def draining() -> bool:
            return (await first.get("/v1/readiness")).status == 503

        await eventually(draining)
        refused = await post(first, "Job", backend.url)
        assert (refused.status, refused.code) == (503, "gateway_draining")
        act.let_go()
        assert await first.ended() == 0
    assert act.runs() == ["running"]
    async with served(act) as second:
        for job in (running, *waiting):
            told = await ended(second, job)
            assert told["state"] == "delivered"
            assert told["outcome"]["body"]["error"] is None
    assert act.runs()[0] == "running"
    assert sorted(act.runs()) == ["running", "w0", "w1", "w2"]


async def test_a_job_that_has_no_slot_when_a_drain_begins_was_not_interrupted(act: Act, backend: Backend) -> None:
    act.serve("concurrency: 1; queue: 5", gateway="callbacks: {first_delay: 50ms, hosts: {127.0.0.1: {}}}\ndrain: 10s")
    async with served(act) as first:
        call = asyncio.create_task(post(first, "Go", do="wait", name="call"))
        await eventually(act.runs)
        job = await accepted(first, "Never", backend.url, name="job")
        await eventually(lambda: first_queued(first))
        first.signal(signal.SIGTERM)
        await eventually(lambda: "drain_started" in first.log())
        act.let_go()
        assert (await call).status == 200
        assert await first.ended() == 0
    async with served(act) as second:
        told = await ended(second, job)
    assert told["outcome"]["body"]["error"] is None
    assert act.runs() == ["call", "job"]


async def test_a_job_that_has_no_slot_when_its_gateway_is_killed_was_not_interrupted(
    act: Act, backend: Backend
) -> None:
    act.serve("concurrency: 1; queue: 5")
    async with served(act) as first:
        call = asyncio.create_task(post(first, "Go", do="wait", name="call"))
        await eventually(act.runs)
        jobs = [await accepted(first, "Never", backend.url, name=f"job{n}") for n in range(2)]
        await eventually(lambda: first_queued(first))
        assert [(await shown(first, job))["state"] for job in jobs] == ["waiting", "waiting"]
        await kill(first)
        with contextlib.suppress(aiohttp.ClientError):
            await call
    act.let_go()
    async with served(act) as second:
        for job in jobs:
            told = await ended(second, job)
            assert (told["state"], told["interrupted"]) == ("delivered", 0)
            assert told["outcome"]["body"]["error"] is None
    assert act.runs()[0] == "call"
    assert sorted(act.runs()[1:]) == ["job0", "job1"]
    assert sorted(headers["Idempotency-Key"] for headers, _ in backend.seen) == sorted(jobs)


async def test_a_call_that_waits_for_a_slot_when_it_becomes_a_job_has_not_begun(act: Act, backend: Backend) -> None:
    act.serve("concurrency: 1; queue: 5; promote_after: 200ms")
    async with served(act) as first:
        running = await accepted(first, "Go", backend.url, do="wait", name="running")
        queued = await accepted(first, "Go", backend.url, name="queued")
        assert [(await shown(first, job))["state"] for job in (running, queued)] == ["running", "waiting"]
        await kill(first)
    act.let_go()
    async with served(act) as second:
        told = await ended(second, queued)
        assert (told["state"], told["interrupted"]) == ("delivered", 0)
        assert told["outcome"]["body"]["error"] is None
        assert (await ended(second, running))["outcome"]["body"]["error"]["error_code"] == "job_interrupted"
    assert act.runs() == ["running", "queued"]


async def test_a_call_that_waits_and_cannot_become_a_job_stays_a_call(act: Act, backend: Backend) -> None:
    act.serve("concurrency: 1; queue: 5; promote_after: 200ms", gateway=f"jobs: {{backlog: 1}}\n{QUICK}")
    async with served(act) as gateway:
        job = await accepted(gateway, "Go", backend.url, do="wait", name="running")
        call = asyncio.create_task(post(gateway, "Go", backend.url, name="call"))
        await eventually(lambda: first_queued(gateway))
        act.let_go()
        assert (await call).status == 200
        await ended(gateway, job)
    assert act.runs() == ["running", "call"]


async def first_queued(gateway: Server) -> bool:
    return (await gateway.status("act"))["queued"] > 0


async def test_a_gateway_that_was_never_asked_for_a_job_refuses_one_while_it_drains(act: Act, backend: Backend) -> None:
    async with served(act) as gateway:
        call = asyncio.create_task(post(gateway, "Go", do="wait"))
        await eventually(act.runs)
        gateway.signal(signal.SIGTERM)
        await eventually(lambda: "drain_started" in gateway.log())
        refused = await post(gateway, "Job", backend.url)
        assert (refused.status, refused.code) == (503, "gateway_draining")
        act.let_go()
        assert (await call).status == 200
        assert await gateway.ended() == 0


# --- slots


async def test_jobs_wait_for_slots_and_the_limit_holds_for_calls_beside_them(act: Act, backend: Backend) -> None:
    act.serve("concurrency: 1; queue: 20; queue_timeout: 30s")
    async with served(act) as gateway:
        jobs = [await accepted(gateway, "Job", backend.url) for _ in range(10)]
        answers = await asyncio.gather(*(post(gateway, "Go") for _ in range(5)))
        assert [answer.status for answer in answers] == [200] * 5
        for job in jobs:
            told = await ended(gateway, job)
            assert (told["state"], told["outcome"]["status"]) == ("delivered", 200)
    assert len(act.runs()) == 15
    assert not (act.folder / "overlaps").exists()


async def test_the_higher_priority_goes_first(act: Act, backend: Backend) -> None:
    act.serve("concurrency: 1")
    async with served(act) as gateway:
        jobs = [await accepted(gateway, "Job", backend.url, do="wait", name="first")]
        await eventually(act.runs)
        for command, name in (("Job", "low1"), ("Job", "low2"), ("High", "high")):
            jobs.append(await accepted(gateway, command, backend.url, name=name))
        act.let_go()
        for job in jobs:
            await ended(gateway, job)
    assert act.runs() == ["first", "high", "low1", "low2"]


async def test_a_full_backlog_is_429(act: Act, backend: Backend) -> None:
    act.serve(gateway=f"jobs: {{backlog: 2}}\n{QUICK}")
    async with served(act) as gateway:
        jobs = [await accepted(gateway, "Job", backend.url, do="wait") for _ in range(2)]
        refused = await post(gateway, "Job", backend.url)
        assert (refused.status, refused.code) == (429, "connector_busy")
        assert int(refused.headers["Retry-After"]) > 0
        assert (await gateway.status())["jobs"]["open"] == 2
        act.let_go()
        for job in jobs:
            await ended(gateway, job)
        assert (await post(gateway, "Job", backend.url)).status == 202


# --- cancel and deliver again


async def test_a_cancelled_job_is_killed_with_all_it_started_and_its_caller_is_told(act: Act, backend: Backend) -> None:
    async with served(act) as gateway:
        job = await accepted(gateway, "Job", backend.url, do="hang")
        await eventually(lambda: len(gateway.connectors()) >= 3)
        answer = await gateway.request("POST", f"/v1/jobs/{job}/cancel")
        assert (answer.status, answer.json["state"]) == (200, "cancelled")
        await eventually(lambda: not gateway.connectors())
        await eventually(lambda: backend.seen)
        [(headers, body)] = backend.seen
        assert headers["Idempotency-Key"] == job
        assert body["error"]["error_code"] == "job_cancelled"
        assert body["command_response"]["body"] == {}
        again = await gateway.request("POST", f"/v1/jobs/{job}/cancel")
        assert (again.status, again.code) == (409, "job_conflict")


async def test_a_waiting_job_is_cancelled_without_being_run(act: Act, backend: Backend) -> None:
    act.serve("concurrency: 1")
    async with served(act) as gateway:
        first = await accepted(gateway, "Job", backend.url, do="wait", name="first")
        await eventually(act.runs)
        waiting = await accepted(gateway, "Job", backend.url, name="waiting")
        await gateway.request("POST", f"/v1/jobs/{waiting}/cancel")
        await eventually(lambda: backend.seen)
        act.let_go()
        await ended(gateway, first)
    assert act.runs() == ["first"]


async def test_wrong_credentials_keep_the_outcome_which_is_delivered_again_on_demand(
    act: Act, backend: Backend
) -> None:
    backend.answers = [401]
    async with served(act) as gateway:
        job = await accepted(gateway, "Job", backend.url)
        told = await ended(gateway, job)
        assert told["state"] == "dead"
        assert "credentials" in told["reason"]
        assert told["outcome"]["body"]["error"] is None
        backend.answers = [200]
        again = await gateway.request("POST", f"/v1/jobs/{job}/retry")
        assert again.status == 202
        assert (await reaches(gateway, job, "delivered"))["reason"] == ""
        bodies = [body for _, body in backend.seen]
        assert bodies == [told["outcome"]["body"]] * 2
        assert len(act.runs()) == 1
        new = (await gateway.request("POST", f"/v1/jobs/{job}/retry?run=true")).json["id"]
        assert new != job
        await reaches(gateway, new, "delivered")
        assert len(act.runs()) == 2


# --- callbacks


async def test_a_caller_that_is_away_or_not_ready_gets_the_same_again(act: Act, backend: Backend) -> None:
    async def not_waiting(_request: web.Request) -> web.Response:
        return web.json_response({"error_code": "not_waiting_for_callback"}, status=400)

    backend.answers = [503, not_waiting, 200]
    async with served(act) as gateway:
        told = await ended(gateway, await accepted(gateway, "Job", backend.url))
        assert told["state"] == "delivered"
        assert [(one.get("status"), one["verdict"]) for one in told["attempts"]] == [
            (503, "again"), (400, "again"), (200, "done"),
        ]  # fmt: skip
        assert {headers["Idempotency-Key"] for headers, _ in backend.seen} == {told["id"]}
        assert [body for _, body in backend.seen] == [told["outcome"]["body"]] * 3
        assert len(act.runs()) == 1
        backend.answers = [400]
        refused = await ended(gateway, await accepted(gateway, "Job", backend.url))
        assert (refused["state"], len(refused["attempts"])) == ("dead", 1)


async def test_credentials_of_callbacks_are_sent_and_stay_out_of_the_log(act: Act) -> None:
    seen: list[dict[str, str]] = []
    asked: list[str] = []

    async def token(request: web.Request) -> web.Response:
        asked.append(request.headers["Authorization"])
        return web.json_response({"access_token": "hunter-token", "expires_in": 300})

    async def put(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        return web.Response(status=503 if len(seen) == 1 else 200)

    app = web.Application()
    app.router.add_post("/token", token)
    app.router.add_put("/callback", put)
    async with listening(app) as url:
        act.serve(
            gateway="callbacks: {first_delay: 50ms, allow: [127.0.0.1], headers: {X-Callback-Key: hunter-header}, oauth2: "
            f"{{token_url: '{url}/token', client_id: me, client_secret: hunter-secret}}}}"
        )
        async with served(act) as gateway:
            told = await ended(gateway, await accepted(gateway, "Job", f"{url}/callback?key=hunter-url"))
            assert told["state"] == "delivered"
            assert "hunter" not in (await gateway.get("/v1/jobs")).raw.decode()
            assert "hunter" not in gateway.log()
    assert [one["Authorization"] for one in seen] == ["Bearer hunter-token"] * 2
    assert [one["X-Callback-Key"] for one in seen] == ["hunter-header"] * 2
    assert len(asked) == 1


# --- the store


async def test_a_store_that_cannot_be_used_is_503_and_what_runs_is_answered(act: Act, backend: Backend) -> None:
    act.serve("promote_after: 100ms; timeout: 4s")
    act.state.mkdir()
    (act.state / "jobs").write_text("in the way")
    async with served(act) as gateway:
        refused = await post(gateway, "Job", backend.url)
        assert (refused.status, refused.code) == (503, "jobs_unavailable")
        assert str(act.state / "jobs") in refused.message
        health = (await gateway.status())["jobs"]
        assert (health["ok"], health["state"]) == (False, "unavailable")
        call = await post(gateway, "Go", backend.url, do="linger")  # would have become a job
        assert call.status == 200
        assert call.body == {"id": act.ids()[0]}
        call = await post(gateway, "Go", backend.url, do="hang")
        assert (call.status, call.code) == (504, "connector_timeout")
        (act.state / "jobs").unlink()
        await ended(gateway, await accepted(gateway, "Job", backend.url))
        assert (await gateway.status())["jobs"]["ok"] is True
    assert len(act.runs()) == 3


async def test_a_locked_store_is_503_and_what_was_refused_never_runs(act: Act, backend: Backend) -> None:
    act.serve("promote_after: 100ms")
    async with served(act) as gateway:
        await ended(gateway, await accepted(gateway, "Job", backend.url, name="before"))
        with contextlib.closing(sqlite3.connect(act.state / "jobs/jobs.sqlite", isolation_level=None)) as outside:
            outside.execute("BEGIN IMMEDIATE")
            refused, call = await asyncio.gather(
                post(gateway, "Job", backend.url, "task", name="refused"),
                post(gateway, "Go", backend.url, do="linger", name="call"),
            )
            assert (refused.status, refused.code) == (503, "jobs_unavailable")
            assert call.status == 200
            assert (await gateway.status())["jobs"]["ok"] is False
            outside.execute("ROLLBACK")

        async def works() -> bool:
            return (await post(gateway, "Job", backend.url, name="after")).status == 202

        await eventually(works)

        async def settled() -> bool:
            return (await gateway.status())["jobs"]["open"] == 0

        await eventually(settled)
        assert (await gateway.status())["jobs"]["ok"] is True
    assert "refused" not in act.runs()


async def test_a_gateway_without_jobs_does_not_carry_the_engine(act: Act, unmeasured: None) -> None:
    engine = ("_sqlite3", "psycopg")

    def loaded(gateway: Server) -> bool:
        maps = Path(f"/proc/{gateway.pid}/maps").read_text()
        return any(name in maps for name in engine)

    act.configure("act: {run: [./act.sh], commands: {Go: {additional_parameters: true}}}", gateway="drain: 2s")
    async with served(act) as gateway:
        assert (await post(gateway, "Go")).status == 200
        assert (await gateway.get("/v1/jobs")).json["jobs"] == []
        assert (await gateway.status())["jobs"]["state"] == "asleep"
        assert not (act.state / "jobs").exists()
        assert not loaded(gateway)
        assert procfs.memory(gateway.pid).resident < 120 << 20
        await gateway.do("act/Go", headers={"Prefer": "respond-async"})
        assert loaded(gateway)


async def test_where_a_command_can_become_a_job_the_engine_is_there_before_the_first(act: Act) -> None:
    async def state(gateway: Server) -> str:
        return (await gateway.status())["jobs"]["state"]

    async def runs() -> bool:
        return await state(gateway) == "running"

    commands = "commands: {Go: {additional_parameters: true}}"
    act.configure(f"act: {{run: [./act.sh], {commands}}}", gateway=QUICK)
    async with served(act) as gateway:
        await eventually(runs)
    act.configure(f"act: {{run: [./act.sh], {commands}, promote_after: null}}", gateway=QUICK)
    async with served(act) as gateway:
        assert await state(gateway) in {"asleep", "starting"}
        act.configure("act: {run: [./act.sh], promote_after: null, commands: {Go: {async: true}}}", gateway=QUICK)
        await eventually(runs)


# --- a clock that is set, a machine that slept


@pytest.mark.parametrize("days", [30, -30])
async def test_a_clock_that_is_set_loses_nothing_and_holds_nothing_up(act: Act, backend: Backend, days: int) -> None:
    clock = Clock(act.folder / "clock")
    act.serve(gateway="callbacks: {first_delay: 100ms, max_age: 1h, hosts: {127.0.0.1: {}}}\ndrain: 2s")
    backend.answers = [404, 503]
    async with served(act, env=clock.env) as gateway:
        dead = await accepted(gateway, "Job", backend.url, name="dead")
        await reaches(gateway, dead, "dead")
        job = await accepted(gateway, "Job", backend.url, name="tried")
        await eventually(lambda: len(backend.seen) > 3)
        clock.set(days)
        since = len(backend.seen)
        await eventually(lambda: len(backend.seen) > since + 1)
        assert (await shown(gateway, job))["state"] == "delivering"
        purged = await gateway.request("POST", "/v1/jobs/purge?older_than=1d")
        assert purged.json == {"removed": 0}
    async with served(act, env=clock.env) as gateway:  # which removes what is too old at its start
        since = len(backend.seen)
        await eventually(lambda: len(backend.seen) > since + 1)
        done = await asyncio.to_thread(cli, act, "jobs", "purge", "--older-than", "1d", "--url", gateway.url)
        assert (done.returncode, done.stdout) == (0, "removed 0 jobs\n")
        assert {one["id"]: one["state"] for one in (await gateway.get("/v1/jobs")).json["jobs"]} == {
            dead: "dead", job: "delivering",
        }  # fmt: skip
        backend.answers = [200]
        told = await reaches(gateway, job, "delivered", "dead")
        assert told["state"] == "delivered"
        assert told["attempts"][-1]["age"] < 3600
        shows = await asyncio.to_thread(cli, act, "jobs", "show", job, "--url", gateway.url)
        assert shows.returncode == 0
        assert "-" not in shows.stdout.partition("after ")[2][:5]
