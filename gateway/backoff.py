"""How long to wait before the next try, when one after the other fails."""

from __future__ import annotations

import random


class Backoff:
    """Waits that double, from the first to the longest; in seconds."""

    def __init__(self, first: float, longest: float, *, spread: float = 0.0) -> None:
        """`spread` is the part of a wait, from 0 to 1, that is left to chance, so that many do not come at once."""
        self._first = first
        self._longest = longest
        self._spread = spread
        self.tries = 0
        """How many waits there were since the last success."""

    def next(self) -> float:
        """Return the wait that comes now."""
        wait = min(self._longest, self._first * 2.0 ** min(self.tries, 60))
        self.tries += 1
        return wait * (1 - self._spread * random.random())  # noqa: S311 - spreads load

    def reset(self) -> None:
        """Begin again: it has worked."""
        self.tries = 0
