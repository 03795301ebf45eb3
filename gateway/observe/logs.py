"""Writes events as log lines, one a run, as JSON or for people. Payloads are never among them."""

from __future__ import annotations

import asyncio
import atexit
import datetime
import io
import logging
import re
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import msgspec
import structlog

from gateway.observe.events import (
    ConnectorLine,
    Event,
    RegistryLoaded,
    RunFinished,
)

if TYPE_CHECKING:
    from collections.abc import MutableMapping

Format = Literal["json", "human"]

HELD = 256  # lines that wait for the end of a turn at most
_LISTED = 10  # names of connectors in one line
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

_json = msgspec.json.Encoder(enc_hook=repr)


def configure(form: Format, stream: TextIO = sys.stderr) -> None:
    """Send everything that is logged, the libraries' lines included, to one stream in one form."""
    _lines.begin(stream, form)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        last: list[Any] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(lambda value, **_: _json.encode(value).decode()),
        ]
    else:
        last = [
            _harmless,
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback),
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


class LineWriter(io.TextIOBase):
    """The stream of the log: lines that are held go out in one write at the end of a turn of the loop, in their order.

    They go out before anything else is written, and at the end of the process at the latest.
    """

    def __init__(self) -> None:
        self.json = False
        """Events are lines of JSON."""
        self._stream: TextIO = sys.stderr
        self._held: deque[str] = deque()
        self._turn = threading.RLock()  # threads log too, and so may what the collector finds in the middle of a write

    def begin(self, stream: TextIO, form: Format) -> None:
        """Write to a stream from now on."""
        self.release()
        self._stream = stream
        self.json = form == "json"

    def hold(self, line: str) -> None:
        """Write a line at the end of this turn, with all others that are held; at once where no loop runs."""
        held = self._held
        held.append(line)
        if len(held) == 1:
            try:
                asyncio.get_running_loop().call_soon(self.release)
            except RuntimeError:
                self.release()
        elif len(held) > HELD:
            self.release()

    def release(self) -> None:
        """Write what is held."""
        with self._turn:
            text = ""
            while self._held:
                text += self._held.popleft()
            if text:
                self._stream.write(text)
                self._stream.flush()

    def write(self, text: str) -> int:
        """Write at once, after what is held."""
        with self._turn:
            if self._held:
                self.release()
            self._stream.write(text)
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Hold nothing back of what was written."""
        self.release()

    def isatty(self) -> bool:
        """Tell whether people look at it."""
        return self._stream.isatty()


_lines = LineWriter()
atexit.register(_lines.release)


class EventLog:
    """Listens to everything."""

    def __init__(self) -> None:
        self._logger = structlog.get_logger()

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if not _lines.json:
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
            line = {**_facts(event), "event": event.name, "level": event.severity(), "timestamp": now}
        text = f"{_json.encode(line).decode()}\n"
        if type(event) is ConnectorLine:  # they come by the dozen
            _lines.hold(text)
        else:  # whoever is answered finds the line of his call
            _lines.write(text)


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
    cpu_user: float
    cpu_system: float
    peak_rss: int
    request_bytes: int
    result_bytes: int
    log_bytes: int
    event: str
    level: str
    timestamp: datetime.datetime


def _harmless(_logger: object, _method: str, facts: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep what connectors write from steering the terminal; line ends are the renderer's business."""
    for key, value in facts.items():
        if isinstance(value, str):
            facts[key] = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", value)
    return facts


def _facts(event: Event) -> dict[str, Any]:
    facts = msgspec.structs.asdict(event)
    if isinstance(event, RunFinished):
        facts = {key: value for key, value in facts.items() if value is not None}
        for key in ("queue_wait", "wall", "cpu_user", "cpu_system"):
            facts[key] = round(facts[key], 4)
    elif isinstance(event, RegistryLoaded):
        facts["changed"] = _some(event.changed)
        facts["removed"] = _some(event.removed)
    return facts


def _some(names: tuple[str, ...]) -> list[str]:
    return [*names[:_LISTED], f"... {len(names) - _LISTED} more"] if len(names) > _LISTED else list(names)
