"""What is wrong, in words: facts of the moment go in, and what an operator should do comes out, the worst first.

`/v1/status` has it as `problems`, and whoever shows it to people takes it from there.
"""

from __future__ import annotations

import datetime
import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from gateway.diagnosis import cause_of, gist, lack_of, log_of, telling
from gateway.observe.outcomes import PastRun
from gateway.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LATELY = datetime.timedelta(hours=1)  # outcomes that are older say nothing of now
FEW = 3  # runs; less of them say nothing
SLOW = 0.5  # of its timeout
FULL = 0.8  # of what there may be: it is said before it is full
EARLY = datetime.timedelta(days=14)  # before keys and certificates end
NAMED = 5  # connectors that one sentence names
OF_CONNECTORS = frozenset({"quarantined", "circuit_open", "queue_full", "failing", "slow", "connector_notice"})
"""The kinds whose subject is a connector's name."""


class Severity(enum.Enum):
    """How bad it is."""

    ERROR = "error"
    """Calls or outcomes are lost now."""
    WARNING = "warning"
    """They may be soon, or less is kept safe than should be."""
    NOTICE = "notice"
    """Everything works, and this should be known."""


class Concern(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that an operator should look at."""

    severity: Severity
    kind: str
    """What it is, for programs: it never changes."""
    subject: str
    """What it is about: a connector's name, or a part of the gateway."""
    text: str
    remedy: str = ""
    """What to do; empty where the text says it."""


class ConnectorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One connector at a moment, as whoever asks may know it."""

    name: str
    state: str = "ready"
    reason: str | None = None
    """Why it is not ready."""
    circuit: str | None = None
    """Why its circuit is open; None: it is closed."""
    in_flight: int = 0
    queued: int = 0
    queue: int = 0
    """How many calls may wait."""
    timeouts: Mapping[str, float] = {}
    """Of its commands, in seconds."""
    missing: Sequence[str] = ()
    """What this machine does not give of its sandbox."""
    notices: Sequence[str] = ()
    last: Sequence[PastRun] = ()
    """The newest first."""


class ClientFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One client at a moment."""

    name: str
    problem: str | None = None
    """Why its file cannot be used."""
    notices: Sequence[str] = ()
    keys: Mapping[str, datetime.datetime] = {}
    """Those that end some day, with when."""


class GatewayFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway at a moment; what one client may not know is as it is when all is right."""

    now: datetime.datetime
    state: str = "serving"
    registry_problem: str | None = None
    log_problem: str | None = None
    log_dropped: int = 0
    audit_problem: str | None = None
    audit_required: bool = False
    journal_problem: str | None = None
    jobs_problem: str | None = None
    dead_letters: int = 0
    bare: Sequence[str] = ()
    """What is said of addresses without TLS."""
    tls_problem: str | None = None
    tls_ends: datetime.datetime | None = None
    processes: tuple[int, int] = (0, 0)
    """Those that run, and how many there may be; so are the pairs below."""
    connections: tuple[int, int] = (0, 0)
    held: tuple[int, int] = (0, 0)
    """In bytes."""
    exposed: Sequence[str] = ()
    """What others can change of what is run."""
    clients: Sequence[ClientFacts] = ()


def concerns(gateway: GatewayFacts, connectors: Iterable[ConnectorFacts]) -> list[Concern]:
    """Return what should be looked at, the worst first."""
    connectors = list(connectors)
    found = [*_of_gateway(gateway), *_of_bounds(gateway, connectors)]
    for client in gateway.clients:
        found += _of_client(client, gateway.now)
    for connector in connectors:
        found += _of_connector(connector, gateway.now)
    found += _of_sandboxes(connectors)
    order = list(Severity)
    return sorted(found, key=lambda one: order.index(one.severity))


# --- the gateway


def _of_gateway(facts: GatewayFacts) -> Iterator[Concern]:
    if facts.state != "serving":
        yield Concern(
            severity=Severity.WARNING, kind="draining", subject="gateway", text="it ends, and takes no new work",
            remedy="nothing, if somebody has stopped it; another one has to be started",
        )  # fmt: skip
    if facts.registry_problem is not None:
        yield Concern(
            severity=Severity.ERROR, kind="registry", subject="configuration",
            text=f"the files cannot be used, and what they said before serves on: {facts.registry_problem}",
            remedy="mend the file; it is read again by itself",
        )  # fmt: skip
    if facts.jobs_problem:
        yield Concern(
            severity=Severity.ERROR, kind="jobs_away", subject="jobs",
            text=f"no job can be accepted or delivered: {facts.jobs_problem}",
            remedy="bring the database back, or the disk of state_dir; it is tried again by itself",
        )  # fmt: skip
    if facts.dead_letters:
        yield Concern(
            severity=Severity.WARNING, kind="dead_letters", subject="jobs",
            text=f"{_many(facts.dead_letters, 'outcome')} could not be delivered, and nobody tries it any more",
            remedy="gateway jobs list --state dead says which and why; gateway jobs retry JOB delivers again,"
            " gateway jobs purge removes",
        )  # fmt: skip
    yield from _of_lines(facts)
    yield from _of_tls(facts)
    for text in facts.exposed:
        yield Concern(
            severity=Severity.WARNING, kind="exposed", subject="files", text=text,
            remedy="take the right to write it from others (chmod, chown)",
        )  # fmt: skip


def _of_lines(facts: GatewayFacts) -> Iterator[Concern]:
    if facts.log_problem is not None:
        yield Concern(
            severity=Severity.ERROR, kind="log", subject="log", text=f"it cannot be written: {facts.log_problem}",
            remedy="make room on its disk, or start what reads it again; calls go on without it",
        )  # fmt: skip
    elif facts.log_dropped:
        yield Concern(
            severity=Severity.NOTICE, kind="log_dropped", subject="log",
            text=f"{_many(facts.log_dropped, 'line')} of it were dropped since the start: it could not be written",
            remedy="give it a faster disk or reader",
        )  # fmt: skip
    if facts.audit_problem is not None:
        refused = "every call is refused" if facts.audit_required else "calls go on without it"
        yield Concern(
            severity=Severity.ERROR, kind="audit", subject="audit",
            text=f"it cannot be written, and {refused}: {facts.audit_problem}",
            remedy="make room on its disk, or mend the folder of gateway.audit.file; it is tried again by itself",
        )  # fmt: skip
    if facts.journal_problem is not None:
        yield Concern(
            severity=Severity.WARNING, kind="journal", subject="journal",
            text=f"runs cannot be written, and will be missing in it: {facts.journal_problem}",
            remedy="make room on the disk of state_dir; calls go on without it, and it is tried again by itself",
        )  # fmt: skip


def _of_tls(facts: GatewayFacts) -> Iterator[Concern]:
    for text in facts.bare:
        yield Concern(severity=Severity.WARNING, kind="no_tls", subject="tls", text=text)
    if facts.tls_problem is not None:
        yield Concern(
            severity=Severity.WARNING, kind="tls_files", subject="tls",
            text=f"the new files cannot be used, and the old certificate serves on: {facts.tls_problem}",
            remedy="put certificate and key there that belong together; they are tried again by themselves",
        )  # fmt: skip
    if facts.tls_ends is not None and facts.tls_ends - facts.now < EARLY:
        over = facts.tls_ends <= facts.now
        yield Concern(
            severity=Severity.ERROR if over else Severity.WARNING, kind="tls_ending", subject="tls",
            text=f"the certificate {_ends(facts.tls_ends, facts.now)}",
            remedy="put a new one in its place (gateway.tls.cert and key); no restart is needed",
        )  # fmt: skip


def _of_bounds(facts: GatewayFacts, connectors: Sequence[ConnectorFacts]) -> Iterator[Concern]:
    running, most = facts.processes
    waiting = sum(one.queued for one in connectors)
    if most and running >= most and waiting:
        yield Concern(
            severity=Severity.WARNING, kind="processes_full", subject="gateway",
            text=f"all {most} processes are taken, and for them wait: {_many(waiting, 'call')}",
            remedy="raise gateway.max_processes, or put a second gateway beside this one",
        )  # fmt: skip
    open_, most = facts.connections
    if most and open_ >= FULL * most:
        yield Concern(
            severity=Severity.WARNING, kind="connections_full", subject="gateway",
            text=f"{open_} of {most} connections are open",
            remedy="raise gateway.max_connections (and ulimit -n), or find who opens so many",
        )  # fmt: skip
    held, most = facts.held
    if most and held >= FULL * most:
        yield Concern(
            severity=Severity.WARNING, kind="held_full", subject="gateway",
            text=f"bodies and answers hold {Size(held)} of {Size(most)}: beyond that, large calls get 503 gateway_busy",
            remedy="raise gateway.max_held, or find who sends much or reads slowly",
        )  # fmt: skip


def _of_client(facts: ClientFacts, now: datetime.datetime) -> Iterator[Concern]:
    subject = f"client {facts.name}"
    if facts.problem is not None:
        yield Concern(
            severity=Severity.ERROR, kind="client_refused", subject=subject,
            text=f"its file cannot be used, and what it said before counts, or nothing: {facts.problem}",
            remedy="mend the file; it is read again by itself",
        )  # fmt: skip
    for key, until in facts.keys.items():
        if now < until < now + EARLY:
            yield Concern(
                severity=Severity.WARNING, kind="key_ending", subject=subject, text=f"key {key} {_ends(until, now)}",
                remedy=f"gateway keys new {facts.name} makes another one; both count until then",
            )  # fmt: skip
    for text in facts.notices:
        yield Concern(severity=Severity.NOTICE, kind="client_notice", subject=subject, text=text)


# --- connectors


def _of_connector(facts: ConnectorFacts, now: datetime.datetime) -> Iterator[Concern]:
    if facts.state == "quarantined":
        yield _quarantined(facts.name, facts.reason or "")
    if facts.circuit is not None:
        yield _left_alone(facts, now)
    if facts.queue and facts.queued >= FULL * facts.queue:
        full = facts.queued >= facts.queue
        yield Concern(
            severity=Severity.ERROR if full else Severity.WARNING, kind="queue_full", subject=facts.name,
            text=f"{facts.queued} of {facts.queue} places in its queue are taken; at work: {facts.in_flight}"
            + (": more get 429 connector_busy" if full else ""),
            remedy="find why its calls take so long, or raise its concurrency and queue",
        )  # fmt: skip
    if facts.state == "ready" and facts.circuit is None:
        yield from _of_outcomes(facts, now)
        yield from _of_times(facts, now)
    for text in facts.notices:
        yield Concern(severity=Severity.NOTICE, kind="connector_notice", subject=facts.name, text=text)


def _quarantined(name: str, reason: str) -> Concern:
    """Tell why a connector cannot be served; of a log in its reason, the line that says most."""
    cause = lack_of(reason) or cause_of(log_of(reason))
    remedy = "mend that (gateway check tries it); it heals by itself" if cause is None else cause.remedy
    if "gateway install" in reason:
        remedy = _BUILD
    why = f"what it needs is {reason}" if reason.startswith("not installed") else gist(reason)
    return Concern(
        severity=Severity.ERROR, kind="quarantined", subject=name,
        text=f"{'' if cause is None else f'{cause.text}, so '}it cannot be served: {why}", remedy=remedy,
    )  # fmt: skip


def _left_alone(facts: ConnectorFacts, now: datetime.datetime) -> Concern:
    """Tell why a connector's circuit is open, with what its latest run that broke wrote."""
    latest = next((one for one in facts.last if one.outcome in _BREAKS and now - one.at < LATELY), None)
    log = log_of(latest.message or "") if latest is not None else ""
    cause, line = cause_of(log), telling(log)
    return Concern(
        severity=Severity.ERROR, kind="circuit_open", subject=facts.name,
        text=f"{'' if cause is None else f'{cause.text}; '}it crashes, or cannot be started, again and again, so calls"
        f" are refused: {facts.circuit}{f': {line}' if line else ''}{_request(latest)}",
        remedy=cause.remedy if cause is not None
        else "its log has why (gateway test calls it here); it is tried again by itself",
    )  # fmt: skip


_BUILD = "run that command; what is built is taken by itself"
_OWN = {"error", "raised"}
"""Outcomes of connectors' own: one among others is their business."""
_IGNORED = {"cancelled", "invalid_parameters", "command_not_found", "gateway_draining", "connector_unavailable"}
"""Outcomes that say nothing of a connector."""
_BREAKS = {"connector_crashed", "connector_start_failed"}
"""Outcomes that open circuits."""
_CLEAR = {"connector_out_of_memory", "connector_timeout", "connector_busy"}
"""Outcomes that say enough: what a run wrote before is not why."""
_CURES = {
    "connector_out_of_memory": ("it runs out of memory", "raise its max_memory, or have it take less"),
    "connector_timeout": ("it is too slow", "see what it waits for in its log, or raise its timeout"),
    "connector_busy": (
        "more calls come than it takes",
        "find why its calls take so long, or raise its concurrency and queue",
    ),
    "connector_crashed": ("it crashes", "its log has what it wrote before it died"),
    "connector_start_failed": ("it cannot be started", "gateway check says what is missing"),
    "connector_failed": ("it fails", "its log has why; the exit status is in the line of the run"),
    "connector_invalid_output": ("its answers cannot be read", "gateway test says what is wrong with its answers"),
    "error": (
        "it answers with errors",
        "the service behind it, or a secret of its own, may be wrong: its answer and its log say",
    ),
    "raised": ("its code fails", "its log has the traceback; a secret or a service may be wrong"),
}
"""What outcomes mean, and what to do, where a run's own words tell no more."""
_ANY = ("its calls fail", "docs/errors.md has the cure of each code")


def _of_outcomes(facts: ConnectorFacts, now: datetime.datetime) -> Iterator[Concern]:
    """Tell where the latest runs fail: half of them, or all where a connector told so itself, or there are few."""
    runs = [one for one in facts.last if now - one.at < LATELY and one.outcome not in _IGNORED]
    bad = Counter(one.outcome for one in runs if one.outcome != "ok")
    total = sum(bad.values())
    if not total or 2 * total < len(runs):
        return
    if total < FEW and (total < len(runs) or bad.keys() & _OWN):
        return
    [(outcome, times), *_] = bad.most_common(1)
    latest = next(one for one in runs if one.outcome == outcome)
    if bad.keys() <= _OWN and total < len(runs):
        return
    words, remedy = _CURES.get(outcome, _ANY)
    if outcome not in _CLEAR:
        said = f"{latest.error_code or ''}: {latest.message or ''}" if outcome in _OWN else latest.message or ""
        words, remedy = cause_of(said) or (words, remedy)
    calls = f"{times} of its latest {len(runs)} calls" if len(runs) > 1 else "its latest call"
    code = f" ({latest.error_code})" if outcome in _OWN and latest.error_code else ""
    yield Concern(
        severity=Severity.ERROR if total >= FEW else Severity.WARNING, kind="failing", subject=facts.name,
        text=f"{words}: {calls} ended with {outcome}{code}, the last"
        f" {_ago(latest.at, now)}{f': {gist(latest.message)}' if latest.message else ''}{_request(latest)}",
        remedy=remedy,
    )  # fmt: skip


def _of_times(facts: ConnectorFacts, now: datetime.datetime) -> Iterator[Concern]:
    """Tell where half of the latest calls took half of their timeout; a run that took more than that was a job's."""
    allowed = facts.timeouts
    runs = [one for one in facts.last if now - one.at < LATELY and 0 < one.wall <= allowed.get(one.command, 0.0)]
    slow = [one for one in runs if one.outcome == "ok" and one.wall >= SLOW * allowed[one.command]]
    if len(slow) < FEW or 2 * len(slow) < len(runs):
        return
    worst = max(slow, key=lambda one: one.wall / allowed[one.command])
    took = f"{worst.command} up to {Duration(round(worst.wall, 1))} of {Duration(allowed[worst.command])}"
    yield Concern(
        severity=Severity.WARNING, kind="slow", subject=facts.name,
        text=f"it is slow: {len(slow)} of its latest {len(runs)} calls took more than half of their timeout: {took}"
        + _request(worst),
        remedy="see what it waits for in its log; raise its timeout, or have it run as a job (async)",
    )  # fmt: skip


def _of_sandboxes(connectors: Iterable[ConnectorFacts]) -> Iterator[Concern]:
    """Tell each thing that is missing once, whoever lacks it."""
    lacking: dict[str, list[str]] = {}
    for one in connectors:
        for text in one.missing:
            lacking.setdefault(text, []).append(one.name)
    for text, names in lacking.items():
        yield Concern(
            severity=Severity.WARNING, kind="sandbox_weaker", subject="sandbox",
            text=f"{_listed(names)} run with less than asked for: {text}",
            remedy="switch it on (gateway check --sandbox), or say sandbox: off where that is all right",
        )  # fmt: skip


# --- words


def _many(count: int, word: str) -> str:
    """Say how many there are."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:NAMED])} and {more} more"


def _ends(moment: datetime.datetime, now: datetime.datetime) -> str:
    day = moment.date().isoformat()
    return f"has ended ({day})" if moment <= now else f"ends in {_many((moment - now).days, 'day')} ({day})"


def _request(run: PastRun | None) -> str:
    return "" if run is None else f" (request {run.request_id})"


def _ago(moment: datetime.datetime, now: datetime.datetime) -> str:
    seconds = round((now - moment).total_seconds())
    return f"{Duration(seconds)} ago" if seconds > 0 else "just now"
