"""The jobs that are in this gateway's hands."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gateway.jobs.contract import OPEN, State
from gateway.jobs.records import size_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from gateway.jobs.contract import Attempt, Job, Outcome


class Held:
    """One of them."""

    def __init__(self, job: Job, state: State = State.WAITING) -> None:
        self.job = job
        self.state = state
        self.interrupted = 0
        self.outcome: Outcome | None = None
        self.attempts: list[Attempt] = []
        self.adopted: Awaitable[Outcome] | None = None
        """Its run, where that was in progress when the job was accepted."""
        self.begins = False
        """It has its slot, and it is being recorded that it begins: nobody but its run ends it now."""
        self.wake = asyncio.Event()
        """Ends a pause."""
        self.task: asyncio.Task[Any] | None = None
        """What is being done for it; None while it waits for its turn."""

    @property
    def runs(self) -> bool:
        """Its command was started, or is about to be."""
        return self.state is State.RUNNING or self.begins

    @property
    def cancelled(self) -> bool:
        """Somebody has cancelled it."""
        return self.state is State.CANCELLED

    @property
    def open(self) -> bool:
        """It has not ended."""
        return self.state in OPEN


class Hands:
    """All of them, by their names. Each accept asks how many they are and how large: nothing is summed up for it."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self.size = 0
        """Bytes of their parameters."""

    def __len__(self) -> int:
        """Count them."""
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        """Give them out, as they are now."""
        return iter(list(self._held.values()))

    def get(self, name: str) -> Held | None:
        """Return one."""
        return self._held.get(name)

    def take(self, held: Held) -> None:
        """Take one up."""
        self._held[held.job.id] = held
        self.size += size_of(held.job)

    def let_go(self, held: Held) -> None:
        """Forget one."""
        if self._held.get(held.job.id) is held:
            del self._held[held.job.id]
            self.size -= size_of(held.job)
