"""What a connector reads."""

from __future__ import annotations

import json

import msgspec

from gateway.protocol.document import read_object
from gateway.protocol.request import Context, Request


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
