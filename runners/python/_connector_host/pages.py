"""The memory that every child of a host writes to: one that waits for its request can have its own copies already.

A child shares its host's pages until it writes to one; the first write to each costs microseconds, mostly for the copy.
Linux tells which pages a process has for itself (3.14 of its documentation of /proc, pagemap), and makes copies of many
at once on demand (5.14). Where it does neither, nothing is known and nothing is done.
"""

from __future__ import annotations

import array
import contextlib
import os
from typing import Any, List, Set, Tuple

PAGE = os.sysconf("SC_PAGE_SIZE")
ENTRY = 8  # bytes of /proc/self/pagemap a page
OWN = 1 << 63 | 1 << 56  # it is in memory, and nobody else has it
MADV_POPULATE_WRITE = 23  # linux/mman.h

Ranges = List[Tuple[int, int]]
"""First address and the one after the last."""


def writable() -> Ranges:
    """List what the process may write to."""
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
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
