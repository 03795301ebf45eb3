"""The memory that every child of a host writes to: one that waits for its request can have its own copies already.

A child shares its host's pages until it writes to one; the first write to each costs microseconds, mostly for the copy.
Linux tells which pages a process has for itself (3.14 of its documentation of /proc, pagemap), and makes copies of many
at once on demand (5.14). Where it does neither, nothing is known and nothing is done.

Which pages these are depends on what the connector does: the first children tell at their ends.
"""

from __future__ import annotations

import array
import contextlib
from typing import Any, List, Set, Tuple

from .own import io, json, os

PAGE = os.sysconf("SC_PAGE_SIZE")
ENTRY = 8  # bytes of /proc/self/pagemap a page
OWN = 1 << 63 | 1 << 56  # it is in memory, and nobody else has it
MADV_POPULATE_WRITE = 23  # linux/mman.h
SCOUTS = 3  # children that tell
MANY = 2000  # pages; asking for the copies, range by range, costs as much as it saves where there are fewer
TOLD = 1 << 20  # bytes
END = b"\n"

Ranges = List[Tuple[int, int]]
"""First address and the one after the last."""


def writable() -> Ranges:
    """List what the process may write to."""
    found = []
    with io.open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            span, rights = line.split(None, 2)[:2]
            if rights.startswith("rw") and rights.endswith("p"):
                first, _, end = span.partition("-")
                found.append((int(first, 16), int(end, 16)))
    return found


def own(spans: Ranges) -> Set[int]:
    """Return the addresses of the pages in `spans` that the calling process shares with nobody."""
    found = set()
    descriptor = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        for first, end in spans:
            entries = array.array("Q")
            entries.frombytes(os.pread(descriptor, (end - first) // PAGE * ENTRY, first // PAGE * ENTRY))
            found.update(first + number * PAGE for number, entry in enumerate(entries) if entry & OWN == OWN)
    finally:
        os.close(descriptor)
    return found


def ranges(addresses: Set[int]) -> Ranges:
    """Put pages that follow one another together."""
    found: Ranges = []
    for page in sorted(addresses):
        if found and found[-1][1] == page:
            found[-1] = (found[-1][0], page + PAGE)
        else:
            found.append((page, page + PAGE))
    return found


class Scouts:
    """What a child has written to, told by it at its end in memory that it shares with the host."""

    def __init__(self) -> None:
        """Look at what there is to write to: children come from here."""
        self.written: Ranges = []
        """By the one that wrote to most; nothing below `MANY`."""
        self._left = SCOUTS
        self._most = MANY - 1
        self._spans: Ranges = []
        self._shared: Any = None
        with contextlib.suppress(Exception):  # no /proc, or no memory: nothing is learned
            import mmap  # noqa: PLC0415  (some interpreters are built without)

            self._spans = writable()
            self._shared = mmap.mmap(-1, TOLD)

    @property
    def wanted(self) -> bool:
        """Whether a child should tell."""
        return self._shared is not None

    def tell(self) -> None:
        """Be a child at its end."""
        with contextlib.suppress(Exception):
            told = json.dumps(ranges(own(self._spans))).encode() + END
            self._shared[: len(told)] = told

    def learn(self) -> None:
        """Be the host, after the end of a child that should have told: what it says is a child's word, and no more."""
        with contextlib.suppress(Exception):
            told = [(int(first), int(end)) for first, end in json.loads(self._shared[: self._shared.find(END)])]
            pages = sum(end - first for first, end in told) // PAGE
            if pages > self._most:
                self.written, self._most = told, pages
        self._left -= 1
        if not self._left:
            self._shared.close()
            self._shared = None


class Copier:
    """Makes copies of shared pages at once."""

    def __init__(self) -> None:
        """Find the C library's function."""
        self._madvise: Any = None
        with contextlib.suppress(Exception):  # an interpreter without ctypes, or a C library without it
            import ctypes  # noqa: PLC0415  (some are built without)

            self._madvise = ctypes.CDLL(None).madvise
            self._madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)

    def copy(self, spans: Ranges) -> None:
        """Give the calling process pages of its own there."""
        if self._madvise is not None:
            for first, end in spans:
                self._madvise(first, end - first, MADV_POPULATE_WRITE)
