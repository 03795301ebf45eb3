"""A gateway that notes how long its loop was held: `python -m bench.held FILE serve ...`.

Every millisecond it looks how much of the processor the loop's thread has used since the last look, and keeps the most
in FILE, as a double; whoever writes 0 there begins anew. What others take of the processor does not count.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BEAT = 0.001  # seconds; what is less long is not seen


class Held:
    """The other end: the longest step of the loop since the last question."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.file.write_bytes(bytes(8))

    def taken(self) -> float:
        """Return it in seconds of the processor, and begin anew."""
        with self.file.open("r+b") as file, mmap.mmap(file.fileno(), 8) as memory:
            [longest] = struct.unpack("d", memory[:])
            memory[:] = bytes(8)
        return float(longest)


def main() -> None:
    """Serve."""
    file, *arguments = sys.argv[1:]
    with open(file, "r+b") as opened:
        memory = mmap.mmap(opened.fileno(), 8)
    made: Callable[[], Any] = uvloop.new_event_loop

    def watched() -> Any:
        loop, before = made(), 0.0

        def beat() -> None:
            nonlocal before
            now = time.thread_time()
            if before and now - before > struct.unpack("d", memory[:])[0]:
                memory[:] = struct.pack("d", now - before)
            before = now
            loop.call_later(BEAT, beat)

        loop.call_later(BEAT, beat)
        return loop

    uvloop.new_event_loop = watched
    from gateway.cli.main import main as verb  # noqa: PLC0415 - after uvloop is changed

    verb(arguments)


if __name__ == "__main__":
    main()
