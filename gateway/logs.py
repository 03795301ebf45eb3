"""Writes events as log lines, one a run, as JSON or for people. Payloads are never among them."""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, Literal, TextIO

import msgspec
import structlog

from gateway.events import (
    Event,
    RegistryLoaded,
    RunFinished,
)

if TYPE_CHECKING:
    from collections.abc import MutableMapping

Format = Literal["json", "human"]

_MEANT = {"ok", "error"}  # outcomes that are the connector's business
_LISTED = 10  # names of connectors in one line
_SMALL = re.compile(r"(?<!^)(?=[A-Z])")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def configure(form: Format, stream: TextIO = sys.stderr) -> None:
    """Send everything that is logged, the libraries' lines included, to one stream in one form."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        last: list[Any] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(lambda value, **_: msgspec.json.encode(value, enc_hook=repr).decode()),
        ]
    else:
        last = [
            _harmless,
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback),
        ]
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=structlog.WriteLoggerFactory(stream),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class EventLog:
    """Listens to everything."""

    def __init__(self) -> None:
        self._logger = structlog.get_logger()

    def __call__(self, event: Event) -> None:
        """Take an event."""
        name = event.title or _SMALL.sub("_", type(event).__name__).lower()
        level = event.level
        facts = msgspec.structs.asdict(event)
        if isinstance(event, RunFinished):
            level = "info" if event.outcome in _MEANT else "warning"
            facts = _of_run(event)
        elif isinstance(event, RegistryLoaded):
            facts["changed"] = _some(event.changed)
            facts["removed"] = _some(event.removed)
        getattr(self._logger, level)(name, **facts)


def _harmless(_logger: object, _method: str, facts: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep what connectors write from steering the terminal; line ends are the renderer's business."""
    for key, value in facts.items():
        if isinstance(value, str):
            facts[key] = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", value)
    return facts


def _of_run(event: RunFinished) -> dict[str, Any]:
    facts = {key: value for key, value in msgspec.structs.asdict(event).items() if value is not None}
    for key in ("queue_wait", "wall", "cpu_user", "cpu_system"):
        facts[key] = round(facts[key], 4)
    return facts


def _some(names: tuple[str, ...]) -> list[str]:
    return [*names[:_LISTED], f"... {len(names) - _LISTED} more"] if len(names) > _LISTED else list(names)
