"""The wire of a cell: one message a packet. See `runners/cell/cell.h`, whose structures these are."""

from __future__ import annotations

import enum
import fcntl
import os
from struct import Struct

INLINE = 64 << 10  # bytes of a body that travel in their message; larger ones come as a memfd
MESSAGE = 128 << 10  # bytes of the longest message
DESCRIPTORS = 4  # that come with one message, at most

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
"""Of memory that is handed over: nobody changes it any more."""

HEAD = Struct("=IIII")  # kind, run, flags, bytes of the body
# head; arguments, variables, bytes of both; milliseconds of time, grace and linger; processes, 0; bytes of result, log,
# memory
RUN = Struct("=IIIIIIIIIIIIQQQ")
FEED = Struct("=IIIIII")
READY = Struct("=II")
FAILED = Struct("=II")
ENDED = Struct("=IIIIIIQQQQ")
MEASURED = Struct("=IIQQQQ")


class Kind(enum.IntEnum):
    """What a message is."""

    RUN = 1
    FEED = 2
    STOP = 3
    KILL = 4
    STARTED = 5
    FAILED = 6
    LOG = 7
    ENDED = 8
    READY = 9
    RESULT = 10
    GO_ON = 11
    REST = 12
    MEASURE = 13
    MEASURED = 14
    TOLD = 15
    LEAVE = 16


class Rested(enum.IntFlag):
    """How a process that stays came to rest."""

    RESTED = 1 << 0
    KILLED = 1 << 1
    """Something that a request had started was killed."""
    REMOVED = 1 << 2
    """Something that a request had left in its folders was removed."""


class Flag(enum.IntFlag):
    """How a run is to be, or what comes with a message."""

    RESULT_ON_3 = 1 << 0
    AHEAD = 1 << 1
    BODY_IN_FD = 1 << 2
    TELL = 1 << 3
    TELL_RESULT = 1 << 4
    CHANNEL = 1 << 5
    HOST = 1 << 6
    FORKED = 1 << 7
    KEEP = 1 << 8
    IN_TIME = 1 << 9
    RESULT_IN_LINE = 1 << 10


class Why(enum.IntEnum):
    """What has ended a run."""

    BY_ITSELF = 0
    DEADLINE = 1
    STOPPED = 2
    KILLED = 3
    OUTPUT = 4
    MEMORY = 5
    PROCESSES = 6
    DISK = 7
    LINGERED = 8
    CELL_DIED = 99  # said by nobody: it is this side's own


class Said(enum.IntEnum):
    """What had come of a result by the time that its run was stopped."""

    PERHAPS_A_PART = 0
    NOTHING_SINCE = 1
    """All that there is; but more could have come."""
    ALL = 2
    """Its channel had been closed, or its line ended."""


WHY = {int(why): why for why in Why}
"""By number: asking an enumeration takes three function calls."""

_STEPS = ("", "no pipes", "no process", "no private folder", "no descriptors", "", "the request", "its sandbox", "")


def why_not_started(step: int, error: int, words: str) -> str:
    """Say why a process could not be started: what was being done, and the system's words, or the host's."""
    doing = _STEPS[step] if step < len(_STEPS) else ""
    told = words or (f"[Errno {error}] {os.strerror(error)}" if error else "")
    return ": ".join(word for word in (doing, told) if word)
