"""Version 1 of a result: an HTTP answer with a status and a mimetype of its own."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gateway.errors import ConnectorInvalidOutput
from gateway.protocol.document import NULL, Object, Piece, part
from gateway.protocol.json_text import unescaped
from gateway.protocol.mending import NUMBER, is_mimetype
from gateway.protocol.told import beginning

if TYPE_CHECKING:
    from gateway.protocol.told import Redact

CHARSET = "; charset=utf-8"
HTML = "text/html"  # what a version 1 result is taken for that does not say what it is, as in the original
QUOTED = 40  # characters of a value in a message
WORDS = 500  # bytes of a response that cannot be sent, for whoever looks why

_STATUS = re.compile(r'"?\s*([2-9]\d\d)(\.\d*)?\s*"?')
_TEXTS = {"application/xml", "application/javascript", "application/ecmascript", "application/sql"}


class Legacy(NamedTuple):
    """What is to be sent, and what the operator should know of it."""

    body: Piece
    mimetype: str
    status: int
    warnings: tuple[str, ...] = ()


def read_legacy(fields: Object, redact: Redact) -> Legacy:
    """Read a result of version 1.

    Raises:
        ConnectorInvalidOutput: it cannot be sent.
    """
    body = _legacy_body(fields, redact)
    status = fields.get("status", NULL)
    number = 200 if bytes(status) == b"null" else _status(status)
    if number is None:
        words = beginning(memoryview(body), WORDS, redact)
        shown = beginning(status, QUOTED, redact)
        raise ConnectorInvalidOutput(f"its status {shown!r} is not an HTTP status (its response: {words})")
    mimetype = _text_of(fields["mimetype"])
    warnings: tuple[str, ...] = ()
    if not is_mimetype(mimetype):
        warnings = (f"its mimetype is {beginning(fields['mimetype'], QUOTED, redact)}: {HTML} is sent",)
        mimetype = HTML
    if "charset=" not in mimetype.lower() and _has_charset(mimetype):
        mimetype += CHARSET  # clients guess Latin-1 unless told
    return Legacy(body, mimetype, number, warnings)


def _legacy_body(fields: Object, redact: Redact) -> Piece:
    """Return the HTTP body of a version 1 result."""
    response = memoryview(fields["response"])
    encoding = part(fields, "encoding", str | None)
    if encoding not in {None, "base64"}:
        raise ConnectorInvalidOutput(f"its encoding {redact(encoding)[:QUOTED]!r} is not base64")
    if bytes(response[:4]) == b"null":
        return b""
    try:
        if response[0] != ord('"'):
            return response
        text = unescaped(response)
        return base64.b64decode(text, validate=True) if encoding else text
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error) as problem:
        raise ConnectorInvalidOutput(f"its response is not valid: {problem}") from problem


def _status(raw: msgspec.Raw) -> int | None:
    """Return the HTTP status that a value means, None when it cannot be one."""
    if len(memoryview(raw)) > NUMBER:
        return None
    status = _STATUS.fullmatch(bytes(raw).decode())
    return int(status[1]) if status is not None else None


def _has_charset(mimetype: str) -> bool:
    """Tell whether a kind of text is sent with its charset, as HTTP servers do: JSON has but one."""
    kind = mimetype.partition(";")[0].strip().lower()
    return kind.startswith("text/") or kind.endswith("+xml") or kind in _TEXTS


def _text_of(raw: msgspec.Raw) -> str:
    return msgspec.json.decode(raw, type=str) if bytes(memoryview(raw)[:1]) == b'"' else ""
