"""Waits double up to a bound, and begin again after a success."""

from __future__ import annotations

from gateway.backoff import Backoff


def test_waits_double_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 3)
    assert [backoff.next() for _ in range(5)] == [0.5, 1, 2, 3, 3]
    assert backoff.tries == 5
    backoff.reset()
    assert backoff.next() == 0.5


def test_after_very_many_tries_it_is_still_the_longest() -> None:
    backoff = Backoff(0.5, 3)
    backoff.tries = 10**6
    assert backoff.next() == 3


def test_a_part_of_each_wait_is_left_to_chance() -> None:
    backoff = Backoff(8, 8, spread=0.5)
    waits = {backoff.next() for _ in range(200)}
    assert len(waits) > 100
    assert 4 <= min(waits) < 5
    assert 7 < max(waits) <= 8
