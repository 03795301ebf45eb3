"""Lets a call go on: beyond its deadline, or after its answer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from gateway.processes.completed import Stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.calls.reply import Reply
    from gateway.processes.base import Process


class Extension:
    """Lets a call that is in progress run on beyond its deadline, once somebody has made a job of it."""

    def __init__(self) -> None:
        self.granted = False
        """The job's own timeout holds."""
        self.job: str | None = None
        """The job that was made of it."""
        self.spent = False
        """The first deadline has struck."""
        self._held = False
        self._limit: tuple[Process, float] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let the first deadline pass while a job is being made of the call; it holds again when there is none."""
        self._held = True
        self._disarm()
        try:
            yield
        finally:
            self._held = False
            self._arm()

    def limit(self, child: Process, deadline: float) -> None:
        """Stop the child at its first deadline, unless the extension comes before."""
        self._limit = child, deadline
        self._arm()

    def over(self) -> None:
        """The run has ended."""
        self._limit = None
        self._disarm()

    def _arm(self) -> None:
        if self._limit is not None and not self.granted and not self._held:
            child, deadline = self._limit
            self._timer = asyncio.get_running_loop().call_at(deadline, self._strike, child)

    def _strike(self, child: Process) -> None:
        self.spent = True
        child.stop(Stop.DEADLINE)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Acknowledgement:
    """Lets a call be answered while its run goes on: the command calls back by itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        """What the run is called from then on."""
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
