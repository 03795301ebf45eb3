"""The span of a try to deliver a callback, whose trace context the callback is sent with."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from gateway.identity import DEFAULT
from gateway.jobs.contract import Attempt, Job, Verdict
from gateway.observe.tracing import SpanKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.observe.tracing import Tracing

UNANSWERED = "no_answer"
"""What is wrong with a try that nothing came back of."""


class Try(msgspec.Struct):
    """One that is traced."""

    job: Job
    """As it is to be delivered."""
    attempt: Attempt | None = None
    """What has come of it."""


@contextlib.contextmanager
def traced(tracing: Tracing, job: Job, host: str, earlier: int) -> Iterator[Try]:
    """Trace a try for the length of the block; it belongs to the call that accepted the job, `earlier` tries ago."""
    context = job.context
    span = tracing.begin(
        f"callback {job.title}",
        SpanKind.CLIENT,
        (context.traceparent, context.tracestate),
        {
            "http.request.method": "PUT",
            "http.request.resend_count": earlier or None,
            "server.address": host or None,
            "gateway.connector": job.connector,
            "gateway.command": job.command,
            "gateway.client": context.client or DEFAULT,
            "gateway.request_id": context.request_id,
            "gateway.task_id": context.task_id,
            "gateway.job": job.id,
        },
        linked=True,
    )
    within = msgspec.structs.replace(context, traceparent=span.traceparent, tracestate=span.tracestate)
    one = Try(msgspec.structs.replace(job, context=within))
    try:
        yield one
    finally:
        attempt = one.attempt
        status = attempt.status if attempt is not None else None
        verdict = attempt.verdict if attempt is not None else None
        fine = verdict is Verdict.DONE
        span.end(
            {"http.response.status_code": status, "gateway.verdict": verdict.value if verdict is not None else None},
            error=None if fine else UNANSWERED if status is None else str(status),
        )
