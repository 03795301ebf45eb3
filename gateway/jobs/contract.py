"""What the gateway knows of durable jobs: the shapes, the states and their moves, the errors, and what a run is.

Nothing here imports an engine. The engine is handed a `Execute` and never knows how a process is started.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from gateway.errors import GatewayError
from gateway.identity import called
from gateway.protocol.envelope import error_envelope
from gateway.protocol.request import Caller


class JobState(enum.Enum):
    """Where a job is. The first three are open, the others are ends."""

    WAITING = "waiting"
    """Accepted; it waits for its connector's slot, or for a gateway that takes it over."""
    RUNNING = "running"
    """The command was started."""
    DELIVERING = "delivering"
    """The outcome is recorded; its callback was not taken yet."""
    DELIVERED = "delivered"
    """The caller has taken the outcome."""
    KEPT = "kept"
    """There is no callback: the outcome is here to be fetched."""
    CANCELLED = "cancelled"
    """Somebody cancelled it."""
    UNWANTED = "unwanted"
    """The caller does not wait for the outcome: its process was ended, say, or went on without it."""
    DEAD = "dead"
    """A dead letter: the outcome is recorded and its callback was given up."""


OPEN = frozenset({JobState.WAITING, JobState.RUNNING, JobState.DELIVERING})
ENDS = tuple(state for state in JobState if state not in OPEN)

MOVES: Mapping[JobState, frozenset[JobState]] = {
    JobState.WAITING: frozenset(
        {JobState.RUNNING, JobState.DELIVERING, JobState.KEPT, JobState.CANCELLED, JobState.DEAD}
    ),
    JobState.RUNNING: frozenset(
        {JobState.WAITING, JobState.DELIVERING, JobState.KEPT, JobState.CANCELLED, JobState.DEAD}
    ),
    JobState.DELIVERING: frozenset({JobState.DELIVERED, JobState.UNWANTED, JobState.DEAD, JobState.CANCELLED}),
    JobState.DELIVERED: frozenset({JobState.DELIVERING}),
    JobState.KEPT: frozenset(),
    JobState.CANCELLED: frozenset({JobState.DELIVERING}),
    JobState.UNWANTED: frozenset({JobState.DELIVERING}),
    JobState.DEAD: frozenset({JobState.DELIVERING}),
}
"""Where a job can go from where it is.

From an end it is somebody's wish, to have its outcome delivered again. What is dead without having been delivered was
withdrawn: nobody was told that it was accepted.
"""


class Verdict(enum.Enum):
    """What a try to deliver a callback leads to."""

    DONE = "done"
    AGAIN = "again"
    DEAD = "dead"


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A command to run durably. `params` and `task_data` are JSON text, `timeout` seconds of one run."""

    connector: str
    """By its registered name."""
    command: str
    context: Caller
    params: str = "{}"
    task_data: str = "{}"
    timeout: float | None = None
    priority: int = 0
    """Among the jobs that wait for a connector, the higher goes first."""
    cluster_concurrency: int | None = None
    """Runs of the connector's jobs at once over all gateways that share a store."""
    idempotent: bool = False
    """A run that a crash interrupted may be run again. Otherwise it is told to the caller instead."""
    promoted: bool = False
    """It began as a call, which its caller expected to be answered."""
    id: str = ""
    """Given by `accept`."""

    @property
    def title(self) -> str:
        """What its caller calls it."""
        return f"{called(self.connector)}/{self.command}"


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a job came to.

    The HTTP status that a synchronous caller would have got, the version 2 envelope as JSON text, and facts of the run
    for whoever looks.
    """

    status: int
    body: str
    run: dict[str, Any] = {}
    legacy: bool = False
    """It was a version 1 result."""


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A job is committed and synced. `joined`: it is an open job of the same task, and nothing new was started."""

    id: str
    joined: bool = False


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One try to deliver a callback. `at` is seconds since 1970, the other times are seconds.

    `wait` is for the next try. `age` counts from the first try on while a gateway that was awake had the job: it
    is what tries are judged by, and no clock that is set changes it.
    """

    at: float
    took: float
    age: float = 0.0
    verdict: Verdict
    status: int | None = None
    reason: str = ""
    wait: float = 0.0
    race: bool = False
    """The caller did not wait for it, or not yet."""
    unsure: bool = False
    """There was no answer, and the caller may have taken it all the same."""


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one job. Times are seconds since 1970.

    `outcome` and `attempts` are told for a single job, not in lists. `interrupted` counts runs that a crash cut short.
    """

    id: str
    connector: str
    command: str
    state: JobState
    accepted: float
    finished: float | None = None
    request_id: str = ""
    client: str | None = None
    task_id: str | None = None
    process_instance_id: int | str | None = None
    process_model_identifier: str | None = None
    callback: bool = False
    background: bool = False
    """It is no job but a call that was answered and goes on: see `gateway.jobs.background`."""
    node: str | None = None
    reason: str = ""
    """Why it is a dead letter, or unwanted; or what the caller said when it took the outcome."""
    interrupted: int = 0
    outcome: Outcome | None = None
    attempts: tuple[Attempt, ...] = ()


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs a list is to have; None is all of them."""

    state: JobState | None = None
    connector: str | None = None
    process_instance: str | None = None
    task: str | None = None
    client: str | None = None

    def fits(self, one: JobStatus) -> bool:
        """Tell whether a job is one of them."""
        instance = one.process_instance_id
        facts = (
            (self.state, one.state),
            (self.connector, one.connector),
            (self.process_instance, None if instance is None else str(instance)),
            (self.task, one.task_id),
            (self.client, one.client),
        )
        return all(wanted in {None, fact} for wanted, fact in facts)


EVERY = Query()


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether jobs can be accepted now. An engine that sleeps, since nobody needed it, is healthy."""

    ok: bool
    state: str
    """`asleep`, `starting`, `running`, `unavailable` or `stopped`."""
    reason: str = ""
    open: int | None = None
    """Jobs in this gateway's hands; None when nobody can say now."""
    node: str = ""


Begin = Callable[[], Awaitable[None]]
"""Returns when it is recorded that a run begins. It raises what a `Execute` may, when the run must not begin."""

Execute = Callable[[Job, Begin], Awaitable[Outcome]]
"""Runs a job's command once. It awaits the `Begin` when it holds a slot, before it starts a process.

It returns an outcome for whatever happens, a command's errors included, and may raise:
ConnectorBusy (no slot: asked again later, for as long as it takes), ConnectorUnavailable (asked again for some
minutes), GatewayDraining (the job stays open for the next start). Cancelling it kills what it started.
"""


class JobsUnavailable(GatewayError):
    """Durable jobs cannot be accepted: their store does not answer."""

    code = "jobs_unavailable"


class JobNotFound(GatewayError):
    """There is no such job, or it ended so long ago that it was removed."""

    code = "job_not_found"


class JobConflict(GatewayError):
    """The job is not in a state that allows this."""

    code = "job_conflict"


class StoreAway(Exception):
    """The store did not do what it was asked; `sent` tells whether it may do it, or have done it, all the same."""

    def __init__(self, reason: str, *, sent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


class Lost(Exception):
    """A job is no longer in this gateway's hands: it was cancelled, or taken over, while we worked on it."""


INTERRUPTED = "job_interrupted"
CANCELLED = "job_cancelled"
FAILED = "job_failed"
SEALED = "job_sealed"


def told(code: str, message: str, status: int, **run: Any) -> Outcome:
    """Return the outcome that tells an error of the engine."""
    return Outcome(status=status, body=error_envelope(code, message).decode(), run=run)
