"""JSON in bytes, and what is none."""

from __future__ import annotations

import pytest

from gateway.protocol.document import is_finished, not_json, read_object

DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"null", b"{", b'{"a": NaN}', b'"\xff"', b'{"a":' + DEEP + b"}"])
def test_a_request_that_is_no_object_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - msgspec's errors are ValueErrors too
        read_object(data)


@pytest.mark.parametrize(
    ("text", "half"),
    [
        (rb'{"a": "x\ud800"}', r"\ud800"),
        (rb'["\ud83d\ude00", "\uDC00y"]', r"\uDC00"),
        (rb'"\ud800\u0041"', r"\ud800"),
        (rb'{"\\\ud800": 1}', r"\ud800"),
        (rb'["\\ud800", "\ud83d\ude00", NaN]', None),
    ],
)
def test_half_of_a_surrogate_pair_is_told_as_what_it_is(text: bytes, half: str | None) -> None:
    problem = not_json(text)
    assert problem is not None
    assert problem == "invalid character (byte 28)" if half is None else problem.startswith(f"it holds {half}, half of")


@pytest.mark.parametrize(
    ("output", "finished"),
    [(b"{}", True), (b" 1\n", True), (b"1", False), (b"-1.5e9", False), (b'"1', False), (b'"1"', True), (b"null", True),
     (b"{}{}", False), (b"a\n{}", False), (b"", False), (b"\n", False)],
)  # fmt: skip
def test_a_document_is_finished_when_it_cannot_go_on(output: bytes, finished: bool) -> None:
    assert is_finished(bytearray(output)) == finished
