"""The spans of a call below its own: its wait for a slot, and its run, whose trace context its process is given."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from gateway.identity import DEFAULT
from gateway.observe.tracing import SpanKind

if TYPE_CHECKING:
    from gateway.calls.call import Call
    from gateway.observe.tracing import Attributes, Span, Tracing
    from gateway.processes.completed import Completed


class CallSpans:
    """They belong to the call's own span, or to that of the call that accepted the job, which has ended then."""

    def __init__(self, tracing: Tracing, call: Call) -> None:
        self._tracing = tracing
        self._call = call
        self._waits = 0
        """Since when it waits, in nanoseconds since 1970; 0 when it does not."""
        self._run: Span | None = None

    def waits(self) -> None:
        """Tell that it waits for a slot."""
        self._waits = time.time_ns()

    def runs(self, mode: str) -> Call:
        """Tell that its process is asked for; return the call as the process is to see it."""
        if self._run is None:
            self._waited()
            kind = SpanKind.CONSUMER if self._call.job else SpanKind.INTERNAL
            self._run = self._begin("run", kind, {"gateway.mode": mode})
        run = self._run
        caller = msgspec.structs.replace(self._call.caller, traceparent=run.traceparent, tracestate=run.tracestate)
        return msgspec.structs.replace(self._call, caller=caller)

    def end(self, outcome: str, completed: Completed | None) -> None:
        """Tell that all of it has ended, its process included where there was one."""
        error = None if outcome == "ok" else outcome
        if self._run is not None:
            self._run.end(_told(outcome, completed), error=error)
        elif self._waits and not self._call.job:  # a job tries again until it has one
            self._waited(error)

    def _waited(self, error: str | None = None) -> None:
        self._begin("wait", SpanKind.INTERNAL, {}, at=self._waits).end({}, error=error)

    def _begin(self, what: str, kind: SpanKind, attributes: Attributes, *, at: int | None = None) -> Span:
        call, caller = self._call, self._call.caller
        known: Attributes = {
            "gateway.connector": call.connector,
            "gateway.command": call.command,
            "gateway.client": caller.client or DEFAULT,
            "gateway.request_id": caller.request_id,
            "gateway.task_id": caller.task_id,
        }
        return self._tracing.begin(
            f"{what} {call.connector}/{call.command}",
            kind,
            (caller.traceparent, caller.tracestate),
            {**known, **attributes},
            linked=call.job is not None,
            at=at,
        )


def _told(outcome: str, done: Completed | None) -> Attributes:
    if done is None:
        return {"gateway.outcome": outcome}
    return {
        "gateway.outcome": outcome,
        "process.pid": done.pid,
        "process.exit.code": done.status,
        "gateway.signal": done.signal,
        "gateway.cpu_user": done.cpu_user,
        "gateway.cpu_system": done.cpu_system,
        "gateway.peak_rss": done.peak_rss,
        "gateway.result_bytes": len(done.result),
        "gateway.log_bytes": done.log_bytes,
    }
