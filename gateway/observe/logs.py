"""Writes events as log lines, one a run, as JSON or for people. Payloads are never among them."""

from __future__ import annotations

import atexit
import datetime
import logging
import os
import re
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import msgspec
import structlog

from gateway.observe.events import ConnectorLine, Event, RegistryLoaded, RunFinished
from gateway.observe.redact import NO_SECRETS
from gateway.observe.writer import STDERR, LogWriter

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from gateway.observe.redact import Redactor

Format = Literal["json", "human"]

_LISTED = 10  # names of connectors in one line
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

_json = msgspec.json.Encoder(enc_hook=repr)
_lines = LogWriter()
atexit.register(_lines.close)


def configure(form: Format, descriptor: int = STDERR, redact: Redactor = NO_SECRETS) -> None:
    """Send everything that is logged, the libraries' lines included, to one descriptor in one form, without secrets."""
    _lines.begin(descriptor)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        last: list[Any] = [
            structlog.processors.format_exc_info,
            lambda _logger, _method, facts: _hidden(facts, redact),
            structlog.processors.JSONRenderer(lambda value, **_: encoded(value).decode()),
        ]
    else:
        last = [
            _harmless,
            structlog.dev.ConsoleRenderer(
                colors=os.isatty(descriptor), exception_formatter=structlog.dev.plain_traceback
            ),
            lambda _logger, _method, line: redact(line),
        ]
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _lines)),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    handler = logging.StreamHandler(_lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def problem() -> str | None:
    """Return why the log cannot be written at the moment."""
    return _lines.problem


def dropped() -> int:
    """Return how many lines could not be queued."""
    return _lines.dropped


def close() -> None:
    """Write what is queued, and end the thread that does."""
    _lines.close()


class EventLog:
    """Listens to everything."""

    def __init__(self, form: Format, redact: Redactor = NO_SECRETS) -> None:
        """`redact` is for what tells of no connector; what does comes without secrets."""
        self._json = form == "json"
        self._redact = redact
        self._logger = structlog.get_logger()

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if not self._json:
            getattr(self._logger, event.severity())(event.name, **_facts(event))
            return
        now = datetime.datetime.now(datetime.UTC)
        line: _RunLine | dict[str, Any]
        if type(event) is RunFinished:  # one a call, and the only line of most
            line = _RunLine(
                connector=event.connector,
                command=event.command,
                request_id=event.request_id,
                outcome=event.outcome,
                error_code=event.error_code,
                message=event.message,
                client=event.client,
                pid=event.pid,
                status=event.status,
                signal=event.signal,
                queue_wait=round(event.queue_wait, 4),
                wall=round(event.wall, 4),
                total=round(event.total, 4),
                cpu_user=round(event.cpu_user, 4),
                cpu_system=round(event.cpu_system, 4),
                peak_rss=event.peak_rss,
                request_bytes=event.request_bytes,
                result_bytes=event.result_bytes,
                log_bytes=event.log_bytes,
                event=event.name,
                level="info" if event.outcome == "ok" else event.severity(),
                timestamp=now,
            )
        else:
            facts = _facts(event) if type(event) is ConnectorLine else _hidden(_facts(event), self._redact)
            line = {**facts, "event": event.name, "level": event.severity(), "timestamp": now}
        try:
            text = _json.encode(line)
        except UnicodeEncodeError:
            text = _repaired(line)
        _lines.put(text + b"\n", later=type(event) is ConnectorLine)  # those come by the dozen


class _RunLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The line of a run, in this order: what has no value is left out."""

    connector: str
    command: str
    request_id: str
    outcome: str
    error_code: str | None = None
    message: str | None = None
    client: str | None = None
    pid: int
    status: int | None = None
    signal: str | None = None
    queue_wait: float
    wall: float
    total: float
    cpu_user: float
    cpu_system: float
    peak_rss: int
    request_bytes: int
    result_bytes: int
    log_bytes: int
    event: str
    level: str
    timestamp: datetime.datetime


def encoded(facts: object) -> bytes:
    """Write facts as JSON."""
    try:
        return _json.encode(facts)
    except UnicodeEncodeError:
        return _repaired(facts)


def _repaired(facts: object) -> bytes:
    """Write what came in and was no UTF-8."""
    plain = msgspec.to_builtins(facts, enc_hook=repr)
    return _json.encode({key: _escaped(value) if isinstance(value, str) else value for key, value in plain.items()})


def _escaped(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _harmless(_logger: object, _method: str, facts: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep what connectors write from steering the terminal; line ends are the renderer's business."""
    for key, value in facts.items():
        if isinstance(value, str):
            facts[key] = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", value)
    return facts


def _hidden(facts: MutableMapping[str, Any], redact: Redactor) -> dict[str, Any]:
    """Return facts without secrets; what they are called is none."""
    return {key: value if key in {"level", "timestamp"} else _without(value, redact) for key, value in facts.items()}


def _without(value: Any, redact: Redactor) -> Any:
    if isinstance(value, str):
        return redact(value)
    return [_without(one, redact) for one in value] if isinstance(value, list | tuple) else value


def _facts(event: Event) -> dict[str, Any]:
    facts = msgspec.structs.asdict(event)
    if isinstance(event, RunFinished):
        facts = {key: value for key, value in facts.items() if value is not None}
        for key in ("queue_wait", "wall", "total", "cpu_user", "cpu_system"):
            facts[key] = round(facts[key], 4)
    elif isinstance(event, ConnectorLine) and event.client is None:
        del facts["client"]
    elif isinstance(event, RegistryLoaded):
        facts["changed"] = _some(event.changed)
        facts["removed"] = _some(event.removed)
    return facts


def _some(names: tuple[str, ...]) -> list[str]:
    return [*names[:_LISTED], f"... {len(names) - _LISTED} more"] if len(names) > _LISTED else list(names)
