"""The OpenAPI document of a running gateway, read by others and held to what the gateway does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import schemathesis

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


async def described(gateway: Server) -> dict[str, Any]:
    document: dict[str, Any] = (await gateway.get("/openapi.json")).json
    return document


async def test_it_has_every_route_and_an_operation_for_each_command(gateway: Server) -> None:
    document = await described(gateway)
    schemathesis.openapi.from_dict(document).validate()
    assert {"/v1/do/fax/Send", "/v1/do/fax/Any", "/liveness", "/v1/jobs/{id}/retry"} <= set(document["paths"])
    assert not [path for path in document["paths"] if "lost" in path]
    operation = document["paths"]["/v1/do/fax/Send"]["post"]
    assert operation["operationId"] == "fax/Send"
    assert operation["description"] == "Sends it."
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["to"]
    assert body["additionalProperties"] is False
    assert body["properties"]["to"] == {"type": "string", "description": "The number."}
    assert body["properties"]["pages"] == {"type": ["integer", "null"], "default": 1}
    assert body["properties"]["how"]["enum"] == ["fast", "slow", None]
    assert body["properties"]["pin"] == {"writeOnly": True}
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
    import jsonschema_rs  # noqa: PLC0415 - as schemathesis checks it

    document = await described(gateway)
    body = document["paths"]["/v1/do/fax/Send"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert jsonschema_rs.Draft202012Validator(body).is_valid(sent) is fits
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
