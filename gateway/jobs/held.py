"""A job in this gateway's hands."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from gateway.jobs.contract import OPEN, JobState

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from gateway.jobs.contract import Attempt, Job, Outcome
    from gateway.jobs.records import Row


class Held:
    """What is known of it here."""

    def __init__(self, job: Job, state: JobState = JobState.WAITING, adopted: Awaitable[Outcome] | None = None) -> None:
        """`adopted` is its run, where that was in progress when the job was accepted."""
        self.job = job
        self.state = state
        self.adopted = adopted
        self.accepted = time.time()
        """In seconds since 1970."""
        self.interrupted = 0
        self.epoch = 0
        """How often it did not begin after all."""
        self.outcome: Outcome | None = None
        self.attempts: list[Attempt] = []
        self._since = time.monotonic()
        """When the last try began, or we have taken it up since then."""
        self._due = 0.0
        self.begins = False
        """It has its slot, and it is being recorded that it begins: nobody but its run ends it now."""
        self.unreadable: tuple[str, ...] = ()
        """What of its row no key opens."""
        self.wake = asyncio.Event()
        """Ends a pause."""
        self.task: asyncio.Task[Any] | None = None
        """What is being done for it; None while it waits for its turn."""

    @classmethod
    def of(cls, row: Row) -> Held:
        """Return one where its row says that it is."""
        held = cls(row.read_job(), JobState(row.state))
        held.interrupted, held.epoch, held.unreadable = row.interrupted, row.epoch, row.unreadable
        held.accepted = row.accepted
        held.outcome, held.attempts = row.read_outcome(), [*row.read_attempts()]
        if held.attempts:
            held._due = held._since + _left(held.attempts[-1], time.time())
        return held

    @property
    def age(self) -> float:
        """The age of a try that begins now, in seconds, as in `Attempt`."""
        return self.attempts[-1].age + time.monotonic() - self._since if self.attempts else 0.0

    @property
    def pause(self) -> float:
        """The seconds until the next try."""
        return self._due - time.monotonic()

    def tried(self, attempt: Attempt, begun: float) -> None:
        """Note a try, and when it began, in seconds of `time.monotonic`."""
        self.attempts.append(attempt)
        self._since, self._due = begun, begun + attempt.wait

    @property
    def runs(self) -> bool:
        """Its command was started, or is about to be."""
        return self.state is JobState.RUNNING or self.begins

    @property
    def cancelled(self) -> bool:
        """Somebody has cancelled it."""
        return self.state is JobState.CANCELLED

    @property
    def open(self) -> bool:
        """It has not ended."""
        return self.state in OPEN


def _left(last: Attempt, now: float) -> float:
    """Return what is left of the wait after a try that another process made, in seconds.

    All that is known of the time between is the clock. One that was set back may not make it longer.
    """
    passed = now - last.at
    return last.wait - passed if passed >= 0 else 0.0
