"""What a run came to, and why it ended."""

from __future__ import annotations

import enum
import os
import signal
from typing import TYPE_CHECKING

import msgspec

from gateway.cells.cell import Ended
from gateway.cells.wire import Said, Why
from gateway.processes.launch import Bounds
from gateway.protocol.document import is_finished

if TYPE_CHECKING:
    from gateway.processes.launch import Launch

OVER = {Why.PROCESSES: "max_pids", Why.DISK: "max_disk"}
NEVER = Ended(0, signal.SIGKILL, Why.KILLED)
"""Of a run that was stopped before there was a process."""


class Stop(enum.Enum):
    """Why a run was stopped from outside."""

    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    DRAINED = "drained"
    OUTPUT = "output"
    LINGERED = "lingered"
    """It had given its result, and did not end."""


_AFTER_AN_ANSWER = (Stop.DEADLINE, Stop.DRAINED, Stop.LINGERED)


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is over. Times in seconds, sizes in bytes; `status` is None when a signal ended it."""

    pid: int
    bounds: Bounds
    status: int | None
    signal: str | None
    stop: Stop | None
    out_of_memory: bool
    over: str | None
    """The setting that says how much of something it might have, and it had more."""
    cell_died: bool
    cpu_user: float
    cpu_system: float
    peak_rss: int
    result: bytearray
    log_tail: str
    log_bytes: int
    said: int = Said.PERHAPS_A_PART
    """What there was of its result when it was stopped."""
    left_behind: bool = False
    """Something that it had started outlived it, although nobody stopped it."""
    heap_full: bool = False
    """It ran out of memory since its heap was full, which is a part of what it may have."""
    clean: bool = False
    """It ended by itself, with status 0."""


class StartFailed(Exception):
    """The operating system would not start the process."""


class StaleCell(StartFailed):
    """Its cell hides a file no longer that has been replaced; in another cell it can be started."""


def why_stopped(ended: Ended, stop: Stop | None) -> Stop | None:
    """Return why a run was stopped, None when it ended by itself: also when that came before the word to stop."""
    if ended.why == Why.DEADLINE:
        return stop or Stop.DEADLINE
    if ended.why == Why.OUTPUT:
        return Stop.OUTPUT
    if ended.why == Why.LINGERED:
        return Stop.LINGERED
    return stop if ended.why in (Why.STOPPED, Why.KILLED, Why.CELL_DIED) else None


def completed(ended: Ended, launch: Launch, *, stop: Stop | None, log: tuple[str, int]) -> Completed:
    """Return what a run came to; `log` is its last words and how many bytes there were."""
    full = ended.status != 0 and not ended.result and launch.heap_full is not None and launch.heap_full in log[0]
    number = os.WTERMSIG(ended.status) if ended.status and os.WIFSIGNALED(ended.status) else None
    return Completed(
        pid=ended.pid,
        bounds=launch.bounds,
        status=None if number else os.WEXITSTATUS(ended.status),
        signal=signal_name(number) if number else None,
        stop=stop,
        out_of_memory=full or ended.why == Why.MEMORY or (ended.status != 0 and _went_over(ended, launch)),
        heap_full=full,
        over=OVER.get(ended.why),
        cell_died=ended.why == Why.CELL_DIED,
        cpu_user=ended.cpu_user,
        cpu_system=ended.cpu_system,
        peak_rss=ended.peak_rss,
        result=ended.result,
        log_tail=log[0],
        log_bytes=max(log[1], ended.log_bytes),
        said=ended.said,
        left_behind=ended.left_behind,
        clean=stop is None and ended.status == 0 and ended.why is Why.BY_ITSELF,
    )


def _went_over(ended: Ended, launch: Launch) -> bool:
    """Tell whether one that failed may have done so because the system refused it memory."""
    return 0 < launch.bounds.memory < ended.peak_rss


def had_answered(completed: Completed) -> bool:
    """Tell whether a run that was stopped had given its whole result by then. A large one takes its time.

    It has when its channel was closed. Where it was not, one JSON document that nothing followed will do: told as a
    failure, what was done would be done again.
    """
    if completed.stop not in _AFTER_AN_ANSWER or completed.said == Said.PERHAPS_A_PART:
        return False
    return completed.said == Said.ALL or is_finished(completed.result)


def signal_name(number: int) -> str:
    """Return a signal's name."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"
