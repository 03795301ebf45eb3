"""What two scrapes of a gateway's metrics say of its calls in between."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from gateway.identity import called
from gateway.observe.events import ANSWERED
from gateway.observe.quantiles import quantile

RUNS = "gateway_runs_total"
BUCKETS = "gateway_call_duration_seconds_bucket"
STARTED = "process_start_time_seconds"
_WANTED = (RUNS, BUCKETS, STARTED)


class Scrape(NamedTuple):
    """What was counted until a moment, by connector."""

    at: float
    """On a clock that only goes forward."""
    outcomes: dict[tuple[str, str], float]
    """Calls by connector and outcome."""
    buckets: dict[str, dict[float, float]]
    """Of each connector, how many calls took at most so many seconds."""
    started: float | None
    """When the gateway was, in seconds since 1970; None where that is not told."""


class Rates(NamedTuple):
    """A connector's calls within some time. Quantiles are seconds; None where there was no call."""

    calls: float
    failed: float
    p50: float | None
    p95: float | None


NO_CALLS = Rates(0.0, 0.0, None, None)


def scrape(text: str, at: float, *, one_client: bool) -> Scrape:
    """Read what the gateway has answered; of one client's, connectors are called as it calls them."""
    # The parser takes its time: of a thousand connectors most lines are of no interest here.
    lines = "\n".join(line for line in text.splitlines() if line.startswith(_WANTED))
    found = Scrape(at, {}, {}, None)
    for sample in itertools.chain.from_iterable(one.samples for one in text_string_to_metric_families(f"{lines}\n")):
        if sample.name == STARTED:
            found = found._replace(started=sample.value)
            continue
        name = sample.labels["connector"]
        name = called(name) if one_client else name
        if sample.name == RUNS:
            where = name, sample.labels["outcome"]
            found.outcomes[where] = found.outcomes.get(where, 0.0) + sample.value
        else:
            counts, bound = found.buckets.setdefault(name, {}), float(sample.labels["le"])
            counts[bound] = counts.get(bound, 0.0) + sample.value
    return found


def between(before: Scrape | None, now: Scrape) -> dict[str, Rates]:
    """Return each connector's calls between two scrapes; all that there were, without the first or after a restart."""
    if before is None or before.started != now.started:
        before = Scrape(0.0, {}, {}, None)
    rates = {}
    for name in {connector for connector, _ in now.outcomes}:
        counts = {
            outcome: value - before.outcomes.get((name, outcome), 0.0)
            for (connector, outcome), value in now.outcomes.items()
            if connector == name
        }
        earlier = before.buckets.get(name, {})
        buckets = {bound: value - earlier.get(bound, 0.0) for bound, value in now.buckets.get(name, {}).items()}
        failed = sum(value for outcome, value in counts.items() if outcome not in ANSWERED)
        rates[name] = Rates(sum(counts.values()), failed, _quantile(buckets, 0.5), _quantile(buckets, 0.95))
    return rates


def _quantile(below: dict[float, float], share: float) -> float | None:
    """Return the time within which that share of calls was done, of how many took at most so many seconds."""
    bounds = sorted(below)
    counts = [upto - before for before, upto in itertools.pairwise([0.0, *(below[bound] for bound in bounds)])]
    return quantile(bounds[:-1], counts, share)
