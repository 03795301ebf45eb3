"""Finds the one JSON document in bytes, and takes objects apart and puts them together. Values stay raw JSON."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import ConnectorInvalidOutput

if TYPE_CHECKING:
    from collections.abc import Mapping

LINES = 1000  # before the last one of an output that are looked at for JSON
CHECKED = 1 << 20  # bytes looked at in one go; a text of all of them would take up to four times their room

NULL = msgspec.Raw(b"null")
_BOM = b"\xef\xbb\xbf"
_TOO_DEEP = "it is nested too deeply"
_MALFORMED = "JSON is malformed: "

Object = dict[str, msgspec.Raw]
Piece = bytes | bytearray | memoryview

_object = msgspec.json.Decoder(Object)


def read_object(data: bytes | bytearray | memoryview) -> Object:
    """Read a JSON object whose values stay raw.

    Raises:
        ValueError: it is not UTF-8, not JSON, or not an object.
    """
    check_utf8(data)
    try:
        return _object.decode(data)
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


def find_document(stdout: bytearray) -> tuple[memoryview, Object, tuple[str, ...]]:
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
        return msgspec.json.decode(fields[name], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise ConnectorInvalidOutput(f"its {name} is not valid: {problem}") from problem


def not_json(data: memoryview | bytes) -> str | None:
    """Return why it is not one JSON document, None when it is."""
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        return str(problem).removeprefix(_MALFORMED)
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
