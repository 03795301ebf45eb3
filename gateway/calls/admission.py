"""Which calls are let in, and their end when the gateway ends."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from typing import TYPE_CHECKING

from gateway.errors import GatewayDraining
from gateway.observe.events import Bus, DrainFinished, DrainStarted
from gateway.processes.completed import Stop
from gateway.processes.launch import GRACE
from gateway.states import move

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.processes.base import Process
    from gateway.processes.places import Places


class AdmissionState(enum.Enum):
    """Whether new work is taken."""

    SERVING = "serving"
    DRAINING = "draining"
    CLOSED = "closed"


MOVES = {
    AdmissionState.SERVING: {AdmissionState.DRAINING, AdmissionState.CLOSED},
    AdmissionState.DRAINING: {AdmissionState.CLOSED},
    AdmissionState.CLOSED: set(),
}


class Admission:
    """Lets calls in, knows those that are, and ends them when the gateway does."""

    def __init__(self, places: Places, bus: Bus) -> None:
        self.state = AdmissionState.SERVING
        self.places = places
        self._bus = bus
        self._runs: set[Process] = set()
        self._invocations = 0
        self._sending = 0
        self._less = asyncio.Event()
        self._awaited = False
        """Somebody waits until there are less."""
        self._stopping = False
        self._stopped = 0

    def enter(self) -> None:
        """Count one call in flight, from its acceptance until it leaves.

        Raises:
            GatewayDraining: no new work is taken.
        """
        if self.state is not AdmissionState.SERVING:
            raise GatewayDraining(retry_after=5)
        self._invocations += 1

    def leave(self) -> None:
        """Count one less."""
        self._invocations -= 1
        if self._awaited:
            self._less.set()

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Count an answer that is being sent: a drain gives it the time that it gives to calls."""
        self._sending += 1
        try:
            yield
        finally:
            self._sending -= 1
            self._less.set()

    def attend(self, run: Process) -> None:
        """Know a process until it is dismissed, so that a shutdown can stop it."""
        self._runs.add(run)
        if self._stopping:
            run.stop(Stop.DRAINED)

    def dismiss(self, run: Process) -> None:
        """Know it no more: it is over."""
        self._runs.discard(run)

    def drain(self, grace: float) -> None:
        """Take no new work from now on."""
        self._move(AdmissionState.DRAINING)
        self._bus.publish(DrainStarted(in_flight=self._invocations, grace=grace))

    async def drained(self, grace: float) -> None:
        """Wait for calls in flight and for their answers, `grace` seconds; then stop the calls that are left."""
        try:
            await asyncio.wait_for(self._over(), grace)
        except TimeoutError:
            self.stop_all(GRACE)
            await self._over()
        self._bus.publish(DrainFinished(stopped=self._stopped))

    def stop_all(self, grace: float) -> None:
        """Stop everything in flight: those that wait are refused, those that run are killed within `grace` seconds."""
        if not self._stopping:
            self._stopping = True
            self._stopped = self._invocations
            self._less.set()
        self.places.refuse(GatewayDraining)
        for run in list(self._runs):
            run.stop(Stop.DRAINED, grace=grace)

    def close(self) -> None:
        """Refuse everything."""
        if self.state is not AdmissionState.CLOSED:
            self._move(AdmissionState.CLOSED)

    # --- private

    async def _over(self) -> None:
        self._awaited = True
        while self._invocations or (self._sending and not self._stopping):
            self._less.clear()
            await self._less.wait()

    def _move(self, state: AdmissionState) -> None:
        self.state = move(self.state, state, MOVES)
        self.places.open = False
