"""What is written of parameters and results: nothing that is secret."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.journal.payloads import masked
from gateway.observe.redact import MASK
from tests.journal.support import sent

MOST = 1 << 16


def written(params: dict[str, Any], **options: Any) -> tuple[str, Any, Any]:
    found = masked(sent(params, **options), MOST)
    return found.kept, *(None if one is None else json.loads(one) for one in (found.sent, found.result))


def test_what_has_no_secret_is_written_as_it_was_sent() -> None:
    payload = sent({})
    payload.params = {"pages": msgspec.Raw(b"1.50"), "to": msgspec.Raw(b'"\\u00e9"'), "big": msgspec.Raw(b"9" * 40)}
    found = masked(payload, MOST)
    assert found.kept == "whole"
    assert found.sent == b'{"params":{"pages":1.50,"to":"\\u00e9","big":' + b"9" * 40 + b'},"task_data":{}}'


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"pin": "12"}, {"pin": MASK}),
        ({"pin": 12}, {"pin": MASK}),
        ({"pin": {"of": ["1", 2, True, None]}}, {"pin": {"of": [MASK, MASK, True, None]}}),
        ({"options": {"password": "x", "port": 5}}, {"options": {"password": MASK, "port": 5}}),
        ({"text": "say hunter22 twice: hunter22"}, {"text": f"say {MASK} twice: {MASK}"}),
        ({"hunter22": 1}, {MASK: 1}),
        ({"number": 12345678}, {"number": MASK}),
        ({"pin": "longer", "copy": "a longer text"}, {"pin": MASK, "copy": f"a {MASK} text"}),
        ({"url": "https://me:hunter33@host/"}, {"url": f"https://me:{MASK}@host/"}),
        ({"auth": "Bearer 0123456789abcdef.x"}, {"auth": MASK}),
        ({"pin": ""}, {"pin": ""}),
    ],
)
def test_secrets_are_left_out_by_name_and_by_value(params: dict[str, Any], expected: dict[str, Any]) -> None:
    kept, there, _ = written(params, secret=("pin",), known=("hunter22", "12345678"))
    assert there["params"] == expected
    assert kept == ("whole" if params == expected else "masked")


def test_a_secret_across_values_withholds_all() -> None:
    kept, there, _ = written({"a": "one", "b": "two"}, known=('one","b":"two',))
    assert (kept, there) == ("masked", MASK)


def test_what_a_result_says_of_secrets_is_left_out() -> None:
    answer = {"command_response": {"body": {"access_token": "t", "said": "hunter22", "pages": 2}}}
    _, _, result = written({"pin": "given"}, secret=("pin",), known=("hunter22",), result=json.dumps(answer).encode())
    assert result["command_response"]["body"] == {"access_token": MASK, "said": MASK, "pages": 2}
    assert written({}, known=("hunter22",), result=b"<p>hunter22 \xff</p>")[2] == f"<p>{MASK} \ufffd</p>"


def test_more_secrets_than_can_be_looked_for_withhold_all() -> None:
    kept, there, result = written({"pin": ["x" * 20_000] * 20}, secret=("pin",), result=b'"anything"')
    assert (kept, result) == ("masked", MASK)
    assert "xxxx" not in json.dumps(there)


def test_what_is_large_is_not_written() -> None:
    payload = sent({}, result=b'"' + b"x" * 100 + b'"')
    payload.too_large = True
    assert masked(payload, 50) == ("too_large", None, None)


def test_a_value_that_cannot_be_looked_through_is_withheld() -> None:
    payload = sent({})
    payload.params = {"deep": msgspec.Raw(b"[" * 5000 + b"]" * 5000), "far": msgspec.Raw(b"1e999")}
    assert masked(payload, MOST)[:2] == ("masked", json.dumps(MASK).encode())
