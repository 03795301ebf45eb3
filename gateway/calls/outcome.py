"""What the end of a run means for its caller."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.errors import (
    ConnectorCrashed,
    ConnectorOutOfMemory,
    ConnectorOutputTooLarge,
    ConnectorTimeout,
    GatewayDraining,
    GatewayError,
)
from gateway.processes.run import Completed, Stop
from gateway.protocol.result import Result, interpret
from gateway.units import Duration, Size

if TYPE_CHECKING:
    from gateway.observe.redact import Redactor

TAIL_LINES = 20  # of a failed run's log, for its caller
LARGE = 1 << 20  # bytes of a result


def problem_of(completed: Completed, title: str, timeout: float) -> GatewayError | None:  # noqa: PLR0911 - a table
    """Return what the end of the process means, whatever it wrote."""
    bounds = completed.bounds
    if completed.stop is Stop.DEADLINE:
        return ConnectorTimeout(f"{title} was still running at its deadline of {Duration(timeout)} and was stopped")
    if completed.stop is Stop.DRAINED:
        return GatewayDraining(f"{title} was stopped: the gateway is shutting down", retry_after=5)
    if completed.stop is Stop.OUTPUT:
        return ConnectorOutputTooLarge(f"{title} wrote a result of more than {Size(bounds.output)} (max_output)")
    if completed.out_of_memory:
        return ConnectorOutOfMemory(f"{title} used more than {Size(bounds.memory)} of memory (max_memory)")
    if completed.over is not None:
        return ConnectorCrashed(f"{title} had more than its {completed.over} allows, and was stopped")
    if completed.cell_died:
        return ConnectorCrashed(f"{title} was killed together with the process that watches over it")
    if completed.signal is not None:
        return ConnectorCrashed(f"{title} died of {completed.signal}")
    return None


async def interpreted(stdout: bytearray, redact: Redactor, *, acknowledges: bool) -> Result:
    """Return what an output means; a large one is looked at in a thread.

    Raises:
        ConnectorInvalidOutput: it means nothing.
    """
    if len(stdout) <= LARGE:
        return interpret(stdout, redact, acknowledges=acknowledges)
    return await asyncio.to_thread(
        interpret, stdout, redact, acknowledges=acknowledges
    )  # it takes its time, and others have their turns


def last_lines(tail: str) -> tuple[str, ...]:
    """Return the end of a log, for whoever called."""
    return tuple(tail.splitlines()[-TAIL_LINES:])
