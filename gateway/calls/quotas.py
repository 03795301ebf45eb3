"""How many calls a client sends a second, and how many it has at work at once; which it may is in its limits."""

from __future__ import annotations

import itertools
import math
import time
from typing import TYPE_CHECKING

import msgspec

from gateway.errors import RateLimited
from gateway.observe.events import CallsRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.observe.events import Event
    from gateway.sections import ClientLimits
    from gateway.units import Rate

WEIGHT = 0.2  # of the latest call in the moving average
SOONEST, LATEST = 1.0, 60.0  # seconds after which a client that is at its concurrency may come again
TELL = 60.0  # seconds at least between two log lines about one client
LOOK = 2  # other clients that are looked at for each that is new


class _Usage(msgspec.Struct):
    """What a client uses. Moments are the clock's."""

    running: int = 0
    """Its calls, from their request to their answer, and the runs of its jobs."""
    typical: float = SOONEST
    """A moving average of seconds a call."""
    tokens: float = math.inf
    """Of its bucket: each call takes one. There were so many `at` a moment."""
    at: float = 0.0
    refused: int = 0
    """Its calls that were refused since somebody was told."""
    told: float = -math.inf
    until: float = 0.0
    """When its bucket is full and nobody has to remember that it was refused."""


class Quotas:
    """All clients. Nothing is kept of one that has nothing at work and a full bucket."""

    def __init__(
        self,
        limits_of: Callable[[str], ClientLimits | None] = lambda _client: None,
        publish: Callable[[Event], None] = lambda _event: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limits_of` returns a client's present limits; None: it has none."""
        self.limits_of = limits_of
        self.on_room: Callable[[str], None] = lambda _client: None
        """Called with a client that was refused a run, when it may have one again."""
        self.refusals: dict[tuple[str, str], int] = {}
        """How many calls were refused, by client and limit (`rate` or `concurrency`)."""
        self._publish = publish
        self._clock = clock
        self._uses: dict[str, _Usage] = {}
        self._refused: set[str] = set()

    def at_work(self, client: str) -> int:
        """Return how many calls and runs of jobs of a client are at work."""
        use = self._uses.get(client)
        return use.running if use is not None else 0

    def enter(self, client: str, limits: ClientLimits | None) -> float:
        """Count a call that has come; return when that was, for `leave`.

        Raises:
            RateLimited: it is one too many.
        """
        now = self._clock()
        use = self._uses.get(client) or self._new(client, now)
        if limits is not None:
            if limits.concurrency is not None and use.running >= limits.concurrency:
                self._tell(client, use, "concurrency", now)
                raise _too_many(use, limits.concurrency)
            if limits.rate is not None and not _spend(use, limits.rate, limits.most_at_once, now):
                self._tell(client, use, "rate", now)
                raise _too_fast(use, limits.rate)
        use.running += 1
        return now

    def leave(self, client: str, since: float) -> None:
        """Count a call that is over, and began then."""
        use, now = self._uses[client], self._clock()
        use.typical += WEIGHT * (now - since - use.typical)
        self._less(client, use, now)

    def take(self, client: str) -> bool:
        """Count the run of a job, unless it has to wait: jobs leave one of a client's concurrency to its calls."""
        limits = self.limits_of(client)
        most = limits.concurrency if limits is not None else None
        use = self._uses.get(client) or self._new(client, self._clock())
        if most is not None and use.running >= max(1, most - 1):
            self._refused.add(client)
            return False
        use.running += 1
        return True

    def add(self, client: str) -> None:
        """Count a run that goes on after its call was answered, whatever the limits say."""
        use = self._uses.get(client) or self._new(client, self._clock())
        use.running += 1

    def give(self, client: str) -> None:
        """Count a run of a job that is over."""
        self._less(client, self._uses[client], self._clock())

    # --- private

    def _less(self, client: str, use: _Usage, now: float) -> None:
        use.running -= 1
        if not use.running and use.until <= now:
            del self._uses[client]
        if client in self._refused:
            self._refused.discard(client)
            self.on_room(client)

    def _tell(self, client: str, use: _Usage, limit: str, now: float) -> None:
        """Tell that calls were refused: the first at once, and then how many, from time to time."""
        use.refused += 1
        self.refusals[client, limit] = self.refusals.get((client, limit), 0) + 1
        if now < use.told + TELL:
            return
        self._publish(CallsRefused(client=client, limit=limit, refused=use.refused))
        use.refused, use.told, use.until = 0, now, max(use.until, now + TELL)

    def _new(self, client: str, now: float) -> _Usage:
        """Begin to count. Of those that were not looked at for longest, who rests with a full bucket is forgotten."""
        for other in list(itertools.islice(self._uses, LOOK)):
            use = self._uses.pop(other)
            if use.running or use.until > now:
                self._uses[other] = use
        use = self._uses[client] = _Usage()
        return use


def _spend(use: _Usage, rate: Rate, burst: int, now: float) -> bool:
    """Take a token out of a bucket that gets `rate` a second and holds `burst`, if there is one."""
    use.tokens = min(burst, use.tokens + (now - use.at) * rate)
    use.at = now
    if use.tokens < 1:
        return False
    use.tokens -= 1
    use.until = max(use.until, now + (burst - use.tokens) / rate)
    return True


def _too_many(use: _Usage, most: int) -> RateLimited:
    after = min(LATEST, max(SOONEST, use.typical / most))
    return RateLimited(f"{most} calls of this client are at work (its limits.concurrency)", retry_after=after)


def _too_fast(use: _Usage, rate: Rate) -> RateLimited:
    after = (1 - use.tokens) / rate
    return RateLimited(f"this client sends more than {rate} (its limits.rate)", retry_after=after)
