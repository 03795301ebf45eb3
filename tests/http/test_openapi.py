"""The OpenAPI document of a running gateway, read by others and held to what the gateway does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

import hypothesis
import jsonschema_rs
import pytest
import schemathesis
import yaml
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.specs.openapi import checks as openapi_checks

from gateway.errors import GatewayError
from gateway.http.openapi import Admittance, operation_id, operation_ids
from gateway.http.statuses import HTTP_CODES, STATUSES
from gateway.http.subschemas import folded
from tests.http.test_clients import client, sha256
from tests.support import Server, Site, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

COMMANDS = """
    Send:
      description: Sends it.
      parameters:
        to: {type: str, description: The number.}
        pages: {type: int, required: false, default: 1}
        how: {enum: [fast, slow], required: false}
        pin: {secret: true, required: false}
        tree: {required: false, schema: {type: object, properties: {below: {$ref: "#"}}, additionalProperties: false}}
    Any: {additional_parameters: true}
"""


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Server]:
    site = Site(tmp_path)
    site.configure(f"fax:\n  run: [cat]\n  commands:\n{COMMANDS}\nlost: {{run: [./nothing]}}")
    async with served(site) as running:
        yield running


async def described(gateway: Server, key: str | None = None, below: str = "") -> dict[str, Any]:
    """Return the document, which others find valid."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = await gateway.get(f"{below}/openapi.json", headers=headers)
    document: dict[str, Any] = answer.json
    assert answer.status == 200
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    schemathesis.openapi.from_dict(document).validate()
    return document


def body_of(document: dict[str, Any], target: str) -> dict[str, Any]:
    """Return the schema of what a command is sent; its references lead from the document on."""
    pointer = f"#/paths/~1v1~1do~1{target.replace('/', '~1')}/post/requestBody/content/application~1json/schema"
    return {**document, "$ref": pointer}


def examples_of(document: dict[str, Any], target: str) -> list[Any]:
    content = document["paths"][f"/v1/do/{target}"]["post"]["requestBody"]["content"]["application/json"]
    return [one["value"] for one in content.get("examples", {}).values()]


async def test_it_has_every_route_and_an_operation_for_each_command(gateway: Server) -> None:
    document = await described(gateway)
    assert {"/v1/do/fax/Send", "/v1/do/fax/Any", "/liveness", "/v1/jobs/{id}/retry"} <= set(document["paths"])
    assert not [path for path in document["paths"] if "lost" in path]
    operation = document["paths"]["/v1/do/fax/Send"]["post"]
    assert operation["operationId"] == "fax__Send"
    assert operation["tags"] == ["fax"]
    assert {one["name"] for one in document["tags"]} == {"Gateway", "fax"}
    assert document["servers"] == [{"url": "/"}]
    assert document["security"] == []
    assert operation["description"] == operation["summary"] == "Sends it."
    assert document["paths"]["/v1/do/fax/Any"]["post"]["summary"] == "fax: Any"
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["to"]
    assert body["additionalProperties"] is False
    assert body["properties"]["to"] == {"type": "string", "description": "The number."}
    assert body["properties"]["pages"] == {"type": ["integer", "null"], "default": 1}
    assert body["properties"]["how"]["enum"] == ["fast", "slow", None]
    assert body["properties"]["pin"] == {"writeOnly": True, "format": "password"}
    assert "additionalProperties" not in document["paths"]["/v1/do/fax/Any"]["post"]["requestBody"]


@pytest.mark.parametrize(
    ("sent", "fits"),
    [
        ({"to": "1"}, True),
        ({"to": "1", "pages": None, "how": None, "spiff__task_id": "x", "spiff__whatever": [1]}, True),
        ({"to": "1", "tree": {"below": {"below": {}}}}, True),
        ({"to": "1", "tree": {"below": {"above": 1}}}, False),
        ({"to": "1", "how": "slowly"}, False),
        ({"to": "1", "pages": "2"}, False),
        ({"to": None}, False),
        ({"to": "1", "spiff_": 1}, False),
        ({}, False),
    ],
)
async def test_what_it_says_is_what_the_gateway_takes(gateway: Server, sent: dict[str, Any], fits: bool) -> None:
    document = await described(gateway)
    assert jsonschema_rs.Draft202012Validator(body_of(document, "fax/Send")).is_valid(sent) is fits
    assert (await gateway.do("fax/Send", sent)).status == (200 if fits else 400)


async def test_it_tells_of_the_key_and_needs_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure()
    async with served(site, env={"CONNECTOR_PROXY_API_KEY": "hunter2"}) as gateway:
        assert (await gateway.get("/openapi.json")).status == 401
        document = (await gateway.get("/openapi.json", headers={"Authorization": "Bearer hunter2"})).json
        assert document["security"] == [{"key": []}, {"bearer": []}]
        name = document["components"]["securitySchemes"]["key"]["name"]
        assert (await gateway.get("/openapi.json", headers={name: "hunter2"})).status == 200


async def test_each_answer_to_a_call_is_told_with_its_codes(gateway: Server) -> None:
    document = await described(gateway)
    answers = document["paths"]["/v1/do/fax/Send"]["post"]["responses"]
    statuses = (200, 202, 400, 401, 403, 404, 408, 413, 417, 429, 500, 502, 503, 504)
    assert set(answers) == {*map(str, statuses), "default"}
    codes: dict[int, set[str]] = {}
    for status, code in [(status, kind.code) for kind, status in STATUSES.items()] + list(HTTP_CODES.items()):
        codes.setdefault(status, set()).add(code)
    for status, expected in codes.items():
        told = document["components"]["responses"][str(status)]["content"]["application/json"]
        assert set(told["examples"]) == expected
        code = document["components"]["schemas"][f"Problem{status}"]["properties"]["error"]["properties"]["error_code"]
        assert set(code["examples" if status == 500 else "enum"]) == expected
        validator = jsonschema_rs.Draft202012Validator({**document, **told["schema"]})
        assert all(validator.is_valid(one["value"]) for one in told["examples"].values())
    assert all(kind.__doc__ for kind in GatewayError.__subclasses__())


async def test_what_is_answered_is_what_it_says(gateway: Server) -> None:
    document = await described(gateway)
    for target, params, headers, status in (
        ("fax/Send", {"to": "1"}, {}, 200),
        ("fax/Send", {}, {}, 400),
        ("fax/Send", {"to": "1"}, {"Prefer": "respond-async"}, 202),
        ("fax/Send", {"to": "1"}, {"X-Timeout": "soon"}, 400),
    ):
        answer = await gateway.do(target, params, headers=headers)
        assert answer.status == status
        schema = document["components"]["responses"][str(status)]["content"]["application/json"]["schema"]
        assert jsonschema_rs.Draft202012Validator({**document, **schema}).is_valid(answer.json), answer.raw
    for path, operations in document["paths"].items():
        answers = operations.get("get", {"responses": {}})["responses"]
        if "{" in path or "application/json" not in answers.get("200", {}).get("content", {}):
            continue
        schema = answers["200"]["content"]["application/json"]["schema"]
        answer = await gateway.get(path)
        assert jsonschema_rs.Draft202012Validator({**document, **schema}).is_valid(answer.json), answer.raw
    (job,) = (await gateway.get("/v1/jobs")).json["jobs"]
    one = {**document, "$ref": "#/components/schemas/JobStatus"}
    assert jsonschema_rs.Draft202012Validator(one).is_valid((await gateway.get(f"/v1/jobs/{job['id']}")).json)


def conform(document: dict[str, Any], url: str) -> set[int]:
    """Send cases of each operation, those that fit and those that do not; return the statuses of the answers."""
    checks = [
        openapi_checks.content_type_conformance,
        openapi_checks.response_headers_conformance,
        openapi_checks.response_schema_conformance,
        openapi_checks.status_code_conformance,
    ]
    settings = hypothesis.settings(
        max_examples=4,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    statuses: set[int] = set()

    def send(case: Any) -> None:
        statuses.add(case.call_and_validate(base_url=url, checks=checks).status_code)

    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        for mode in schemathesis.GenerationMode:
            with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing is wrong for some operations
                settings(hypothesis.given(case=found.ok().as_strategy(generation_mode=mode))(send))()
    return statuses


async def test_whatever_is_sent_the_answer_is_as_it_says(gateway: Server) -> None:
    statuses = await asyncio.to_thread(conform, await described(gateway), gateway.url)
    assert statuses > {200, 400, 404}


async def test_other_methods_are_refused_on_each_path(gateway: Server) -> None:
    document = await described(gateway)
    schema = document["components"]["responses"]["405"]["content"]["application/json"]["schema"]
    for path, operations in document["paths"].items():
        if path == "/v1/jobs/purge":  # with GET, that is a job of this name
            continue
        allowed = {method.upper() for method in operations} | {"OPTIONS"}
        more = {"GET"} if path.startswith("/v1/do/") else {"HEAD"} & {"HEAD" if "get" in operations else ""}
        for method in ("DELETE", "PATCH", "PUT", "TRACE", *({"GET", "POST"} - allowed - more)):
            answer = await gateway.request(method, re.sub(r"{\w+}", "0", path))
            assert answer.status == 405, (method, path)
            assert set(answer.headers["Allow"].split(",")) == allowed | more, (method, path)
            assert jsonschema_rs.Draft202012Validator({**document, **schema}).is_valid(answer.json)


# --- examples

EXAMPLES = """
- {command: Send, params: {to: "+4755", pages: 2}, expect: {body: {}}}
- {command: Send, params: {to: 1}}
- {command: Send, params: {}, expect: {error_code: invalid_parameters}}
- {command: Send, params: {to: "+4756", pin: "0815"}}
- {command: Send, params: {to: at the-password-of-config}}
- {command: Other, params: {}}
"""


async def test_the_examples_are_an_authors_that_fit_and_hold_no_secret(tmp_path: Path) -> None:
    site = Site(tmp_path)
    secret = "config: {password: the-password-of-config}\n  description: It is the-password-of-config."
    site.configure(
        f"fax:\n  run: [cat]\n  {secret}\n  commands:\n{COMMANDS}\nbad: {{run: [cat], commands: {{Do: {{}}}}}}"
    )
    (tmp_path / "fax.tests.yaml").write_text(EXAMPLES)
    (tmp_path / "bad.tests.yaml").write_text("- {")
    async with served(site) as gateway:
        document = await described(gateway)
        assert examples_of(document, "fax/Send") == [{"to": "+4755", "pages": 2}]
        assert examples_of(document, "fax/Any") == [{}]
        assert examples_of(document, "bad/Do") == [{}]
        assert "the-password" not in str(document)


DESCRIBED = {
    "commands": [
        {
            "name": "Do",
            "parameters": [
                {"id": "a", "type": "any", "required": True, "schema": {"type": "array", "items": 5, "$defs": 5}},
                {
                    "id": "b",
                    "type": "any",
                    "required": True,
                    "schema": {"anyOf": 1, "$defs": 5, "$ref": "#/$defs/none"},
                },
            ],
        }
    ],
    "validate": "names",
}


async def test_what_only_describes_and_is_wrong_takes_nobody_with_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.python("it.py", f"print({json.dumps(json.dumps(DESCRIBED))})")
    site.configure("fax: {run: [cat], commands: {Send: {}}}\nit: {run: [./it.py], validate: names}")
    async with served(site) as gateway:
        document = await described(gateway)
        assert calls_in(document) == {"/v1/do/fax/Send", "/v1/do/it/Do"}


SCHEMAS = """
    Do:
      parameters:
        mail: {type: str, schema: {format: email}}
        when: {schema: {type: string, format: date-time}}
        long: {type: str, schema: {minLength: 20, maxLength: 20}}
        even: {type: int, schema: {exclusiveMinimum: 4, multipleOf: 3}}
        less: {type: int, schema: {exclusiveMaximum: 0}}
        either: {schema: {anyOf: [{type: object, required: [a], properties: {a: {type: integer}}}, {type: "null"}]}}
        all: {schema: {allOf: [{type: object, required: [a]}, {required: [b], properties: {a: {}, b: {const: 2}}}]}}
        tree: {schema: {type: object, required: [leaf], properties: {leaf: {$ref: "#/$defs/leaf"}}, $defs: {leaf: {type: array, minItems: 2, items: {type: boolean}}}}}
        pin: {type: str, secret: true}
"""


async def test_an_example_is_made_up_where_there_is_none(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure(f"it:\n  run: [cat]\n  commands:\n{SCHEMAS}")
    async with served(site) as gateway:
        document = await described(gateway)
        (made,) = examples_of(document, "it/Do")
        assert jsonschema_rs.Draft202012Validator(body_of(document, "it/Do")).is_valid(made), made
        assert (await gateway.do("it/Do", made)).code is None
        assert made["either"] == {"a": 1}
        assert made["tree"] == {"leaf": [True, True]}


# --- names


@pytest.mark.parametrize(
    ("connector", "command", "name"),
    [("fax", "Send", "fax__Send"), ("a_b", "c", "a_b__c"), ("3d", "Draw", "_3d__Draw")],
)
def test_an_operation_is_called_by_its_words(connector: str, command: str, name: str) -> None:
    assert operation_id(connector, command) == name


def test_operations_have_names_of_their_own_that_are_identifiers() -> None:
    words = ["a", "a_", "_a", "a__a", "a-a", "a_a", "a.a", "1", "é", "a a", "-", ""]
    names = [operation_id(one, other) for one in words for other in words]
    assert len(set(names)) == len(words) ** 2
    assert all(name.isidentifier() and name.isascii() for name in names)


@pytest.mark.parametrize(
    "many",
    [
        [("twin-a", "Send"), ("twin_a", "Send"), ("TwinA", "Send"), ("twin.a", "Send")],
        [("http", "GetAll"), ("http_get", "all"), ("httpGet", "All")],
        [("get", "v1_jobs")],
    ],
)
def test_no_generator_writes_two_names_the_same(many: list[tuple[str, str]]) -> None:
    names = operation_ids([*many, ("fax", "Send")], ["get_v1_jobs"])
    assert len({folded(name) for name in [*names.values(), "get_v1_jobs"]}) == len(many) + 2
    assert all(name.isidentifier() and name.isascii() for name in names.values())
    assert names["fax", "Send"] == "fax__Send"
    assert operation_ids(reversed([*many, ("fax", "Send")]), ["get_v1_jobs"]) == names, "whoever was there first"


@pytest.mark.parametrize("names", [("gateway",), ("Gateway", "gate-way"), ("twin-a", "TwinA")])
async def test_no_two_tags_are_the_same_to_a_generator(tmp_path: Path, names: tuple[str, ...]) -> None:
    site = Site(tmp_path)
    site.configure("\n".join(f"{name}: {{run: [cat], commands: {{Do: {{}}}}}}" for name in names))
    async with served(site) as gateway:
        document = await described(gateway)
        tags = [one["name"] for one in document["tags"]]
        assert len({folded(tag) for tag in tags}) == len(names) + 1
        used = {tag for one in document["paths"].values() for operation in one.values() for tag in operation["tags"]}
        assert used == set(tags)


async def test_what_is_odd_in_a_description_stays_readable(tmp_path: Path) -> None:
    site = Site(tmp_path)
    told = {"name": "Do", "parameters": [], "description": "\n first\x7f \x85line \ufffe\nsecond"}
    answer = {"commands": [told, {"name": "Go", "parameters": [], "description": " "}]}
    site.python("it.py", f"print({json.dumps(json.dumps(answer))})")
    site.configure("it: {run: [./it.py]}")
    async with served(site) as gateway:
        document = await described(gateway)
        operation = document["paths"]["/v1/do/it/Do"]["post"]
        assert operation["summary"] == "first\x7f \x85line \ufffe"
        assert operation["description"] == "first\x7f \x85line \ufffe\nsecond"
        assert document["paths"]["/v1/do/it/Go"]["post"]["summary"] == "it: Go"
        assert yaml.safe_load((await gateway.get("/openapi.json")).raw) == document, (
            "which JSON always is, but for these"
        )
        assert all(one["summary"] for path in document["paths"].values() for one in path.values())


# --- who may ask


@pytest.mark.parametrize(
    ("admittance", "keyed", "open_"),
    [
        (Admittance(keyed=False), [], []),
        (Admittance(keyed=True), [{"key": []}, {"bearer": []}], []),
        (Admittance(keyed=True, certified=True), [{"key": []}, {"bearer": []}], []),
        (Admittance(keyed=True, certified=True, named=True), [{"key": []}, {"bearer": []}, {"certificate": []}], []),
        (
            Admittance(keyed=True, certified=True, named=True, required=True),
            [{"key": [], "certificate": []}, {"bearer": [], "certificate": []}, {"certificate": []}],
            [{"certificate": []}],
        ),
        (Admittance(keyed=False, certified=True, required=True), [{"certificate": []}], [{"certificate": []}]),
    ],
)
def test_it_tells_what_is_needed_to_call(admittance: Admittance, keyed: list[Any], open_: list[Any]) -> None:
    assert admittance.security(keyed=admittance.keyed) == keyed
    assert admittance.security(keyed=False) == open_
    assert ("certificate" in admittance.schemes()) is admittance.certified


async def test_each_client_has_a_document_of_its_own(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure("fax: {run: [cat], commands: {Send: {}}}", gateway="public_url: https://gate.example/at")
    client(site, "acme", "keys: [KEY(acme)]\nconnectors: {crm: {run: [cat], commands: {Go: {}}}}")
    (tmp_path / "clients.d/crm.tests.yaml").write_text(
        "- {command: Go, params: {}}\n- {command: Go, task_data: {a: 1}}"
    )
    client(site, "beta", "keys: [KEY(beta)]\nallow: []")
    client(site, "house", f"keys: [{{sha256: {sha256('house')}, role: operator}}]")
    async with served(site) as gateway:
        assert gateway.events("client_refused") == []
        whole = await described(gateway, "acme")
        assert examples_of(whole, "crm/Go") == [{}, {}]
        assert calls_in(whole) == {"/v1/do/fax/Send", "/v1/do/crm/Go"}
        assert whole["servers"] == [{"url": "https://gate.example/at"}]
        assert calls_in(await described(gateway, "beta")) == set()
        below = await described(gateway, "house", "/clients/acme")
        assert calls_in(below) == {"/v1/do/fax/Send", "/v1/do/crm/Go"}
        assert below["servers"] == [{"url": "https://gate.example/at/clients/acme"}]
        assert "security" not in below["paths"]["/v1/commands"]["get"]
        assert below["paths"]["/liveness"]["get"]["security"] == []
        client(site, "beta", "keys: [KEY(beta)]\nallow: [fax]")
        await gateway.request("POST", "/v1/reload", headers={"Authorization": "Bearer house"})
        assert calls_in(await described(gateway, "beta")) == {"/v1/do/fax/Send"}


MOMENTS = {
    "since": [
        "1h",
        "1.5d",
        "0",
        "1764460800",
        "2026-11-30T08:00:00Z",
        "2026-11-30T08:00:00.25+05:30",
        "1970-01-02T00:00:00Z",
    ],
    "until": ["9999d", "999999999999", "2099-12-28T23:59:59-12:00"],
    "limit": ["0", "999999999999999"],
    "older_than": ["7d", "9999d", "500ms", "0.5s"],
    "state": ["delivered", "cancelled"],
}


async def test_queries_that_fit_are_understood_and_others_are_not(gateway: Server) -> None:
    document = await described(gateway)
    for method, path in (("get", "/v1/runs"), ("get", "/v1/jobs"), ("post", "/v1/jobs/purge")):
        told = {one["name"]: one["schema"] for one in document["paths"][path][method]["parameters"]}
        needed = {"older_than": "1h"} if "older_than" in told else {}
        for name, fine in MOMENTS.items():
            for text in [*fine, "", "soon", "-1", "1y"] if name in told else []:
                number = text.isdigit() and told[name]["type"] == "integer"
                value = int(text) if number else text
                fits = jsonschema_rs.Draft202012Validator(told[name]).is_valid(value)
                answer = await gateway.request(method, path, params={**needed, name: text})
                assert (answer.status == 200) is fits is (text in fine), (path, name, text, answer.raw)


def calls_in(document: dict[str, Any]) -> set[str]:
    return {path for path in document["paths"] if path.startswith("/v1/do/")}
