"""What a scrape says, and that callers cannot make it grow."""

from __future__ import annotations

import asyncio
import itertools
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from gateway.calls.circuit import FAILURES
from gateway.jobs import contract
from gateway.observe import exposition
from gateway.observe.events import JobFinished, RegistryLoaded, RunFinished
from gateway.observe.metrics import ConnectionLoad, LaneLoad, Metrics, PlaceLoad
from tests.jobs.support import caller
from tests.support import Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import Iterable

LATER = "commands: {Go: {async: true, additional_parameters: true}}"
ANY = "commands: {Go: {additional_parameters: true}}"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Idle:
    """A load of nothing."""

    def lanes(self) -> Iterable[LaneLoad]:
        return []

    def processes(self) -> PlaceLoad:
        return PlaceLoad(0, 0, 64)

    def ready(self) -> bool:
        return True

    def refusals(self) -> dict[tuple[str, str], int]:
        return {}

    def jobs_available(self) -> bool:
        return True

    def dead_letters(self) -> int:
        return 0

    def open_jobs(self) -> int:
        return 0

    def audit_failed(self) -> int:
        return 0

    def writable(self) -> dict[str, bool]:
        return {}

    def journal_dropped(self) -> int:
        return 0

    def listener_faults(self) -> dict[str, int]:
        return {}


def idle() -> Metrics:
    return Metrics(Idle(), "1.2", lambda: ConnectionLoad(0, 4096, 0, 0, 1 << 28, None))


def parsed(text: bytes) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


async def scraped(gateway: Server) -> Samples:
    return parsed((await gateway.get("/metrics")).raw)


async def test_outcomes_are_counted_under_names_of_the_registry_alone(site: Site) -> None:
    site.script("told.sh", """echo '{"error": {"error_code": "A-code-of-its-own", "message": ""}}'""")
    site.configure(
        f"""
        echo: {{run: [cat], {ANY}}}
        failed: {{run: ["false"], {ANY}}}
        told: {{run: [./told.sh], {ANY}}}
        strict: {{run: [cat], commands: {{Go: {{}}}}}}
        gone: {{run: [no-such-program], {ANY}}}
        """
    )
    async with served(site) as gateway:
        for target in ("echo/Go", "echo/Go", "failed/Go", "told/Go"):
            await gateway.do(target)
        await gateway.do("strict/Go", {"typed-parameter": 1})
        for n in range(3):
            for target in (f"typed-{n}/Go", f"echo/typed-{n}", f"gone/typed-{n}"):
                assert (await gateway.do(target)).status in {404, 503}
            await gateway.get(f"/typed-{n}")
        samples = await scraped(gateway)
        text = (await gateway.get("/metrics")).raw.decode()
    assert "typed-" not in text
    assert "A-code-of-its-own" not in text

    def runs(connector: str, command: str, outcome: str) -> float:
        return value(samples, "gateway_runs_total", connector=connector, command=command, outcome=outcome)

    assert runs("echo", "Go", "ok") == 2
    assert runs("failed", "Go", "connector_failed") == 1
    assert runs("told", "Go", "error") == 1
    assert runs("strict", "Go", "invalid_parameters") == 1
    assert runs("unknown", "unknown", "command_not_found") == 6
    assert runs("gone", "unknown", "connector_unavailable") == 3
    assert value(samples, "gateway_quarantined") == 1


async def test_only_calls_that_had_a_process_are_timed(site: Site) -> None:
    site.configure(f"echo: {{run: [cat], {ANY}}}\nstrict: {{run: [cat], commands: {{Go: {{}}}}}}")
    async with served(site) as gateway:
        await gateway.do("echo/Go")
        await gateway.do("strict/Go", {"a": 1})
        samples = await scraped(gateway)
    for name in ("run_duration_seconds", "queue_wait_seconds", "run_cpu_seconds", "run_peak_rss_bytes"):
        assert value(samples, f"gateway_{name}_count", connector="echo", command="Go") == 1
        assert value(samples, f"gateway_{name}_count", connector="strict", command="Go") == 0
    assert value(samples, "gateway_run_peak_rss_bytes_sum", connector="echo", command="Go") > 1 << 16
    assert 0 < value(samples, "gateway_run_duration_seconds_sum", connector="echo", command="Go") < 10


async def test_gauges_show_the_load_of_the_moment(site: Site) -> None:
    gate = site.folder / "gate"
    site.script("gated.sh", f"while [ ! -e {gate} ]; do sleep 0.01; done; echo 1")
    site.configure(f"gated: {{run: [./gated.sh], concurrency: 2, {ANY}}}\nidle: {{run: [cat], {ANY}}}")
    async with served(site) as gateway:
        calls = [asyncio.create_task(gateway.do("gated/Go")) for _ in range(5)]

        async def full() -> Samples | None:
            samples = await scraped(gateway)
            return samples if value(samples, "gateway_queued", connector="gated") == 3 else None

        samples = await eventually(full)
        assert value(samples, "gateway_in_flight", connector="gated") == 2
        assert ("gateway_in_flight", frozenset({("connector", "idle")})) in samples
        assert value(samples, "gateway_in_flight", connector="idle") == 0
        gate.touch()
        await asyncio.gather(*calls)
        samples = await scraped(gateway)
        assert value(samples, "gateway_in_flight", connector="gated") == 0
        assert value(samples, "gateway_queued", connector="gated") == 0
        assert value(samples, "gateway_runs_total", connector="gated", command="Go", outcome="ok") == 5


async def test_bounds_states_and_what_serves_stand_beside_the_load(site: Site) -> None:
    site.script("crash.sh", "kill -9 $$")
    site.configure(
        f"""
        fax: {{run: [cat], concurrency: 3, queue: 7, {ANY}}}
        crash: {{run: [./crash.sh], {ANY}}}
        gone: {{run: [no-such-program]}}
        """,
        gateway="max_connections: 50\nmax_processes: 9\nmax_held: 64MiB",
    )
    async with served(site) as gateway:
        for _ in range(FAILURES):
            await gateway.do("crash/Go")
        samples = await scraped(gateway)
        for name, of in (("fax", (3, 7, 0, 0)), ("crash", (8, 32, 0, 1))):
            known = ("concurrency", "queue_size", "connector_quarantined", "circuit_open")
            assert tuple(value(samples, f"gateway_{one}", connector=name) for one in known) == of
        assert value(samples, "gateway_connector_quarantined", connector="gone") == 1
        assert ("gateway_concurrency", frozenset({("connector", "gone")})) not in samples  # nobody understood its entry
        assert value(samples, "gateway_ready") == value(samples, "gateway_info", version=version("gateway")) == 1
        assert value(samples, "gateway_jobs_available") == 1
        assert (value(samples, "gateway_connections"), value(samples, "gateway_connections_max")) == (1, 50)
        assert (value(samples, "gateway_held_bytes", what="bodies"), value(samples, "gateway_held_max_bytes")) == (
            0, 64 << 20,
        )  # fmt: skip
        assert (value(samples, "gateway_processes", state="running"), value(samples, "gateway_processes_max")) == (0, 9)
        assert ("gateway_tls_not_after_seconds", frozenset()) not in samples
        assert 0 < value(samples, "process_start_time_seconds") < time.time()
        assert value(samples, "process_open_fds") > 0


async def test_what_callers_wait_for_is_timed_whether_a_process_came_of_it_or_not(site: Site) -> None:
    gate = site.folder / "gate"
    site.script("gated.sh", f"while [ ! -e {gate} ]; do sleep 0.01; done; echo 1")
    site.configure(f"gated: {{run: [./gated.sh], concurrency: 1, queue_timeout: 200ms, {ANY}}}")
    async with served(site) as gateway:
        first = asyncio.create_task(gateway.do("gated/Go"))

        async def runs() -> bool:
            return value(await scraped(gateway), "gateway_in_flight", connector="gated") == 1

        await eventually(runs)
        assert (await gateway.do("gated/Go")).code == "connector_busy"
        await gateway.do("gated/Nothing")
        gate.touch()
        await first
        samples = await scraped(gateway)
        [line] = gateway.events("run", outcome="connector_busy")
    labels = {"connector": "gated", "command": "Go"}
    assert value(samples, "gateway_call_duration_seconds_count", **labels) == 2
    assert value(samples, "gateway_run_duration_seconds_count", **labels) == 1
    assert value(samples, "gateway_call_duration_seconds_bucket", le="0.15", **labels) == 0
    assert line["total"] >= 0.2
    assert "unknown" not in {
        dict(where).get("connector") for name, where in samples if name.startswith("gateway_call_d")
    }


def test_ends_of_jobs_are_there_before_the_first() -> None:
    samples = parsed(idle().text())
    states = {dict(where)["state"] for name, where in samples if name == "gateway_jobs_total"}
    verdicts = {dict(where)["verdict"] for name, where in samples if name == "gateway_callbacks_total"}
    assert states == {one.value for one in contract.ENDS}
    assert verdicts == {one.value for one in contract.Verdict}


def test_a_quantile_is_known_well_between_5_ms_and_40_s() -> None:
    metrics = idle()
    metrics(run("fax", wall=1.0))
    bounds = [
        float(dict(where)["le"])
        for name, where in parsed(metrics.text())
        if name == "gateway_call_duration_seconds_bucket"
    ]
    fine = sorted(one for one in bounds if 0.005 <= one <= 40)
    assert (fine[0], fine[-1]) == (0.005, 40)
    assert all(upper / lower < 1.7 for lower, upper in itertools.pairwise(fine))


async def test_a_client_that_is_refused_is_counted(site: Site) -> None:
    site.configure(f"fax: {{run: [cat], {ANY}}}")
    (site.folder / "clients.d").mkdir()
    (site.folder / "clients.d/acme.yaml").write_text(
        "keys: [{key: sesame, role: operator}]\nlimits: {rate: 1/h, burst: 1}\n"
    )
    key = {"Authorization": "Bearer sesame"}
    async with served(site) as gateway:
        codes = [(await gateway.do("fax/Go", headers=key)).status for _ in range(3)]
        samples = parsed((await gateway.get("/metrics", headers=key)).raw)
    assert codes == [200, 429, 429]
    assert value(samples, "gateway_calls_refused_total", client="acme", limit="rate") == 2


def test_a_scrape_is_valid_before_anything_happened() -> None:
    assert parsed(idle().text())[("gateway_quarantined", frozenset())] == 0


def test_what_a_caller_typed_is_no_label_whatever_the_refusal() -> None:
    metrics = idle()
    for outcome in ("command_not_found", "gateway_draining"):
        metrics(RunFinished(connector="typed", command="typed", request_id="typed", outcome=outcome))
    metrics(RunFinished(connector="fax", command="typed", request_id="typed", outcome="connector_unavailable"))
    assert b"typed" not in metrics.text()


def run(connector: str, outcome: str = "ok", **facts: float) -> RunFinished:
    return RunFinished(connector=connector, command="Go", request_id="r", outcome=outcome, pid=7, **facts)  # type: ignore[arg-type]


def test_a_value_counts_below_the_first_bound_that_it_does_not_exceed() -> None:
    metrics = idle()
    for wall in (0.005, 0.0051, 1000.0):
        metrics(run("fax", wall=wall))
    samples = parsed(metrics.text())
    name, labels = "gateway_run_duration_seconds", {"connector": "fax", "command": "Go"}
    below = {
        bound: value(samples, f"{name}_bucket", le=bound, **labels) for bound in ("0.005", "0.01", "600.0", "+Inf")
    }
    assert below == {"0.005": 1, "0.01": 2, "600.0": 2, "+Inf": 3}
    assert value(samples, f"{name}_count", **labels) == 3
    assert round(value(samples, f"{name}_sum", **labels), 4) == 1000.0101
    assert value(samples, f"{name}_created", **labels) > 0


def test_what_is_written_here_reads_as_the_librarys_own_text_does() -> None:
    theirs = CollectorRegistry()
    seconds = (0.005, 2.5, 600.0)
    histogram = prometheus_client.Histogram("a_b", "What", ["connector"], buckets=seconds, registry=theirs)
    gauge = prometheus_client.Gauge("a_c", "What", ["connector"], registry=theirs)
    odd = 'q"b\\s\nl'
    for took in (0.005, 1.25, 7000.0):
        histogram.labels(odd).observe(took)
    gauge.labels(odd).set(3)
    labels = exposition.labelled({"connector": odd})
    ours = exposition.head("a_b", "histogram", "What")
    ours += exposition.buckets("a_b", labels, exposition.bounded(seconds), (1, 1, 0, 1), 7001.255)
    ours += exposition.head("a_c", "gauge", "What") + exposition.simple("a_c", [(labels, 3)])
    written = prometheus_client.generate_latest(theirs).decode().splitlines()
    assert ours.splitlines() == [line for line in written if "_created" not in line]


def test_a_scrape_of_many_connectors_comes_in_small_pieces() -> None:
    metrics = idle()
    for number in range(1000):
        metrics(run(f"c{number}"))
    pieces = list(metrics.pieces())
    assert max(map(len, pieces)) < 1 << 18
    samples = parsed(b"".join(pieces))
    assert sum(one for (name, _), one in samples.items() if name == "gateway_runs_total") == 1000


def test_what_was_counted_of_a_connector_goes_with_it() -> None:
    metrics = idle()
    for name in ("fax", "mail"):
        metrics(run(name))
    metrics(RegistryLoaded(connectors=1, commands=1, quarantined=0, changed=(), removed=("fax",), took=0.1))
    assert b'"fax"' not in metrics.text()
    assert value(parsed(metrics.text()), "gateway_runs_total", connector="mail", command="Go", outcome="ok") == 1


def test_the_tallies_of_a_connector_are_those_of_its_commands_and_of_one_client() -> None:
    metrics = idle()
    for client, wall, outcome in (("acme", 0.2, "ok"), ("acme", 0.2, "error"), ("beta", 4.0, "ok")):
        metrics(
            RunFinished(
                connector="fax", command=outcome, request_id="r", outcome=outcome, client=client, pid=7, wall=wall
            )
        )
    metrics(RunFinished(connector="fax", command="Go", request_id="r", outcome="connector_busy", client="acme"))
    [everybodys, acmes, betas] = [metrics.tallies(client)["fax"] for client in (None, "acme", "beta")]
    assert everybodys.outcomes == {"ok": 2, "error": 1, "connector_busy": 1}
    assert acmes.outcomes == {"ok": 1, "error": 1, "connector_busy": 1}
    assert betas.outcomes == {"ok": 1}
    assert 0.1 < (acmes.p50 or 0) < (acmes.p95 or 0) <= 0.25
    assert 2.5 < (betas.p50 or 0) <= 5.0
    assert metrics.tallies("gamma") == {}
    metrics(RunFinished(connector="new", command="Go", request_id="r", outcome="connector_busy", client="beta"))
    assert metrics.tallies("beta")["new"].p95 is None


def test_jobs_are_timed_from_their_acceptance_to_the_end_that_they_come_to() -> None:
    metrics = idle()
    for state, took, client in (("delivered", 0.3, "acme"), ("dead", 7200.0, "acme"), ("kept", 2.0, "beta"),
                                ("cancelled", 1.0, "acme"), ("unwanted", 1.0, "acme")):  # fmt: skip
        metrics(
            JobFinished(id="1", connector="fax", command="Go", request_id="r", state=state, took=took, client=client)
        )
    name, acme = "gateway_job_duration_seconds", {"connector": "fax", "command": "Go", "client": "acme"}
    samples = parsed(metrics.text())
    assert value(samples, f"{name}_count", **acme) == 2
    assert value(samples, f"{name}_sum", **acme) == pytest.approx(7200.3)
    assert [value(samples, f"{name}_bucket", **acme, le=bound) for bound in ("0.25", "0.5", "3600.0", "14400.0")] == [
        0, 1, 1, 2
    ]  # fmt: skip
    assert "acme" not in metrics.text("beta").decode()
    assert value(parsed(metrics.text("beta")), f"{name}_count", **{**acme, "client": "beta"}) == 1
    metrics(RegistryLoaded(connectors=0, commands=0, quarantined=0, changed=(), removed=("fax",), took=0.0))
    assert "gateway_job_duration_seconds_count" not in metrics.text().decode()


async def test_a_job_that_is_delivered_is_timed(site: Site) -> None:
    site.configure(f"fax: {{run: [cat], {LATER}}}", gateway="callbacks: {hosts: {127.0.0.1: {}}}")
    async with caller() as backend, served(site) as gateway:
        assert (await gateway.do("fax/Go", {"spiff__callback_url": backend.url})).status == 202

        async def timed() -> bool:
            return (
                value(await scraped(gateway), "gateway_job_duration_seconds_count", connector="fax", command="Go") == 1
            )

        await eventually(timed)
        [event] = gateway.events("job_finished")
        assert 0 < event["took"] < 60
