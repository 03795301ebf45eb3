"""Prometheus metrics. Labels come from the registry, never from what a caller typed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from gateway.observe.events import (
    BackgroundFinished,
    BackgroundStarted,
    CallbackTried,
    Event,
    JobFinished,
    RegistryLoaded,
    RunFinished,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 120, 600)
_BYTES = tuple(float(1 << n) for n in range(22, 34))
_NEVER_FOUND = {"command_not_found", "gateway_draining"}
_UNAVAILABLE = "connector_unavailable"


class Load(Protocol):
    """What is true at the moment of a scrape."""

    def lanes(self) -> Iterable[tuple[str, int, int]]:
        """Return (connector, in flight, queued) of every connector."""

    def open_jobs(self) -> int | None:
        """Return how many durable jobs are in this gateway's hands; None when nobody can say now."""


class Metrics:
    """Listens to runs and jobs, and asks the load at each scrape."""

    def __init__(self, load: Load, shared: Path | None = None) -> None:
        """`shared` is the folder in which the workers of one gateway sum up; PROMETHEUS_MULTIPROC_DIR names it too."""
        self._shared = shared
        self._registry = CollectorRegistry()
        names = ("connector", "command")
        self._runs = Counter("gateway_runs", "Invocations by outcome", (*names, "outcome"), registry=self._registry)
        self._duration = self._histogram("gateway_run_duration_seconds", "From the start of a process to its end")
        self._queue_wait = self._histogram("gateway_queue_wait_seconds", "From the call to its slot")
        self._cpu = self._histogram("gateway_run_cpu_seconds", "CPU time of a run's processes, user and system")
        self._rss = self._histogram("gateway_run_peak_rss_bytes", "Peak resident memory of a run", _BYTES)
        self._jobs = Counter("gateway_jobs", "Durable jobs that ended, by end", ("state",), registry=self._registry)
        self._callbacks = Counter(
            "gateway_callbacks",
            "Tries to deliver an outcome, by what they led to",
            ("verdict",),
            registry=self._registry,
        )
        self._going_on = Gauge(
            "gateway_background_runs",
            "Runs that go on after their answers",
            ("connector",),
            multiprocess_mode="livesum",
            registry=self._registry,
        )
        self._background = Counter(
            "gateway_background_runs_ended",
            "Runs that went on after their answers, by how they ended",
            (*names, "outcome"),
            registry=self._registry,
        )
        self._quarantined = Gauge(
            "gateway_quarantined",
            "Connectors that cannot be served",
            multiprocess_mode="livemax",  # where workers do not agree, the worst is told
            registry=self._registry,
        )
        self._load = _LoadCollector(load)
        if shared is None:
            self._registry.register(self._load)
        else:
            _forget_the_dead(shared)

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, RunFinished):
            self._count(event)
        elif isinstance(event, JobFinished):
            self._jobs.labels(event.state).inc()
        elif isinstance(event, CallbackTried):
            self._callbacks.labels(event.verdict).inc()
        elif isinstance(event, BackgroundStarted):
            self._going_on.labels(event.connector).inc()
        elif isinstance(event, BackgroundFinished):
            self._going_on.labels(event.connector).dec()
            self._background.labels(event.connector, event.command, event.outcome).inc()
        elif isinstance(event, RegistryLoaded):
            self._quarantined.set(event.quarantined)

    def _count(self, event: RunFinished) -> None:
        labels = (event.connector, event.command)
        if event.outcome in _NEVER_FOUND:
            labels = ("unknown", "unknown")
        elif event.outcome == _UNAVAILABLE:  # nobody has looked whether a quarantined connector has such a command
            labels = (event.connector, "unknown")
        self._runs.labels(*labels, event.outcome).inc()
        if event.pid:
            self._duration.labels(*labels).observe(event.wall)
            self._queue_wait.labels(*labels).observe(event.queue_wait)
            self._cpu.labels(*labels).observe(event.cpu_user + event.cpu_system)
            self._rss.labels(*labels).observe(event.peak_rss)

    def text(self) -> bytes:
        """Return the exposition format, over all workers where there are several."""
        if self._shared is None:
            return generate_latest(self._registry)
        summed = CollectorRegistry()
        MultiProcessCollector(summed, path=str(self._shared))  # type: ignore[no-untyped-call]
        summed.register(self._load)
        return generate_latest(summed)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(name, what, ("connector", "command"), buckets=buckets, registry=self._registry)


def _forget_the_dead(shared: Path) -> None:
    """Remove what workers that are gone said of the present."""
    for file in shared.glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if not os.path.exists(f"/proc/{pid}"):
            file.unlink(missing_ok=True)


class _LoadCollector(Collector):
    def __init__(self, load: Load) -> None:
        self._load = load

    def collect(self) -> Iterator[GaugeMetricFamily]:
        in_flight = GaugeMetricFamily("gateway_in_flight", "Runs that hold a slot", labels=["connector"])
        queued = GaugeMetricFamily("gateway_queued", "Calls that wait for a slot", labels=["connector"])
        for connector, running, waiting in self._load.lanes():
            in_flight.add_metric([connector], running)
            queued.add_metric([connector], waiting)
        yield in_flight
        yield queued
        open_jobs = GaugeMetricFamily("gateway_jobs_open", "Durable jobs in this gateway's hands that have not ended")
        held = self._load.open_jobs()
        if held is not None:  # no sample is better than a 0 that nobody has counted
            open_jobs.add_metric([], held)
        yield open_jobs
