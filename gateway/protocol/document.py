"""Finds the one JSON document in bytes, and takes objects apart and puts them together. Values stay raw JSON."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import ConnectorInvalidOutput

if TYPE_CHECKING:
    from collections.abc import Mapping

LINES = 1000  # before the last one of an output that are looked at for JSON
SMALL = 1 << 16  # bytes of an object that can only have so many members
MEMBERS = 10_000  # of a larger object that is taken apart
NAME = 8190  # characters of a name of one
CHECKED = 1 << 20  # bytes looked at in one go; a text of all of them would take up to four times their room

NULL = msgspec.Raw(b"null")
_BOM = b"\xef\xbb\xbf"
_TOO_DEEP = "it is nested too deeply"
_MALFORMED = "JSON is malformed: "
_SURROGATE = re.compile(
    rb"\\\\|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|(\\ud[89a-f][0-9a-f]{2})", re.IGNORECASE
)  # a backslash that is text, a pair, and half of one

Object = dict[str, msgspec.Raw]
Piece = bytes | bytearray | memoryview

_object = msgspec.json.Decoder(Object)


class TooMuch(ValueError):
    """A large object has more, or longer, members than one that is taken apart."""


class _Name(str):
    """A member's name that is counted when it is read."""

    __slots__ = ()


def members_of(data: bytes | bytearray | memoryview) -> Object:
    """Take apart what is UTF-8.

    Raises:
        TooMuch: it is large, and has more than `MEMBERS`: millions of them would hold everybody up for seconds. Or one
            has a name of more than `NAME`.
        msgspec.DecodeError: it is not JSON, or (ValidationError) not an object.
        RecursionError: it is nested too deeply.
    """
    if len(data) <= SMALL:
        return _object.decode(data)
    seen = 0

    def counted(_kind: type, name: str) -> _Name:
        nonlocal seen
        seen += 1
        if seen > MEMBERS:
            raise TooMuch(f"it has more than {MEMBERS:,} members")
        if len(name) > NAME:
            raise TooMuch(f"a member of it has a name of more than {NAME:,} characters")
        return _Name(name)

    try:
        found = msgspec.json.decode(data, type=dict[_Name, msgspec.Raw], dec_hook=counted)
    except msgspec.ValidationError as problem:
        if isinstance(problem.__cause__, TooMuch):
            raise problem.__cause__ from None
        raise
    return {str(name): raw for name, raw in found.items()}


def read_object(data: bytes | bytearray | memoryview, *, is_utf8: bool = False) -> Object:
    """Read a JSON object whose values stay raw; `is_utf8`: somebody has looked whether it is.

    Raises:
        TooMuch: as `members_of`.
        ValueError: it is not UTF-8, not JSON, or not an object.
    """
    if not is_utf8:
        check_utf8(data)
    try:
        return members_of(data)
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
    return not_json(memoryview(output)[start:end]) is None


class _Meaningful(msgspec.Struct, frozen=True):
    """The members of a result that mean anything here."""

    command_response_version: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    command_response: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    spiff__logs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    response: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    mimetype: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    status: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    encoding: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    http_status: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_meant = msgspec.json.Decoder(_Meaningful)


def meant_members(document: memoryview) -> Object:
    """Return the members of an object that may mean anything; of a large one, those that do.

    Raises:
        msgspec.DecodeError: it is not JSON, or (ValidationError) not an object.
        RecursionError: it is nested too deeply.
    """
    if len(document) <= SMALL:
        return _object.decode(document)
    meant = _meant.decode(document)
    found = ((name, getattr(meant, name)) for name in meant.__struct_fields__)
    return {name: raw for name, raw in found if raw is not msgspec.UNSET}


def is_finished(output: bytearray) -> bool:
    """Tell whether an output is one JSON document, and nothing that it could begin with: 1 may become 12."""
    return is_document(output) and not output[-1:].isdigit()


def find_document(stdout: bytearray) -> tuple[memoryview, Object, tuple[str, ...]]:
    """Find the one JSON document in the output; if it is an object, its `meant_members` are returned too."""
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


def members(fields: Object, changes: Mapping[str, list[Piece]] | None = None) -> list[Piece]:
    """Write an object out in pieces, some of its values changed or added: none is copied."""
    members: dict[str, list[Piece]] = {name: [memoryview(raw)] for name, raw in fields.items()}
    members.update(changes or {})
    pieces: list[Piece] = []
    for name, value in members.items():
        pieces += [b"," if pieces else b"{", msgspec.json.encode(name), b":", *value]
    return [*pieces, b"}"] if pieces else [b"{}"]


def part(fields: Mapping[str, msgspec.Raw], name: str, kind: Any) -> Any:
    """Return a member of a connector's object; one that is not there is null.

    Raises:
        ConnectorInvalidOutput: it is of another kind.
    """
    if name not in fields:
        fields = {name: msgspec.Raw(b"null")}
    try:
        return members_of(memoryview(fields[name])) if kind is Object else msgspec.json.decode(fields[name], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, TooMuch) as problem:
        raise ConnectorInvalidOutput(f"its {name} is not valid: {problem}") from problem


def not_json(data: memoryview | bytes) -> str | None:
    """Return why it is not one JSON document, None when it is."""
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        return _why(data, problem)
    except RecursionError:
        return _TOO_DEEP
    return None


def check_utf8(data: bytes | bytearray | memoryview) -> None:
    """Raise ValueError, with the place, when it is not UTF-8."""
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


# --- private


def _text(output: bytearray) -> tuple[int, int]:
    """Return where the output begins and ends, without the white space around it."""
    start = len(_BOM) if output.startswith(_BOM) else 0
    try:
        check_utf8(output)
    except ValueError as problem:
        raise ConnectorInvalidOutput(f"its output is {problem}") from problem
    start, end = _stripped(output, start, len(output))
    if start == end:
        raise ConnectorInvalidOutput("its output is empty")
    return start, end


def _is_json_too(stdout: bytearray, start: int, cut: int) -> bool:
    """Tell whether what stands before the last line is JSON, as a whole or line by line; the first lines tell."""
    if not_json(memoryview(stdout)[start:cut]) is None:
        return True
    for _ in range(LINES):
        end = stdout.find(b"\n", start, cut)
        end = cut if end < 0 else end
        first, last = _stripped(stdout, start, end)
        if first < last and not_json(memoryview(stdout)[first:last]) is not None:
            return False
        start = end + 1
        if start >= cut:
            break
    return True


def _read(document: memoryview) -> tuple[str | None, Object]:
    """Return what is wrong with a document, and the members of one that is an object."""
    if document[0] != ord("{"):
        return not_json(document), {}
    try:
        return None, meant_members(document)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        return _why(document, problem), {}
    except RecursionError:
        return _TOO_DEEP, {}


def _why(data: memoryview | bytes, problem: Exception) -> str:
    half = next((found[1].decode() for found in _SURROGATE.finditer(data) if found[1]), None)
    if half is not None:  # the decoder says that its data was truncated, or the like
        return f"it holds {half}, half of a surrogate pair, which has no UTF-8 form"
    return str(problem).removeprefix(_MALFORMED)


def _stripped(data: bytearray, start: int, end: int) -> tuple[int, int]:
    space = b" \t\r\n"
    while start < end and data[start] in space:
        start += 1
    while end > start and data[end - 1] in space:
        end -= 1
    return start, end
