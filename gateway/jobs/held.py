"""A job in this gateway's hands."""

from __future__ import annotations

import asyncio
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
        self.interrupted = 0
        self.epoch = 0
        """How often it did not begin after all."""
        self.outcome: Outcome | None = None
        self.attempts: list[Attempt] = []
        self.begins = False
        """It has its slot, and it is being recorded that it begins: nobody but its run ends it now."""
        self.wake = asyncio.Event()
        """Ends a pause."""
        self.task: asyncio.Task[Any] | None = None
        """What is being done for it; None while it waits for its turn."""

    @classmethod
    def of(cls, row: Row) -> Held:
        """Return one where its row says that it is."""
        held = cls(row.read_job(), JobState(row.state))
        held.interrupted, held.epoch = row.interrupted, row.epoch
        held.outcome, held.attempts = row.read_outcome(), [*row.read_attempts()]
        return held

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
