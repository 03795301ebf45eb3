"""Strings are unescaped slice by slice, and it does not show."""

from __future__ import annotations

import json
import random

import msgspec
import pytest

from gateway.protocol import json_text

PARTS = ("x", '"', "\\", "\\\\\\", "\n", "\x01", "é", "☃", "\U0001f600", "/", "u", "dead", "\ud7ff")


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 13, 64])
def test_it_is_what_json_says_wherever_the_cuts_fall(
    monkeypatch: pytest.MonkeyPatch, size: int, ascii_only: bool
) -> None:
    monkeypatch.setattr(json_text, "SLICE", max(size, json_text.LONGEST + 1))
    chance = random.Random(size)
    for length in range(200):
        text = "".join(chance.choices(PARTS, k=length))
        raw = json.dumps(text, ensure_ascii=ascii_only).encode()
        assert bytes(json_text.unescaped(memoryview(raw))) == text.encode()


def test_where_nothing_is_escaped_nothing_is_copied() -> None:
    raw = bytearray(b'"plain"')
    text = json_text.unescaped(memoryview(raw))
    assert isinstance(text, memoryview)
    assert text.obj is raw
    assert text.tobytes() == b"plain"


@pytest.mark.parametrize("text", ['"\\ud83d"', '"\\ude00x"', '"' + "y" * 40 + '\\ud83d"'])
def test_a_lone_surrogate_has_no_form(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(json_text, "SLICE", 16)
    with pytest.raises(msgspec.DecodeError):
        json_text.unescaped(memoryview(text.encode()))


def test_a_document_in_ascii_stands_for_the_same() -> None:
    value = {"é☃": ["\U0001f600 \ud7ff", "plain\n", 1.5]}
    text = json_text.in_ascii(msgspec.json.encode(value))
    assert text.isascii()
    assert json.loads(text) == value
