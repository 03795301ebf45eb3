"""Stops calling a connector that crashes on every call, and finds out by itself when it works again."""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING

from gateway.errors import ConnectorUnavailable
from gateway.observe.events import Bus, CircuitClosed, CircuitOpened

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


class Circuit:
    """The record of one definition of one connector."""

    def __init__(self, connector: str, bus: Bus, clock: Callable[[], float]) -> None:
        self.connector = connector
        self.state = CircuitState.CLOSED
        self.reason = ""
        self.spotless = True
        """It is closed, and the latest run that said anything succeeded."""
        self._bus = bus
        self._clock = clock
        self._failures = 0
        self._cooldown = COOLDOWN
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
            self.state = CircuitState.HALF_OPEN
            return
        raise ConnectorUnavailable(
            f"it failed {self._failures} times in a row, the last time: {self.reason}; "
            f"the next try is in {max(0.0, wait):.1f} s",
            retry_after=max(1, math.ceil(wait)),
        )

    def admit_after_wait(self) -> None:
        """Let a call that has waited for its slot pass, unless the circuit has opened meanwhile.

        Raises:
            ConnectorUnavailable: it has.
        """
        if self.state is CircuitState.OPEN:
            self.admit()

    def succeeded(self) -> None:
        """The process ran and ended by itself, whatever it answered."""
        if self.state is not CircuitState.CLOSED:
            self._bus.publish(CircuitClosed(connector=self.connector))
        self.state = CircuitState.CLOSED
        self.spotless = True
        self._failures = 0
        self._cooldown = COOLDOWN

    def failed(self, reason: str) -> None:
        """The process could not be started, or crashed."""
        self._failures += 1
        self.spotless = False
        self.reason = reason
        if self.state is CircuitState.HALF_OPEN:
            self._cooldown = min(LONGEST, 2 * self._cooldown)
        elif self.state is CircuitState.OPEN or self._failures < FAILURES:
            return
        self._open()

    def undecided(self) -> None:
        """A call ended without saying anything about the connector: a probe has to be made again."""
        if self.state is CircuitState.HALF_OPEN:
            self.state = CircuitState.OPEN

    def _open(self) -> None:
        self.state = CircuitState.OPEN
        self._probe_at = self._clock() + self._cooldown
        self._bus.publish(CircuitOpened(connector=self.connector, reason=self.reason, cooldown=self._cooldown))
