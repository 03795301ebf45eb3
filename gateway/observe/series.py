"""Numbers that only grow, and how they are written: in pieces, between which calls have their turn."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily

from gateway.observe import exposition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

_SLICE = 100  # series of which one piece of a scrape tells


class Count:
    """A number that only grows, and since when, in seconds of the epoch."""

    __slots__ = ("created", "value")

    def __init__(self) -> None:
        self.value = 0
        self.created = time.time()


class Histogram:
    """How many values were at most as large as each bound, and the sum of all."""

    __slots__ = ("bounds", "counts", "created", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.created = time.time()

    def written(self, name: str, labels: str) -> str:
        """Write its samples."""
        return exposition.buckets(name, labels, exposition.bounded(self.bounds), self.counts, self.sum)


class Counter:
    """Numbers that only grow, by the values of labels."""

    def __init__(self, name: str, what: str, labels: tuple[str, ...], known: tuple[str, ...] = ()) -> None:
        """The values in `known` are there from the start: a rate sees the first of what was 0 before."""
        self.counts: dict[tuple[str, ...], Count] = {(value,): Count() for value in known}
        self._name = name
        self._what = what
        self._labels = labels

    def add(self, *values: str) -> None:
        """Count one more."""
        if values not in self.counts:
            self.counts[values] = Count()
        self.counts[values].value += 1

    def family(self) -> Metric:
        """Return it with its samples."""
        family = CounterMetricFamily(self._name, self._what, labels=self._labels)
        for values, count in self.counts.items():
            family.add_metric(values, count.value, created=count.created)
        return family


def sliced(items: list[Any]) -> Iterator[list[Any]]:
    """Yield them in pieces of which each takes a part of a millisecond."""
    for start in range(0, len(items), _SLICE):
        yield items[start : start + _SLICE]


def written(name: str, what: str, timed: list[tuple[str, Histogram]]) -> Iterator[str]:
    """Yield a family of histograms, each with its labels as they are written, and since when they count."""
    yield exposition.head(name, "histogram", what)
    for part in sliced(timed):
        yield "".join([histogram.written(name, labels) for labels, histogram in part])
    yield exposition.head(f"{name}_created", "gauge", what)
    for part in sliced(timed):
        yield exposition.simple(f"{name}_created", ((labels, one.created) for labels, one in part))
