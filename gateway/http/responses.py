"""Answers as HTTP responses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError, InvalidURLError

from gateway.errors import GatewayError
from gateway.http.statuses import ACCEPTED, HTTP_CODES, RAISED, STATUSES, TOLD
from gateway.protocol.envelope import JSON, accepted_envelope, error_envelope

if TYPE_CHECKING:
    from gateway.calls.reply import Reply
    from gateway.jobs.contract import Accepted

DURATION = "X-Run-Duration"  # seconds that the process ran
SHOWN = 200  # characters of what a library says


def json_response(value: object, status: int = 200) -> web.Response:
    """Answer any value."""
    return raw_json(msgspec.json.encode(value), status)


def raw_json(body: bytes, status: int = 200) -> web.Response:
    """Answer what is JSON already."""
    return web.Response(body=body, status=status, content_type=JSON)


def of_job(accepted: Accepted) -> web.Response:
    """Answer that a job is committed; its outcome comes to the callback URL, and is to be had at the location."""
    response = raw_json(accepted_envelope(accepted.id, "joined" if accepted.joined else "accepted"), ACCEPTED)
    response.headers["Location"] = f"/v1/jobs/{accepted.id}"
    return response


def status_of(answer: Reply | GatewayError) -> int:
    """Return the HTTP status of an answer."""
    if isinstance(answer, GatewayError):
        return STATUSES[type(answer)]
    if answer.result.error is not None and answer.result.error.raised:
        return RAISED
    return ACCEPTED if answer.accepted else answer.result.status or TOLD


def of_error(problem: GatewayError) -> web.Response:
    """Answer that the command could not be run."""
    response = raw_json(error_envelope(problem.code, problem.message, problem.logs), status_of(problem))
    if problem.run is not None:
        response.headers[DURATION] = f"{problem.run.wall:.4f}"
    if problem.retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(problem.retry_after))
    return response


def unreadable(problem: BaseException) -> str:
    """Return what is wrong with a request that cannot be read, without what it holds: that may be a secret."""
    if isinstance(problem, web.RequestPayloadError | ContentEncodingError):
        return "it is not what its Content-Encoding says, or that is not understood here"
    if isinstance(problem, InvalidURLError):
        return "its URL is none"
    lines = problem.message.strip().splitlines() if isinstance(problem, HttpProcessingError) else []
    return lines[0].partition(" when reading")[0].rstrip(":")[:SHOWN] if lines else "it is malformed"


def of_status(status: int, message: str) -> web.Response:
    """Answer what never reached a command."""
    return raw_json(error_envelope(HTTP_CODES.get(status, "invalid_request"), message), status)
