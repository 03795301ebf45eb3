"""What the audit has of calls and operators' acts, what it never has, and what becomes of both when it cannot be written."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from gateway.observe.audit import AuditLine
from tests.observe.test_metrics import scraped, value
from tests.support import PATIENCE, Answer, Server, Site, cli, eventually, served

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = "k3y-of-operators"
ACT = """
request=$(cat)
echo done >> DIR/effects
case $request in
*'"do":"told"'*) echo '{"error": {"error_code": "FaxBusy SECRET", "message": "engaged SECRET"}}' ;;
*'"do":"raised"'*) echo '{"error": {"error_code": "ValueError", "message": "SECRET"}, "raised": true}' ;;
*'"do":"legacy"'*) echo '{"response": "SECRET", "status": 404, "mimetype": "text/plain"}' ;;
*'"do":"crash"'*) echo SECRET >&2; kill -SEGV $$ ;;
*'"do":"wait"'*) while [ ! -e DIR/gate ]; do sleep 0.02; done; echo '"SECRET"' ;;
*) echo '{"said": "SECRET"}' ;;
esac
"""
COMMANDS = """
      Go: {additional_parameters: true}
      Job: {async: true, additional_parameters: true}
      Suggest: {parameters: {q: {type: str}}, typeahead: {category: people, prefix: q}}
"""


class AuditedSite(Site):
    """A site with an audit, whose connector `act` does as it is told and says a secret."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.level = "off"
        self.secret = secrets.token_hex(8)
        self.script("act.sh", ACT.replace("DIR", str(folder)).replace("SECRET", self.secret))
        self.path = folder / "logs" / "audit.log"
        self.path.parent.mkdir()
        self.serve()

    def serve(self, *, file: object = "logs/audit.log", required: bool = False, gateway: str = "") -> None:
        audit = f"audit: {{file: {file}, required: {str(required).lower()}}}"
        callbacks = "callbacks: {first_delay: 50ms, hosts: {127.0.0.1: {}}}"
        self.configure(
            f"act:\n    run: [./act.sh]\n    commands:{COMMANDS}", gateway=f"{audit}\n{callbacks}\n{gateway}"
        )

    def lines(self, *paths: Path, **facts: Any) -> list[dict[str, Any]]:
        """Return the lines of the audit, which have to be whole, those with these facts."""
        text = "".join(path.read_text() for path in paths or (self.path,))
        assert text.endswith("\n") or not text
        found = [json.loads(line) for line in text.splitlines()]
        assert all(list(one) == list(AuditLine.__struct_fields__) for one in found)
        return [one for one in found if facts.items() <= one.items()]

    def effects(self) -> int:
        file = self.folder / "effects"
        return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture
def site(tmp_path: Path) -> AuditedSite:
    return AuditedSite(tmp_path)


def named(name: object, **headers: str) -> dict[str, str]:
    return {"X-Request-Id": str(name), **headers}


def told(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["event"], line["connector"], line["command"], line["outcome"], line["status"]


# --- what is told


async def test_each_call_has_one_line_that_stands_there_when_it_is_answered(site: AuditedSite) -> None:
    site.serve(gateway=f"api_key: {KEY}\ntypeahead: open")
    key = {"Authorization": f"Bearer {KEY}"}
    cases: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
        ("act/Go", {}, ("act", "Go", "ok", 200)),
        ("act/Go", {"params": {"do": "told"}}, ("act", "Go", "error", 200)),
        ("act/Go", {"params": {"do": "legacy"}}, ("act", "Go", "ok", 404)),
        ("act/Go", {"params": {"do": "crash"}}, ("act", "Go", "connector_crashed", 502)),
        ("act/Go", {"data": b"no JSON"}, ("act", "Go", "invalid_request", 400)),
        ("act/Suggest", {"params": {"p": 1}}, ("act", "Suggest", "invalid_parameters", 400)),
        ("act/None", {}, ("act", "None", "command_not_found", 404)),
        ("no%FFbody/Go", {}, ("no%FFbody", "Go", "command_not_found", 404)),
        ("act/Go", {"headers": {"Authorization": f"Bearer {site.secret}"}}, ("act", "Go", "unauthorized", 401)),
        ("act/Go", {"headers": {"Authorization": ""}}, ("act", "Go", "unauthorized", 401)),
    ]
    async with served(site) as server:
        for number, (target, options, expected) in enumerate(cases):
            headers = {**key, **named(number), **options.pop("headers", {})}
            answer = await server.do(target, headers=headers, **options)
            (line,) = site.lines(request_id=str(number))
            assert answer.status == line["status"]
            assert told(line) == ("call", *expected), line
            assert line["client"] == (None if answer.status == 401 else "default")
            assert (line["address"], line["task_id"], line["job"]) == ("127.0.0.1", None, None)
        await server.get("/v1/do/act/Go", headers={**key, **named("get")})
        await server.get("/v1/typeahead/people?prefix=A", headers=named("typed"))
        await server.get("/v1/typeahead/nobody?prefix=A", headers=named("lost"))
        for path in ("/v1/status", "/v1/commands", "/v1/jobs", "/liveness", "/v1/nothing"):
            await server.get(path, headers=key)
        await server.request("OPTIONS", "/v1/do/act/Go", headers=key)
        await server.request("PUT", "/v1/do/act/Go", headers=key)
        assert [told(line) for line in site.lines()[len(cases) :]] == [
            ("call", "act", "Go", "ok", 200),
            ("call", "act", "Suggest", "connector_invalid_output", 502),
            ("call", None, None, "command_not_found", 404),
        ]


async def test_neither_values_nor_keys_nor_what_connectors_say_are_in_it(site: AuditedSite) -> None:
    site.serve(gateway=f"api_key: {KEY}\ntypeahead: open")
    sent = [secrets.token_hex(8) for _ in range(7)]
    params, task_data, url, wrong, prefix, instance, model = sent
    body = {
        "password": params,
        "do": "told",
        "spiff__task_id": "the-task",
        "spiff__task_data": {"x": task_data},
        "spiff__process_instance_id": instance,
        "spiff__process_model_identifier": model,
        "spiff__callback_url": f"http://127.0.0.1:9/?token={url}",
    }
    key = {"Authorization": f"Bearer {KEY}"}
    async with served(site) as server:
        for do in ("told", "raised", "legacy", "crash", "well"):
            await server.do("act/Go", {**body, "do": do}, headers=key)
        await server.do("act/Job", body, headers=key)
        await server.do("act/Go", data=f'{{"password": "{params}",}}', headers=key)
        await server.do("act/Go", body, headers={"Authorization": f"Bearer {wrong}"})
        await server.get(f"/v1/typeahead/people?prefix={prefix}")
        await server.request("POST", f"/v1/jobs/purge?older_than={params}", headers=key)
    assert len(site.lines()) == 10
    assert len(site.lines(task_id="the-task")) == 6  # a request that nobody may send is not even read
    text = site.path.read_text()
    assert not [one for one in (*sent, site.secret, KEY, str(site.folder)) if one in text]


async def test_a_job_is_told_when_it_is_accepted_and_when_it_has_ended(site: AuditedSite) -> None:
    async with served(site) as server:
        prefer = {"Prefer": "respond-async"}
        body = {"do": "wait", "spiff__task_id": "t-1"}
        answers = [await server.do("act/Go", body, headers=named(name, **prefer)) for name in ("first", "again")]
        assert [answer.status for answer in answers] == [202, 202]
        job = answers[0].body["job_id"]
        (site.folder / "gate").touch()
        ended = await eventually(lambda: site.lines(event="job"))
        assert [(one["event"], one["request_id"], one["outcome"], one["status"]) for one in site.lines(job=job)] == [
            ("call", "first", "accepted", 202),
            ("call", "again", "joined", 202),
            ("job", "first", "kept", None),
        ]
        assert {one["task_id"] for one in site.lines(job=job)} == {"t-1"}
        assert (ended[0]["client"], ended[0]["connector"], ended[0]["command"]) == ("default", "act", "Go")


async def test_what_operators_do_with_jobs_is_told_with_the_job(site: AuditedSite) -> None:
    async with served(site) as server:
        answer = await server.do("act/Go", {"do": "wait"}, headers=named("call", Prefer="respond-async"))
        job = answer.body["job_id"]
        await server.request("POST", f"/v1/jobs/{job}/retry", headers=named("retry"))
        assert cli(site, "jobs", "cancel", job, "--url", server.url).returncode == 0
        (site.folder / "gate").touch()
        again = await server.request("POST", f"/v1/jobs/{job}/retry?run=true", headers=named("again"))
        await eventually(lambda: site.lines(event="job", job=again.json["id"]))
        await server.request("POST", "/v1/jobs/purge?older_than=0s", headers=named("purge"))
        await server.request("POST", "/v1/jobs/purge?older_than=never", headers=named("no"))
        await server.request("POST", "/v1/jobs/nothing/cancel", headers=named("lost"))
        acts = [
            (one["event"], one["job"], one["outcome"], one["status"]) for one in site.lines() if one["event"] != "job"
        ]
        assert acts == [
            ("call", job, "accepted", 202),
            ("retry", job, "job_conflict", 409),
            ("cancel", job, "ok", 200),
            ("run_again", job, "ok", 202),
            ("purge", None, "ok", 200),
            ("purge", None, "invalid_request", 400),
            ("cancel", "nothing", "job_not_found", 404),
        ]
        assert site.lines(event="run_again")[0]["new_job"] == again.json["id"]
        assert site.lines(event="cancel")[0]["connector"] == "act"
        assert site.lines(event="purge")[0]["count"] == 2
        assert [one["outcome"] for one in site.lines(event="job")] == ["cancelled", "kept"]


async def test_a_caller_that_hangs_up_is_told_so(site: AuditedSite) -> None:
    async with served(site) as server:
        calling = asyncio.create_task(server.do("act/Go", {"do": "wait"}, headers=named("gone")))
        await eventually(site.effects)
        calling.cancel()
        (line,) = await eventually(lambda: site.lines(request_id="gone"))
        assert told(line) == ("call", "act", "Go", "cancelled", 499)


async def test_a_run_that_goes_on_is_told_twice(site: AuditedSite) -> None:
    site.script(
        "later.sh",
        """
        case $(cat) in
        *'"op":"describe"'*) echo '{"commands": [{"name": "Go", "execute_async": true, "additional_parameters": true}]}' ;;
        *) echo '{"started": true}' ;;
        esac
        """,
    )
    site.configure("later: {run: [./later.sh]}", gateway="audit: {file: logs/audit.log}")
    async with served(site) as server:
        body = {"spiff__callback_url": "http://127.0.0.1:9/", "spiff__task_id": "t"}
        assert (await server.do("later/Go", body, headers=named("one"))).status == 202
        await eventually(lambda: site.lines(event="job"))  # perhaps before its call's
        facts = [(one["event"], one["outcome"], one["task_id"], one["request_id"]) for one in site.lines()]
        assert sorted(facts) == [("call", "accepted", "t", "one"), ("job", "ok", "t", "one")]


async def test_a_reload_is_told_with_what_came_of_it(site: AuditedSite) -> None:
    async with served(site) as server:
        server.signal(signal.SIGHUP)
        (line,) = await eventually(lambda: site.lines(event="reload"))
        assert (line["outcome"], line["count"], line["client"]) == ("ok", 1, None)
        site.file.write_text("connectors: [")
        server.signal(signal.SIGHUP)
        await eventually(lambda: site.lines(event="reload", outcome="failed"))


async def test_it_goes_to_standard_output(site: AuditedSite) -> None:
    site.serve(file="stdout")
    async with served(site) as server:  # which is the log's file here
        await server.do("act/Go", headers=named("one"))
        assert server.events("call", request_id="one", outcome="ok")
        server.signal(signal.SIGHUP)
        await eventually(lambda: server.events("reload"))
    assert not site.path.exists()


async def test_without_the_section_nothing_is_told(site: AuditedSite) -> None:
    site.configure(f"act:\n    run: [./act.sh]\n    commands:{COMMANDS}")
    async with served(site) as server:
        assert (await server.do("act/Go")).status == 200
        assert (await server.status())["audit_problem"] is None
    assert not site.path.exists()
    assert not (site.folder / "audit.log").exists()


# --- where it is told


async def calls(server: Server, names: range, answers: dict[str, int]) -> None:
    for name in names:
        with contextlib.suppress(aiohttp.ClientError):
            answer = await server.do("act/Go", headers=named(name))
            answers[str(name)] = answer.status


async def test_a_file_that_is_rotated_under_load_loses_no_line_and_doubles_none(site: AuditedSite) -> None:
    async with served(site) as server:
        answers: dict[str, int] = {}
        load = [asyncio.create_task(calls(server, range(one * 100, one * 100 + 40), answers)) for one in range(4)]
        old = []
        for number in range(4):
            await eventually(lambda wanted=(number + 1) * 25: len(answers) >= wanted)
            old.append(site.path.with_suffix(f".{number}"))
            site.path.rename(old[-1])
            server.signal(signal.SIGHUP)
            await eventually(site.path.exists)
        await asyncio.gather(*load)
        await eventually(lambda: len(site.lines(*old, site.path, event="reload")) == 4)
        found = Counter(one["request_id"] for one in site.lines(*old, site.path, event="call"))
        assert found == Counter(answers.keys())
        assert len(found) == 160
        assert all(site.lines(one) for one in old)


async def test_a_gateway_that_is_killed_leaves_whole_lines_of_all_that_it_has_answered(site: AuditedSite) -> None:
    async with served(site) as server:
        answers: dict[str, int] = {}
        load = [asyncio.create_task(calls(server, range(one * 1000, one * 1000 + 900), answers)) for one in range(4)]
        await eventually(lambda: len(answers) >= 50)
        server.process.kill()
        await server.ended()
        await asyncio.gather(*load)
    found = Counter(one["request_id"] for one in site.lines(event="call"))
    assert set(found.values()) == {1}
    assert answers.keys() <= found.keys()


async def test_two_gateways_may_have_one_file(site: AuditedSite, tmp_path: Path) -> None:
    other = AuditedSite(tmp_path / "other")
    other.serve(file=site.path)
    async with served(site) as one, served(other) as two:
        answers: dict[str, int] = {}
        load = [calls(server, range(place * 100, place * 100 + 60), answers) for place, server in enumerate((one, two))]
        await asyncio.gather(*load)
        assert Counter(line["request_id"] for line in site.lines()) == Counter(answers.keys())
        assert len(answers) == 120


# --- where it cannot be written


async def refused(server: Server, **facts: Any) -> Answer:
    """Call, and expect to be refused for the audit's sake."""
    answer = await asyncio.wait_for(server.do("act/Go", **facts), PATIENCE)
    assert (answer.status, answer.code) == (503, "audit_unavailable")
    assert answer.headers["Retry-After"] == "5"
    return answer


async def test_what_cannot_be_written_is_counted_and_told_once_and_calls_go_on(site: AuditedSite) -> None:
    site.serve(file="/dev/full")
    async with served(site) as server:
        for _ in range(3):
            assert (await server.do("act/Go")).status == 200
        why = "No space left on device"
        assert (await server.status())["audit_problem"] == why
        ready = await server.get("/v1/readiness")
        assert (ready.status, ready.json) == (200, {"ok": True, "audit_problem": why})
        assert value(await scraped(server), "gateway_audit_failed_total") == 3
        assert [(one["ok"], one["reason"]) for one in server.events("audit_changed")] == [(False, why)]


async def test_with_required_nothing_is_run_that_cannot_be_told(site: AuditedSite) -> None:
    site.serve(file="/dev/full", required=True, gateway=f"api_key: {KEY}")
    key = {"Authorization": f"Bearer {KEY}"}
    async with served(site, ready=False) as server:
        for _ in range(3):
            assert "No space left on device" in (await refused(server, headers=key)).message
        for path in ("/v1/jobs/purge?older_than=0s", "/v1/jobs/x/cancel"):
            assert (await server.request("POST", path, headers=key)).code == "audit_unavailable"
        assert (await server.do("act/Go")).status == 401  # whoever may not call learns nothing
        assert (await server.get("/v1/commands", headers=key)).status == 200
        ready = await server.get("/v1/readiness")
        expected = {"ok": False, "reason": "audit_unavailable", "audit_problem": "No space left on device"}
        assert (ready.status, ready.json) == (503, expected)
    assert site.effects() == 0


async def test_with_required_a_folder_that_is_gone_refuses_and_its_return_heals(site: AuditedSite) -> None:
    site.serve(required=True)
    async with served(site) as server:
        await server.do("act/Go", headers=named(1))
        shutil.rmtree(site.path.parent)
        assert (await server.do("act/Go", headers=named(2))).status == 200  # nobody has known it
        await refused(server, headers=named(3))
        assert site.effects() == 2
        assert (await server.get("/v1/readiness")).status == 503
        site.path.parent.mkdir()
        await eventually(server.ready)
        assert (await server.do("act/Go", headers=named(4))).status == 200
        facts = [(one["request_id"], one["outcome"]) for one in site.lines()]
        assert facts == [("2", "ok"), ("3", "audit_unavailable"), ("4", "ok")]
        assert [one["ok"] for one in server.events("audit_changed")] == [False, True]


async def test_with_required_a_folder_in_the_place_of_the_file_refuses(site: AuditedSite) -> None:
    site.path.mkdir()
    site.serve(required=True)
    async with served(site, ready=False) as server:
        assert "Is a directory" in (await refused(server)).message
        site.path.rmdir()
        await eventually(server.ready)
        assert (await server.do("act/Go")).status == 200


def test_a_call_of_the_command_line_is_told_too(site: AuditedSite) -> None:
    assert cli(site, "call", "act/Go", "do=told").returncode == 1
    assert cli(site, "call", "nobody/Go").returncode == 1
    facts = [(*told(line), line["client"], line["address"]) for line in site.lines()]
    assert facts == [
        ("call", "act", "Go", "error", None, "default", None),
        ("call", "nobody", "Go", "command_not_found", None, "default", None),
    ]
    site.serve(file="/dev/full")
    done = cli(site, "call", "act/Go")
    assert done.returncode == 0
    assert "warning: the audit cannot be written (gateway.audit): No space left on device" in done.stderr
    site.serve(file="/dev/full", required=True)
    done = cli(site, "call", "act/Go")
    assert done.returncode == 2
    assert done.stderr == "error: the audit cannot be written (gateway.audit): No space left on device\n"
    assert site.effects() == 2


async def well(server: Server) -> bool:
    return bool((await server.get("/v1/readiness")).json == {"ok": True})


@pytest.mark.parametrize("required", [False, True])
async def test_a_fifo_that_nobody_reads_holds_nobody_up(site: AuditedSite, *, required: bool) -> None:
    os.mkfifo(site.path)
    site.serve(required=required)
    async with served(site, ready=False) as server:
        for number in range(3):
            if required:
                await refused(server, headers=named(number))
            else:
                assert (await asyncio.wait_for(server.do("act/Go", headers=named(number)), PATIENCE)).status == 200
        assert (await server.status())["audit_problem"] == "nobody reads it"
        with open(os.open(site.path, os.O_RDONLY | os.O_NONBLOCK)) as reader:
            os.set_blocking(reader.fileno(), True)
            await eventually(lambda: well(server))
            assert (await server.do("act/Go", headers=named("last"))).status == 200
            read = [json.loads(await asyncio.to_thread(reader.readline))["request_id"] for _ in range(4)]
            assert read == ["0", "1", "2", "last"]


async def test_with_required_a_reader_that_stalls_refuses_until_it_reads(site: AuditedSite) -> None:
    (site.folder / "sitecustomize.py").write_text(
        "from gateway.observe import audit, writer\nwriter.STALLED = 0.2\naudit.PATIENCE = 0.4\n"
    )
    os.mkfifo(site.path)
    site.serve(required=True)
    with open(os.open(site.path, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        root = str(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
        async with served(site, env={"PYTHONPATH": f"{site.folder}:{root}"}) as server:
            await until_refused(server)
            assert (await server.get("/liveness")).status == 200
            effects = site.effects()
            await refused(server)
            assert site.effects() == effects
            await eventually(lambda: emptied(reader, server.ready))


async def until_refused(server: Server) -> None:
    """Call until the pipe is full and its reader has stalled; what takes so long is answered all the same."""
    long = {"spiff__task_id": "\1" * 128}

    async def calls_go_on() -> bool:
        answers = await asyncio.gather(*(server.do("act/None", long) for _ in range(50)))
        assert {answer.status for answer in answers} <= {404, 503}
        return all(answer.status == 404 for answer in answers)

    while await calls_go_on():
        pass


async def emptied(reader: Any, ready: Callable[[], Any]) -> Any:
    reader.read()
    return await ready()
