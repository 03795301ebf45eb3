"""JSON in bytes, and what is none."""

from __future__ import annotations

import pytest

from gateway.protocol.document import read_object

DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"null", b"{", b'{"a": NaN}', b'"\xff"', b'{"a":' + DEEP + b"}"])
def test_a_request_that_is_no_object_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - msgspec's errors are ValueErrors too
        read_object(data)
