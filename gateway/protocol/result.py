"""The stdio contract: the request that a connector reads, and what its answer means.

Nothing here knows processes or HTTP. Values that nobody has to look at stay raw JSON.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gateway.application import Application
from gateway.errors import ConnectorInvalidOutput
from gateway.protocol.json_text import unescaped
from gateway.protocol.mending import http_status, is_mimetype, mended
from gateway.typeahead import Typeahead

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VERSION = 1
JSON = "application/json"
CHARSET = "; charset=utf-8"
HTML = "text/html"  # what a version 1 result is taken for that does not say what it is, as in the original
LOG_LINES = 100  # lines of `spiff__logs` that leave the gateway
LOG_CHARACTERS = 4096  # of each of them, and of an error's message

PREFIX = b'{"command_response":{"body":'
SUFFIX = b',"mimetype":"application/json"},"command_response_version":2,"error":null,"spiff__logs":[]}'
LARGE = 1 << 16  # bytes of a value that is not copied any more
LINES = 1000  # before the last one of an output that are looked at for JSON
WORDS = 500  # bytes of a response that cannot be sent, for whoever looks why
CHECKED = 1 << 20  # bytes looked at in one go; a text of all of them would take up to four times their room

_EMPTY = msgspec.Raw(b"{}")
_NULL = msgspec.Raw(b"null")
_STATUS = re.compile(r'"?\s*([2-9]\d\d)(\.\d*)?\s*"?')
_TEXTS = {"application/xml", "application/javascript", "application/ecmascript", "application/sql"}
_BOM = b"\xef\xbb\xbf"
_TOO_DEEP = "it is nested too deeply"
_MALFORMED = "JSON is malformed: "

Validate = Literal["strict", "names"]
"""What of a call is checked: types, enums and schemas too, or only that names are known and none is missing."""

Object = dict[str, msgspec.Raw]
Piece = bytes | bytearray | memoryview


class Caller(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who calls, and for whom."""

    request_id: str
    client: str | None = None
    traceparent: str | None = None
    process_instance_id: int | str | None = None
    process_model_identifier: str | None = None
    task_id: str | None = None
    callback_url: str | None = None


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


class DescribedParameter(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter in the answer to `describe`; keys that are not known here are ignored."""

    id: str
    type: Literal["str", "int", "bool", "any"] = "any"
    required: bool | None = None
    description: str | None = None
    default: Any = msgspec.UNSET
    enum: list[Any] | None = None
    secret: bool = False
    schema: dict[str, Any] | None = None


class DescribedCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A command in the answer to `describe`."""

    name: str
    parameters: list[DescribedParameter] = []
    description: str | None = None
    is_async: bool = msgspec.field(default=False, name="async")
    additional_parameters: bool = False
    idempotent: bool = False
    execute_async: bool = False
    validate: Validate = "strict"
    module: str | None = None
    typeahead: Typeahead | None = None


class DescribedAuth(Application, frozen=True, kw_only=True):
    """An authentication in the answer to `describe`; an operator may say the same keys, and has the last word."""

    name: str
    parameters: list[DescribedParameter] = msgspec.field(default_factory=list)
    description: str | None = None
    module: str | None = None
    problem: str | None = None
    """Why the application's keys are not all there."""


class DescribedProblem(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a connector that its runner had to leave out, and why."""

    module: str
    message: str


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `describe`."""

    commands: list[DescribedCommand] = []
    auths: list[DescribedAuth] = []
    problems: list[DescribedProblem] = []


class ToldError(msgspec.Struct, kw_only=True):
    """An error that a connector told. `raised`: its own code failed, rather than the world."""

    error_code: str
    message: str = ""
    raised: bool = False
    invalid_output: bool = False
    """The result had no JSON form, which a host of ours has found."""


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """How connectors write an error; a code may be a number."""

    error_code: str | int
    message: str | int | float | None = None
    raised: bool = False
    invalid_output: bool = False


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


class _Fault(msgspec.Struct, frozen=True, kw_only=True):
    error_code: str
    message: str


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """Version 2 of the answer to a workflow backend."""

    command_response: Any
    command_response_version: int = 2
    error: _Fault | None = None
    spiff__logs: list[str] | tuple[str, ...] = ()


def encoded(request: Request) -> bytes | tuple[Piece, ...]:
    """Write a request out; one with large values comes in pieces, of which these are the caller's own bytes."""
    large = [raw for raw in (*request.params.values(), request.task_data) if len(memoryview(raw)) > LARGE]
    if not large:
        return msgspec.json.encode(request)
    head = {"protocol": request.protocol, "op": request.op, "command": request.command}
    if request.module is not msgspec.UNSET:
        head["module"] = request.module
    rest = msgspec.json.encode({"config": request.config, "context": request.context})
    pieces = [msgspec.json.encode(head)[:-1] + b',"params":', *_members(request.params)]
    return (*pieces, b',"task_data":', memoryview(request.task_data), b",", rest[1:])


def error_envelope(code: str, message: str, logs: tuple[str, ...] = (), http_status: int | None = None) -> bytes:
    """Return the version 2 answer that tells an error."""
    response: dict[str, Any] = {"body": {}, "mimetype": JSON}
    if http_status is not None:
        response["http_status"] = http_status
    return msgspec.json.encode(
        _Envelope(command_response=response, error=_Fault(error_code=code, message=message), spiff__logs=logs)
    )


def as_envelope(result: Result) -> bytes:
    """Return a result as version 2, also a legacy one: a callback has no HTTP status and mimetype of its own."""
    if result.status is None:
        return result.content
    content = result.content
    body: Any = msgspec.Raw(content)
    if result.mimetype.split(";")[0].strip() != JSON or _not_json(content) is not None:
        body = content.decode(errors="replace")
    response = {"body": body, "mimetype": result.mimetype, "http_status": result.status}
    return msgspec.json.encode(_Envelope(command_response=response))


def accepted_envelope(job: str, status: str) -> bytes:
    """Return the version 2 answer that a job was accepted."""
    response = {"body": {"job_id": job, "status": status}, "mimetype": JSON}
    return msgspec.json.encode(_Envelope(command_response=response))


def read_object(data: bytes | bytearray | memoryview) -> Object:
    """Read a JSON object whose values stay raw.

    Raises:
        ValueError: it is not UTF-8, not JSON, or not an object.
    """
    _check_utf8(data)
    try:
        return msgspec.json.decode(data, type=Object)
    except msgspec.ValidationError as problem:
        raise ValueError("not a JSON object") from problem
    except RecursionError as problem:
        raise ValueError(_TOO_DEEP) from problem


def is_document(output: bytearray) -> bool:
    """Tell whether an output is one JSON document, and nothing else."""
    try:
        start, end = _text(output)
    except ConnectorInvalidOutput:
        return False
    return _not_json(memoryview(output)[start:end]) is None


def interpret(stdout: bytearray, redact: Callable[[str], str], *, acknowledges: bool = False) -> Result:
    """Turn a connector's output into a result.

    What only acknowledges a call has no HTTP answer in it: a version 1 result is then a value like any other, since the
    backend wants JSON, and would take a text for a failure.

    Raises:
        ConnectorInvalidOutput: not JSON, not UTF-8, empty, two documents, NaN, or an envelope that is none.
    """
    document, fields, warnings = _document(stdout)
    if _is_envelope(fields):
        return _from_envelope(document, fields, redact, warnings)
    if "response" in fields and "mimetype" in fields and not acknowledges:
        return _from_legacy(fields, warnings)
    error = _told(fields.get("error"))
    if error is not None:
        status, problem = http_status(fields.get("http_status", _NULL))
        warnings += () if problem is None else (problem,)
        error.message = _short(redact(error.message))
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


def read_description(stdout: bytearray) -> Description:
    """Read the answer to `describe`.

    Raises:
        ConnectorInvalidOutput: it is not one, or it is an error.
    """
    document, fields, _ = _document(stdout)
    try:
        error = _told(fields.get("error"))
        if error is not None:
            raise ConnectorInvalidOutput(f"it answered {error.error_code}: {_short(error.message)}")
        if document[0] == ord("{") and not {"commands", "auths"} & fields.keys():
            raise ConnectorInvalidOutput('it has no "commands"')
        return msgspec.json.decode(document, type=Description)
    except msgspec.ValidationError as problem:
        raise ConnectorInvalidOutput(str(problem)) from problem


# --- private


def _document(stdout: bytearray) -> tuple[memoryview, Object, tuple[str, ...]]:
    """Find the one JSON document in the output; if it is an object, its members are returned too."""
    start, end = _text(stdout)
    whole = memoryview(stdout)[start:end]
    problem_of_whole, fields = _read(whole)
    if problem_of_whole is None:
        return whole, fields, ()
    cut = stdout.rfind(b"\n", start, end)
    if cut > start:
        first, _ = _stripped(stdout, cut, end)
        last = memoryview(stdout)[first:end]
        problem_of_last, fields = _read(last)
        if problem_of_last is None:
            if _is_json_too(stdout, start, cut):
                raise ConnectorInvalidOutput("its output is more than one JSON document")
            return last, fields, (f"wrote {cut - start} bytes of noise to stdout before its result (log to stderr)",)
    raise ConnectorInvalidOutput(f"its output is not one JSON document: {problem_of_whole}")


def _text(output: bytearray) -> tuple[int, int]:
    """Return where the output begins and ends, without the white space around it."""
    start = len(_BOM) if output.startswith(_BOM) else 0
    try:
        _check_utf8(output)
    except ValueError as problem:
        raise ConnectorInvalidOutput(f"its output is {problem}") from problem
    start, end = _stripped(output, start, len(output))
    if start == end:
        raise ConnectorInvalidOutput("its output is empty")
    return start, end


def _is_json_too(stdout: bytearray, start: int, cut: int) -> bool:
    """Tell whether what stands before the last line is JSON, as a whole or line by line; the first lines tell."""
    if _not_json(memoryview(stdout)[start:cut]) is None:
        return True
    for _ in range(LINES):
        end = stdout.find(b"\n", start, cut)
        end = cut if end < 0 else end
        first, last = _stripped(stdout, start, end)
        if first < last and _not_json(memoryview(stdout)[first:last]) is not None:
            return False
        start = end + 1
        if start >= cut:
            break
    return True


def _read(document: memoryview) -> tuple[str | None, Object]:
    """Return what is wrong with a document, and the members of one that is an object."""
    if document[0] != ord("{"):
        return _not_json(document), {}
    try:
        return None, msgspec.json.decode(document, type=Object)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        return str(problem).removeprefix(_MALFORMED), {}
    except RecursionError:
        return _TOO_DEEP, {}


def _stripped(data: bytearray, start: int, end: int) -> tuple[int, int]:
    space = b" \t\r\n"
    while start < end and data[start] in space:
        start += 1
    while end > start and data[end - 1] in space:
        end -= 1
    return start, end


def _not_json(data: memoryview | bytes) -> str | None:
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        return str(problem).removeprefix(_MALFORMED)
    except RecursionError:
        return _TOO_DEEP
    return None


def _check_utf8(data: bytes | bytearray | memoryview) -> None:
    if not isinstance(data, memoryview) and data.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(data)
    start = 0
    try:
        for start in range(0, len(view), CHECKED):
            decoder.decode(view[start : start + CHECKED], final=start + CHECKED >= len(view))
    except UnicodeDecodeError as problem:
        raise ValueError(f"not UTF-8 (near byte {start + problem.start})") from problem


def _is_envelope(fields: Object) -> bool:
    """Tell whether an object is a version 2 envelope, or is meant to be one."""
    if "command_response_version" not in fields:
        return False
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
    try:
        response, logs, error = _read_envelope(fields)
    except ConnectorInvalidOutput:
        if not _says_anything(fields):
            raise
        fields, problems = mended(fields)
        response, logs, error = _read_envelope(fields)
        changes = {name: [memoryview(raw)] for name, raw in fields.items()}
        warnings += problems
    # Whatever it is, it stays: the backend looks at numbers only, and a process may look at it.
    problem = http_status(response["http_status"])[1] if "http_status" in response else None
    warnings += () if problem is None else (problem,)
    if "mimetype" not in response:
        changes["command_response"] = _members({**response, "mimetype": _raw(JSON)})
    shown = [_short(redact(line)) for line in logs[-LOG_LINES:]]
    if shown != logs or "spiff__logs" not in fields:
        changes["spiff__logs"] = [msgspec.json.encode(shown)]
    if error is not None:
        message = _short(redact(error.message))
        if message != error.message:
            known = msgspec.json.decode(fields["error"], type=Object)
            changes["error"] = _members({**known, "message": _raw(message)})
            error.message = message
    elif "error" not in fields:
        changes["error"] = [b"null"]
    pieces = tuple(_members(fields, changes)) if changes else (document,)
    return Result(pieces=pieces, error=error, warnings=warnings)


def _read_envelope(fields: Object) -> tuple[Object, list[str], ToldError | None]:
    """Return the parts of an envelope that follows the book.

    Raises:
        ConnectorInvalidOutput: it does not.
    """
    response: Object = _part(fields, "command_response", Object)
    if bytes(fields["command_response_version"]) != b"2":
        raise ConnectorInvalidOutput("its command_response_version is not 2")
    if "body" not in response:
        raise ConnectorInvalidOutput("its command_response has no body")
    if "mimetype" in response and not is_mimetype(_part(response, "mimetype", str)):
        raise ConnectorInvalidOutput("its mimetype is none")
    logs: list[str] = _part(fields, "spiff__logs", list[str]) if "spiff__logs" in fields else []
    told = _part(fields, "error", Object | None)
    error = None
    if told is not None:
        error = _part(fields, "error", ToldError)
        if "message" not in told or not error.error_code:
            raise ConnectorInvalidOutput("its error has no message, or an empty error_code")
    return response, logs, error


def _from_legacy(fields: Object, warnings: tuple[str, ...]) -> Result:
    body = _legacy_body(fields)
    status = fields.get("status", _NULL)
    number = 200 if bytes(status) == b"null" else _status(status)
    if number is None:
        words = bytes(memoryview(body)[:WORDS]).decode(errors="replace")
        raise ConnectorInvalidOutput(f"its status {_shown(status)!r} is not an HTTP status (its response: {words})")
    mimetype = _text_of(fields["mimetype"])
    if not is_mimetype(mimetype):
        warnings += (f"its mimetype is {_shown(fields['mimetype'])}: {HTML} is sent",)
        mimetype = HTML
    if "charset=" not in mimetype.lower() and _has_charset(mimetype):
        mimetype += CHARSET  # clients guess Latin-1 unless told
    return Result(pieces=(body,), mimetype=mimetype, status=number, warnings=warnings)


def _text_of(raw: msgspec.Raw) -> str:
    return msgspec.json.decode(raw, type=str) if bytes(memoryview(raw)[:1]) == b'"' else ""


def _legacy_body(fields: Object) -> Piece:
    """Return the HTTP body of a version 1 result."""
    response = memoryview(fields["response"])
    encoding = _part(fields, "encoding", str | None)
    if encoding not in {None, "base64"}:
        raise ConnectorInvalidOutput(f"its encoding {encoding[:40]!r} is not base64")
    if bytes(response[:4]) == b"null":
        return b""
    try:
        if response[0] != ord('"'):
            return response
        text = unescaped(response)
        return base64.b64decode(text, validate=True) if encoding else text
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error) as problem:
        raise ConnectorInvalidOutput(f"its response is not valid: {problem}") from problem


def _has_charset(mimetype: str) -> bool:
    """Tell whether a kind of text is sent with its charset, as HTTP servers do: JSON has but one."""
    kind = mimetype.partition(";")[0].strip().lower()
    return kind.startswith("text/") or kind.endswith("+xml") or kind in _TEXTS


def _members(fields: Object, changes: Mapping[str, list[Piece]] | None = None) -> list[Piece]:
    """Write an object out in pieces, some of its values changed or added: none is copied."""
    members: dict[str, list[Piece]] = {name: [memoryview(raw)] for name, raw in fields.items()}
    members.update(changes or {})
    pieces: list[Piece] = []
    for name, value in members.items():
        pieces += [b"," if pieces else b"{", msgspec.json.encode(name), b":", *value]
    return [*pieces, b"}"] if pieces else [b"{}"]


def _part(fields: Mapping[str, msgspec.Raw], name: str, kind: Any) -> Any:
    if name not in fields:
        fields = {name: msgspec.Raw(b"null")}
    try:
        return msgspec.json.decode(fields[name], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise ConnectorInvalidOutput(f"its {name} is not valid: {problem}") from problem


def _told(raw: msgspec.Raw | None) -> ToldError | None:
    if raw is None or bytes(memoryview(raw)[:1]) != b"{":
        return None
    try:
        told = msgspec.json.decode(raw, type=_Told)
    except msgspec.ValidationError:
        return None
    error = ToldError(
        error_code=str(told.error_code),
        message=str(told.message or ""),
        raised=told.raised,
        invalid_output=told.invalid_output,
    )
    return error if error.error_code else None


def _status(raw: msgspec.Raw) -> int | None:
    """Return the HTTP status that a value means, None when it cannot be one."""
    status = _STATUS.fullmatch(bytes(raw).decode())
    return int(status[1]) if status is not None else None


def _shown(raw: msgspec.Raw) -> str:
    return bytes(memoryview(raw)[:40]).decode(errors="replace")


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _short(text: str) -> str:
    return text if len(text) <= LOG_CHARACTERS else text[: LOG_CHARACTERS - 3] + "..."
