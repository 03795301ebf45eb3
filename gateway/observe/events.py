"""What happened, as frozen facts. Logs, metrics and the status view listen; nobody else writes about it."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, ClassVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    Listener = Callable[["Event"], None]


ANSWERED = frozenset({"ok", "error"})
"""Outcomes that are no failure: what a connector tells is its own business."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened."""

    name: ClassVar[str]
    """What a log line calls it: operators look for it, so it never changes (`docs/log-events.md` has them all)."""
    level: ClassVar[str] = "info"

    def severity(self) -> str:
        """Return how loud it is told."""
        return self.level


class RunFinished(Event, frozen=True, kw_only=True):
    """An invocation ended, in whatever way.

    `outcome` is "ok" or an error code of `docs/errors.md` ("error" stands for the connector's own codes in metrics).
    Times are seconds, sizes bytes; `total` is from the call's coming to its end, the wait included, `status` the exit
    status, `signal` the signal's name, `pid` that in its cell, 0 when no process was started.
    """

    name = "run"

    connector: str
    command: str
    request_id: str
    outcome: str
    error_code: str | None = None
    message: str | None = None
    client: str | None = None
    pid: int = 0
    status: int | None = None
    signal: str | None = None
    queue_wait: float = 0.0
    wall: float = 0.0
    total: float = 0.0
    cpu_user: float = 0.0
    cpu_system: float = 0.0
    peak_rss: int = 0
    request_bytes: int = 0
    result_bytes: int = 0
    log_bytes: int = 0

    def severity(self) -> str:
        """An error that a connector tells is its own business."""
        return "info" if self.outcome in ANSWERED else "warning"


class BackgroundStarted(Event, frozen=True, kw_only=True):
    """A call was answered, and its run goes on: the command calls back by itself."""

    name = "background_started"

    id: str
    connector: str
    command: str
    request_id: str


class BackgroundFinished(Event, frozen=True, kw_only=True):
    """A run that went on after its answer has ended; whether it has called back, only its caller knows.

    `outcome` is "ok", "failed" (with a bad exit status), "cancelled" or an error code; `wall` is seconds from the start
    of its process on.
    """

    name = "background_finished"

    id: str
    connector: str
    command: str
    request_id: str
    task_id: str | None = None
    client: str | None = None
    outcome: str
    message: str | None = None
    wall: float = 0.0
    cpu_user: float = 0.0
    cpu_system: float = 0.0
    peak_rss: int = 0

    def severity(self) -> str:
        """One that was cut short has a caller who may wait for ever."""
        return "info" if self.outcome == "ok" else "warning"


class TlsLoaded(Event, frozen=True, kw_only=True):
    """The files of TLS have changed, and new connections have what they hold now. `not_after` is when it ends."""

    name = "tls_loaded"

    cert: str
    not_after: str


class TlsFailed(Event, frozen=True, kw_only=True):
    """The files of TLS have changed and cannot be used: what they were before serves on."""

    name = "tls_failed"
    level = "error"

    reason: str


class TlsExpiring(Event, frozen=True, kw_only=True):
    """The certificate ends within two weeks, or has ended."""

    name = "tls_expiring"
    level = "warning"

    not_after: str
    message: str


class SignInEnded(Event, frozen=True, kw_only=True):
    """A browser came back from an OAuth provider, or was not sent there. `reason` is for people; no token is in it."""

    name = "sign_in"

    connector: str
    auth: str
    outcome: str
    """`ok` or `failed`."""
    reason: str | None = None


class ClientRefused(Event, frozen=True, kw_only=True):
    """A client's file cannot be used: what there was of it before counts, or nothing."""

    name = "client_refused"
    level = "error"

    client: str
    reason: str


class ConnectorLine(Event, frozen=True, kw_only=True):
    """A line of a connector's log (its stderr; its stdout too, when the result goes to descriptor 3)."""

    name = "log"

    connector: str
    command: str
    request_id: str
    stream: str
    line: str
    client: str | None = None


class ConnectorWarning(Event, frozen=True, kw_only=True):
    """A connector did something that works but should be mended."""

    name = "connector_warning"
    level = "warning"

    connector: str
    command: str
    request_id: str
    message: str


class CallsRefused(Event, frozen=True, kw_only=True):
    """A client goes beyond its limits (`limit`: `rate` or `concurrency`); `refused` calls of it since the last line."""

    name = "calls_refused"
    level = "warning"

    client: str
    limit: str
    refused: int


class CircuitOpened(Event, frozen=True, kw_only=True):
    """A connector failed to start, or crashed, too often in a row for a client; `cooldown` is in seconds."""

    name = "circuit_opened"
    level = "error"

    connector: str
    client: str | None = None
    reason: str
    cooldown: float


class CircuitClosed(Event, frozen=True, kw_only=True):
    """A connector works again for a client."""

    name = "circuit_closed"

    connector: str
    client: str | None = None


class Quarantined(Event, frozen=True, kw_only=True):
    """A connector cannot be served."""

    name = "quarantined"
    level = "error"

    connector: str
    reason: str


class SandboxIncomplete(Event, frozen=True, kw_only=True):
    """This machine does not give all that sandboxes are made of: what is missing, and what switches it on."""

    name = "sandbox_incomplete"
    level = "warning"

    missing: tuple[str, ...]


class Exposed(Event, frozen=True, kw_only=True):
    """Others than the gateway's user can change what it runs or believes."""

    name = "exposed"
    level = "warning"

    problem: str


class FolderLeft(Event, frozen=True, kw_only=True):
    """What a dead gateway, or this one, has left in `state_dir/run` could not be removed, or not in time.

    The next start tries it again.
    """

    name = "folder_left"
    level = "warning"

    folder: str


class RegistryLoaded(Event, frozen=True, kw_only=True):
    """A registry was swapped in."""

    name = "registry_loaded"

    connectors: int
    commands: int
    quarantined: int
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    took: float


class AllDescribed(Event, frozen=True, kw_only=True):
    """All that the start had to ask what they can do have said so, or have been given up: readiness says 200."""

    name = "all_described"

    asked: int
    took: float


class ReloadFailed(Event, frozen=True, kw_only=True):
    """The registry's files cannot be used; the last good state goes on serving."""

    name = "reload_failed"
    level = "error"

    reason: str


class SecretStale(Event, frozen=True, kw_only=True):
    """A command does not answer any more; what it answered last is used on."""

    name = "secret_stale"
    level = "warning"

    secret: str
    reason: str


class DrainStarted(Event, frozen=True, kw_only=True):
    """No new work is taken; `in_flight` runs have `grace` seconds."""

    name = "drain_started"

    in_flight: int
    grace: float


class DrainFinished(Event, frozen=True, kw_only=True):
    """The last run ended, or was stopped."""

    name = "drain_finished"

    stopped: int


class JobAccepted(Event, frozen=True, kw_only=True):
    """A job was committed, or joined an open one."""

    name = "job_accepted"

    id: str
    connector: str
    command: str
    request_id: str
    joined: bool
    took: float


class JobRan(Event, frozen=True, kw_only=True):
    """A job's outcome is recorded."""

    name = "job_ran"

    id: str
    connector: str
    command: str
    status: int
    interrupted: int


class CallbackTried(Event, frozen=True, kw_only=True):
    """A callback was sent, or could not be. `host` is where to; the URL may hold a secret.

    `verdict` is a `gateway.jobs.contract.Verdict`.
    """

    name = "callback_tried"

    id: str
    connector: str
    command: str
    host: str
    verdict: str
    status: int | None
    reason: str
    took: float


class JobFinished(Event, frozen=True, kw_only=True):
    """A job came to an end; `state` is a `gateway.jobs.contract.State`.

    `reason` says why it is a dead letter, or unwanted, or what its caller said when it took the outcome. `took` is
    seconds from its acceptance on, by the clock of the wall: gateways may share it.
    """

    name = "job_finished"

    id: str
    connector: str
    command: str
    request_id: str
    task_id: str | None = None
    client: str | None = None
    state: str
    reason: str = ""
    took: float = 0.0

    def severity(self) -> str:
        """Somebody has to look at a dead letter, and at an outcome that its caller took and could not use."""
        return "warning" if self.state == "dead" or (self.state == "delivered" and self.reason) else "info"


class JobUnreadable(Event, frozen=True, kw_only=True):
    """No key opens what is stored of a job: it ends."""

    name = "job_unreadable"
    level = "error"

    id: str
    connector: str
    command: str
    reason: str


class JobFault(Event, frozen=True, kw_only=True):
    """A job could not be run for a fault of the gateway's own; whoever waits for it is not told the traceback."""

    name = "internal_error"
    level = "error"

    id: str
    connector: str
    command: str
    request_id: str
    traceback: str


class NodeLost(Event, frozen=True, kw_only=True):
    """Another gateway died; its jobs go on here or elsewhere."""

    name = "node_lost"

    node: str
    jobs: int


class StoreChanged(Event, frozen=True, kw_only=True):
    """The jobs' store was lost, or is back."""

    name = "store_changed"

    ok: bool
    reason: str = ""


class AuditChanged(Event, frozen=True, kw_only=True):
    """The audit cannot be written, or can be again; `failed` lines had to wait since the start, or were dropped."""

    name = "audit_changed"

    ok: bool
    reason: str = ""
    failed: int = 0

    def severity(self) -> str:
        """Somebody has to mend it."""
        return "info" if self.ok else "warning"


class AuditDropped(Event, frozen=True, kw_only=True):
    """So many lines of the audit are missing where it says so: it could not be written until its queue was full."""

    name = "audit_dropped"
    level = "warning"

    lines: int


class JournalChanged(Event, frozen=True, kw_only=True):
    """The journal of runs cannot be written, or can be again; `dropped` runs are missing in it since the start."""

    name = "journal_changed"

    ok: bool
    reason: str = ""
    dropped: int = 0

    def severity(self) -> str:
        """Somebody has to mend it."""
        return "info" if self.ok else "warning"


class TracesFailed(Event, frozen=True, kw_only=True):
    """Traces cannot be sent; `count` complaints of OpenTelemetry since the last line, of which this is the latest."""

    name = "traces_failed"
    level = "warning"

    reason: str
    count: int


class ListenerFailed(Event, frozen=True, kw_only=True):
    """Somebody who listens could not take an event; told once for each kind of failure, counted always.

    `about` is the event's name.
    """

    name = "listener_failed"
    level = "error"

    listener: str
    about: str
    traceback: str


class ClockJumped(Event, frozen=True, kw_only=True):
    """The machine's clock was set, or the machine slept; `seconds` are negative when it was set back."""

    name = "clock_jumped"
    level = "warning"

    seconds: float


class Listeners(dict[type[Event], list["Listener"]]):
    """Those who listen to a kind of events, in their order."""

    def __init__(self) -> None:
        self._all: list[tuple[Listener, tuple[type[Event], ...]]] = []
        super().__init__()

    def __missing__(self, kind: type[Event]) -> list[Listener]:
        """Find them; they stand ready from then on."""
        found = self[kind] = [one for one, kinds in self._all if not kinds or kind in kinds]
        return found

    def add(self, listener: Listener, kinds: tuple[type[Event], ...]) -> None:
        """Add one; no kinds are all."""
        self._all.append((listener, kinds))
        self.clear()


class Bus:
    """Hands each event to those who listen to its kind, in order, at once. Whoever publishes never hears of them."""

    def __init__(self) -> None:
        self.faults: dict[str, int] = {}
        """How often each listener that ever did has failed."""
        self._listeners = Listeners()
        self._called: list[tuple[Listener, str]] = []
        self._told: set[tuple[str, type[Exception]]] = set()

    def listen(self, listener: Listener, *kinds: type[Event], called: str = "another") -> None:
        """Add a listener to some kinds of events, or to all; it must not block.

        `called` is what the log and the metrics call it when it fails: it never changes.
        """
        self._listeners.add(listener, kinds)
        self._called.append((listener, called))

    def publish(self, event: Event) -> None:
        """Tell everybody."""
        for listener in self._listeners[type(event)]:
            try:
                listener(event)
            except Exception as problem:  # noqa: BLE001 - what has happened has happened, whoever hears of it
                self._failed(listener, event, problem)

    def _failed(self, listener: Listener, event: Event, problem: Exception) -> None:
        name = next(called for one, called in self._called if one == listener)
        self.faults[name] = self.faults.get(name, 0) + 1
        kind = (name, type(problem))
        if kind in self._told or isinstance(event, ListenerFailed):
            return
        self._told.add(kind)
        told = "".join(traceback.format_exception(problem))
        self.publish(ListenerFailed(listener=name, about=event.name, traceback=told))
