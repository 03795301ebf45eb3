"""The last outcomes of each connector, for the status view."""

from __future__ import annotations

import datetime
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from gateway.observe.events import Event, RegistryLoaded, RunFinished

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT = 10


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One run that is over. `wall` is in seconds."""

    at: datetime.datetime
    command: str
    outcome: str
    error_code: str | None
    wall: float
    request_id: str


class Recent:
    """Listens to runs."""

    def __init__(self, now: Callable[[], datetime.datetime]) -> None:
        self._now = now
        self._outcomes: dict[str, deque[Outcome]] = {}

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, RegistryLoaded):
            for name in event.removed:
                self._outcomes.pop(name, None)
            for name in event.changed:
                self._outcomes.setdefault(name, deque(maxlen=KEPT))
        elif isinstance(event, RunFinished) and event.connector in self._outcomes:
            self._outcomes[event.connector].append(
                Outcome(
                    at=self._now(),
                    command=event.command,
                    outcome=event.outcome,
                    error_code=event.error_code,
                    wall=event.wall,
                    request_id=event.request_id,
                )
            )

    def of(self, connector: str) -> list[Outcome]:
        """Return a connector's last outcomes, the newest first."""
        return list(reversed(self._outcomes.get(connector, ())))
