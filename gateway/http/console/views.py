"""What the pages show, gathered where it is: of everything, or of one client's world."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.connectors.build_log import read_log
from gateway.connectors.definition import redactor
from gateway.connectors.snapshot import ConnectorState
from gateway.health import OF_CONNECTORS, Severity
from gateway.http.console import charts
from gateway.http.facts import Facts
from gateway.http.keys import client_of, identity_of
from gateway.jobs.contract import Verdict
from gateway.observe.history import POINTS
from gateway.observe.metrics import Tally
from gateway.observe.telling import tells
from gateway.processes.alive import alive
from gateway.runtimes.base import FAILED, MARKER, Failed, made_at
from gateway.sections import Limits
from gateway.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from aiohttp import web

    from gateway.connectors.definition import Command, Connector
    from gateway.connectors.snapshot import Status
    from gateway.gateway import Gateway
    from gateway.health import Concern
    from gateway.http.connections import Connections
    from gateway.jobs.contract import Attempt
    from gateway.journal.records import RunSummary
    from gateway.observe.history import History, Point
    from gateway.observe.metrics import Metrics
    from gateway.observe.outcomes import PastRun, Recent
    from gateway.processes.alive import AliveProcess
    from gateway.yaml_document import YamlNode

ROWS = 50  # connectors on a page of the overview
KEPT = 1.0  # seconds for which what is wrong is known, however many look
GOING = 100  # processes, and runs that go on, of a connector
SHOWN = 300  # characters of a setting
HIDDEN = "hidden"
NO_BUILD: dict[str, Any] = {"build": None, "build_failed": False, "build_log": None}
_VERDICTS = {Verdict.DONE: "delivered", Verdict.AGAIN: "to be tried again", Verdict.DEAD: "given up"}
_NONE = Tally({})


class ConnectorRow(NamedTuple):
    """A connector on the overview."""

    name: str
    state: str
    reason: str
    in_flight: int
    queued: int
    chart: str
    p50: str
    p95: str


class Trend(NamedTuple):
    """What the last quarter of an hour was like in one respect."""

    what: str
    latest: str
    most: str
    chart: str


class OverviewPage(NamedTuple):
    """The overview."""

    wrong: Sequence[Concern]
    trends: Sequence[Trend]
    rows: Sequence[ConnectorRow]
    connectors: int
    """How many there are on all pages."""
    page: int
    pages: int
    calls: int


class Setting(NamedTuple):
    """One of a connector's settings, and which file says so."""

    key: str
    value: str
    where: str


class RunStep(NamedTuple):
    """A line of the waterfall of a run."""

    what: str
    begun: str
    """After the call came."""
    took: str
    came_to: str
    chart: str


class Views:
    """Makes them."""

    def __init__(
        self, gateway: Gateway, metrics: Metrics, history: History, recent: Recent, connections: Connections
    ) -> None:
        self._gateway = gateway
        self._metrics = metrics
        self._history = history
        self._recent = recent
        self._facts = Facts(gateway, connections, recent)
        self._wrong: dict[str | None, tuple[float, list[Concern]]] = {}

    def statuses(self, request: web.Request) -> Mapping[str, Status]:
        """Return the connectors that whoever asks may see, by the names that he sees them under."""
        registry = self._gateway.registry
        if identity_of(request).sees_all:
            return registry.snapshot.statuses
        return registry.world(client_of(request)).statuses

    async def overview(self, request: web.Request) -> OverviewPage:
        """Return a page of it: `?q=&page=`. What is in trouble comes first."""
        client = seen_client(request)
        wrong, tallies = await self._what_is_wrong(client), self._metrics.tallies(client)
        troubled = {one.subject: one.kind for one in reversed(wrong) if _is_trouble(one)}
        statuses, wanted = self.statuses(request), request.query.get("q", "").lower()
        names = [name for name in statuses if wanted in name.lower()]
        names.sort(key=lambda name: (name not in troubled, name))
        pages = max(1, -(-len(names) // ROWS))
        page = min(max(1, _number(request.query.get("page", ""))), pages)
        loads = [self._load(status, client) for status in statuses.values()]
        running, queued = sum(one for one, _ in loads), sum(one for _, one in loads)
        return OverviewPage(
            wrong=wrong,
            trends=await self._trends(None, client, running, queued),
            rows=[
                self._row(name, statuses[name], tallies.get(statuses[name].name, _NONE), client, troubled)
                for name in names[(page - 1) * ROWS : page * ROWS]
            ],
            connectors=len(names),
            page=page,
            pages=pages,
            calls=sum(sum(tallies[one.name].outcomes.values()) for one in statuses.values() if one.name in tallies),
        )

    async def connector(self, request: web.Request, name: str, status: Status) -> dict[str, Any]:
        """Return what the page of a connector shows."""
        client, connector = seen_client(request), status.connector
        wrong = [one for one in await self._what_is_wrong(client) if is_of_connector(one) and one.subject == name]
        troubled = {one.subject: one.kind for one in reversed(wrong) if _is_trouble(one)}
        told = self._gateway.pools.told(connector.launch) if connector is not None else None
        return {
            "row": self._row(name, status, self._metrics.tallies(client).get(status.name, _NONE), client, troubled),
            "trends": await self._trends(status.name, client, *self._load(status, client)),
            "wrong": wrong,
            "description": connector.description if connector is not None else None,
            "runtime": connector.runtime if connector is not None else None,
            "mode": told[0] if told is not None else None,
            "notices": told[1] if told is not None else [],
            "concurrency": connector.limits.concurrency if connector is not None else None,
            "queue": connector.limits.queue if connector is not None else None,
            "commands": sorted(commands_of(status).values(), key=lambda one: one.name),
            "processes": await self._processes(status) if identity_of(request).sees_all else None,
            "going": self._gateway.invoker.going(status.name, client)[:GOING],
            "past": [_past(one) for one in self._recent.of(status.name, client)],
            "settings": list(self._settings(status)) if identity_of(request).sees_all else None,
            **(self._build(status.name) if identity_of(request).sees_all else NO_BUILD),
        }

    async def _processes(self, status: Status) -> list[AliveProcess]:
        """Look at the processes that serve a connector now, the eldest first."""
        connector, asked = status.connector, status.state is ConnectorState.DESCRIBING
        busy = "is asked what it can do" if asked else "runs a call"
        occupied = self._gateway.pools.occupied(connector.launch, busy) if connector is not None else []
        found = await asyncio.to_thread(alive, occupied) if occupied else []
        return sorted(found, key=lambda one: -one.age)[:GOING]

    async def _what_is_wrong(self, client: str | None) -> list[Concern]:
        now = time.monotonic()
        since, found = self._wrong.get(client, (float("-inf"), []))
        if now - since > KEPT:
            found = await self._facts.concerns(client)
            self._wrong = {one: kept for one, kept in self._wrong.items() if now - kept[0] <= KEPT}
            self._wrong[client] = (now, found)
        return found

    async def _trends(self, connector: str | None, client: str | None, running: int, queued: int) -> list[Trend]:
        await self._history.look()
        return list(_trends(self._history.of(connector, client), running, queued))

    def _load(self, status: Status, client: str | None) -> tuple[int, int]:
        lane = self._gateway.places.lane(status.name)
        if client is None:
            return lane.running, lane.queued
        return lane.running_of(client), lane.waiting_of(client)

    def _row(
        self, name: str, status: Status, tally: Tally, client: str | None, troubled: Mapping[str, str]
    ) -> ConnectorRow:
        state, reason = status.state.value, status.reason or ""
        if status.connector is not None and status.state is ConnectorState.READY:
            circuit = self._gateway.invoker.trouble_of(status.connector, client)
            if circuit is not None:
                state, reason = f"circuit {circuit.state.value}", circuit.reason or ""
            elif name in troubled:
                state = troubled[name].replace("_", " ")
        in_flight, queued = self._load(status, client)
        return ConnectorRow(
            name=name,
            state=state,
            reason=reason,
            in_flight=in_flight,
            queued=queued,
            chart=charts.of_outcomes(tally.outcomes),
            p50=seconds(tally.p50),
            p95=seconds(tally.p95),
        )

    def _settings(self, status: Status) -> Iterator[Setting]:
        """Yield what holds for a connector: what its entry says, and the limits that it does not speak of."""
        entry = self._gateway.registry.entry(status.name)
        if entry is None or not isinstance(entry.node.data, dict):
            return
        node, said = entry.node, entry.node.data
        redact = redactor(node, self._gateway.settings)
        for key, value in said.items():
            yield Setting(key, redact(_written(value)), _where(node, key))
        connector, defaults = status.connector, self._gateway.registry.defaults
        if connector is None:
            return
        for key in Limits.__struct_fields__:
            if key in said:
                continue
            where = _where(defaults, key) if key in defaults.data else "the default"
            yield Setting(key, redact(_written(getattr(connector.limits, key))), where)

    def _build(self, name: str) -> dict[str, Any]:
        """Return what is known of a connector's build, whether the latest one failed, and what it printed."""
        builds = self._gateway.settings.state_dir / "runtimes" / name
        if not builds.is_dir():
            return NO_BUILD
        current = (builds / "current").resolve()
        made = made_at(current)
        found = {"folder": str(current) if made is not None else "none is complete"}
        if made is not None:
            found["made"] = at((current / MARKER).stat().st_mtime)
            if made.notices:
                found["to know"] = "; ".join(made.notices)
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            found["failed"] = msgspec.json.decode((builds / FAILED).read_bytes(), type=Failed).problem
        return {"build": found, "build_failed": "failed" in found, "build_log": read_log(builds)}


def is_of_connector(one: Concern) -> bool:
    """Tell whether the subject of a concern is a connector's name."""
    return one.kind in OF_CONNECTORS


def _is_trouble(one: Concern) -> bool:
    return is_of_connector(one) and one.severity is not Severity.NOTICE


def seen_client(request: web.Request) -> str | None:
    """Return whose runs whoever asks may see; None: everybody's."""
    identity = identity_of(request)
    return None if identity.sees_all else identity.client


def commands_of(status: Status) -> dict[str, Command]:
    """Return the commands that can be called."""
    connector: Connector | None = status.connector
    return (connector.commands or {}) if connector is not None and status.state is ConnectorState.READY else {}


def waterfall(run: RunSummary, tries: Sequence[Attempt]) -> list[RunStep]:
    """Return where the time of a run went, from the call on: the queue, the start, the run, and its job's callbacks."""
    parts = [("in the queue", 0.0, run.queue_wait, "quiet", "")]
    if run.started is not None:
        parts.append(("start", run.queue_wait, max(0.0, run.started - run.queue_wait), "told", ""))
        parts.append(("run", run.started, run.wall, "good" if run.outcome == "ok" else "bad", run.outcome))
    for number, one in enumerate(tries, 1):
        came_to = f"{_VERDICTS[one.verdict]}: {one.reason or one.status or ''}".rstrip(": ")
        kind = "good" if one.verdict is Verdict.DONE else "bad"
        parts.append((f"callback {number}", max(0.0, one.at - run.began), one.took, kind, came_to))
    whole = max(begun + took for _, begun, took, _, _ in parts)
    return [
        RunStep(what, seconds(begun), seconds(took), came_to, charts.of_step(begun, took, whole, kind))
        for what, begun, took, kind, came_to in parts
    ]


def _trends(points: Sequence[Point], running: int, queued: int) -> Iterator[Trend]:
    """Yield what points say; of what there is at once the latest is that of now."""
    calls, failed = [one.calls for one in points], [one.failed for one in points]
    yield _trend("calls a second", {"good": calls}, _rate)
    yield _trend("failed a second", {"bad": failed}, _rate)
    halves, most = [one.p50 for one in points], [one.p95 for one in points]
    yield _trend("answered within: p50, p95", {"told": most, "good": halves}, seconds)
    yield _trend("in flight", {"good": [*(one.in_flight for one in points), running]}, _count)
    yield _trend("in queues", {"told": [*(one.queued for one in points), queued]}, _count)


def _trend(what: str, lines: Mapping[str, charts.Line], written: Callable[[Any], str]) -> Trend:
    """Return it with the latest values, the lowest line first, and the highest value of all."""
    latest: list[str] = []
    most = 0.0
    for line in lines.values():
        values = [value for value in line if value is not None]
        latest.insert(0, written(values[-1]) if values else "-")
        most = max(most, *values, 0.0)
    now = ", ".join(latest)
    said = f"{what}, over a quarter of an hour: {now} in the end, at most {written(most)}"
    return Trend(what, now, written(most), charts.of_lines(lines, POINTS + 1, said))


def _count(value: float) -> str:
    return str(round(value))


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or not value else f"{value:.2g}"


def seconds(value: float | None) -> str:
    """Write a length of time for people."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def lasting(value: float) -> str:
    """Write how long something goes on already, for people: in two units at most."""
    whole = int(value)
    for one, each, unit, below in ((86_400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= one:
            return f"{whole // one} {unit} {whole % one // each} {below}"
    return seconds(value)


def size(value: int) -> str:
    """Write a number of bytes for people."""
    return str(Size(value))


def at(moment: float | None) -> str:
    """Write a moment, in seconds since 1970, for people: in UTC."""
    return "" if moment is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))


def pretty(body: bytes | str, most: int = 1 << 16) -> str:
    """Write JSON for people, so many characters of it; what is none as it is."""
    text = body.encode() if isinstance(body, str) else body
    if len(text) <= most:
        with contextlib.suppress(msgspec.DecodeError):
            text = msgspec.json.format(text, indent=2)
    shown = text[:most].decode(errors="replace")
    return shown if len(text) <= most else f"{shown}\n... and {len(text) - most} bytes more"


def _past(run: PastRun) -> dict[str, str]:
    return {
        "at": at(run.at.timestamp()),
        "command": run.command,
        "outcome": run.outcome,
        "code": run.error_code or "",
        "wall": seconds(run.wall),
        "request": run.request_id,
    }


def _where(node: YamlNode, key: str) -> str:
    mark = node.mark((key,))
    return f"{mark.path}:{mark.line}" if mark is not None else "the gateway"


def _written(value: Any) -> str:
    """Write a setting as a file would say it, without what is secret by its name."""
    if isinstance(value, Size | Duration):
        return str(value)
    if value is None:
        return "null"
    text = str(value) if isinstance(value, str) else msgspec.json.encode(_bare(value), enc_hook=str).decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _of_secret(one) if tells(str(key)) else _bare(one) for key, one in value.items()}
    return [_bare(one) for one in value] if isinstance(value, list) else value


def _of_secret(value: Any) -> Any:
    """Return what refers to a secret as it is, and anything else not at all."""
    return value if isinstance(value, dict) and value.keys() == {"secret"} else HIDDEN


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 1
