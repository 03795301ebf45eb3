"""What a process writes beside its result, cut into bounded lines without secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.observe.redact import NO_SECRETS

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.observe.redact import Redactor
    from gateway.processes.base import OnLine

LINE = 8192  # bytes; a longer log line is cut into pieces
AROUND = 200  # bytes that stand around a line in the log: its event, when, and of which call
FEWEST = 100  # lines that a log may have in any case

_encoded = msgspec.json.encode


class LogPipe:
    """Turns what arrives on a log stream into bounded lines; never holds more than one line and the tail.

    So many bytes are taken as its bound says, and no more lines than come to twice as many when they are written: a
    log of nothing but newlines, or of control characters, would be many times what it was.

    Secrets are taken out before anything is cut, and nothing is cut where one may stand: so much more of a long line,
    and of the tail, is held as a secret takes at most.
    """

    def __init__(self, bound: int, on_line: Callable[[str], None], redact: Redactor = NO_SECRETS) -> None:
        self.total = 0
        self.redact = redact
        self._bound = bound
        self._on_line = on_line
        self._partial = bytearray()
        self._tail = bytearray()
        self._torn: int | None = None
        """Where in the tail there may be bytes missing: a cell tells the end of what is over the bound."""
        self._full = False
        self._left = max(2 * bound, FEWEST * AROUND)

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        if self.total > self._bound and self._torn is None:
            self._torn = len(self._tail)
        self.total += len(data)
        self._keep(data)
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
        if self._full and rest:  # it ends in the middle of something
            del rest[self._cut(rest, max(0, len(rest) - self.redact.reach)) :]
        self._partial = rest if len(rest) <= LINE else self._emit_pieces(rest, LINE + self.redact.reach)
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
        begin = max(0, len(self._tail) - LINE)
        if self._torn is not None and self.redact.reach:
            begin = max(begin, min(len(self._tail), self._torn + self.redact.reach))
        begin = self._cut(self._tail, begin) if begin else 0
        return self.redact.masked(bytes(self._tail[begin:])).decode(errors="replace").strip()

    def _keep(self, data: bytes) -> None:
        self._tail += data
        if len(self._tail) > 2 * LINE:
            kept = LINE + self.redact.reach
            if len(self._tail) > LINE + kept:
                if self._torn is not None:
                    self._torn = max(0, self._torn - (len(self._tail) - kept))
                del self._tail[:-kept]

    def _emit(self, line: bytes | bytearray) -> None:
        self._give_out(self._emit_pieces(line, LINE) if len(line) > LINE else line)

    def _emit_pieces(self, line: bytes | bytearray, held: int) -> bytearray:
        """Give out the beginning of a line in pieces, and return the rest of so many bytes at most."""
        rest = bytearray(line)
        while len(rest) > held:
            at = self._cut(rest, LINE)
            self._give_out(rest[:at])
            del rest[:at]
        return rest

    def _give_out(self, piece: bytes | bytearray) -> None:
        if self._left <= 0:
            return
        text = self.redact.masked(bytes(piece)).decode(errors="replace").rstrip("\r")
        self._left -= AROUND + len(_encoded(text))
        self._on_line(text)

    def _cut(self, text: bytearray, at: int) -> int:
        """Return where to cut a text, at about a place: a secret there is in what stands around it."""
        reach = self.redact.reach
        if not reach:
            return at
        begin = max(0, at - reach)
        cut = begin + self.redact.cut(bytes(text[begin : at + reach]), at - begin)
        return cut or at


class LogLines:
    """What a child writes beside its result, cut into lines."""

    def __init__(self, bound: int, on_line: OnLine, redact: Redactor) -> None:
        self._on_line = on_line
        self._redact = redact
        self._bound = bound
        self._pipes: dict[int, LogPipe] = {}

    def hand_over(self, on_line: OnLine, redact: Redactor) -> None:
        """Send the lines to somebody else from now on, who may know of more secrets."""
        self._on_line, self._redact = on_line, redact
        for pipe in self._pipes.values():
            pipe.redact = redact

    def feed(self, stream: int, data: bytes) -> None:
        """Take what came of stdout (1) or stderr (2)."""
        pipe = self._pipes.get(stream)
        if pipe is None:
            name = "stdout" if stream == 1 else "stderr"
            pipe = self._pipes[stream] = LogPipe(self._bound, lambda line: self._on_line(name, line), self._redact)
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
