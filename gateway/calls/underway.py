"""A run that is under way: what is known of it so far, and what people are told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gateway.calls.call import Call
from gateway.calls.spans import CallSpans
from gateway.processes.completed import Completed

if TYPE_CHECKING:
    from gateway.connectors.definition import Command, Connector

    Found = tuple[Connector, Command]


class UnderwayRun(msgspec.Struct, kw_only=True):
    """What is known of one invocation so far. Moments are the loop's."""

    call: Call
    begun: float
    found: Found | None = None
    """What it runs, once that is found."""
    id: str = ""
    """What the journal calls it, once it was handed over."""
    queue_wait: float = 0.0
    request_bytes: int = 0
    deadlines: tuple[float, float] = (0.0, 0.0)
    """When it is stopped: as a call, and when it has become a job."""
    started: float | None = None
    """When its process was asked for."""
    completed: Completed | None = None
    acknowledged: bool = False
    """It was answered, and goes on."""
    outcome: str = "internal_error"
    """What it has come to, as `RunFinished` or `BackgroundFinished` says."""
    spans: CallSpans | None = None
    """None: it is not traced."""

    @property
    def registered(self) -> str:
        """The name that its connector is registered under; what its caller has called it, where it was not found."""
        return self.call.connector if self.found is None else self.found[0].name

    @property
    def job(self) -> str | None:
        """The job whose run it is, or what was made of it."""
        acknowledgement, extension = self.call.acknowledgement, self.call.extension
        if acknowledgement is not None and self.acknowledged:
            return acknowledgement.name
        return self.call.job if extension is None or extension.job is None else extension.job

    @property
    def title(self) -> str:
        """What people call what it runs."""
        return f"{self.call.connector}/{self.call.command}"


class RunGoing(NamedTuple):
    """A run that goes on, for people. Times are seconds."""

    command: str
    request_id: str
    client: str | None
    task_id: str | None
    job: str | None
    """Whose run it is, or what was made of it."""
    waited: float
    """In the queue."""
    ran: float
    """Since its process was asked for."""
    left: float
    """Until it is stopped, as things are."""


def told_of(run: UnderwayRun, now: float) -> RunGoing:
    """Return what people are told of a run; `now` is the loop's time."""
    caller, extension = run.call.caller, run.call.extension
    extended = extension is not None and extension.granted
    return RunGoing(
        command=run.call.command,
        request_id=caller.request_id,
        client=caller.client,
        task_id=caller.task_id,
        job=run.job,
        waited=run.queue_wait,
        ran=now - (run.started or now),
        left=max(0.0, run.deadlines[1 if extended else 0] - now),
    )
