"""What the gateway knows of durable jobs: the shapes, the errors, and the Protocol of an engine.

Nothing here imports an engine. An engine is handed a `Run` and never knows how a process is started.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from gateway.errors import GatewayError
from gateway.protocol.envelope import error_envelope
from gateway.protocol.request import Caller

if TYPE_CHECKING:
    import asyncio


class State(enum.Enum):
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


OPEN = frozenset({State.WAITING, State.RUNNING, State.DELIVERING})
ENDS = tuple(state for state in State if state not in OPEN)


class Verdict(enum.Enum):
    """What a try to deliver a callback leads to."""

    DONE = "done"
    AGAIN = "again"
    DEAD = "dead"


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A command to run durably. `params` and `task_data` are JSON text, `timeout` seconds of one run."""

    connector: str
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
        """What a person calls it."""
        return f"{self.connector}/{self.command}"


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
    """One try to deliver a callback. `at` is seconds since 1970, `took` and `wait` (for the next) are seconds."""

    at: float
    took: float
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
    state: State
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


class Listed(Protocol):
    """What lists look at."""

    @property
    def connector(self) -> str:
        """The connector's name."""

    @property
    def process_instance_id(self) -> int | str | None:
        """The caller's process instance."""

    @property
    def task_id(self) -> str | None:
        """The caller's task."""

    @property
    def client(self) -> str | None:
        """The client whose key was used."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs a list is to have; None is all of them."""

    state: State | None = None
    connector: str | None = None
    process_instance: str | None = None
    task: str | None = None
    client: str | None = None

    def fits(self, one: Listed) -> bool:
        """Tell whether a job is one of them, whatever its state."""
        instance = one.process_instance_id
        facts = (
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
    """`asleep`, `starting`, `running`, `unavailable` or `stopped`; `remote` in a worker that has not asked yet."""
    reason: str = ""
    open: int | None = None
    """Jobs in this gateway's hands; None when nobody can say now."""
    node: str = ""


Begin = Callable[[], Awaitable[None]]
"""Returns when it is recorded that a run begins. It raises what a `Run` may, when the run must not begin."""

Run = Callable[[Job, Begin], Awaitable[Outcome]]
"""Runs a job's command once. It awaits the `Begin` when it holds a slot, before it starts a process.

It returns an outcome for whatever happens, a command's errors included, and may raise:
ConnectorBusy (no slot: asked again later, for as long as it takes), ConnectorUnavailable (asked again for some
minutes), GatewayDraining (the job stays open for the next start), RunLost (as if a crash had interrupted it).
Cancelling it kills what it started.
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


class RunLost(Exception):
    """The process in which a command ran is gone. How far it came is not known; the job's own rules decide."""


INTERRUPTED = "job_interrupted"
CANCELLED = "job_cancelled"
FAILED = "job_failed"


def told(code: str, message: str, status: int, **run: Any) -> Outcome:
    """Return the outcome that tells an error of the engine."""
    return Outcome(status=status, body=error_envelope(code, message).decode(), run=run)


class Jobs(Protocol):
    """An engine. Everything but `start`, `wake`, `drain` and `health` may raise JobsUnavailable."""

    async def start(self, *, warm: bool = False) -> None:
        """Take up what an earlier gateway left, in the background; with `warm`, be ready for the first job.

        Does nothing when there is nothing to do.
        """

    def wake(self) -> None:
        """Be ready for the first job soon: there may be one."""

    async def accept(self, job: Job, running: asyncio.Future[Outcome] | None = None) -> Accepted:
        """Commit a job and start it. `running` is its run when that is already in progress: it is adopted.

        Raises:
            ConnectorBusy: the backlog is full.
            GatewayDraining: the gateway is shutting down.
        """

    async def find_open(self, job: Job) -> Accepted | None:
        """Return the open job of the same task and command, if there is one; never wakes an engine that sleeps."""

    async def status(self, job: str) -> JobStatus:
        """Return all that is known of a job.

        Raises:
            JobNotFound: there is none.
        """

    async def list(self, query: Query = EVERY, *, limit: int = 50, offset: int = 0) -> list[JobStatus]:
        """Return jobs, the latest first."""

    async def cancel(self, job: str, *, tell: bool = True) -> None:
        """Stop an open job. With `tell` its caller gets the error `job_cancelled`, unless an outcome is recorded.

        Raises:
            JobNotFound: there is none.
            JobConflict: it has ended.
        """

    async def retry(self, job: str, *, run: bool = False) -> str:
        """Deliver again what a job came to; with `run`, run its command again as a new job. Return the job's id.

        Raises:
            JobNotFound: there is none.
            JobConflict: it is open, or there is nothing to deliver.
        """

    async def purge(self, *, older_than: float, state: State | None = None) -> int:
        """Remove jobs that ended more than `older_than` seconds ago; return how many. `state` None is every end."""

    def drain(self) -> None:
        """Start no more runs; those in progress go on."""

    async def stop(self, grace: float = 5.0) -> bool:
        """Wait at most `grace` seconds for runs to be recorded, leave the rest to the next start, and close.

        False: threads still wait for a store that is away, and only `os._exit` ends the process in time.
        """

    def health(self) -> Health:
        """Tell, at once, whether jobs can be accepted."""
