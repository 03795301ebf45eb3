"""What a callback says: the outcome of a job in the form that its caller stores.

The workflow backend stores the result of a synchronous call as `{body, mimetype, operator_identifier}`, and of a
callback the `body` alone. A call that became a job on the way was meant to be synchronous: its callback's body is the
whole, so that a process' data do not depend on how long the call took. The backend judges a callback by
`command_response.http_status`, since it has no HTTP status of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway.protocol.document import read_object
from gateway.protocol.envelope import JSON

if TYPE_CHECKING:
    from gateway.jobs.contract import Job, Outcome
    from gateway.protocol.document import Object

FAILED = 300  # HTTP statuses from here on are errors
WORDS = 4096  # characters of an answer that a message shows
NOT_JSON = "ServiceTaskOperatorReturnedInvalidJsonError"
BAD_STATUS = "ServiceTaskOperatorReturnedBadStatusError"
"""What the backend calls a version 1 answer that is not JSON, or has a bad status."""


class _Telling(msgspec.Struct, frozen=True):
    """What of an answer means anything here."""

    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error_code: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    refreshed_token_set: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    api_response: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def content(job: Job, outcome: Outcome) -> bytes:
    """Return the body of the callback's PUT."""
    envelope = read_object(outcome.body.encode())
    response = read_object(bytes(envelope["command_response"]))
    told = _is_error(envelope.get("error"))
    if outcome.legacy:
        response["body"] = _without_tokens(response["body"])
    if job.promoted and not told:
        stored, error = _stored(job, outcome, envelope, response)
        response["body"], response["mimetype"] = _raw(stored), _raw(JSON)
        envelope["error"] = envelope["error"] if error is None else _raw(error)
    if outcome.status >= FAILED and bytes(response.get("http_status", b"null")) == b"null":
        response["http_status"] = _raw(outcome.status)
    return msgspec.json.encode({**envelope, "command_response": response})


def _stored(job: Job, outcome: Outcome, envelope: Object, response: Object) -> tuple[Any, dict[str, str] | None]:
    """Return what the backend would have stored of the synchronous answer, or the error that it would have seen."""
    if outcome.legacy:
        return _stored_text(outcome, response)
    return envelope.get("api_response", {**response, "operator_identifier": job.title}), None


def _stored_text(outcome: Outcome, response: Object) -> tuple[Any, dict[str, str] | None]:
    """Return what it makes of the text that a version 1 answer is."""
    body = response["body"]
    is_text = bytes(response["mimetype"]) != _JSON_MIMETYPE and bytes(memoryview(body)[:1]) == b'"'
    if is_text or bytes(body) == b'""':
        text = msgspec.json.decode(body, type=str)
        try:
            body = msgspec.json.decode(text or "{}", type=msgspec.Raw)
        except (msgspec.DecodeError, RecursionError):
            return {}, {"error_code": NOT_JSON, "message": text[:WORDS]}
    answer = _answer(body)
    if answer.error is not msgspec.UNSET and _is_error(answer.error):
        return {}, msgspec.json.decode(answer.error)
    if outcome.status >= FAILED:
        return {}, {"error_code": BAD_STATUS, "message": bytes(body).decode()[:WORDS]}
    return _without_tokens(body), None


def _without_tokens(body: msgspec.Raw) -> msgspec.Raw:
    """Leave out refreshed tokens: they are for the secrets of a synchronous caller, and no data of a process."""
    answer = _answer(body)
    if answer.refreshed_token_set is msgspec.UNSET:
        return body
    return _NULL if answer.api_response is msgspec.UNSET else answer.api_response


def _is_error(raw: msgspec.Raw | None) -> bool:
    return raw is not None and _answer(raw).error_code is not msgspec.UNSET


def _answer(raw: msgspec.Raw) -> _Telling:
    """Return what means anything of an object; nothing of what is none, or nested too deeply."""
    try:
        return msgspec.json.decode(raw, type=_Telling)
    except (msgspec.ValidationError, RecursionError):
        return _Telling()


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


_NULL = msgspec.Raw(b"null")
_JSON_MIMETYPE = msgspec.json.encode(JSON)
