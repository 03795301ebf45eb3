"""Answers as HTTP responses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from gateway.api.statuses import ACCEPTED, HTTP_CODES, RAISED, STATUSES, TOLD
from gateway.protocol import JSON, error_envelope

if TYPE_CHECKING:
    from gateway.errors import GatewayError
    from gateway.invoke import Reply

DURATION = "X-Run-Duration"  # seconds that the process ran


def json_response(value: object, status: int = 200) -> web.Response:
    """Answer any value."""
    return raw_json(msgspec.json.encode(value), status)


def raw_json(body: bytes, status: int = 200) -> web.Response:
    """Answer what is JSON already."""
    return web.Response(body=body, status=status, content_type=JSON)


def of_reply(reply: Reply) -> web.Response:
    """Answer what a connector answered."""
    result = reply.result
    status = ACCEPTED if reply.accepted else result.status or TOLD
    if result.error is not None and result.error.raised:
        status = RAISED
    headers = {"Content-Type": result.mimetype, DURATION: f"{reply.run.wall:.4f}"}
    return web.Response(body=result.body, status=status, headers=headers)


def of_error(problem: GatewayError) -> web.Response:
    """Answer that the command could not be run."""
    response = raw_json(error_envelope(problem.code, problem.message, problem.logs), STATUSES[type(problem)])
    if problem.run is not None:
        response.headers[DURATION] = f"{problem.run.wall:.4f}"
    if problem.retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(problem.retry_after))
    return response


def of_status(status: int, message: str) -> web.Response:
    """Answer what never reached a command."""
    return raw_json(error_envelope(HTTP_CODES.get(status, "invalid_request"), message), status)
