"""Quantiles of what was counted in buckets."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def quantile(bounds: Sequence[float], counts: Sequence[float], share: float) -> float | None:
    """Return the value that a share of all values is at most, as Prometheus' histogram_quantile does.

    `counts` has how many values lie below each of `bounds` and above the one before, and in the end those above the
    last: of these nothing is known but that. None: there are no values.
    """
    wanted, below, lower = sum(counts) * share, 0.0, 0.0
    if not wanted:
        return None
    for bound, count in zip(bounds, counts, strict=False):
        if count and below + count >= wanted:
            return lower + (bound - lower) * (wanted - below) / count
        below += count
        lower = bound
    return lower
