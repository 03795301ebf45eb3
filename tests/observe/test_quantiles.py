"""Quantiles of counts, beside what Prometheus makes of the same."""

from __future__ import annotations

import pytest

from gateway.observe.quantiles import quantile

BOUNDS = (0.1, 1.0)


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([], 0.5, None),
        ([0, 0, 0], 0.5, None),
        ([10, 0, 0], 0.5, 0.05),
        ([10, 10, 0], 0.75, 0.55),
        ([10, 10, 0], 1.0, 1.0),
        ([0, 0, 5], 0.5, 1.0),  # beyond the last bound
        ([0, 4, 0], 0.5, 0.55),
    ],
)
def test_a_quantile_is_as_prometheus_has_it(counts: list[int], share: float, expected: float | None) -> None:
    found = quantile(BOUNDS, counts, share)
    assert found == (expected if expected is None else pytest.approx(expected))
