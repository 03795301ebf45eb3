"""Prometheus' text format, for what there is by the thousand: its library takes 20 µs a line, in the calls' loop."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Sample = tuple[str, float]
    """Labels as they are written, and a value."""

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def labelled(labels: Mapping[str, str]) -> str:
    """Write labels."""
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())


@functools.cache
def bounded(bounds: tuple[float, ...]) -> tuple[str, ...]:
    """Write the bounds of a histogram, and the one above them, each as a label that comes after others."""
    return tuple(f',le="{_number(bound)}"}} ' for bound in (*bounds, float("inf")))


def head(name: str, kind: str, what: str) -> str:
    """Write what comes before a family's samples."""
    return f"# HELP {name} {what}\n# TYPE {name} {kind}\n"


def simple(name: str, samples: Iterable[Sample]) -> str:
    """Write samples of a counter or a gauge."""
    return "".join([f"{name}{{{labels}}} {_number(value)}\n" for labels, value in samples])


def buckets(name: str, labels: str, bounds: tuple[str, ...], counts: Iterable[int], total: float) -> str:
    """Write one series of a histogram: `counts` are those between its bounds, `total` is what all values come to."""
    lines, start, below = [], f"{name}_bucket{{{labels}", 0
    for bound, count in zip(bounds, counts, strict=True):
        below += count
        lines.append(f"{start}{bound}{below}.0\n")
    lines.append(f"{name}_count{{{labels}}} {below}.0\n{name}_sum{{{labels}}} {_number(total)}\n")
    return "".join(lines)


def _number(value: float) -> str:
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text
