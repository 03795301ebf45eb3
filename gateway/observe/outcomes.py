"""The last outcomes of each connector, for the status view."""

from __future__ import annotations

import datetime
import itertools
import operator
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from gateway.observe.events import Event, RegistryLoaded, RunFinished

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT = 10
SAID = 1000  # characters of a message


class PastRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run that is over. `wall` is in seconds."""

    at: datetime.datetime
    command: str
    outcome: str
    error_code: str | None
    wall: float
    request_id: str
    message: str | None = None
    """What it said at its end: so many characters of it."""


class Recent:
    """Listens to runs."""

    kinds = (RegistryLoaded, RunFinished)
    """What it listens to."""

    def __init__(self, now: Callable[[], datetime.datetime]) -> None:
        self._now = now
        self._runs: dict[str, dict[str | None, deque[tuple[datetime.datetime, RunFinished]]]] = {}

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if type(event) is RunFinished:
            runs = self._runs.get(event.connector)
            if runs is not None:
                own = runs.get(event.client)
                if own is None:
                    own = runs[event.client] = deque(maxlen=KEPT)
                own.append((self._now(), event))
        elif type(event) is RegistryLoaded:
            for name in event.removed:
                self._runs.pop(name, None)
            for name in event.changed:
                self._runs.setdefault(name, {})

    def of(self, connector: str, client: str | None = None) -> list[PastRun]:
        """Return a connector's last outcomes, the newest first; those of one client, or of all."""
        runs = self._runs.get(connector, {})
        found = itertools.chain.from_iterable(runs.values()) if client is None else runs.get(client, ())
        return [
            PastRun(
                at=at,
                command=run.command,
                outcome=run.outcome,
                error_code=run.error_code,
                wall=run.wall,
                request_id=run.request_id,
                message=run.message and run.message[:SAID],
            )
            for at, run in reversed(sorted(found, key=operator.itemgetter(0))[-KEPT:])
        ]
