"""What a build printed, kept beside the builds: its beginning and its end, without secrets."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING

from gateway.files import read_file
from gateway.runtimes.base import LOG

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.observe.redact import Redactor

HEAD, TAIL = 64 << 10, 192 << 10  # bytes of the beginning, and of the end
LINE = 8 << 10  # bytes of a line
MOST = 1 << 20  # bytes that are read of such a file, whoever has written it


class BuildLog:
    """The log of one build while it goes on. What is added has no secrets in it any more."""

    def __init__(self, builds: Path, title: str, redact: Redactor) -> None:
        """`builds` is the folder of a connector's builds."""
        self._file = builds / LOG
        self.redact = redact
        self._begun = time.monotonic()
        self._head: list[bytes] = []
        self._tail: deque[bytes] = deque()
        self._room = HEAD
        """Bytes of the beginning that are free; 0 once one line did not fit."""
        self._held = 0
        self._left_out = 0
        self.line(f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}  {title}")

    def step(self, what: str) -> None:
        """Tell what begins now, or what has come of it."""
        self.line(f"{time.monotonic() - self._begun:6.1f} s  {self.redact(what)}")

    def printed(self, text: str) -> None:
        """Add what a program has written."""
        for line in self.redact(text).splitlines():
            self.line(line)

    def line(self, text: str) -> None:
        """Add a line that has no secrets in it."""
        data = text.encode(errors="replace")
        data = (data if len(data) <= LINE else data[:LINE] + b"...") + b"\n"
        if len(data) <= self._room:
            self._head.append(data)
            self._room -= len(data)
            return
        self._room = 0
        self._tail.append(data)
        self._held += len(data)
        while self._held > TAIL:
            self._held -= len(self._tail.popleft())
            self._left_out += 1

    def write(self) -> None:
        """Keep it in place of the one before. That it cannot be kept is no fault of the build."""
        gap = [f"... {self._left_out} lines are left out ...\n".encode()] if self._left_out else []
        draft = self._file.with_name(f".{self._file.name}")
        with contextlib.suppress(OSError):
            draft.write_bytes(b"".join((*self._head, *gap, *self._tail)))
            draft.replace(self._file)


def read_log(builds: Path) -> str | None:
    """Return what the latest build printed; None where nothing is kept."""
    try:
        return read_file(builds / LOG, most=MOST).decode(errors="replace")
    except OSError:
        return None
