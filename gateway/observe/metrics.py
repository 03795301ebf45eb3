"""Metrics in Prometheus' form. Labels come from the registry, never from what a caller typed.

A call counts with plain numbers that stand ready for its command. A scrape writes them out in pieces, so that calls
have their turn in between; what there is once is written by Prometheus' library.
"""

from __future__ import annotations

import operator
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.observe import exposition, logs
from gateway.observe.events import (
    BackgroundFinished,
    BackgroundStarted,
    CallbackTried,
    Event,
    JobFinished,
    RegistryLoaded,
    RunFinished,
)
from gateway.observe.quantiles import quantile
from gateway.observe.series import Count, Counter, Histogram, sliced, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, Sequence

    from prometheus_client import Metric

SECONDS = (
    *(0.005, 0.0075, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.15, 0.25, 0.4, 0.6),
    *(1.0, 1.5, 2.5, 4.0, 6.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 600.0),
)
"""Of what callers wait for: from 5 ms to 40 s a quantile is at most 1.7 times what it was."""
_COARSE = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 120.0, 600.0)
_LONG = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 90.0, 180.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0)
_BYTES = tuple(float(1 << n) for n in range(22, 34))
_NEVER_FOUND = {"command_not_found", "gateway_draining"}
ENDS = ("delivered", "kept", "cancelled", "unwanted", "dead")
_TIMED_ENDS = frozenset(("delivered", "kept", "dead"))
"""Those that a job comes to by itself."""
VERDICTS = ("done", "again", "dead")
_UNAVAILABLE = "connector_unavailable"
_REFUSED = {*_NEVER_FOUND, _UNAVAILABLE}
_UNKNOWN = "unknown"
_COMMAND = ("connector", "command")
_LABELS = (*_COMMAND, "client")
"""The last one where there are clients."""
_HISTOGRAMS = {
    "gateway_call_duration_seconds": "From the call to its outcome: the wait, the run, and what is around it",
    "gateway_run_duration_seconds": "From the start of a process to its end",
    "gateway_queue_wait_seconds": "From the call to its slot",
    "gateway_run_cpu_seconds": "CPU time of a run's processes, user and system",
    "gateway_run_peak_rss_bytes": "Peak resident memory of a run",
}
_JOBS = "gateway_job_duration_seconds", "From a job's acceptance to its end: the wait, its runs, and its callbacks"
_WALL = list(_HISTOGRAMS).index("gateway_run_duration_seconds")


class LaneLoad(NamedTuple):
    """One connector at the moment of a scrape; `bounds` is concurrency and queue, None where nobody can say them."""

    connector: str
    in_flight: int
    queued: int
    bounds: tuple[int, int] | None
    quarantined: bool
    circuit_open: bool


class PlaceLoad(NamedTuple):
    """The processes of a gateway: those of runs, those that are kept without one, and how many there may be."""

    running: int
    kept: int
    most: int


class ConnectionLoad(NamedTuple):
    """Connections, and bytes of bodies and answers that are held, with their bounds; when the certificate ends."""

    open: int
    most: int
    bodies: int
    answers: int
    most_held: int
    tls_ends: float | None
    """Seconds since 1970; None without TLS."""


class Tally(NamedTuple):
    """What was counted of one connector since the start."""

    outcomes: Mapping[str, int]
    walls: Sequence[int] = ()
    """How many of its runs with a process took how long, by bucket."""

    @property
    def p50(self) -> float | None:
        """Seconds within which the half of its runs ended; None: there were none with a process."""
        return quantile(SECONDS, self.walls, 0.5)

    @property
    def p95(self) -> float | None:
        """Seconds within which 19 of 20 of them did."""
        return quantile(SECONDS, self.walls, 0.95)


class Counted(NamedTuple):
    """What was counted of a command since the start."""

    labels: tuple[str, ...]
    """Its connector, its name, and the client where there are some."""
    outcomes: Mapping[str, int]
    took: tuple[int, ...]
    """How many calls took at most each of `SECONDS`, and more than the one before; then the longer ones. Or ()."""

    @property
    def connector(self) -> str:
        """The connector, as it is registered."""
        return self.labels[0]

    @property
    def client(self) -> str | None:
        """Whose calls these are; None: there are no clients."""
        return self.labels[2] if len(self.labels) > len(_COMMAND) else None


class Load(Protocol):
    """What is true at the moment of a scrape."""

    def lanes(self) -> Iterable[LaneLoad]:
        """Return what is true of every connector."""

    def processes(self) -> PlaceLoad:
        """Return how many processes there are."""

    def ready(self) -> bool:
        """Tell whether new work is taken."""

    def refusals(self) -> Mapping[tuple[str, str], int]:
        """Return how many calls were refused, by client and limit."""

    def jobs_available(self) -> bool:
        """Tell whether durable jobs can be accepted and delivered."""

    def open_jobs(self) -> int | None:
        """Return how many durable jobs are in this gateway's hands; None when nobody can say now."""

    def dead_letters(self) -> int | None:
        """Return how many outcomes were given up and not delivered; None when nobody can say now."""

    def writable(self) -> Mapping[str, bool]:
        """Tell of the audit and the journal, where they are kept, whether they can be written."""

    def audit_failed(self) -> int:
        """Return how many lines of the audit could not be written when their time had come."""

    def journal_dropped(self) -> int:
        """Return how many runs are missing in the journal."""

    def listener_faults(self) -> Mapping[str, int]:
        """Return how often each listener that ever did has failed."""


class Metrics:
    """Listens to runs and jobs, and asks the load at each scrape."""

    kinds = (RunFinished, JobFinished, CallbackTried, BackgroundStarted, BackgroundFinished, RegistryLoaded)
    """What it listens to."""

    def __init__(self, load: Load, version: str, connections: Callable[[], ConnectionLoad]) -> None:
        self._load = load
        self._version = version
        self._connections = connections
        self._commands: dict[tuple[str, ...], _CommandSeries] = {}
        """By connector, command, and the client where there are some."""
        self._jobs = Counter("gateway_jobs", "Durable jobs that ended, by end", ("state",), ENDS)
        self._job_times: dict[tuple[str, ...], Histogram] = {}
        """By connector, command, and the client where there are some."""
        self._callbacks = Counter(
            "gateway_callbacks", "Tries to deliver an outcome, by what they led to", ("verdict",), VERDICTS
        )
        self._background = Counter(
            "gateway_background_runs_ended",
            "Runs that went on after their answers, by how they ended",
            (*_COMMAND, "outcome"),
        )
        self._going_on: dict[str, int] = {}
        self._created = time.time()
        self._quarantined = 0
        self._registry = CollectorRegistry()
        self._registry.register(_Written(self._families))
        ProcessCollector(registry=self._registry)

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if type(event) is RunFinished:
            self._count(event)
        elif type(event) is JobFinished:
            self._jobs.add(event.state)
            if event.state in _TIMED_ENDS:
                self._time_job(event)
        elif type(event) is CallbackTried:
            self._callbacks.add(event.verdict)
        elif type(event) is BackgroundStarted:
            self._going_on[event.connector] = self._going_on.get(event.connector, 0) + 1
        elif type(event) is BackgroundFinished:
            self._going_on[event.connector] = self._going_on.get(event.connector, 0) - 1
            self._background.add(event.connector, event.command, event.outcome)
        elif type(event) is RegistryLoaded:
            self._quarantined = event.quarantined
            self._forget(event.removed)

    def text(self, client: str | None = None) -> bytes:
        """Return the exposition format: of everything, or of one client's runs alone."""
        return b"".join(self.pieces(client))

    def pieces(self, client: str | None = None) -> Iterator[bytes]:
        """Yield the same in pieces that take a few milliseconds each, however many connectors there are."""
        for text in self._runs(client):
            yield text.encode()
        if client is None:
            for text in self._lanes():
                yield text.encode()
            yield generate_latest(self._registry)

    def tallies(self, client: str | None = None) -> dict[str, Tally]:
        """Return what was counted of each connector, by its registered name; of one client's runs, or of all."""
        outcomes: dict[str, dict[str, int]] = {}
        walls: dict[str, list[int]] = {}
        for labels, command in self._commands.items():
            if client is not None and labels[2:] != (client,):
                continue
            counted = outcomes.setdefault(labels[0], {})
            for outcome, count in command.outcomes.items():
                counted[outcome] = counted.get(outcome, 0) + count.value
            if len(command.timed) > _WALL:
                more, before = command.timed[_WALL].counts, walls.get(labels[0])
                walls[labels[0]] = list(map(operator.add, before, more)) if before is not None else more
        return {name: Tally(counted, walls.get(name, ())) for name, counted in outcomes.items()}

    def known(self) -> KeysView[tuple[str, ...]]:
        """Return the labels of the commands of which something was counted."""
        return self._commands.keys()

    def counted(self) -> Iterator[list[Counted]]:
        """Yield what was counted of each command, in slices that take a part of a millisecond each."""
        for some in sliced(list(self._commands.items())):
            yield [
                Counted(
                    labels,
                    {outcome: count.value for outcome, count in one.outcomes.items()},
                    tuple(one.timed[0].counts) if one.timed else (),
                )
                for labels, one in some
            ]

    # --- private

    def _count(self, event: RunFinished) -> None:
        outcome = event.outcome
        connector, command_name = event.connector, event.command
        if outcome in _NEVER_FOUND:
            connector = command_name = _UNKNOWN
        elif outcome == _UNAVAILABLE:  # nobody has looked whether a quarantined connector has such a command
            command_name = _UNKNOWN
        labels = (connector, command_name) if event.client is None else (connector, command_name, event.client)
        command = self._commands.get(labels)
        if command is None:
            command = self._commands[labels] = _CommandSeries(labels)
        count = command.outcomes.get(outcome)
        if count is None:
            count = command.outcomes[outcome] = Count()
        count.value += 1
        if outcome in _REFUSED:  # at once, which says nothing of how long others take
            return
        if not event.pid:
            if not command.timed:
                command.timed = (Histogram(SECONDS),)
            taken: tuple[float, ...] = (event.total,)
        else:
            if len(command.timed) < len(_HISTOGRAMS):
                command.timed = (*(command.timed or (Histogram(SECONDS),)), *_of_processes())
            taken = (event.total, event.wall, event.queue_wait, event.cpu_user + event.cpu_system, event.peak_rss)
        for histogram, value in zip(command.timed, taken, strict=False):
            histogram.counts[bisect_left(histogram.bounds, value)] += 1
            histogram.sum += value

    def _time_job(self, event: JobFinished) -> None:
        labels = (event.connector, event.command, *(() if event.client is None else (event.client,)))
        times = self._job_times.get(labels)
        if times is None:
            times = self._job_times[labels] = Histogram(_LONG)
        times.counts[bisect_left(times.bounds, event.took)] += 1
        times.sum += event.took

    def _forget(self, removed: tuple[str, ...]) -> None:
        """Drop what was counted of connectors that are no more, so that reloads do not make it grow."""
        for labels in [labels for labels in self._commands if labels[0] in removed]:
            del self._commands[labels]
        for labels in [labels for labels in self._job_times if labels[0] in removed]:
            del self._job_times[labels]

    def _runs(self, client: str | None = None) -> Iterator[str]:
        """Yield what was counted of runs, of one client or of all."""
        commands = [one for labels, one in self._commands.items() if client is None or labels[2:] == (client,)]
        runs = [(one, outcome, count) for one in commands for outcome, count in one.outcomes.items()]
        for name, kind, key in (
            ("gateway_runs_total", "counter", "value"),
            ("gateway_runs_created", "gauge", "created"),
        ):
            yield exposition.head(name, kind, "Invocations by outcome")
            for some in sliced(runs):
                told = [(f'{one.labels},outcome="{outcome}"', getattr(count, key)) for one, outcome, count in some]
                yield exposition.simple(name, told)
        for number, (name, what) in enumerate(_HISTOGRAMS.items()):
            timed = [(one.labels, one.timed[number]) for one in commands if len(one.timed) > number]
            yield from written(name, what, timed)
        yield from self._written_jobs(client)

    def _written_jobs(self, client: str | None) -> Iterator[str]:
        """Yield how long jobs took, those of one client or all."""
        name, what = _JOBS
        times = [
            (_labels(labels), one)
            for labels, one in self._job_times.items()
            if client is None or labels[2:] == (client,)
        ]
        yield from written(name, what, times)

    def _families(self) -> Iterator[Metric]:
        yield self._jobs.family()
        yield self._callbacks.family()
        yield self._background.family()
        yield GaugeMetricFamily("gateway_quarantined", "Connectors that cannot be served", value=self._quarantined)
        yield from self._gateway()
        yield GaugeMetricFamily(
            "gateway_jobs_available", "1 while jobs can be accepted", value=int(self._load.jobs_available())
        )
        # No sample is better than a 0 that nobody has counted.
        yield GaugeMetricFamily(
            "gateway_jobs_open",
            "Durable jobs in this gateway's hands that have not ended",
            value=self._load.open_jobs(),
        )
        yield GaugeMetricFamily(
            "gateway_jobs_dead",
            "Outcomes of jobs that are kept, and whose delivery was given up",
            value=self._load.dead_letters(),
        )
        writable = GaugeMetricFamily(
            "gateway_writable", "1 while it can be written: the log, the audit, the journal", labels=("what",)
        )
        for what, can in {"log": logs.problem() is None, **self._load.writable()}.items():
            writable.add_metric((what,), int(can))
        yield writable
        yield CounterMetricFamily(
            "gateway_log_dropped",
            "Lines of the log that were dropped, since it could not be written",
            value=logs.dropped(),
            created=self._created,
        )
        yield CounterMetricFamily(
            "gateway_audit_failed",
            "Lines of the audit that could not be written before their calls were answered",
            value=self._load.audit_failed(),
            created=self._created,
        )
        yield CounterMetricFamily(
            "gateway_journal_dropped",
            "Runs that are missing in the journal, since it could not be written",
            value=self._load.journal_dropped(),
            created=self._created,
        )
        faults = CounterMetricFamily(
            "gateway_listener_faults", "Events that a part which listens could not take", labels=("listener",)
        )
        for listener, failed in self._load.listener_faults().items():
            faults.add_metric((listener,), failed, created=self._created)
        yield faults
        refused = CounterMetricFamily(
            "gateway_calls_refused", "Calls beyond a client's limits, which got 429", labels=("client", "limit")
        )
        for labels, count in self._load.refusals().items():
            refused.add_metric(labels, count, created=self._created)
        yield refused

    def _lanes(self) -> Iterator[str]:
        """Yield what is true of connectors."""
        lanes = {exposition.labelled({"connector": one.connector}): one for one in self._load.lanes()}
        bounds = {labels: one.bounds for labels, one in lanes.items() if one.bounds is not None}
        told: dict[str, tuple[str, dict[str, int]]] = {
            "gateway_in_flight": ("Runs that hold a slot", {labels: one.in_flight for labels, one in lanes.items()}),
            "gateway_queued": ("Calls that wait for a slot", {labels: one.queued for labels, one in lanes.items()}),
            "gateway_concurrency": (
                "Runs that may hold a slot",
                {labels: most for labels, (most, _) in bounds.items()},
            ),
            "gateway_queue_size": (
                "Calls that may wait for one",
                {labels: most for labels, (_, most) in bounds.items()},
            ),
            "gateway_connector_quarantined": (
                "1 for a connector that cannot be served",
                {labels: int(one.quarantined) for labels, one in lanes.items()},
            ),
            "gateway_circuit_open": (
                "1 for a connector that is left alone after failures in a row",
                {labels: int(one.circuit_open) for labels, one in lanes.items()},
            ),
            "gateway_background_runs": (
                "Runs that go on after their answers",
                {exposition.labelled({"connector": name}): count for name, count in self._going_on.items()},
            ),
        }
        for name, (what, values) in told.items():
            yield exposition.head(name, "gauge", what) + exposition.simple(name, values.items())

    def _gateway(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("gateway_info", "1, with what serves", labels=("version",))
        info.add_metric((self._version,), 1)
        yield info
        yield GaugeMetricFamily("gateway_ready", "1 while new work is taken", value=int(self._load.ready()))
        places, connections = self._load.processes(), self._connections()
        processes = GaugeMetricFamily("gateway_processes", "Processes of runs, and without one", labels=("state",))
        processes.add_metric(("running",), places.running)
        processes.add_metric(("kept",), places.kept)
        yield processes
        yield GaugeMetricFamily("gateway_processes_max", "Processes that there may be", value=places.most)
        yield GaugeMetricFamily("gateway_connections", "Connections that are open", value=connections.open)
        yield GaugeMetricFamily("gateway_connections_max", "Connections that there may be", value=connections.most)
        held = GaugeMetricFamily("gateway_held_bytes", "What clients hold in memory", labels=("what",))
        held.add_metric(("bodies",), connections.bodies)
        held.add_metric(("answers",), connections.answers)
        yield held
        yield GaugeMetricFamily("gateway_held_max_bytes", "What they may hold", value=connections.most_held)
        yield GaugeMetricFamily(
            "gateway_tls_not_after_seconds", "When the certificate ends", value=connections.tls_ends
        )


def _of_processes() -> tuple[Histogram, ...]:
    """Make those of a command's processes, in the order of `_HISTOGRAMS`."""
    return Histogram(SECONDS), Histogram(SECONDS), Histogram(_COARSE), Histogram(_BYTES)


def _labels(values: tuple[str, ...]) -> str:
    return exposition.labelled(dict(zip(_LABELS, values, strict=False)))


class _CommandSeries:
    """What was counted of one command: its runs by outcome, and what those took that had a process."""

    __slots__ = ("labels", "outcomes", "timed")

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = _labels(labels)
        """As they are written."""
        self.outcomes: dict[str, Count] = {}
        self.timed: tuple[Histogram, ...] = ()
        """In the order of `_HISTOGRAMS`: the first alone before there was a process, none before a call was found."""


class _Written(Collector):
    """What Prometheus' library asks at a scrape."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()
