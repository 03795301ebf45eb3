"""What the last quarter of an hour was like: how calls ended, how long they took, how many there were at once.

Nothing is done while a call runs: what the metrics have counted is looked at from time to time.
"""

from __future__ import annotations

import asyncio
import operator
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from gateway.observe.events import ANSWERED
from gateway.observe.metrics import SECONDS
from gateway.observe.quantiles import quantile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from gateway.observe.metrics import Counted, Metrics

STEP = 15.0  # seconds that a point tells of
POINTS = 60  # that are kept
_Whose = tuple[str | None, str | None]
"""A connector by its registered name, and a client; None: all."""


class Busy(NamedTuple):
    """What a client has of a connector at a moment."""

    connector: str
    client: str | None
    """None: there are no clients."""
    running: int
    waiting: int


class Point(NamedTuple):
    """Some seconds of calls. `calls` and `failed` are per second, quantiles are seconds; None: no call has ended."""

    calls: float
    failed: float
    p50: float | None
    p95: float | None
    in_flight: int
    """The most that were seen."""
    queued: int


NOTHING = Point(0.0, 0.0, None, None, 0, 0)


class History:
    """Keeps the points."""

    def __init__(self, metrics: Metrics, busy: Callable[[], Iterable[Busy]], clock: Callable[[], float]) -> None:
        """`clock` returns seconds, and only goes forward."""
        self._metrics = metrics
        self._busy = busy
        self._clock = clock
        self._begun = clock()
        self._seen: dict[tuple[str, ...], _Seen] = {}
        self._series: dict[_Whose, deque[_Slot]] = {}

    async def keep(self) -> None:
        """Look from time to time, for good."""
        while True:
            await self.look()
            self._forget()
            await asyncio.sleep(STEP - (self._clock() - self._begun) % STEP)

    async def look(self) -> None:
        """Take what was counted since the last look."""
        number = self._number()
        for some in self._metrics.counted():
            for one in some:
                self._take(number, one)
            await asyncio.sleep(0)
        running: dict[_Whose, list[int]] = {}
        for now in self._busy():
            for whose in _everybody(now.connector, now.client):
                both = running.setdefault(whose, [0, 0])
                both[0] += now.running
                both[1] += now.waiting
        for whose, (in_flight, queued) in running.items():
            slot = self._slot(whose, number)
            slot.in_flight, slot.queued = max(slot.in_flight, in_flight), max(slot.queued, queued)

    def of(self, connector: str | None, client: str | None) -> list[Point]:
        """Return the points of a connector and a client, or of all (None), the latest last.

        There are few soon after the start; the one that is not over is told while there is no other.
        """
        last = self._number()
        slots = {slot.number: slot for slot in self._series.get((connector, client), ())}
        numbers = range(max(0, last - POINTS), last) or [0]
        covered = min(STEP, max(1.0, self._clock() - self._begun))
        return [slots[number].point(covered) if number in slots else NOTHING for number in numbers]

    # --- private

    def _number(self) -> int:
        return int((self._clock() - self._begun) // STEP)

    def _take(self, number: int, one: Counted) -> None:
        calls = sum(one.outcomes.values())
        seen = self._seen.get(one.labels, _UNSEEN)
        if seen.calls == calls:
            return
        if seen.calls > calls:  # it was taken away, and came again
            seen = _UNSEEN
        failed = calls - sum(one.outcomes.get(outcome, 0) for outcome in ANSWERED)
        took = list(map(operator.sub, one.took, seen.took or [0] * len(one.took)))
        for whose in _everybody(one.connector, one.client):
            self._slot(whose, number).add(calls - seen.calls, failed - seen.failed, took)
        self._seen[one.labels] = _Seen(calls, failed, one.took)

    def _slot(self, whose: _Whose, number: int) -> _Slot:
        slots = self._series.setdefault(whose, deque(maxlen=POINTS + 1))
        if not slots or slots[-1].number != number:
            slots.append(_Slot(number))
        return slots[-1]

    def _forget(self) -> None:
        """Drop what nobody asks for any more."""
        oldest = self._number() - POINTS - 1
        self._series = {whose: slots for whose, slots in self._series.items() if slots[-1].number > oldest}
        known = self._metrics.known()
        self._seen = {labels: seen for labels, seen in self._seen.items() if labels in known}


class _Seen(NamedTuple):
    """What was counted of a command at the last look."""

    calls: int
    failed: int
    took: Sequence[int]


_UNSEEN = _Seen(0, 0, ())


class _Slot:
    """What has come to one point so far."""

    __slots__ = ("calls", "failed", "in_flight", "number", "queued", "took")

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = self.failed = self.in_flight = self.queued = 0
        self.took: list[int] = []

    def add(self, calls: int, failed: int, took: Sequence[int]) -> None:
        self.calls += calls
        self.failed += failed
        if took:
            self.took = list(map(operator.add, self.took or [0] * len(took), took))

    def point(self, seconds: float) -> Point:
        return Point(
            calls=self.calls / seconds,
            failed=self.failed / seconds,
            p50=quantile(SECONDS, self.took, 0.5),
            p95=quantile(SECONDS, self.took, 0.95),
            in_flight=self.in_flight,
            queued=self.queued,
        )


def _everybody(connector: str, client: str | None) -> Iterator[_Whose]:
    """Yield whose points something is in."""
    yield None, None
    yield connector, None
    if client is not None:
        yield None, client
        yield connector, client
