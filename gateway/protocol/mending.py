"""Mends an envelope that does not follow the book: callers get one that does, and the operator hears what was wrong.

The original proxy passes anything on, and the workflow backend understands most of it, or fails in ways that hide what
the connector said. So what can be understood counts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.protocol.document import Object, members_of
from gateway.protocol.told import CODE, beginning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.protocol.told import Redact

NO_CODE = "connector_failed"
"""The code of an error that has none."""
SHOWN = 80  # characters of a value in a warning
SPOKEN = 4096  # characters of words that are moved to the log

NUMBER = 40  # characters of what may be a number
LINES = 100_000  # of a log that is read
MIMETYPE = 1000  # characters of a mimetype: it becomes a header

_NULL = msgspec.Raw(b"null")
_JSON = msgspec.Raw(b'"application/json"')
_TEXT = msgspec.Raw(b'"text/plain"')
_STATUS = re.compile(r'"?\s*(0|-?[1-9]\d{0,8})(\.0*)?\s*"?')
_MIMETYPE = re.compile(r"[\w!#$&^.+*-]+/[\w!#$&^.+*-]+(\s*;[\x20-\x7e]*)?")


def mended(fields: Mapping[str, msgspec.Raw], redact: Redact) -> tuple[Object, tuple[str, ...]]:
    """Return the members of an envelope that follows the book, and what was wrong with the one that was given.

    What is moved, or quoted, is without secrets; a body stays as it is.
    """
    problems: list[str] = []
    words: list[str] = []
    made: Object = dict(fields)
    if bytes(fields["command_response_version"]) != b"2":
        version = beginning(fields["command_response_version"], SHOWN, redact)
        problems.append(f"command_response_version is {version}, not 2")
        made["command_response_version"] = msgspec.Raw(b"2")
    made["command_response"] = _encoded(_response(fields.get("command_response", _NULL), problems, redact))
    made["error"] = _error(fields.get("error", _NULL), problems, words, redact)
    made["spiff__logs"] = _logs(fields.get("spiff__logs", _NULL), problems, words, redact)
    return made, tuple(f"its envelope was mended: {problem}" for problem in problems)


def too_many_lines(raw: msgspec.Raw) -> bool:
    """Tell whether a list has more texts than are read, or is so full of commas that it may have."""
    return bytes(raw).count(b",") >= LINES


def is_mimetype(text: str) -> bool:
    """Tell whether a text can be sent as a mimetype."""
    return len(text) <= MIMETYPE and _MIMETYPE.fullmatch(text) is not None


def http_status(raw: msgspec.Raw, redact: Redact) -> tuple[int | None, str | None]:
    """Return the status that a value is or, as text, means, and what is wrong with it.

    Any number will do, also 0, with which packages say that there was no answer at all.
    """
    text = bytes(memoryview(raw)[: NUMBER + 1]).decode(errors="replace")
    understood = _STATUS.fullmatch(text) if len(text) <= NUMBER else None
    if text == "null" or (understood is not None and understood[0] == understood[1]):
        return (None if understood is None else int(text)), None
    meant = None if understood is None or understood[1].startswith("-") else int(understood[1])
    return meant, f"http_status is {beginning(raw, SHOWN, redact)}, not a number"


def _response(raw: msgspec.Raw, problems: list[str], redact: Redact) -> Object:
    first = _first(raw)
    if first != b"{":
        shown = beginning(raw, SHOWN, redact)
        problems.append(f"command_response is {shown}, not an object with a body: it was taken for the body")
        return {"body": raw, "mimetype": _TEXT if first == b'"' else _JSON}
    response = members_of(memoryview(raw))
    if "body" not in response:
        problems.append("command_response has no body")
        response = {"body": _NULL, **response}
    mimetype = response.get("mimetype")
    if mimetype is None or not is_mimetype(_plain(mimetype, redact)):
        if mimetype is not None:
            problems.append(f"mimetype is {beginning(mimetype, SHOWN, redact)}")
        response["mimetype"] = _JSON
    return response


def _error(raw: msgspec.Raw, problems: list[str], words: list[str], redact: Redact) -> msgspec.Raw:
    if bytes(raw) == b"null":
        return raw
    told = members_of(memoryview(raw)) if _first(raw) == b"{" else {}
    if "error_code" not in told:
        # The backend does not see such an error either, and goes on: what it says is not lost all the same.
        problems.append(f"error is {beginning(raw, SHOWN, redact)}, which has no error_code: it counts as none")
        if bytes(raw) not in {b"{}", b'""', b"false"}:
            words.append(f"error: {_plain(raw, redact)}")
        return _NULL
    code, message = _plain(told["error_code"], redact), _plain(told.get("message", _NULL), redact)
    if _first(told["error_code"]) != b'"' or not code:
        problems.append(f"error_code is {beginning(told['error_code'], SHOWN, redact)}, not text")
    if len(code) > CODE:
        problems.append(f"error_code has {len(code):,} characters: the first {CODE} count")
        code = code[:CODE]
    if _first(told.get("message", _NULL)) != b'"':
        problems.append(f"the error's message is {beginning(told.get('message', _NULL), SHOWN, redact)}, not text")
    return _encoded({**told, "error_code": _raw(code or NO_CODE), "message": _raw(message)})


def _logs(raw: msgspec.Raw, problems: list[str], words: list[str], redact: Redact) -> msgspec.Raw:
    if too_many_lines(raw):
        problems.append("spiff__logs has too many lines: it was left out")
        return _raw(words)
    if _first(raw) == b"[":
        lines = msgspec.json.decode(raw, type=list[msgspec.Raw])
    else:
        lines = [] if bytes(raw) == b"null" else [raw]
    if bytes(raw) != b"null" and (_first(raw) != b"[" or any(_first(line) != b'"' for line in lines)):
        problems.append(f"spiff__logs is {beginning(raw, SHOWN, redact)}, not a list of texts")
    return _raw([*(_plain(line, redact) for line in lines), *words])


def _plain(raw: msgspec.Raw, redact: Redact) -> str:
    """Return a text itself, nothing for null, and the JSON of anything else."""
    if bytes(raw) == b"null":
        return ""
    text = msgspec.json.decode(raw, type=str) if _first(raw) == b'"' else bytes(raw).decode()
    return redact(text)[:SPOKEN]


def _first(raw: msgspec.Raw) -> bytes:
    return bytes(memoryview(raw)[:1])


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _encoded(fields: Object) -> msgspec.Raw:
    return _raw(fields)
