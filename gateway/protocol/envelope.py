"""The envelopes that the gateway itself writes: version 2 of the answer to a workflow backend."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from gateway.protocol.document import not_json

JSON = "application/json"
PREFIX = b'{"command_response":{"body":'
SUFFIX = b',"mimetype":"application/json"},"command_response_version":2,"error":null,"spiff__logs":[]}'


class Answer(Protocol):
    """What is to be sent; `status` is set by a legacy result only."""

    @property
    def content(self) -> bytes:
        """All of it."""

    @property
    def mimetype(self) -> str:
        """Of the content."""

    @property
    def status(self) -> int | None:
        """HTTP's."""


class _Fault(msgspec.Struct, frozen=True, kw_only=True):
    error_code: str
    message: str


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """Version 2 of the answer to a workflow backend."""

    command_response: Any
    command_response_version: int = 2
    error: _Fault | None = None
    spiff__logs: list[str] | tuple[str, ...] = ()


def error_envelope(code: str, message: str, logs: tuple[str, ...] = (), http_status: int | None = None) -> bytes:
    """Return the version 2 answer that tells an error."""
    response: dict[str, Any] = {"body": {}, "mimetype": JSON}
    if http_status is not None:
        response["http_status"] = http_status
    return msgspec.json.encode(
        _Envelope(command_response=response, error=_Fault(error_code=code, message=message), spiff__logs=logs)
    )


def as_envelope(result: Answer) -> bytes:
    """Return a result as version 2, also a legacy one: a callback has no HTTP status and mimetype of its own."""
    if result.status is None:
        return result.content
    content = result.content
    body: Any = msgspec.Raw(content)
    if result.mimetype.split(";")[0].strip() != JSON or not_json(content) is not None:
        body = content.decode(errors="replace")
    response = {"body": body, "mimetype": result.mimetype, "http_status": result.status}
    return msgspec.json.encode(_Envelope(command_response=response))


def accepted_envelope(job: str, status: str) -> bytes:
    """Return the version 2 answer that a job was accepted."""
    response = {"body": {"job_id": job, "status": status}, "mimetype": JSON}
    return msgspec.json.encode(_Envelope(command_response=response))
