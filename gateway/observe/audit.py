"""The audit: one line for each call and each operator's act. It says who did what, and never with what."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
from typing import TYPE_CHECKING

import msgspec

from gateway.observe.events import AuditChanged, AuditDropped
from gateway.observe.logs import encoded
from gateway.observe.writer import STDOUT, LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.observe.events import Bus

SHOWN = 128  # characters of what a caller says: all of a line fits a page of a pipe, and is written in one piece
PATIENCE = 6.0  # seconds that an answer waits for its line, where it has to: a little longer than a stall is none


def obstacle(path: Path) -> str | None:
    """Say why lines could not be appended to a file, as far as that is seen without making it."""
    if path.is_dir():
        return f"{path} is a folder"
    place = path if path.exists() else path.parent
    if not place.exists():
        return f"there is no folder {place}"
    return None if os.access(place, os.W_OK) else f"{place} cannot be written by the gateway's user, {os.geteuid()}"


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line. All of these are in it, in this order, and null where there is nothing to say."""

    time: str
    event: str
    client: str | None = None
    key_id: str | None = None
    address: str | None = None
    request_id: str | None = None
    task_id: str | None = None
    connector: str | None = None
    command: str | None = None
    job: str | None = None
    new_job: str | None = None
    """The one that was made of it."""
    run: str | None = None
    """The run of the journal that was repeated."""
    count: int | None = None
    """Of what an act was about: jobs that were removed, connectors that were read again."""
    outcome: str
    status: int | None = None


def now() -> str:
    """Return the time, as RFC 3339 has it, in UTC, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def shown(text: str | None) -> str | None:
    """Return as much of what a caller says as is told."""
    return text[:SHOWN] if text else None


class Audit:
    """The file, or standard output."""

    def __init__(self, path: Path | None, bus: Bus, *, required: bool = False) -> None:
        """Without a path it is standard output. `required`: nothing may be done that cannot be told."""
        self.required = required
        self.failed = 0
        """Lines that could not be written when their time had come; they wait, or were dropped."""
        self._path = path
        self._bus = bus
        self._loop: asyncio.AbstractEventLoop | None = None
        self._out = LineWriter("audit", lost=self._lost, changed=self._changed, gather=0.0)
        self._told = False
        """It was said that it cannot be written."""
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def open(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Begin; `loop` is where it is told whether lines can be written."""
        self._loop = loop
        if self._path is None:
            self._out.begin(STDOUT)
        else:
            self._out.follow(self._path)
        self._tell()

    def reopen(self) -> None:
        """Leave a file that was renamed for the one that has its name now."""
        self._out.reopen()
        self._tell()

    def close(self) -> None:
        """Write what waits, as far as that is possible within seconds."""
        self._out.close()

    @property
    def problem(self) -> str | None:
        """Why lines cannot be written at the moment."""
        return self._out.problem

    @property
    def refuses(self) -> bool:
        """Nothing may be done now."""
        if self.required and self._out.problem is not None:
            self._tell()
            return True
        return False

    def put(self, line: AuditLine) -> int:
        """Write a line, or have it wait until it can be written; return what `settled` knows it by."""
        mark = self._out.put(encoded(line) + b"\n")
        if self._told or not mark or mark > self._out.written:
            self._tell()
            if not mark or (mark > self._out.written and self._out.problem is not None):
                self.failed += 1
        return mark

    async def settled(self, mark: int) -> None:
        """Wait until a line is written; not while none can be, and not for ever."""
        if mark <= self._out.written or self._out.problem is not None:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((mark, future))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await future
        if mark > self._out.written:
            self.failed += 1
            self._tell()

    # --- private

    def _lost(self, lines: int) -> None:
        """Say, in the thread, where lines are missing."""
        self._out.put(encoded(AuditLine(time=now(), event="audit", count=lines, outcome="dropped")) + b"\n")
        self._soon(lambda: self._bus.publish(AuditDropped(lines=lines)))

    def _changed(self) -> None:
        self._soon(self._look)

    def _soon(self, do: Callable[[], None]) -> None:
        """Do something in the loop's thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: nobody waits any more
                self._loop.call_soon_threadsafe(do)

    def _look(self) -> None:
        """Let those go on whose lines are written, or will not be for now."""
        self._tell()
        written, problem = self._out.written, self._out.problem
        left = []
        for mark, future in self._waiting:
            if mark > written and problem is None:
                left.append((mark, future))
            elif not future.done():
                future.set_result(None)
        self._waiting = left

    def _tell(self) -> None:
        problem = self._out.problem
        if (problem is not None) != self._told:
            self._told = problem is not None
            self._bus.publish(AuditChanged(ok=problem is None, reason=problem or "", failed=self.failed))
