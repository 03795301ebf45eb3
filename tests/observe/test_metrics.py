"""What a scrape says, and that callers cannot make it grow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from gateway.observe.events import RegistryLoaded, RunFinished
from gateway.observe.metrics import Metrics
from tests.support import Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import Iterable

ANY = "commands: {Go: {additional_parameters: true}}"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Idle:
    """A load of nothing."""

    def lanes(self) -> Iterable[tuple[str, int, int]]:
        return []

    def open_jobs(self) -> int:
        return 0

    def audit_failed(self) -> int:
        return 0

    def journal_dropped(self) -> int:
        return 0

    def listener_faults(self) -> dict[str, int]:
        return {}


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


def test_a_scrape_is_valid_before_anything_happened() -> None:
    assert parsed(Metrics(Idle()).text())[("gateway_quarantined", frozenset())] == 0


def test_what_a_caller_typed_is_no_label_whatever_the_refusal() -> None:
    metrics = Metrics(Idle())
    for outcome in ("command_not_found", "gateway_draining"):
        metrics(RunFinished(connector="typed", command="typed", request_id="typed", outcome=outcome))
    metrics(RunFinished(connector="fax", command="typed", request_id="typed", outcome="connector_unavailable"))
    assert b"typed" not in metrics.text()


def run(connector: str, outcome: str = "ok", **facts: float) -> RunFinished:
    return RunFinished(connector=connector, command="Go", request_id="r", outcome=outcome, pid=7, **facts)  # type: ignore[arg-type]


def test_a_value_counts_below_the_first_bound_that_it_does_not_exceed() -> None:
    metrics = Metrics(Idle())
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


def test_what_was_counted_of_a_connector_goes_with_it() -> None:
    metrics = Metrics(Idle())
    for name in ("fax", "mail"):
        metrics(run(name))
    metrics(RegistryLoaded(connectors=1, commands=1, quarantined=0, changed=(), removed=("fax",), took=0.1))
    assert b'"fax"' not in metrics.text()
    assert value(parsed(metrics.text()), "gateway_runs_total", connector="mail", command="Go", outcome="ok") == 1
