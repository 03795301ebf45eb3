"""Writes events as log lines, one a run, as JSON or for people. Payloads are never among them."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import re
import stat
import sys
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import msgspec
import structlog

from gateway.observe.events import (
    Event,
    RegistryLoaded,
    RunFinished,
)

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path

Format = Literal["json", "human"]

_LISTED = 10  # names of connectors in one line
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def configure(
    form: Format, stream: TextIO = sys.stderr, *, worker: int | None = None, lock: Path | None = None
) -> None:
    """Send everything that is logged, the libraries' lines included, to one stream in one form.

    Several workers write to the same one: each line names its `worker`, and the file `lock` is locked for its length.
    """
    if lock is not None and not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):  # a file takes any line in one piece
        stream = cast("TextIO", _Shared(stream, lock))
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if worker is not None:
        shared.append(lambda _logger, _method, facts: {"worker": worker, **facts})
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


class _Shared(io.TextIOBase):
    """A pipe, or what is like one, that several processes write to: it would take a long line in pieces."""

    def __init__(self, stream: TextIO, lock: Path) -> None:
        self._stream = stream
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, text: str) -> int:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            written = self._stream.write(text)
            self._stream.flush()
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        return written

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        return self._stream.isatty()


class EventLog:
    """Listens to everything."""

    def __init__(self) -> None:
        self._logger = structlog.get_logger()

    def __call__(self, event: Event) -> None:
        """Take an event."""
        facts = msgspec.structs.asdict(event)
        if isinstance(event, RunFinished):
            facts = _of_run(event)
        elif isinstance(event, RegistryLoaded):
            facts["changed"] = _some(event.changed)
            facts["removed"] = _some(event.removed)
        getattr(self._logger, event.severity())(event.name, **facts)


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
