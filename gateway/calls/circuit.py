"""Stops calling a connector that crashes on every call, and finds out by itself when it works again."""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING

from gateway.backoff import Backoff
from gateway.errors import ConnectorUnavailable
from gateway.observe.events import Bus, CircuitClosed, CircuitOpened
from gateway.states import move

if TYPE_CHECKING:
    from collections.abc import Callable

FAILURES = 5  # in a row
COOLDOWN = 5.0  # seconds; doubles with each probe that fails
LONGEST = 60.0  # seconds


class CircuitState(enum.Enum):
    """Closed: calls pass. Open: none does. Half open: one probe is on its way."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


MOVES = {
    CircuitState.CLOSED: {CircuitState.OPEN},
    CircuitState.OPEN: {CircuitState.HALF_OPEN, CircuitState.CLOSED},
    CircuitState.HALF_OPEN: {CircuitState.OPEN, CircuitState.CLOSED},
}


class Circuit:
    """The record of one definition of one connector, as it works for one client."""

    def __init__(self, connector: str, bus: Bus, clock: Callable[[], float], client: str | None = None) -> None:
        self.connector = connector
        self.client = client
        self.state = CircuitState.CLOSED
        self.reason = ""
        self.spotless = True
        """It is closed, and the latest run that said anything succeeded."""
        self._bus = bus
        self._clock = clock
        self._failures = 0
        self._cooldowns = Backoff(COOLDOWN, LONGEST)
        self._probe_at = 0.0

    def admit(self) -> None:
        """Let a call pass, or not.

        Raises:
            ConnectorUnavailable: the circuit is open.
        """
        if self.state is CircuitState.CLOSED:
            return
        wait = self._probe_at - self._clock()
        if self.state is CircuitState.OPEN and wait <= 0:
            self._move(CircuitState.HALF_OPEN)
            return
        raise ConnectorUnavailable(
            f"it failed {self._failures} times in a row, the last time: {self.reason}; "
            f"the next try is in {max(0.0, wait):.1f} s",
            retry_after=max(1, math.ceil(wait)),
        )

    def succeeded(self) -> None:
        """The process ran and ended by itself, whatever it answered."""
        if self.state is not CircuitState.CLOSED:
            self._move(CircuitState.CLOSED)
            self._bus.publish(CircuitClosed(connector=self.connector, client=self.client))
        self.spotless = True
        self._failures = 0
        self._cooldowns.reset()

    def failed(self, reason: str) -> None:
        """The process could not be started, or crashed."""
        self._failures += 1
        self.spotless = False
        self.reason = reason
        if self.state is CircuitState.HALF_OPEN or (self.state is CircuitState.CLOSED and self._failures >= FAILURES):
            self._open()

    def undecided(self) -> None:
        """A call ended without saying anything about the connector: a probe has to be made again."""
        if self.state is CircuitState.HALF_OPEN:
            self._move(CircuitState.OPEN)

    def _open(self) -> None:
        self._move(CircuitState.OPEN)
        cooldown = self._cooldowns.next()
        self._probe_at = self._clock() + cooldown
        self._bus.publish(
            CircuitOpened(connector=self.connector, client=self.client, reason=self.reason, cooldown=cooldown)
        )

    def _move(self, state: CircuitState) -> None:
        self.state = move(self.state, state, MOVES)
