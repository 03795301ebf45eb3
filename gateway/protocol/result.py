"""What the output of a connector means.

Nothing here knows processes or HTTP. Values that nobody has to look at stay raw JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.errors import ConnectorInvalidOutput
from gateway.protocol.document import (
    NULL,
    SMALL,
    Object,
    Piece,
    TooMuch,
    find_document,
    meant_members,
    members,
    part,
)
from gateway.protocol.envelope import JSON, PREFIX, SUFFIX, error_envelope
from gateway.protocol.legacy import read_legacy
from gateway.protocol.mending import http_status, is_mimetype, mended, too_many_lines
from gateway.protocol.told import CODE, ToldError, short, told

if TYPE_CHECKING:
    from collections.abc import Callable

LOG_LINES = 100  # lines of `spiff__logs` that leave the gateway


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a run means to its caller.

    `pieces` are what to send, in order, as `mimetype`: a large result is sent without being put together. `status` is
    set by a legacy result only; `error` by a told error; `warnings` are for the operator.
    """

    pieces: tuple[Piece, ...]
    mimetype: str = JSON
    status: int | None = None
    error: ToldError | None = None
    warnings: tuple[str, ...] = ()

    @property
    def content(self) -> bytes:
        """All that is sent, put together."""
        return b"".join(self.pieces)


def interpret(stdout: bytearray, redact: Callable[[str], str], *, acknowledges: bool = False) -> Result:
    """Turn a connector's output into a result.

    What only acknowledges a call has no HTTP answer in it: a version 1 result is then a value like any other, since the
    backend wants JSON, and would take a text for a failure.

    Raises:
        ConnectorInvalidOutput: not JSON, not UTF-8, empty, two documents, NaN, or an envelope that is none.
    """
    document, fields, warnings = _plain_object(stdout) or find_document(stdout)
    if "command_response_version" in fields and _is_envelope(fields):
        return _from_envelope(document, fields, redact, warnings)
    if "response" in fields and "mimetype" in fields and not acknowledges:
        legacy = read_legacy(fields, redact)
        warnings += legacy.warnings
        return Result(pieces=(legacy.body,), mimetype=legacy.mimetype, status=legacy.status, warnings=warnings)
    error = told(fields["error"]) if "error" in fields else None
    if error is not None:
        status, problem = http_status(fields.get("http_status", NULL), redact)
        warnings += () if problem is None else (problem,)
        error.error_code, error.message = redact(error.error_code), short(redact(error.message))
        envelope = error_envelope(error.error_code, error.message, http_status=status)
        return Result(pieces=(envelope,), error=error, warnings=warnings)
    return Result(pieces=(PREFIX, document, SUFFIX), warnings=warnings)


def told_error(stdout: bytearray, redact: Callable[[str], str]) -> Result | None:
    """Return the error that a connector with a bad exit status told on stdout, if it told one."""
    try:
        result = interpret(stdout, redact)
    except ConnectorInvalidOutput:
        return None
    return result if result.error is not None else None


# --- private


def _plain_object(stdout: bytearray) -> tuple[memoryview, Object, tuple[str, ...]] | None:
    """Return what nearly every output is, an object in ASCII, as `find_document` does; None where it is not that."""
    if not stdout.startswith(b"{") or not stdout.isascii():
        return None
    end = len(stdout)
    while stdout[end - 1] in b" \t\r\n":
        end -= 1
    document = memoryview(stdout)[:end]
    try:
        return document, meant_members(document), ()
    except (msgspec.DecodeError, RecursionError):
        return None  # there it is found out what it is


def _is_envelope(fields: Object) -> bool:
    """Tell whether an object with a version is an envelope of version 2, or is meant to be one."""
    is_legacy = "response" in fields and "mimetype" in fields
    return "command_response" in fields or (bytes(fields["command_response_version"]) == b"2" and not is_legacy)


def _says_anything(fields: Object) -> bool:
    """Tell whether there is anything in what is meant to be an envelope."""
    empty = {b"null", b"{}", b"[]", b'""'}
    return "command_response" in fields or any(
        bytes(memoryview(fields[name])[:5]) not in empty for name in ("error", "spiff__logs") if name in fields
    )


def _from_envelope(
    document: memoryview, fields: Object, redact: Callable[[str], str], warnings: tuple[str, ...]
) -> Result:
    changes: dict[str, list[Piece]] = {}
    if len(document) > SMALL:
        fields = part({"envelope": msgspec.Raw(document)}, "envelope", Object)
    try:
        response, logs, error = _read_envelope(fields)
    except ConnectorInvalidOutput:
        if not _says_anything(fields):
            raise
        try:
            fields, problems = mended(fields, redact)
        except TooMuch as much:
            raise ConnectorInvalidOutput(f"of its envelope, a part cannot be taken apart: {much}") from much
        response, logs, error = _read_envelope(fields)
        changes = {name: [memoryview(raw)] for name, raw in fields.items()}
        warnings += problems
    # Whatever it is, it stays: the backend looks at numbers only, and a process may look at it.
    problem = http_status(response["http_status"], redact)[1] if "http_status" in response else None
    warnings += () if problem is None else (problem,)
    if "mimetype" not in response:
        changes["command_response"] = members({**response, "mimetype": _raw(JSON)})
    shown = [short(redact(line)) for line in logs[-LOG_LINES:]]
    if shown != logs or "spiff__logs" not in fields:
        changes["spiff__logs"] = [msgspec.json.encode(shown)]
    if error is not None:
        code, message = redact(error.error_code), short(redact(error.message))
        if (code, message) != (error.error_code, error.message):
            known: Object = part(fields, "error", Object)
            changes["error"] = members({**known, "error_code": _raw(code), "message": _raw(message)})
            error.error_code, error.message = code, message
    elif "error" not in fields:
        changes["error"] = [b"null"]
    pieces = tuple(members(fields, changes)) if changes else (document,)
    return Result(pieces=pieces, error=error, warnings=warnings)


def _read_envelope(fields: Object) -> tuple[Object, list[str], ToldError | None]:
    """Return the parts of an envelope that follows the book.

    Raises:
        ConnectorInvalidOutput: it does not.
    """
    response: Object = part(fields, "command_response", Object)
    if bytes(fields["command_response_version"]) != b"2":
        raise ConnectorInvalidOutput("its command_response_version is not 2")
    if "body" not in response:
        raise ConnectorInvalidOutput("its command_response has no body")
    if "mimetype" in response and not is_mimetype(part(response, "mimetype", str)):
        raise ConnectorInvalidOutput("its mimetype is none")
    logs: list[str] = []
    if "spiff__logs" in fields:
        if too_many_lines(fields["spiff__logs"]):
            raise ConnectorInvalidOutput("its spiff__logs has too many lines")
        logs = part(fields, "spiff__logs", list[str])
    error = None
    if bytes(memoryview(fields.get("error", NULL))[:5]) != b"null":
        told: Object = part(fields, "error", Object)
        error = part(fields, "error", ToldError)
        if "message" not in told or not 0 < len(error.error_code) <= CODE:
            raise ConnectorInvalidOutput("its error has no message, or an error_code that is empty or too long")
    return response, logs, error


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
