"""What a process writes beside its result, cut into bounded lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.processes.base import OnLine

LINE = 8192  # bytes; a longer log line is cut into pieces
AROUND = 200  # bytes that stand around a line in the log: its event, when, and of which call
FEWEST = 100  # lines that a log may have in any case

_encoded = msgspec.json.encode


class LogPipe:
    """Turns what arrives on a log stream into bounded lines; never holds more than one line and the tail.

    So many bytes are taken as its bound says, and no more lines than come to twice as many when they are written: a
    log of nothing but newlines, or of control characters, would be many times what it was.
    """

    def __init__(self, bound: int, on_line: Callable[[str], None]) -> None:
        self.total = 0
        self._bound = bound
        self._on_line = on_line
        self._partial = bytearray()
        self._tail = bytearray()
        self._full = False
        self._left = max(2 * bound, FEWEST * AROUND)

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        self.total += len(data)
        self._tail += data
        if len(self._tail) > 2 * LINE:
            del self._tail[:-LINE]
        if self._full:
            return
        if self.total > self._bound:
            data = data[: max(0, len(data) - (self.total - self._bound))]
            self._full = True
        self._partial += data
        *lines, rest = self._partial.split(b"\n")
        for line in lines:
            self._emit(line)
            if self._left <= 0:
                break
        while len(rest) > LINE:
            self._emit(rest[:LINE])
            rest = rest[LINE:]
        self._partial = bytearray(rest)
        if self._full or self._left <= 0:
            self._full = True
            self.finish()
            self._on_line(f"... the log goes on over its bound of {self._bound} bytes and is dropped from here")

    def finish(self) -> None:
        """Give out a last line that had no newline."""
        if self._partial:
            self._emit(self._partial)
            self._partial = bytearray()

    def tail(self) -> str:
        """Return the last few kilobytes."""
        return self._tail[-LINE:].decode(errors="replace").strip()

    def _emit(self, line: bytes | bytearray) -> None:
        for start in range(0, len(line) or 1, LINE):
            if self._left <= 0:
                return
            text = line[start : start + LINE].decode(errors="replace").rstrip("\r")
            self._left -= AROUND + len(_encoded(text))
            self._on_line(text)


class LogLines:
    """What a child writes beside its result, cut into lines."""

    def __init__(self, bound: int, on_line: OnLine) -> None:
        self.on_line = on_line
        self._bound = bound
        self._pipes: dict[int, LogPipe] = {}

    def feed(self, stream: int, data: bytes) -> None:
        """Take what came of stdout (1) or stderr (2)."""
        pipe = self._pipes.get(stream)
        if pipe is None:
            name = "stdout" if stream == 1 else "stderr"
            pipe = self._pipes[stream] = LogPipe(self._bound, lambda line: self.on_line(name, line))
        pipe.feed(data)

    def finish(self) -> None:
        """Give out last lines that had no newline."""
        for pipe in self._pipes.values():
            pipe.finish()

    def tail(self) -> str:
        """Return the last few kilobytes of stderr."""
        pipe = self._pipes.get(2)
        return pipe.tail() if pipe is not None else ""

    @property
    def total(self) -> int:
        """How many bytes there were."""
        return sum(pipe.total for pipe in self._pipes.values())
