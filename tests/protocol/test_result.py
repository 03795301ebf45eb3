"""What a connector's output means."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gateway.errors import ConnectorInvalidOutput
from gateway.protocol.result import LOG_LINES, told_error
from gateway.protocol.told import LOG_CHARACTERS
from tests.protocol.support import read, sent

if TYPE_CHECKING:
    from collections.abc import Callable

DEEP = b"[" * 100_000 + b"]" * 100_000
ENVELOPE = {"command_response": {"body": {"a": 1}, "mimetype": "application/json"}, "command_response_version": 2}


# --- any value


@pytest.mark.parametrize(
    "value", [{"a": 1}, {}, [], [1, "☃"], "text", 7, -0.5, True, None, {"error": None}, {"response": 1}]
)
def test_any_value_becomes_the_body_of_an_envelope(value: Any) -> None:
    result = read(json.dumps(value))
    assert sent(result) == {
        "command_response": {"body": value, "mimetype": "application/json"},
        "command_response_version": 2,
        "error": None,
        "spiff__logs": [],
    }
    assert (result.status, result.error, result.warnings) == (None, None, ())


def test_numbers_and_keys_pass_through_as_they_were_written() -> None:
    document = b'{"big": 12345678901234567890123, "small": 1.10, "far": 1e999, "twice": 1, "twice": 2}'
    assert document in read(document).content


@pytest.mark.parametrize("around", ["%s", "\n\t %s\r\n \n", "\ufeff%s", "\ufeff\n%s\n"])
def test_space_and_a_byte_order_mark_around_the_result_are_no_noise(around: str) -> None:
    result = read(around % '{"a": 1}')
    assert sent(result)["command_response"]["body"] == {"a": 1}
    assert result.warnings == ()


@pytest.mark.parametrize(
    "output",
    [
        'starting\n{"a": 1}',
        'starting\n{"a": 1}\n\n \n',
        'starting\r\n{"a": 1}\r\n',
        '{not json}\n\n42\n{"a": 1}\n',
        '\ufeffstarting\n{"a": 1}\n',
        'two {"b": 2}\n{"b": 2}\n{"a": 1}\n',
    ],
)
def test_noise_before_a_result_on_the_last_line_is_a_warning(output: str) -> None:
    result = read(output)
    assert sent(result)["command_response"]["body"] == {"a": 1}
    assert len(result.warnings) == 1
    assert "noise" in result.warnings[0]


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"hello", "not one JSON document"),
        (b'{"a": 1}\nbye\n', "not one JSON document"),
        (b'{"a": 1}bye', "not one JSON document"),
        (b'{"a": 1}\n{"b": 2}\n', "more than one JSON document"),
        (b'\xef\xbb\xbf1\n{"b": 2}\n', "more than one JSON document"),
        (b'{\n  "a": 1\n}\n{"b": 2}\n', "more than one JSON document"),
        (b"{}{}", "not one JSON document"),
        (b"[1] [2]", "not one JSON document"),
        (b"NaN", "not one JSON document"),
        (b'{"a": NaN}', "not one JSON document"),
        (b"[Infinity, -Infinity]", "not one JSON document"),
        (b'{"a": 1', "not one JSON document"),
        (b"{'a': 1}", "not one JSON document"),
        (b'{"a": 1,}', "not one JSON document"),
        (b"\0{}", "not one JSON document"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'noise \xc3\n{"a": 1}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "not one JSON document"),
        ('{"a": "☃"}'.encode("utf-16"), "not UTF-8"),
        (DEEP, "nested too deeply"),
    ],
)
def test_what_is_not_one_document_is_invalid(output: bytes, why: str) -> None:
    with pytest.raises(ConnectorInvalidOutput, match=why):
        read(output)


# --- the envelope


def test_a_whole_envelope_passes_through_as_the_bytes_it_was() -> None:
    document = json.dumps({**ENVELOPE, "error": None, "spiff__logs": ["one"], "api_response": {"kept": 1}}, indent=1)
    assert read(document).content == document.encode()


def test_an_envelope_gets_what_it_lacks() -> None:
    result = read({"command_response": {"body": 7, "http_status": 202}, "command_response_version": 2, "extra": [1]})
    assert sent(result) == {
        "command_response": {"body": 7, "http_status": 202, "mimetype": "application/json"},
        "command_response_version": 2,
        "error": None,
        "spiff__logs": [],
        "extra": [1],
    }


def test_logs_in_an_envelope_are_bounded_and_redacted() -> None:
    lines = [f"{number} s3cret" for number in range(LOG_LINES + 5)] + ["x" * (LOG_CHARACTERS + 1)]
    shown = sent(read({**ENVELOPE, "spiff__logs": lines}, secret="s3cret"))["spiff__logs"]
    assert len(shown) == LOG_LINES
    assert shown[0] == "6 ***"
    assert len(shown[-1]) == LOG_CHARACTERS
    assert shown[-1].endswith("...")


def test_an_error_in_an_envelope_is_the_connectors_own() -> None:
    result = read(
        {**ENVELOPE, "error": {"error_code": "NoPaper", "message": "tray s3cret", "hint": 1}}, secret="s3cret"
    )
    assert result.error is not None
    assert (result.error.error_code, result.error.message) == ("NoPaper", "tray ***")
    assert sent(result)["error"] == {"error_code": "NoPaper", "message": "tray ***", "hint": 1}


def response(body: Any, mimetype: str = "application/json", **more: Any) -> dict[str, Any]:
    return {"command_response": {"body": body, "mimetype": mimetype, **more}}


def error(code: str, message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"error_code": code, "message": message, **more}}


@pytest.mark.parametrize(
    ("given", "becomes", "warned"),
    [
        ({"command_response_version": 1}, {}, "command_response_version is 1"),
        ({"command_response_version": 3}, {}, "command_response_version is 3"),
        ({"command_response_version": "2"}, {}, 'command_response_version is "2"'),
        ({"command_response_version": None}, {}, "command_response_version is null"),
        ({"command_response": None}, response(None), "command_response is null"),
        ({"command_response": [1]}, response([1]), "command_response is [1]"),
        ({"command_response": "sent ☃"}, response("sent ☃", "text/plain"), "command_response is"),
        ({"command_response": {}}, response(None), "no body"),
        ({"command_response": {"mimetype": "a/b", "own": 1}}, response(None, "a/b", own=1), "no body"),
        ({"command_response": {"body": 1, "mimetype": None}}, response(1), "mimetype is null"),
        ({"command_response": {"body": 1, "mimetype": "a/b\r\nX: 1"}}, response(1), "mimetype is"),
        (response(1, http_status="404"), response(1, http_status="404"), 'http_status is "404"'),
        (response(1, http_status=201.0), response(1, http_status=201.0), "http_status is 201.0"),
        (response(1, http_status="ok"), response(1, http_status="ok"), 'http_status is "ok"'),
        (response(1, http_status=True), response(1, http_status=True), "http_status is true"),
        ({"spiff__logs": "said ☃"}, {"spiff__logs": ["said ☃"]}, "spiff__logs is"),
        ({"spiff__logs": [1, "b", None, {"c": 2}]}, {"spiff__logs": ["1", "b", "", '{"c": 2}']}, "spiff__logs is"),
        ({"error": {}}, {}, "error is {}"),
        ({"error": ""}, {}, "error is"),
        ({"error": False}, {}, "error is"),
        ({"error": "declined ☃"}, {"spiff__logs": ["error: declined ☃"]}, "no error_code"),
        ({"error": {"message": "m"}}, {"spiff__logs": ['error: {"message": "m"}']}, "no error_code"),
        ({"error": "e", "spiff__logs": ["a"]}, {"spiff__logs": ["a", "error: e"]}, "no error_code"),
        (error(5, "m", own=1), error("5", "m", own=1), "error_code is 5"),
        ({"error": {"error_code": "c", "message": None}}, error("c", ""), "message is null"),
        ({"error": {"error_code": "c"}}, error("c", ""), "message is null"),
        ({"error": {"error_code": "c", "message": {"a": 1}}}, error("c", '{"a": 1}'), "message is"),
        (error("", "m"), error("connector_failed", "m"), "error_code is"),
        ({"error": {"error_code": None, "message": "m"}}, error("connector_failed", "m"), "error_code is null"),
    ],
)
def test_an_envelope_that_can_be_understood_is_mended_with_a_warning(
    given: dict[str, Any], becomes: dict[str, Any], warned: str
) -> None:
    result = read({**ENVELOPE, **given})
    assert sent(result) == {**ENVELOPE, "error": None, "spiff__logs": [], **becomes}
    assert warned in "; ".join(result.warnings)
    assert (result.error is None) == (becomes.get("error") is None)


@pytest.mark.parametrize("logs", [{"spiff__logs": None}, {}])
def test_an_envelope_without_logs_gets_a_list_since_the_backend_goes_through_it(logs: dict[str, Any]) -> None:
    assert sent(read({**ENVELOPE, "error": None, **logs}))["spiff__logs"] == []


@pytest.mark.parametrize("status", [None, 0, 99, 202, 99999, -1])
def test_a_status_stays_as_it_is_since_it_is_in_the_data_of_the_process(status: Any) -> None:
    result = read({**ENVELOPE, **response({"a": 1}, http_status=status)})
    told = sent(result)["command_response"]
    assert told == {"body": {"a": 1}, "mimetype": "application/json", "http_status": status}
    assert result.warnings == ()


@pytest.mark.parametrize("more", [{}, {"error": None}, {"error": {}}, {"spiff__logs": []}])
def test_an_envelope_with_nothing_in_it_is_invalid(more: dict[str, Any]) -> None:
    with pytest.raises(ConnectorInvalidOutput, match="command_response"):
        read({"command_response_version": 2, **more})


def test_an_envelope_with_nothing_but_logs_is_mended() -> None:
    result = read({"command_response_version": 2, "spiff__logs": ["said"]})
    assert sent(result) == {**ENVELOPE, **response(None), "error": None, "spiff__logs": ["said"]}


def test_an_envelope_with_nothing_but_an_error_is_the_error() -> None:
    result = read({"command_response_version": 2, "error": {"error_code": "NoPaper", "message": "m"}})
    assert sent(result) == {**ENVELOPE, **response(None), **error("NoPaper", "m"), "spiff__logs": []}


def test_another_version_with_a_legacy_result_is_the_legacy_result() -> None:
    result = read({"command_response_version": 1, "response": "x", "mimetype": "text/plain", "status": 201})
    assert (bytes(result.content), result.status) == (b"x", 201)


# --- told errors


def test_a_told_error_becomes_an_envelope() -> None:
    result = read({"error": {"error_code": "NoPaper", "message": "s3cret tray"}, "http_status": 503}, secret="s3cret")
    assert sent(result) == {
        "command_response": {"body": {}, "mimetype": "application/json", "http_status": 503},
        "command_response_version": 2,
        "error": {"error_code": "NoPaper", "message": "*** tray"},
        "spiff__logs": [],
    }
    assert result.error is not None
    assert result.error.raised is False


def test_an_error_tells_that_it_was_raised() -> None:
    result = read({"error": {"error_code": "KeyError", "message": "'x'", "raised": True}})
    assert result.error is not None
    assert result.error.raised is True


@pytest.mark.parametrize("status", ['"503"', "503"])
def test_the_status_beside_an_error_may_be_text(status: str) -> None:
    assert (
        sent(read(f'{{"error": {{"error_code": "a"}}, "http_status": {status}}}'))["command_response"]["http_status"]
        == 503
    )


@pytest.mark.parametrize("status", ["1" * 5000, "0", "-200", "null", "[]", '"later"'])
def test_a_status_beside_an_error_that_is_none_does_not_hide_the_error(status: str) -> None:
    result = read(f'{{"error": {{"error_code": "a"}}, "http_status": {status}}}')
    assert sent(result)["error"]["error_code"] == "a"
    assert bool(result.warnings) == (status not in {"null", "0", "-200"})


def test_the_code_of_an_error_may_be_a_number() -> None:
    assert sent(read({"error": {"error_code": 7, "message": None}}))["error"] == {"error_code": "7", "message": ""}


@pytest.mark.parametrize("error", ["text", {}, {"error_code": ""}, {"error_code": None}, [], None])
def test_an_error_without_a_code_is_an_ordinary_value(error: Any) -> None:
    assert sent(read({"error": error}))["command_response"]["body"] == {"error": error}


def test_a_long_error_message_is_cut() -> None:
    result = read({"error": {"error_code": "a", "message": "x" * 10_000}})
    assert len(sent(result)["error"]["message"]) == LOG_CHARACTERS


@pytest.mark.parametrize("output", [b"", b"oops", b'{"a": 1}', b'{"response": 1, "mimetype": "a/b"}', DEEP, b"\xff"])
def test_an_output_that_tells_no_error_tells_none(output: bytes) -> None:
    assert told_error(bytearray(output), str) is None


def test_an_error_told_after_noise_counts() -> None:
    result = told_error(bytearray(b'Traceback ...\n{"error": {"error_code": "a"}}\n'), str)
    assert result is not None
    assert result.error is not None
    assert result.error.error_code == "a"


@pytest.mark.parametrize(
    "made",
    [
        lambda words: {"command_response_version": 2, "error": words, "spiff__logs": []},
        lambda words: {"command_response_version": 2, "command_response": {"body": 1}, "error": {"message": words}},
        lambda words: {"command_response_version": words, "command_response": {"body": 1}},
        lambda words: {"command_response_version": 2, "command_response": {"body": 1, "mimetype": words}},
        lambda words: {"command_response_version": 2, "command_response": {"body": 1}, "spiff__logs": words},
        lambda words: {"command_response_version": 2, "command_response": {"body": 1}, "spiff__logs": [[words]]},
        lambda words: {
            "command_response_version": 2,
            "command_response": {"body": 1},
            "error": {"error_code": [words]},
        },
        lambda words: {"error": {"error_code": "E", "message": "m"}, "http_status": words},
        lambda words: {"response": words, "mimetype": "text/plain", "status": "no"},
        lambda words: {"response": "", "mimetype": words, "status": 200},
        lambda words: {"response": "", "mimetype": "a/b", "status": words},
        lambda words: {"response": "", "mimetype": "a/b", "encoding": words},
    ],
)
@pytest.mark.parametrize("size", [40, 80, 500, 4096])
def test_what_is_quoted_of_a_result_is_not_cut_within_a_secret(made: Callable[[str], Any], size: int) -> None:
    for before in (*range(size - 16, size + 1), 0):
        try:
            result = read(made(f"{'-' * before}s3cret-key-77 more"), secret="s3cret-key-77")
        except ConnectorInvalidOutput as problem:
            told = problem.message
        else:
            body = "" if result.status is not None else json.dumps([sent(result)["error"], sent(result)["spiff__logs"]])
            told = body + "".join(result.warnings)
        assert "s3c" not in told
