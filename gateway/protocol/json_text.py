"""The text of a JSON string, without a copy of all of it in the room that Python's text takes (up to four times)."""

from __future__ import annotations

import re

import msgspec

SLICE = 1 << 20  # bytes that are decoded in one go
LONGEST = 12  # bytes of the longest thing that must not be cut, a pair of surrogates

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_BACKSLASH = re.compile(rb"\\")


def unescaped(raw: memoryview) -> memoryview | bytearray:
    """Return what a JSON string, quotes included, stands for, in UTF-8: a part of `raw` where nothing is escaped.

    Raises:
        msgspec.DecodeError: it has no UTF-8 form (a lone surrogate).
    """
    inner = raw[1:-1]
    if not _BACKSLASH.search(inner):
        return inner
    text = bytearray()
    start = 0
    while start < len(inner):
        end, piece = _piece(inner, start)
        text += piece.encode()
        start = end
    return text


def in_ascii(document: bytes) -> str:
    """Return a JSON document with every other character escaped: what it stands for is the same."""
    return _BEYOND_ASCII.sub(_escaped, document.decode())


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _piece(inner: memoryview, start: int) -> tuple[int, str]:
    """Decode a slice that cuts nothing in two: a shorter one is tried until there is none left that could."""
    end = min(start + SLICE, len(inner))
    last = max(start + 1, end - LONGEST)
    while True:
        try:
            return end, msgspec.json.decode(b'"' + inner[start:end] + b'"', type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if end <= last or end == len(inner):
                raise
        end -= 1
