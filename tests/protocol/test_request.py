"""What a connector reads."""

from __future__ import annotations

import json

import msgspec
import pytest

from gateway.protocol.document import read_object
from gateway.protocol.request import Context, DescribeRequest, Request, encoded, one_line


def test_a_request_holds_the_callers_values_as_they_were_written() -> None:
    params = read_object(b'{"big": 12345678901234567890123, "text": "\\u2603"}')
    request = Request(command="Go", params=params, context=Context(request_id="r", deadline_ms=5))
    written = msgspec.json.encode(request)
    assert b'"big":12345678901234567890123,"text":"\\u2603"' in written
    assert json.loads(written) == {
        "protocol": 1,
        "op": "execute",
        "command": "Go",
        "params": {"big": 12345678901234567890123, "text": "☃"},
        "task_data": {},
        "config": {},
        "context": {"request_id": "r", "deadline_ms": 5},
    }


def test_a_request_is_one_line_and_ends_with_a_line_break() -> None:
    params = read_object(b'{"list": [\n1,\n2], "text": "a\\nb"}')
    request = Request(command="Go", params=params, context=Context(request_id="r", deadline_ms=5))
    written = one_line(request)
    assert written.index(b"\n") == len(written) - 1
    assert json.loads(written)["params"] == {"list": [1, 2], "text": "a\nb"}
    assert encoded(request) == written
    assert one_line(DescribeRequest()) == b'{"protocol":1,"op":"describe","config":{}}\n'


@pytest.mark.parametrize("module", [msgspec.UNSET, "m"])
def test_a_large_request_ends_with_a_line_break_too(module: str | msgspec.UnsetType) -> None:
    params = read_object(b'{"text": "%s"}' % (b"x" * 100_000))
    request = Request(command="Go", module=module, params=params, context=Context(request_id="r", deadline_ms=5))
    pieces = encoded(request)
    written = b"".join(pieces)
    assert not isinstance(pieces, bytes)
    assert written.index(b"\n") == len(written) - 1
    assert json.loads(written) == json.loads(one_line(request))
