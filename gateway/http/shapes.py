"""What requests and answers look like, for the OpenAPI document: JSON Schemas, headers, examples."""

from __future__ import annotations

import inspect
from http import HTTPStatus
from typing import Any

import msgspec

from gateway.connectors.parameters import CONTEXT
from gateway.errors import JournalUnavailable, RunConflict, RunNotFound
from gateway.http.responses import DURATION
from gateway.http.statuses import ACCEPTED, HTTP_CODES, RAISED, STATUSES, TOLD
from gateway.jobs.contract import JobConflict, JobNotFound, JobState, JobStatus
from gateway.protocol.envelope import JSON, error_envelope

TEXT: dict[str, Any] = {"type": "string"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
STATE: dict[str, Any] = {"type": "string", "enum": [state.value for state in JobState]}
WORDS = {"type": ["string", "null"], "maxLength": 8190, "pattern": r"^[^\x00]*$"}
UNAUTHORIZED = HTTPStatus.UNAUTHORIZED.value

CALLER: dict[str, dict[str, Any]] = {
    f"{CONTEXT}process_instance_id": {
        **WORDS,
        "type": ["integer", "string", "null"],
        "description": "The process instance.",
    },
    f"{CONTEXT}process_model_identifier": {**WORDS, "description": "The process model."},
    f"{CONTEXT}task_id": {**WORDS, "description": "The task, which has one open job."},
    f"{CONTEXT}callback_url": {
        **WORDS,
        "format": "uri",
        "pattern": "^https?://",
        "description": "An http or https URL to which the outcome may be sent instead.",
    },
    f"{CONTEXT}task_data": {
        "anyOf": [{"type": "object"}, {"type": "null"}],
        "description": "The task's data.",
    },
}
"""The members of a body that say for whom a call is."""

REQUEST_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "schema": TEXT,
        "description": (
            "The caller's name for the request: it is in the answer, in the log, and told to the connector. Up to 128"
            " letters, digits and `._:-`; anything else is replaced."
        ),
    },
    "X-Timeout": {
        "schema": {"type": "number", "exclusiveMinimum": 0},
        "description": "Seconds that the call may take. It can only shorten what the command may take anyway.",
    },
    "Prefer": {
        "schema": {"type": "string", "enum": ["respond-async"]},
        "description": "Makes a durable job of the call: the answer is a 202.",
    },
    "traceparent": {
        "schema": TEXT,
        "description": "A W3C trace context, which goes to the connector. One that is malformed is left out.",
    },
    "tracestate": {
        "schema": TEXT,
        "description": "What vendors add to the trace context: up to 512 characters, or it is left out.",
    },
}
"""The headers of a call. The key is said by the security schemes, the others are the transport's."""

ANSWER_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {"schema": TEXT, "description": "The name under which the log has the request."},
    DURATION: {"schema": {"type": "number"}, "description": "Seconds that the connector's process ran."},
    "Retry-After": {"schema": COUNT, "description": "Seconds after which to ask again."},
    "Location": {"schema": {**TEXT, "format": "uri-reference"}, "description": "The job, or where a browser is to go."},
}

OF_CALLS = (
    TOLD,
    ACCEPTED,
    UNAUTHORIZED,
    HTTPStatus.EXPECTATION_FAILED.value,
    RAISED,
    *(
        status
        for kind, status in STATUSES.items()
        if kind not in {JobNotFound, JobConflict, JournalUnavailable, RunConflict, RunNotFound}
    ),
)
"""The statuses of what a call is answered."""


def schemas() -> dict[str, Any]:
    """Return the shapes that others refer to."""
    _, of_jobs = msgspec.json.schema_components([JobStatus], ref_template="#/components/schemas/{name}")
    of_jobs["Outcome"]["properties"]["body"] = _refers("Envelope")
    parameter = {
        "type": "object",
        "required": ["id", "type", "required"],
        "properties": {
            "id": TEXT,
            "type": {"type": "string", "enum": ["str", "int", "bool", "any"]},
            "required": {"type": "boolean"},
            "description": TEXT,
            "default": {},
            "enum": {"type": "array", "items": {}},
            "secret": {"type": "boolean"},
            "schema": {"type": "object"},
        },
    }
    job = {
        "type": "object",
        "required": ["job_id", "status"],
        "properties": {"job_id": TEXT, "status": {"type": "string", "enum": ["accepted", "joined"]}},
    }
    return {
        **of_jobs,
        "Envelope": _envelope({}, _ERROR),
        "AcceptedJob": _envelope(job, _ERROR),
        "Fault": _fault(TEXT),
        "Problem": _problem(TEXT),
        **{f"Problem{status}": _problem(_code(status, codes)) for status, codes in codes_by_status().items()},
        "Unauthorized": {
            "type": "object",
            "required": ["error"],
            "properties": {"error": {"type": "string", "const": "Unauthorized"}},
        },
        "Parameter": parameter,
        "Listed": {
            "type": "object",
            "required": ["id", "parameters"],
            "properties": {
                "id": TEXT,
                "parameters": {"type": "array", "items": _refers("Parameter")},
                "description": TEXT,
                "additional_parameters": {"type": "boolean"},
                "async": {"type": "boolean"},
            },
        },
        "Health": {
            "type": "object",
            "required": ["ok"],
            "properties": {
                "ok": {"type": "boolean"},
                "reason": TEXT,
                "connectors": {"type": "array", "items": TEXT},
                "log_problem": TEXT,
                "audit_problem": TEXT,
            },
        },
    }


def responses() -> dict[str, Any]:
    """Return the answers that operations refer to, by status."""
    envelope, accepted = _refers("Envelope"), {"anyOf": [_refers("AcceptedJob"), _refers("Envelope")]}
    told: dict[str, Any] = {
        str(TOLD): _answer("The command ran, and answered or told an error: look at `error`.", envelope, DURATION),
        str(ACCEPTED): _answer("It is a job, or calls back by itself: the outcome comes later.", accepted, "Location"),
        str(UNAUTHORIZED): _answer("The key is missing, or wrong.", _refers("Unauthorized")),
        "default": _answer("What went wrong.", _refers("Problem")),
        "legacy": {
            "description": "What a connector answers as before version 2: its own body, mimetype and status.",
            "headers": _headers(DURATION),
        },
        "page": {
            "description": "What went wrong, as a page for people, unless it never came to a sign-in.",
            "headers": _headers(),
            "content": {"text/html": {"schema": TEXT}, JSON: {"schema": _refers("Problem")}},
        },
    }
    told[str(TOLD)]["content"]["*/*"] = {"schema": {}}  # of a connector that answers as before version 2
    for status, codes in codes_by_status().items():
        more = ("Retry-After",) if status in {429, 503} else ()
        one = _answer(HTTPStatus(status).phrase, _refers(f"Problem{status}"), *more)
        one["content"][JSON]["examples"] = {
            code: {"summary": summary, "value": msgspec.Raw(error_envelope(code, summary))}
            for code, summary in codes.items()
        }
        told[str(status)] = one
    return told


def headers() -> dict[str, Any]:
    """Return the headers of answers."""
    return ANSWER_HEADERS


def codes_by_status() -> dict[int, dict[str, str]]:
    """Return the codes of errors, and what each means, by status."""
    found: dict[int, dict[str, str]] = {}
    for kind, status in STATUSES.items():
        found.setdefault(status, {})[kind.code] = (inspect.getdoc(kind) or "").partition("\n")[0]
    for status, code in HTTP_CODES.items():
        found.setdefault(status, {}).setdefault(code, HTTPStatus(status).phrase)
    return dict(sorted(found.items()))


def told(schema: dict[str, Any], description: str = "OK") -> dict[str, Any]:
    """Return an answer in JSON."""
    return _answer(description, schema)


def named(name: str) -> dict[str, Any]:
    """Return a reference to one of the schemas."""
    return _refers(name)


# --- private


def _refers(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_ERROR = {"anyOf": [_refers("Fault"), {"type": "null"}]}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}


def _answer(description: str, schema: dict[str, Any], *headers: str) -> dict[str, Any]:
    return {"description": description, "headers": _headers(*headers), "content": {JSON: {"schema": schema}}}


def _envelope(body: dict[str, Any], error: dict[str, Any]) -> dict[str, Any]:
    response = {
        "type": "object",
        "required": ["body", "mimetype"],
        "properties": {"body": body, "mimetype": TEXT, "http_status": {"type": "integer"}},
    }
    return {
        "type": "object",
        "required": ["command_response", "command_response_version", "error", "spiff__logs"],
        "properties": {
            "command_response": response,
            "command_response_version": {"type": "integer", "const": 2},
            "error": error,
            "spiff__logs": {"type": "array", "items": TEXT},
        },
    }


def _fault(code: dict[str, Any]) -> dict[str, Any]:
    properties = {"error_code": code, "message": TEXT}
    return {"type": "object", "required": list(properties), "properties": properties}


def _problem(code: dict[str, Any]) -> dict[str, Any]:
    return _envelope({}, _fault(code))


def _code(status: int, codes: dict[str, str]) -> dict[str, Any]:
    """Return what a code of a status can be: where connectors' own code raises, it is the exception's class, too."""
    known = sorted(codes)
    return {"type": "string", "examples": known} if status == RAISED else {"type": "string", "enum": known}
