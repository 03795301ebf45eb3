"""What a callback says, compared with what the backend stores of a synchronous answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.jobs.content import content
from gateway.jobs.contract import Job, Outcome, told
from gateway.protocol.envelope import as_envelope
from gateway.protocol.request import Caller
from gateway.protocol.result import interpret

TITLE = "fax/Send"


def job(*, promoted: bool) -> Job:
    return Job(connector="fax", command="Send", context=Caller(request_id="r"), promoted=promoted)


def said(output: Any, status: int = 200, *, promoted: bool) -> Any:
    """Return the callback of a run that wrote this value."""
    result = interpret(bytearray(json.dumps(output).encode()), str)
    legacy = result.status is not None
    outcome = Outcome(status=result.status or status, body=as_envelope(result).decode(), legacy=legacy)
    return json.loads(content(job(promoted=promoted), outcome))


def stored(callback: Any) -> Any:
    """Return what the backend takes into its data, or the error that it sees."""
    if callback["error"] is not None:
        return callback["error"]["error_code"]
    status = callback["command_response"].get("http_status")
    return (
        f"ServiceTaskHttpError{status}"
        if status is not None and status >= 300
        else callback["command_response"]["body"]
    )


WHOLE = {"body": {"a": 1}, "mimetype": "application/json"}


def test_the_callback_of_a_promoted_call_has_the_whole_of_its_answer() -> None:
    assert stored(said({"a": 1}, promoted=True)) == {**WHOLE, "operator_identifier": TITLE}
    assert stored(said({"a": 1}, promoted=False)) == {"a": 1}


def test_whatever_an_envelope_has_beside_its_body_is_kept() -> None:
    response = {"body": "text", "mimetype": "text/plain", "http_status": 201, "own": [1]}
    given = {"command_response": response, "command_response_version": 2}
    assert stored(said(given, promoted=True)) == {**response, "operator_identifier": TITLE}
    assert stored(said(given, promoted=False)) == "text"


@pytest.mark.parametrize("promoted", [True, False])
def test_a_status_in_an_envelope_is_where_the_backend_looks_for_it(promoted: bool) -> None:
    given = {
        "command_response": {"body": "gone", "mimetype": "text/plain", "http_status": 410},
        "command_response_version": 2,
    }
    callback = said(given, promoted=promoted)
    assert callback["command_response"]["http_status"] == 410
    assert stored(callback) == "ServiceTaskHttpError410"


@pytest.mark.parametrize("promoted", [True, False])
@pytest.mark.parametrize("status", [502, 503, 504, 500])
def test_an_error_has_the_status_that_a_synchronous_caller_would_have_got(promoted: bool, status: int) -> None:
    callback = json.loads(content(job(promoted=promoted), told("connector_crashed", "it died", status)))
    assert callback["command_response"] == {"body": {}, "mimetype": "application/json", "http_status": status}
    assert stored(callback) == "connector_crashed"


@pytest.mark.parametrize("promoted", [True, False])
def test_a_told_error_keeps_the_status_that_it_was_told_with(promoted: bool) -> None:
    told_503 = {"error": {"error_code": "Busy", "message": "later"}, "http_status": 503}
    callback = said(told_503, promoted=promoted)
    assert (stored(callback), callback["command_response"]["http_status"]) == ("Busy", 503)
    plain = said({"error": {"error_code": "Busy", "message": "later"}}, promoted=promoted)
    assert "http_status" not in plain["command_response"]


@pytest.mark.parametrize(
    ("response", "mimetype", "data"),
    [
        ({"a": 1}, "application/json", {"a": 1}),
        ('{"a": 1}', "application/json", {"a": 1}),
        ('{"a": 1}', "text/plain", {"a": 1}),
        ("[1]", "text/html", [1]),
        (None, "application/json", {}),
        ("", "text/plain", {}),
        ("no JSON ☃", "text/plain", "ServiceTaskOperatorReturnedInvalidJsonError"),
        ({"error": {"error_code": "Own", "message": "m"}}, "application/json", "Own"),
        (
            {"api_response": {"b": 2}, "refreshed_token_set": {"access_token": "s"}, "auth": "x/y"},
            "application/json",
            {"b": 2},
        ),
    ],
)
def test_the_callback_of_a_promoted_version_1_result_is_what_the_backend_makes_of_its_text(
    response: Any, mimetype: str, data: Any
) -> None:
    assert stored(said({"response": response, "mimetype": mimetype, "status": 200}, promoted=True)) == data


def test_a_bad_status_of_version_1_is_the_error_that_the_backend_would_have_seen() -> None:
    callback = said({"response": "no such order", "mimetype": "text/plain", "status": 404}, promoted=True)
    assert stored(callback) == "ServiceTaskOperatorReturnedInvalidJsonError"
    callback = said({"response": {"a": 1}, "mimetype": "application/json", "status": 404}, promoted=True)
    assert stored(callback) == "ServiceTaskOperatorReturnedBadStatusError"
    assert callback["command_response"]["http_status"] == 404


def test_tokens_never_reach_the_data_of_a_process() -> None:
    response = {"api_response": {}, "refreshed_token_set": {"access_token": "s3cret"}, "auth": "x/y"}
    callback = said({"response": response, "mimetype": "application/json"}, promoted=True)
    assert "s3cret" not in json.dumps(callback)


@pytest.mark.parametrize("promoted", [True, False])
def test_an_answer_may_have_any_number_of_members(promoted: bool) -> None:
    many = {str(number): number for number in range(20_000)}
    assert said(many, promoted=promoted)["error"] is None
    text = {"response": json.dumps(many), "mimetype": "application/json", "status": 200}
    assert stored(said(text, promoted=promoted)) in (many, json.dumps(many))


def test_what_was_recorded_before_calls_were_told_from_jobs_is_sent_as_it_was() -> None:
    known = msgspec.json.decode(b'{"connector":"fax","command":"Send","context":{"request_id":"r"}}', type=Job)
    outcome = Outcome(status=200, body=json.dumps({"command_response": WHOLE, "command_response_version": 2}))
    assert json.loads(content(known, outcome))["command_response"] == WHOLE


@pytest.mark.parametrize("text", ["[" * 5000, '{"error":' + "[" * 5000])
def test_a_text_that_is_nested_too_deeply_is_told_as_no_json(text: str) -> None:
    callback = said({"response": text, "mimetype": "text/plain"}, promoted=True)
    assert stored(callback) == "ServiceTaskOperatorReturnedInvalidJsonError"
