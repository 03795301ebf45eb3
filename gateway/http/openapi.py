"""The OpenAPI document of a running gateway: its routes, and one operation for each command that can be called."""

from __future__ import annotations

import inspect
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.connectors.parameters import CONTEXT
from gateway.http.calls import PATH as CALLS
from gateway.http.routes import KEY_HEADER
from gateway.http.statuses import ACCEPTED, RAISED, STATUSES, TOLD
from gateway.jobs.contract import JobState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.connectors.definition import Command
    from gateway.connectors.parameters import Parameter
    from gateway.connectors.snapshot import Snapshot
    from gateway.http.routes import Route

VERSION = "3.1.1"
_IN_PATH = re.compile(r"{(\w+)}")
_TYPES = {"str": "string", "int": "integer", "bool": "boolean"}
_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_STATE: dict[str, Any] = {"enum": [state.value for state in JobState]}
_FILTERS = dict.fromkeys(("connector", "process_instance", "task", "client"), _TEXT)
_QUERIES: dict[str, dict[str, dict[str, Any]]] = {
    "/v1/jobs": {"state": _STATE, **_FILTERS, "limit": _COUNT, "offset": _COUNT},
    "/v1/jobs/purge": {"state": _STATE, "older_than": {**_TEXT, "examples": ["7d"]}},
    "/v1/jobs/{id}/retry": {"run": {"type": "boolean"}},
    "/v1/typeahead/{category}": {"prefix": _TEXT, "limit": {"type": "integer", "minimum": 1, "maximum": 1000}},
}
_CONTEXT = {
    f"{CONTEXT}process_instance_id": {"type": ["integer", "string", "null"]},
    f"{CONTEXT}process_model_identifier": {"type": ["string", "null"]},
    f"{CONTEXT}task_id": {"type": ["string", "null"]},
    f"{CONTEXT}callback_url": {"type": ["string", "null"], "format": "uri"},
    f"{CONTEXT}task_data": {"type": ["object", "null"]},
}
_HEADERS = [
    {"name": "X-Request-Id", "in": "header", "schema": {"type": "string", "pattern": r"^[A-Za-z0-9._:\-]{1,128}$"}},
    {"name": "X-Timeout", "in": "header", "schema": {"type": "number", "exclusiveMinimum": 0}},
    {"name": "Prefer", "in": "header", "schema": {"enum": ["respond-async"]}},
]
_ENVELOPE = {
    "type": "object",
    "required": ["command_response", "command_response_version", "error", "spiff__logs"],
    "properties": {
        "command_response": {
            "type": "object",
            "required": ["body", "mimetype"],
            "properties": {"body": {}, "mimetype": _TEXT, "http_status": {"type": "integer"}},
        },
        "command_response_version": {"const": 2},
        "error": {
            "type": ["object", "null"],
            "required": ["error_code", "message"],
            "properties": {"error_code": _TEXT, "message": _TEXT},
        },
        "spiff__logs": {"type": "array", "items": _TEXT},
    },
}


def document(snapshot: Snapshot, routes: Iterable[Route], version: str, *, keyed: bool) -> bytes:
    """Return it as JSON. `keyed`: callers need the API key."""
    paths: dict[str, Any] = {}
    for route in routes:
        if route.method in {"GET", "POST"} and route.path != CALLS:
            paths.setdefault(route.path, {})[route.method.lower()] = _of_route(route)
    for connector in snapshot.ready():
        for command in (connector.commands or {}).values():
            path = CALLS.format(connector=connector.called, command=command.name)
            paths[path] = {"post": _of_command(connector.called, command)}
    schemes = {
        "key": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    return msgspec.json.encode(
        {
            "openapi": VERSION,
            "info": {"title": "Connector gateway", "version": version},
            "security": [{name: []} for name in schemes] if keyed else [],
            "paths": paths,
            "components": {
                "schemas": {"Envelope": _ENVELOPE, "Context": {"type": "object", "properties": _CONTEXT}},
                "responses": {str(status): _told(status) for status in _statuses()},
                "securitySchemes": schemes,
            },
        }
    )


# --- private


def _statuses() -> list[int]:
    return sorted({HTTPStatus.UNAUTHORIZED.value, TOLD, ACCEPTED, RAISED, *STATUSES.values()})


def _told(status: int) -> dict[str, Any]:
    schema = {} if status == HTTPStatus.UNAUTHORIZED else {"$ref": "#/components/schemas/Envelope"}
    told: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"schema": schema}},
    }
    return told


def _referred(statuses: Iterable[int]) -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _of_route(route: Route) -> dict[str, Any]:
    queries = _QUERIES.get(route.path, {})
    in_path = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in _IN_PATH.findall(route.path)]
    return {
        "summary": (inspect.getdoc(route.handler) or "").partition("\n")[0],
        "operationId": f"{route.method.lower()} {route.path}",
        "parameters": [*in_path, *({"name": name, "in": "query", "schema": one} for name, one in queries.items())],
        "responses": {"200": {"description": "OK"}, "default": {"$ref": "#/components/responses/400"}},
    }


def _of_command(connector: str, command: Command) -> dict[str, Any]:
    signature = command.signature
    parameters = {one.id: _schema(f"{connector}/{command.name}/{one.id}", one) for one in signature.parameters}
    body: dict[str, Any] = {"type": "object", "properties": {**parameters, **_CONTEXT}}
    if required := [one.id for one in signature.parameters if one.required]:
        body["required"] = required
    if not signature.additional:
        body["additionalProperties"] = False
        body["patternProperties"] = {f"^{CONTEXT}": {}}
    told: dict[str, Any] = {"description": command.description} if command.description else {}
    return {
        "summary": f"{connector}: {command.name}",
        "operationId": f"{connector}/{command.name}",
        "tags": [connector],
        **told,
        "parameters": _HEADERS,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": _referred(_statuses()),
    }


def _schema(name: str, one: Parameter) -> dict[str, Any]:
    """Return what fits a parameter as JSON Schema."""
    told: dict[str, Any] = dict(one.schema) if isinstance(one.schema, dict) else {}
    if "$ref" in str(told):  # a reference within it begins at its own root
        told.setdefault("$id", f"urn:connector-gateway:{name}")
    kind = _TYPES.get(one.type)
    if kind is not None:
        told.setdefault("type", kind if one.required else [kind, "null"])
    if isinstance(one.enum, list):
        told["enum"] = one.enum if one.required else [*one.enum, None]
    if one.secret is True:
        told["writeOnly"] = True
    for key in ("description", "default"):
        value = getattr(one, key)
        if value is not msgspec.UNSET:
            told.setdefault(key, value)
    return told
