"""The jobs that are in this gateway's hands."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gateway.jobs.port import State

if TYPE_CHECKING:
    from gateway.jobs.port import Job, Outcome
    from gateway.jobs.start import Start


class Live:
    """A job in this gateway's hands."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.size = len(job.params) + len(job.task_data)
        self.state = State.WAITING
        self.interrupted = 0
        self.cancelled = False
        self.wake = asyncio.Event()
        self.turn: asyncio.Future[None] | None = None
        self.start: Start | None = None
        self.told: Outcome | None = None
        """What a run came to that never held a slot."""
        self.task: asyncio.Task[Any] | None = None
        self.placed = False
        self.slotted = False
        self.withdrawn = False
        self.wanted = False
        self.reads = False
        """It was accepted by an earlier gateway, and reads what that one recorded of it."""

    def cancel(self) -> None:
        """Stop waiting for whatever it is: the next step finds the cancellation."""
        self.cancelled = True
        self.wake.set()
        if self.turn is not None:
            self.turn.cancel()
        if self.start is not None:
            self.start.hold_back()

    @property
    def runs(self) -> bool:
        """Its command was started, or is about to be."""
        return self.state is State.RUNNING or (self.start is not None and self.start.committing)


class Hands(dict[str, Live]):
    """Those jobs, by their names. Each accept asks how many they are and how large: nothing is summed up for it."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        """Bytes of their parameters."""
        self.left: set[str] = set()
        """Jobs that an earlier gateway left in this one's file, and that are not taken up yet."""

    @property
    def open(self) -> int:
        """How many jobs have not ended."""
        return len(self) + len(self.left)

    def take(self, name: str, job: Job) -> Live:
        """Take a job up, unless it is there already."""
        live = self.get(name)
        if live is None:
            live = self[name] = Live(job)
            self.size += live.size
        self.left.discard(name)
        return live

    def let_go(self, name: str, live: Live) -> None:
        """Forget a job, unless another has its name now."""
        if self.get(name) is live:
            del self[name]
            self.size -= live.size
