"""What every scenario shares: load from wrk, what a tree of processes has used, medians and ratios over the rounds."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import time
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from tests import procfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from bench.report import Report
    from bench.servers import Server

PATIENCE = 30.0  # seconds until a thing that should happen counts as not happening
QUIET = 0.15  # seconds in which a tree that is quiet uses at most one tick
ENOUGH = 100  # requests under load that make a good mean; of slower cases some calls are counted one by one

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Plan(NamedTuple):
    """How much is measured. `folder` is the run's own, and is removed afterwards."""

    folder: Path
    rounds: int
    seconds: float
    quick: bool
    report: Report


class Load(NamedTuple):
    """What wrk saw. Latencies in seconds; `bad` counts answers that were no success, and requests without one."""

    requests: int
    rate: float
    p50: float
    p99: float
    bad: int


def parse_wrk(output: str) -> Load:
    """Read what `wrk --latency` prints.

    Raises:
        ValueError: it is not that.
    """
    latency = {share: _seconds(text) for share, text in re.findall(r"^ +(\d+)% +(\S+) *$", output, flags=re.MULTILINE)}
    requests = re.search(r"^ +(\d+) requests in ", output, flags=re.MULTILINE)
    rate = re.search(r"^Requests/sec: +([\d.]+)$", output, flags=re.MULTILINE)
    if requests is None or rate is None or not {"50", "99"} <= latency.keys():
        raise ValueError(f"this is not what wrk --latency prints:\n{output}")
    refused = re.search(r"^ +Non-2xx or 3xx responses: (\d+)$", output, flags=re.MULTILINE)
    broken = re.search(r"^ +Socket errors: (.*)$", output, flags=re.MULTILINE)
    bad = sum(int(count) for found in (refused, broken) if found for count in re.findall(r"\d+", found[1]))
    return Load(int(requests[1]), float(rate[1]), latency["50"], latency["99"], bad)


def _seconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([a-z]+)", text).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]


def wrk(url: str, body: object, *, connections: int, seconds: float, folder: Path) -> Load:
    """Have wrk POST the JSON body over so many connections, each sending the next request after an answer."""
    script = folder / f"wrk-{time.monotonic_ns()}.lua"
    script.write_text(
        f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f"wrk.body = [==[{json.dumps(body)}]==]\n"
    )
    done = subprocess.run(
        ["wrk", "--latency", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s",
         "-s", str(script), url],
        capture_output=True, text=True, check=True, timeout=seconds + 60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    script.unlink()
    return parse_wrk(done.stdout)


class Use(NamedTuple):
    """What a tree of processes uses now. CPU in seconds since its root began, memory in bytes."""

    cpu: float
    resident: int
    processes: int
    descriptors: int


def use_of(pid: int) -> Use:
    """Add up a process and everything below it; the CPU of the children that were reaped is their parents'."""
    pids = procfs.descendants({pid}, procfs.scan())
    return Use(
        cpu=sum(sum(procfs.cpu(one)) for one in pids),
        resident=sum(procfs.memory(one).resident for one in pids),
        processes=len(pids),
        descriptors=sum(_descriptors(one) for one in pids),
    )


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def settle(pid: int, patience: float = 5.0) -> None:
    """Wait until a tree is quiet: what was started ahead has booted, what was hung up on is dead."""
    deadline = time.monotonic() + patience
    before = use_of(pid).cpu
    while time.monotonic() < deadline:
        time.sleep(QUIET)
        now = use_of(pid).cpu
        if now - before <= 1.0 / procfs.TICKS + 1e-6:
            return
        before = now


def eventually(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not become true.
    """
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {patience:.0f} s")
        time.sleep(0.02)


# --- figures


class Figures:
    """One value a case, a measure and a round. A ratio is taken within each round, so that a drift cancels out."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[float]] = defaultdict(list)

    def add(self, case: str, measure: str, value: float) -> None:
        """Take the next round's value."""
        self._values[case, measure].append(value)

    def has(self, case: str, measure: str) -> bool:
        """Tell whether anything was measured."""
        return bool(self._values.get((case, measure)))

    def median(self, case: str, measure: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(self._values[case, measure])

    def ratio(self, case: str, other: str, measure: str) -> float:
        """Return the median over the rounds of the first case's value divided by the other's."""
        pairs = zip(self._values[case, measure], self._values[other, measure], strict=True)
        return statistics.median(one / two if two else float("inf") for one, two in pairs)

    def most(self, case: str, measure: str) -> float:
        """Return the highest value of all rounds."""
        return max(self._values[case, measure])

    def spread(self, case: str, measure: str) -> float:
        """Return how far the rounds lie apart, (highest - lowest) / median."""
        values = self._values[case, measure]
        middle = statistics.median(values)
        return (max(values) - min(values)) / middle if middle else 0.0


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 1).__int__() - 1)]


# --- a contest


class Case(NamedTuple):
    """A target under a load. `name` is unique within a contest but for the connections."""

    name: str
    server: Server
    path: str
    body: object
    connections: int

    @property
    def key(self) -> str:
        """Name the case in the figures."""
        return key(self.name, self.connections)


def key(name: str, connections: int) -> str:
    """Name a case in the figures."""
    return f"{name} @{connections}"


def contest(plan: Plan, cases: list[Case], figures: Figures) -> None:
    """Measure every case in every round, one after the other: rate, p50, p99, CPU a request."""
    for case in cases:
        case.server.post(case.path, case.body)  # it answers at all
        if not plan.quick:
            _under_load(plan, case, 1)  # not counted: what is made at the first calls is made
    for number in range(plan.rounds):
        for case in cases:
            settle(case.server.pid)
            before = use_of(case.server.pid).cpu
            load = _under_load(plan, case, plan.seconds)
            settle(case.server.pid)
            cpu = (use_of(case.server.pid).cpu - before) / max(1, load.requests)
            if load.requests < ENOUGH:
                cpu = cpu_of_calls(case, 2 if plan.quick else 8)
            if load.bad or not load.requests:
                plan.report.note(f"{case.key}: {load.bad} of {load.requests} requests failed in round {number + 1}")
            plan.report.progress(
                f"round {number + 1}/{plan.rounds} {case.key}: {load.rate:.0f}/s, CPU {cpu * 1000:.2f} ms"
            )
            for measure, value in (("rate", load.rate), ("p50", load.p50), ("p99", load.p99), ("cpu", cpu)):
                figures.add(case.key, measure, value)


def cpu_of_calls(case: Case, calls: int) -> float:
    """Return the CPU of a call, from a few that are made one after the other, and what they start ahead."""
    settle(case.server.pid)
    before = use_of(case.server.pid).cpu
    for _ in range(calls):
        case.server.post(case.path, case.body)
    settle(case.server.pid)
    return (use_of(case.server.pid).cpu - before) / calls


def _under_load(plan: Plan, case: Case, seconds: float) -> Load:
    url = f"{case.server.url}{case.path}"
    return wrk(url, case.body, connections=case.connections, seconds=seconds, folder=plan.folder)
