"""How long to wait before the next try, when one after the other fails. Everybody who tries again asks here."""

from __future__ import annotations

import random

MOST = 60  # doublings that are counted


def wait(tried: int, first: float, longest: float, *, spread: float = 0.0) -> float:
    """Return the seconds to wait after so many tries that have had to wait: they double, from the first to the longest.

    `spread` is the part of a wait, from 0 to 1, that is left to chance, so that many do not come at once.
    """
    seconds = min(longest, first * 2.0 ** min(tried, MOST))
    return seconds * (1 - spread * random.random())  # noqa: S311 - spreads load


class Backoff:
    """The waits of one thing that is tried again and again."""

    def __init__(self, first: float, longest: float, *, spread: float = 0.0) -> None:
        """In seconds; see `wait`."""
        self._first = first
        self._longest = longest
        self._spread = spread
        self.tries = 0
        """How many waits there were since the last success."""

    def next(self) -> float:
        """Return the wait that comes now."""
        self.tries += 1
        return wait(self.tries - 1, self._first, self._longest, spread=self._spread)

    def reset(self) -> None:
        """Begin again: it has worked."""
        self.tries = 0
