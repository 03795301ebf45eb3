"""What a connector reads on stdin: the request, with the caller's values as they were written."""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway.protocol.document import Object, Piece, members

VERSION = 1
LARGE = 1 << 16  # bytes of a value that is not copied any more

_EMPTY = msgspec.Raw(b"{}")
_encoder = msgspec.json.Encoder()


class Caller(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who calls, and for whom."""

    request_id: str
    client: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    process_instance_id: int | str | None = None
    process_model_identifier: str | None = None
    task_id: str | None = None
    callback_url: str | None = None
    key_id: str | None = None
    """Which of the client's keys it was, by its id. No connector learns it."""


class Context(Caller, frozen=True, kw_only=True, omit_defaults=True):
    """What a connector learns of its caller. `deadline_ms` is what is left when the request is written."""

    deadline_ms: int


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a connector reads on stdin to run a command."""

    protocol: int = VERSION
    op: Literal["execute"] = "execute"
    command: str
    module: str | msgspec.UnsetType = msgspec.UNSET
    params: Object
    task_data: msgspec.Raw = _EMPTY
    config: msgspec.Raw = _EMPTY
    context: Context


class DescribeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a connector reads on stdin to describe itself; an authentication may depend on its `config`."""

    protocol: int = VERSION
    op: Literal["describe"] = "describe"
    config: msgspec.Raw = _EMPTY


def one_line(request: Request | DescribeRequest) -> bytes:
    """Write a request out as one line, which a line break ends: `read` in a shell sees all of it."""
    written = _encoder.encode(request)
    if b"\n" in written:  # between a caller's values: no text of JSON has one in it
        written = written.replace(b"\n", b" ")
    return written + b"\n"


def encoded(request: Request) -> bytes | tuple[Piece, ...]:
    """Write a request out; one with large values comes in pieces, of which these are the caller's own bytes."""
    large = [raw for raw in (*request.params.values(), request.task_data) if len(memoryview(raw)) > LARGE]
    if not large:
        return one_line(request)
    head = {"protocol": request.protocol, "op": request.op, "command": request.command}
    if request.module is not msgspec.UNSET:
        head["module"] = request.module
    rest = msgspec.json.encode({"config": request.config, "context": request.context})
    pieces = [msgspec.json.encode(head)[:-1] + b',"params":', *members(request.params)]
    return (*pieces, b',"task_data":', memoryview(request.task_data), b",", rest[1:] + b"\n")
