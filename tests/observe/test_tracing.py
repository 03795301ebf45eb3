"""Traces: a real gateway, a real connector, and a collector that takes OTLP over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.http.test_clients import client, do
from tests.jobs.support import caller
from tests.support import Server, Site, cli, eventually, listening, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.jobs.support import Backend
    from tests.support import Gate

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
ACT = """
import json, os, signal, sys
request = json.load(sys.stdin)
what = request["params"].get("do")
told = {name: request["context"].get(name) for name in ("traceparent", "tracestate")}
told["env"] = [os.environ.get("TRACEPARENT"), os.environ.get("TRACESTATE")]
if what == "wait":
    os.read(os.open(os.path.join(os.path.dirname(sys.argv[0]), "gate"), os.O_RDONLY), 1)
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "told":
    told = {"error": {"error_code": "FaxBusy", "message": request["params"]["text"]}}
sys.stderr.write(json.dumps(request["params"]))
print(json.dumps(told))
"""
COMMANDS = """
    commands:
      Go: {additional_parameters: true}
      Short: {timeout: 300ms, additional_parameters: true}
      Job: {async: true, additional_parameters: true}
"""
QUICK = "callbacks: {first_delay: 50ms, hosts: {127.0.0.1: {}}}\ndrain: 2s"


class Seen(NamedTuple):
    """A span that was sent."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    links: list[str]
    """The spans that it is linked to."""
    attributes: dict[str, Any]
    failed: bool
    state: str
    begin: int
    end: int


class Collector:
    """Takes traces; `hang` says that it answers nobody."""

    def __init__(self) -> None:
        self.url = ""
        self.raw = b""
        self.spans: list[Seen] = []
        self.resource: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self.asked = 0
        self.hang = False

    async def take(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.hang:
            await asyncio.Event().wait()
        body = await request.read()
        self.raw += body
        self.headers = dict(request.headers)
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = {one.key: value(one.value) for one in of_resource.resource.attributes}
            self.spans += [seen(one) for scope in of_resource.scope_spans for one in scope.spans]
        return web.Response(content_type="application/x-protobuf")

    async def named(self, *names: str) -> list[Seen]:
        """Wait for spans with these names; return them in this order."""

        def look() -> list[Seen]:
            left = list(self.spans)
            found = []
            for name in names:
                one = next((one for one in left if one.name == name), None)
                if one is None:
                    return []
                left.remove(one)
                found.append(one)
            return found

        return await eventually(look)  # type: ignore[no-any-return]

    def env(self, **more: str) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "50", **more}


def parts(traceparent: str) -> tuple[str, str, bool]:
    """Return the trace, the span, and whether it is sampled; the other flags say nothing of that."""
    _, trace, span, flags = traceparent.split("-")
    return trace, span, bool(int(flags, 16) & 1)


def value(one: Any) -> Any:
    return getattr(one, one.WhichOneof("value"))


def seen(span: Span) -> Seen:
    return Seen(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        links=[link.span_id.hex() for link in span.links],
        attributes={one.key: value(one.value) for one in span.attributes},
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        state=span.trace_state,
        begin=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
    )


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", made.take)
    async with listening(app) as made.url:
        yield made


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    async with caller() as made:
        yield made


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.python("act.py", ACT)
    site.configure(f"act:\n    run: [./act.py]\n    concurrency: 1\n    queue: 1{COMMANDS}", gateway=QUICK)
    return site


@contextlib.asynccontextmanager
async def traced(site: Site, collector: Collector, **env: str) -> AsyncIterator[Server]:
    async with served(site, env=collector.env(**env)) as server:
        yield server


# --- a call


async def test_a_call_its_wait_and_its_run_are_spans_of_the_callers_trace(site: Site, collector: Collector) -> None:
    async with traced(site, collector) as gateway:
        answer = await gateway.do("act/Go", headers={**SAMPLED, "tracestate": "vendor=1", "X-Request-Id": "r-1"})
        call, wait, run = await collector.named("act/Go", "wait act/Go", "run act/Go")
    assert {one.trace for one in (call, wait, run)} == {TRACE}
    assert (call.parent, wait.parent, run.parent) == (PARENT, call.id, call.id)
    assert (call.kind, wait.kind, run.kind) == ("SERVER", "INTERNAL", "INTERNAL")
    assert call.begin <= wait.begin <= wait.end <= run.begin < run.end <= call.end
    assert not any(one.failed or one.links for one in (call, wait, run))
    within = f"00-{TRACE}-{run.id}-01"
    assert answer.body == {"traceparent": within, "tracestate": "vendor=1", "env": [within, "vendor=1"]}
    assert {one.state for one in (call, wait, run)} == {"vendor=1"}
    http = {name: what for name, what in call.attributes.items() if not name.startswith("gateway.")}
    assert http == {
        "http.request.method": "POST",
        "http.route": "/v1/do/{connector}/{command}",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/v1/do/act/Go",
        "server.address": "127.0.0.1",
        "server.port": gateway.port,
        "client.address": "127.0.0.1",
        "network.protocol.version": "1.1",
    }
    common = {
        "gateway.connector": "act",
        "gateway.command": "Go",
        "gateway.client": "default",
        "gateway.request_id": "r-1",
    }
    for one in (call, wait, run):
        assert common.items() <= one.attributes.items()
    assert call.attributes["gateway.outcome"] == run.attributes["gateway.outcome"] == "ok"
    assert (run.attributes["gateway.mode"], run.attributes["process.exit.code"]) == ("spawn", 0)
    (line,) = gateway.events("run")
    for attribute, field in {
        "process.pid": "pid",
        "gateway.peak_rss": "peak_rss",
        "gateway.log_bytes": "log_bytes",
    }.items():
        assert run.attributes[attribute] == line[field] > 0
    assert run.attributes["gateway.cpu_user"] + run.attributes["gateway.cpu_system"] > 0


async def test_a_run_that_is_repeated_belongs_to_the_trace_of_who_repeats_it(site: Site, collector: Collector) -> None:
    site.configure(f"act:\n    run: [./act.py]\n    journal: {{payloads: all}}{COMMANDS}", gateway=QUICK)
    async with traced(site, collector) as gateway:
        await gateway.do("act/Go")
        await collector.named("act/Go", "run act/Go")
        [run] = (await gateway.get("/v1/runs")).json["runs"]
        collector.spans.clear()
        await gateway.request("POST", f"/v1/runs/{run['id']}/replay", headers=SAMPLED)
        call, again = await collector.named("POST /v1/runs/{run}/replay", "run act/Go")
    assert (call.trace, call.parent, again.parent) == (TRACE, PARENT, call.id)
    assert (call.attributes["gateway.connector"], call.attributes["gateway.command"]) == ("act", "Go")


async def test_a_call_without_a_trace_begins_one(site: Site, collector: Collector) -> None:
    async with traced(site, collector) as gateway:
        for headers in ({}, {"traceparent": "no such thing"}, {"traceparent": f"00-{'0' * 32}-{PARENT}-01"}):
            collector.spans.clear()
            told = (await gateway.do("act/Go", headers=headers)).body
            call, run = await collector.named("act/Go", "run act/Go")
            assert call.parent == ""
            assert parts(told["traceparent"]) == (call.trace, run.id, True)


async def test_what_its_caller_does_not_sample_is_not_sent_and_handed_on(site: Site, collector: Collector) -> None:
    async with traced(site, collector) as gateway:
        told = (await gateway.do("act/Go", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})).body
        trace, span, sampled = parts(told["traceparent"])
        assert (trace, span == PARENT, sampled) == (TRACE, False, False)
        await gateway.do("act/Go", headers={"traceparent": f"00-{'a' * 32}-{PARENT}-01"})
        await collector.named("act/Go", "run act/Go")
    assert {one.trace for one in collector.spans} == {"a" * 32}


async def test_the_sampler_of_the_environment_decides(site: Site, collector: Collector) -> None:
    async with traced(site, collector, OTEL_TRACES_SAMPLER="parentbased_always_off") as gateway:
        assert parts((await gateway.do("act/Go")).body["traceparent"])[2] is False
        await gateway.do("act/Go", headers=SAMPLED)
        await collector.named("act/Go", "run act/Go")
    assert {one.trace for one in collector.spans} == {TRACE}


async def test_who_sends_them_is_told_by_the_standard_variables(site: Site, collector: Collector) -> None:
    async with traced(site, collector, OTEL_EXPORTER_OTLP_HEADERS="x-key=s3cr%20t") as gateway:
        await gateway.do("act/Go")
        await collector.named("act/Go")
    assert collector.resource["service.name"] == "connector-gateway"
    assert collector.resource["service.version"]
    assert collector.headers["x-key"] == "s3cr t"
    told = {"OTEL_SERVICE_NAME": "here", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
    async with traced(site, collector, **told) as gateway:
        await gateway.do("act/Go")
        await eventually(lambda: collector.resource["service.name"] == "here")
    assert collector.resource["deployment.environment.name"] == "test"


async def test_suggestions_are_traced_as_their_commands_run(site: Site, collector: Collector) -> None:
    command = "{parameters: {text: {type: str}}, typeahead: {category: names, prefix: text}}"
    site.script("names.sh", """cat > /dev/null; echo '["a"]'""")
    site.configure(f"names:\n    run: [./names.sh]\n    commands:\n      Find: {command}")
    async with traced(site, collector) as gateway:
        assert (await gateway.get("/v1/typeahead/names?prefix=what-is-typed", headers=SAMPLED)).json == ["a"]
        call, run = await collector.named("GET /v1/typeahead/{category}", "run names/Find")
    assert (call.parent, run.parent, run.trace) == (PARENT, call.id, TRACE)
    assert (call.attributes["gateway.connector"], call.attributes["gateway.command"]) == ("names", "Find")
    assert b"what-is-typed" not in collector.raw


async def test_a_run_that_goes_on_after_its_answer_ends_when_it_does(
    site: Site, gate: Gate, collector: Collector
) -> None:
    site.script(
        "later.sh",
        """
        request=$(cat)
        case $request in
        *'"op":"describe"'*) echo '{"commands": [{"name": "Go", "execute_async": true}]}'; exit ;;
        esac
        echo '{"started": true}'; exec >&-
        head -c 1 "$(dirname "$0")/gate" >/dev/null
        exit 3
        """,
    )
    site.configure("later: {run: [./later.sh]}")
    async with traced(site, collector) as gateway:
        assert (await gateway.do("later/Go", {"spiff__callback_url": "http://127.0.0.1:9/"})).status == 202
        (call,) = await collector.named("later/Go")
        assert call.attributes["gateway.outcome"] == "accepted"
        gate.let()
        (run,) = await collector.named("run later/Go")
    assert (run.parent, run.attributes["gateway.outcome"], run.attributes["process.exit.code"]) == (
        call.id,
        "failed",
        3,
    )
    assert run.end > call.end


async def test_a_call_that_becomes_a_job_while_it_runs_stays_one_trace(
    site: Site, gate: Gate, collector: Collector, backend: Backend
) -> None:
    site.configure(f"act:\n    run: [./act.py]\n    promote_after: 100ms{COMMANDS}", gateway=QUICK)
    async with traced(site, collector) as gateway:
        answer = await gateway.do("act/Go", {"do": "wait", "spiff__callback_url": backend.url}, headers=SAMPLED)
        assert answer.status == 202
        gate.let()
        call, run, told = await collector.named("act/Go", "run act/Go", "callback act/Go")
    assert (run.parent, run.kind, told.parent, told.links) == (call.id, "INTERNAL", call.id, [call.id])
    assert call.attributes["gateway.job"] == told.attributes["gateway.job"]


async def test_a_process_that_was_started_ahead_reads_the_trace_in_its_request(
    site: Site, collector: Collector
) -> None:
    site.configure(f"act:\n    run: [./act.py]\n    mode: standby{COMMANDS}")
    async with traced(site, collector) as gateway:
        told = (await gateway.do("act/Go")).body
        (run,) = await collector.named("run act/Go")
    assert (told["traceparent"].split("-")[2], run.attributes["gateway.mode"]) == (run.id, "standby")


# --- what goes wrong


@pytest.mark.usefixtures("gate")
async def test_what_goes_wrong_is_told_by_its_code(site: Site, collector: Collector) -> None:
    async with traced(site, collector) as gateway:
        assert (await gateway.do("act/Short", {"do": "wait"})).status == 504
        call, run = await collector.named("act/Short", "run act/Short")
        assert (call.failed, run.failed) == (True, True)
        assert call.attributes["error.type"] == run.attributes["error.type"] == "connector_timeout"
        assert call.attributes["http.response.status_code"] == 504
        assert "process.exit.code" not in run.attributes
        assert (await gateway.do("act/Go", {"do": "die"})).code == "connector_crashed"
        (run,) = await collector.named("run act/Go")
        assert (run.attributes["gateway.signal"], run.attributes["error.type"]) == ("SIGKILL", "connector_crashed")
        collector.spans.clear()
        assert (await gateway.do("act/Go", {"do": "told", "text": "engaged"})).code == "FaxBusy"
        call, run = await collector.named("act/Go", "run act/Go")
        assert (call.failed, run.failed, run.attributes["error.type"]) == (False, True, "error")


async def test_requests_that_name_what_is_not_there_make_no_names_of_spans(site: Site, collector: Collector) -> None:
    async with traced(site, collector, CONNECTOR_PROXY_API_KEY="a-key") as gateway:
        key = {"Authorization": "Bearer a-key"}
        route = "/v1/do/{connector}/{command}"
        assert (await gateway.do("act/Nope", headers=key)).status == 404
        (call,) = await collector.named(f"POST {route}")
        assert (call.attributes["gateway.outcome"], call.failed) == ("command_not_found", False)
        assert (await gateway.do("any/Thing")).status == 401
        _, call = await collector.named(f"POST {route}", f"POST {route}")
        assert call.attributes["gateway.outcome"] == "unauthorized"
        assert "gateway.client" not in call.attributes
        await gateway.get("/v1/commands", headers=key)
        await gateway.do("act/Go", headers=key)
        await collector.named("run act/Go")
    assert {one.name for one in collector.spans} == {f"POST {route}", "act/Go", "wait act/Go", "run act/Go"}


async def test_a_wait_that_leads_to_nothing_is_told(site: Site, gate: Gate, collector: Collector) -> None:
    async with traced(site, collector) as gateway:
        first = asyncio.create_task(gateway.do("act/Go", {"do": "wait"}))
        await eventually(gateway.connectors)
        assert (await gateway.do("act/Short", headers=SAMPLED)).code == "connector_busy"
        (wait,) = await collector.named("wait act/Short")
        gate.let()
        await first
    assert (wait.failed, wait.attributes["error.type"]) == (True, "connector_busy")
    assert wait.end - wait.begin > 100_000_000  # of the 300 ms that it has
    assert "run act/Short" not in {one.name for one in collector.spans}


@pytest.mark.usefixtures("gate")
async def test_whoever_hangs_up_is_told(site: Site, collector: Collector) -> None:
    async with traced(site, collector) as gateway:
        calling = asyncio.create_task(gateway.do("act/Go", {"do": "wait"}))
        await eventually(gateway.connectors)
        calling.cancel()
        call, run = await collector.named("act/Go", "run act/Go")
    assert call.attributes["error.type"] == run.attributes["error.type"] == "cancelled"
    assert "http.response.status_code" not in call.attributes


async def test_no_payload_and_no_secret_is_in_them(site: Site, collector: Collector) -> None:
    async with traced(site, collector, CONNECTOR_PROXY_API_KEY="the-api-key") as gateway:
        key = {"Authorization": "Bearer the-api-key"}
        for what in ("told", None):
            await gateway.do(
                "act/Go?and=a-query", {"do": what, "text": "of-a-caller", "password": "hunter2"}, headers=key
            )
        await collector.named("run act/Go", "run act/Go")
    for word in (b"the-api-key", b"of-a-caller", b"hunter2", b"a-query"):
        assert word not in collector.raw


async def test_a_span_says_whose_it_is(site: Site, collector: Collector) -> None:
    client(site, "acme", "keys: [KEY(a)]\nallow: [act]")
    async with traced(site, collector) as gateway:
        assert (await do(gateway, "a", "act/Go")).status == 200
        found = await collector.named("act/Go", "wait act/Go", "run act/Go")
    assert {one.attributes["gateway.client"] for one in found} == {"acme"}


async def test_bytes_that_are_no_text_hold_nothing_up(site: Site, collector: Collector) -> None:
    async with traced(site, collector) as gateway:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"POST /v1/do/act/Go HTTP/1.1\r\nHost: [::1%\xff]\r\nContent-Length: 2\r\n\r\n{}")
        (odd,) = await collector.named("POST /v1/do/{connector}/{command}")
        assert odd.attributes["server.address"] == "::1%?"
        await gateway.do("act/Go", {"spiff__task_id": "\N{SNOWMAN}"})
        (run,) = await collector.named("run act/Go")
        writer.close()
        assert not gateway.events("traces_failed")
    assert run.attributes["gateway.task_id"] == "\N{SNOWMAN}"


# --- jobs


async def test_a_jobs_run_and_each_try_to_call_back_belong_to_the_call_that_accepted_it(
    site: Site, collector: Collector, backend: Backend
) -> None:
    backend.answers = [500, 200]
    async with traced(site, collector) as gateway:
        params = {"spiff__callback_url": backend.url, "spiff__task_id": "task-1"}
        headers = {**SAMPLED, "tracestate": "vendor=1"}
        accepted = await gateway.do("act/Job", params, headers=headers)
        assert accepted.status == 202
        job = accepted.body["job_id"]
        tries = ("callback act/Job", "callback act/Job")
        call, wait, run, first, second = await collector.named("act/Job", "wait act/Job", "run act/Job", *tries)
    assert (call.parent, call.attributes["gateway.job"], call.attributes["gateway.outcome"]) == (
        PARENT,
        job,
        "accepted",
    )
    for one in (wait, run, first, second):
        assert (one.trace, one.parent, one.links) == (TRACE, call.id, [call.id])
        assert one.attributes["gateway.task_id"] == "task-1"
    assert (wait.kind, run.kind, first.kind) == ("INTERNAL", "CONSUMER", "CLIENT")
    assert backend.seen[0][1]["command_response"]["body"]["env"] == [f"00-{TRACE}-{run.id}-01", "vendor=1"]
    sent = [(headers["traceparent"], headers["tracestate"]) for headers, _ in backend.seen]
    assert sent == [(f"00-{TRACE}-{one.id}-01", "vendor=1") for one in (first, second)]
    assert (first.failed, first.attributes["error.type"], first.attributes["gateway.verdict"]) == (True, "500", "again")
    assert "http.request.resend_count" not in first.attributes
    assert not second.failed
    expected = {
        "http.request.method": "PUT",
        "http.response.status_code": 200,
        "http.request.resend_count": 1,
        "server.address": "127.0.0.1",
        "gateway.verdict": "done",
        "gateway.job": job,
        "gateway.client": "default",
    }
    assert expected.items() <= second.attributes.items()


async def test_a_job_that_outlives_its_gateway_belongs_to_its_call(
    site: Site, collector: Collector, backend: Backend
) -> None:
    backend.answers = [503]
    async with traced(site, collector) as gateway:
        await gateway.do("act/Job", {"spiff__callback_url": backend.url}, headers=SAMPLED)
        (call,) = await collector.named("act/Job")
        await eventually(lambda: backend.seen)
    collector.spans.clear()
    backend.answers = [200]
    async with traced(site, collector):
        found = await eventually(lambda: [one for one in collector.spans if not one.failed])
    assert [(one.name, one.trace, one.parent) for one in found] == [("callback act/Job", TRACE, call.id)]


async def test_callbacks_without_traces_carry_the_callers_own(site: Site, backend: Backend) -> None:
    async with served(site) as gateway:
        headers = {**SAMPLED, "tracestate": "vendor=1"}
        await gateway.do("act/Job", {"spiff__callback_url": backend.url}, headers=headers)
        await eventually(lambda: backend.seen)
    assert headers.items() <= {name.lower(): text for name, text in backend.seen[0][0].items()}.items()


# --- the collector, and the extra


async def test_a_collector_that_hangs_holds_neither_calls_nor_the_end(site: Site, collector: Collector) -> None:
    collector.hang = True
    async with traced(site, collector, OTEL_EXPORTER_OTLP_TIMEOUT="600") as gateway:
        for _ in range(3):
            assert (await gateway.do("act/Go")).status == 200
        await eventually(lambda: collector.asked)
        assert (await gateway.do("act/Go")).status == 200
        gateway.signal(15)
        assert await gateway.ended() == 0


async def test_a_collector_that_is_away_is_told_in_the_log(site: Site, collector: Collector) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        async with traced(site, collector, OTEL_EXPORTER_OTLP_ENDPOINT=nowhere) as gateway:
            assert (await gateway.do("act/Go")).status == 200
            (told, *more) = await eventually(lambda: gateway.events("traces_failed"))
            assert (told["level"], told["count"], more) == ("warning", 1, [])
            assert told["reason"]
            assert (await gateway.do("act/Go")).status == 200


@pytest.mark.parametrize("variables", [{}, {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h"}])
async def test_nothing_is_imported_where_nobody_asks(site: Site, variables: dict[str, str]) -> None:
    async with served(site, env={**variables, "PYTHONPROFILEIMPORTTIME": "1"}) as gateway:
        assert (await gateway.do("act/Go")).body["traceparent"] is None
        assert "gateway.server" in gateway.log()
        assert "opentelemetry" not in gateway.log()


async def test_the_command_line_traces_nothing(site: Site, collector: Collector) -> None:
    done = await asyncio.to_thread(
        cli, site, "call", "act/Go", env=collector.env(PYTHONPROFILEIMPORTTIME="1"),
    )  # fmt: skip
    assert done.returncode == 0
    assert "gateway.gateway" in done.stderr
    assert "opentelemetry" not in done.stderr


async def test_without_the_extra_the_log_says_what_to_install(site: Site, collector: Collector) -> None:
    hidden = site.folder / "hidden"
    hidden.mkdir()
    (hidden / "opentelemetry.py").write_text("raise ImportError('not installed')")
    path = f"{hidden}:{Path(__file__).parent.parent.parent}"
    async with traced(site, collector, PYTHONPATH=path) as gateway:
        (told,) = gateway.events("traces_off")
        assert (told["level"], "pip install 'gateway[otel]'" in told["hint"]) == ("warning", True)
        assert (await gateway.do("act/Go")).status == 200


@pytest.mark.parametrize(
    ("variables", "hint"),
    [
        ({"OTEL_TRACES_EXPORTER": "abacus"}, "there is no exporter abacus"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "pip install opentelemetry-exporter-otlp-proto-grpc"),
    ],
)
async def test_an_exporter_that_is_not_there_is_told_in_the_log(
    site: Site, collector: Collector, variables: dict[str, str], hint: str
) -> None:
    async with traced(site, collector, **variables) as gateway:
        assert hint in gateway.events("traces_off")[0]["hint"]
        assert (await gateway.do("act/Go")).status == 200


async def test_traces_can_be_written_to_standard_output(site: Site, collector: Collector) -> None:
    async with traced(site, collector, OTEL_TRACES_EXPORTER="console") as gateway:
        await gateway.do("act/Go")
        await eventually(lambda: '"name": "run act/Go"' in gateway.log())
    assert not collector.asked


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "0"},
        {"OTEL_BSP_MAX_QUEUE_SIZE": "-1"},
        {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"},
    ],
)
async def test_what_the_library_does_not_understand_stops_nothing(
    site: Site, collector: Collector, variables: dict[str, str]
) -> None:
    async with traced(site, collector, **variables) as server:
        [line] = server.events("traces_off")
        assert line["hint"]
        assert (await server.do("act/Go")).status == 200


async def test_a_header_that_is_none_is_not_told(site: Site, collector: Collector) -> None:
    async with traced(
        site, collector, OTEL_EXPORTER_OTLP_HEADERS="x-team=a, authorization Bearer s3cr3t-key"
    ) as server:
        (told,) = server.events("traces_failed")
        assert "s3cr3t" not in server.log()
        assert "Header format invalid" in told["reason"]
        assert (await server.do("act/Go")).status == 200
