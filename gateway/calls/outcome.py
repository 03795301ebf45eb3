"""What the end of a run means for its caller."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from gateway.cells.wire import Said
from gateway.errors import (
    ConnectorCrashed,
    ConnectorFailed,
    ConnectorInvalidOutput,
    ConnectorOutOfMemory,
    ConnectorOutputTooLarge,
    ConnectorTimeout,
    GatewayDraining,
    GatewayError,
)
from gateway.processes.completed import Completed, Stop, had_answered
from gateway.protocol.result import Result, interpret, told_error
from gateway.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.observe.redact import Redactor

T = TypeVar("T")

TAIL_LINES = 20  # of a failed run's log, for its caller
TAIL_IN_MESSAGE = 500  # characters
LATE = "it was stopped"  # so ends a warning about a process that did not end after its result
LARGE = 1 << 20  # bytes of a result that is looked at in a thread


class Meant(msgspec.Struct, frozen=True, kw_only=True):
    """What a run means: its result, or what went wrong, and the last lines of its log."""

    result: Result | None = None
    problem: GatewayError | None = None
    tail: str = ""

    @property
    def lines(self) -> tuple[str, ...]:
        """The end of the log, for whoever called."""
        return tuple(self.tail.splitlines()[-TAIL_LINES:])

    def told(self, wall: float) -> GatewayError:
        """Return the problem in the words that its caller is told, of a run that took so many seconds."""
        assert self.problem is not None
        shown = f"; stderr: {self.tail[-TAIL_IN_MESSAGE:]}" if self.tail else ""
        message = f"{self.problem.message} (after {wall:.2f} s){shown}"
        return type(self.problem)(message, logs=self.lines, retry_after=self.problem.retry_after)


async def meaning(completed: Completed, title: str, redact: Redactor, allowed: float, *, acknowledges: bool) -> Meant:
    """Return what a run means, however it ended; `allowed` is the time that it had, in seconds."""
    result = None
    problem = problem_of(completed, title, allowed)
    late = completed.stop is not None and await _beside_large(completed.result, had_answered, completed)
    if late or (problem is None and not completed.status):
        try:
            result = await _interpreted(completed.result, redact, acknowledges=acknowledges)
        except ConnectorInvalidOutput as invalid:
            hung = ", and did not end" if late else ""
            problem = ConnectorInvalidOutput(f"{title} gave no valid result{hung}: {redact(invalid.message)}")
        else:
            problem = None
        if late and result is not None:
            lateness = _lateness(completed, allowed)
            result = msgspec.structs.replace(result, warnings=(*result.warnings, lateness))
    elif problem is None:
        result = told_error(completed.result, redact)
        if result is None:
            problem = ConnectorFailed(f"{title} failed with exit status {completed.status}")
    if problem is None and result is not None and result.error is not None:
        if result.error.invalid_output:
            problem = ConnectorInvalidOutput(f"{title} gave no valid result: {result.error.message}")
        elif result.error.out_of_memory:
            problem = ConnectorOutOfMemory(f"{_filled(title, completed)}: {result.error.message}")
    return Meant(result=result, problem=problem, tail=redact(completed.log_tail))


def problem_of(completed: Completed, title: str, timeout: float) -> GatewayError | None:  # noqa: PLR0911 - a table
    """Return what the end of the process means, whatever it wrote."""
    bounds = completed.bounds
    if completed.stop is Stop.DEADLINE:
        part = f", with {len(completed.result)} bytes of a result that was not whole" if completed.result else ""
        return ConnectorTimeout(
            f"{title} was still running at its deadline of {Duration(timeout)} and was stopped{part}"
        )
    if completed.stop is Stop.DRAINED:
        return GatewayDraining(f"{title} was stopped: the gateway is shutting down", retry_after=5)
    if completed.stop is Stop.OUTPUT:
        return ConnectorOutputTooLarge(f"{title} wrote a result of more than {Size(bounds.output)} (max_output)")
    if completed.heap_full:
        return ConnectorOutOfMemory(_filled(title, completed))
    if completed.out_of_memory:
        return ConnectorOutOfMemory(f"{title} used more than {Size(bounds.memory)} of memory (max_memory)")
    if completed.over is not None:
        return ConnectorCrashed(f"{title} had more than its {completed.over} allows, and was stopped")
    if completed.cell_died:
        return ConnectorCrashed(f"{title} was killed together with the process that watches over it")
    if completed.signal is not None:
        return ConnectorCrashed(f"{title} died of {completed.signal}")
    return None


def _filled(title: str, completed: Completed) -> str:
    bound = f", a part of {Size(completed.bounds.memory)} (max_memory) where no option says its size"
    return f"{title} filled its heap{bound if completed.bounds.memory else ''}"


def _lateness(completed: Completed, allowed: float) -> str:
    """Say of a run that had answered when it was stopped."""
    if completed.stop is Stop.LINGERED:
        until = f"within {Duration(completed.bounds.linger)} (linger)"
    elif completed.stop is Stop.DEADLINE:
        until = f"until its deadline of {Duration(allowed)}"
    else:
        until = "until the gateway shut down"
    if completed.said == Said.ALL:
        return f"gave its result, and did not end {until}: {LATE}"
    return f"wrote its result, and neither closed its channel nor ended {until}: {LATE}"


async def _interpreted(stdout: bytearray, redact: Redactor, *, acknowledges: bool) -> Result:
    return await _beside_large(stdout, functools.partial(interpret, acknowledges=acknowledges), stdout, redact)


async def _beside_large(result: bytearray, look: Callable[..., T], *arguments: Any) -> T:
    """Look at a result; in a thread where it is large, which takes its time, and others have their turns."""
    return look(*arguments) if len(result) <= LARGE else await asyncio.to_thread(look, *arguments)
