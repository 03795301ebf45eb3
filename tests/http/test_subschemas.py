"""JSON Schemas of parameters in the OpenAPI document: what is written differently for generators accepts the same."""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
import pytest

from gateway.connectors.parameters import Parameter
from gateway.http.openapi import _schema, _Schemas
from gateway.http.subschemas import AT, chosen, explicit, folded, nullable, placed

VALUES: list[Any] = [
    None, True, False, 0, 1, 2, -3, 1.5, 2.5, "", "x", "y", "Fast", "fast", "a b", "a-b", "2020-01-01",
    [], [1], ["x"], ["x", 1], ["x", 1, 2], [[], {}], [None], {}, {"a": 1}, {"a": "x"}, {"a": None}, {"a": {"a": 1}},
    {"b": 1}, {"a": 1, "b": 1}, {"a": {"b": [1]}}, {"$ref": "x"}, {"kids": [{"kids": []}]}, {"kids": [1]}, {"never": 1},
]  # fmt: skip
SCHEMAS: list[dict[str, Any]] = [
    {},
    {"type": "null"},
    {"type": ["object", "null"], "properties": {"a": {"type": "integer"}}, "required": ["a"], "default": {"a": 1}},
    {"type": ["array", "object", "string", "null"], "minItems": 1, "maxProperties": 1, "minLength": 1, "title": "T"},
    {"type": ["array", "null"], "not": {"type": "null"}},
    {"type": "array"},
    {"type": "array", "prefixItems": [{"type": "string"}, True], "items": False},
    {"type": "object", "properties": {"a": True, "never": False}},
    {"anyOf": [True, {"type": "null"}], "properties": {"a": {"anyOf": [{"type": "null"}, {"type": "object"}]}}},
    {"enum": [1, "x", None, True, 2.5, {"a": 1}, ["x", 1], []]},
    {"enum": ["Fast", "fast", None]},
    {"enum": ["x", "y"], "type": "string", "default": "x"},
    {"enum": ["x", 1, None], "type": ["integer", "null"]},
    {"enum": [1, 2.5], "type": "number"},
    {"enum": [None]},
    {"enum": [1, "x"], "minimum": 1},
    {"const": {"a": {"b": [1]}}},
    {"const": None},
    {"const": "x", "description": "always"},
    {
        "$ref": "#/$defs/node",
        "$defs": {"node": {"properties": {"kids": {"items": {"$ref": "#/$defs/node"}}}, "type": "object"}},
    },
    {
        "$ref": "#/definitions/a%20b",
        "definitions": {"a b": {"type": "object", "properties": {"a": {"$ref": "#/definitions/a%20b"}}}},
    },
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False},
    {"$anchor": "it", "type": "object", "properties": {"a": {"$ref": "#it"}}, "additionalProperties": False},
    {
        "$id": "urn:x",
        "properties": {"a": {"$ref": "urn:x#/properties/b"}, "b": {"$ref": "#/$defs/c"}},
        "$defs": {"c": {"const": 1}},
    },
    {"properties": {"a": {"$id": "urn:a", "$defs": {"b": {"type": "integer"}}, "$ref": "#/$defs/b"}}},
    {
        "properties": {"a": {"$ref": "#/$defs/a"}},
        "allOf": [{"$ref": "#/$defs/c"}, {"minProperties": 0}],
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/allOf/0"}, "c": {"type": ["object", "integer"]}},
    },
    {"properties": {"$ref": {"type": "string"}, "default": {"type": "integer"}}, "default": {"$ref": "#"}},
    {"dependentSchemas": {"a": {"required": ["b"]}}, "patternProperties": {"^a": {"type": "integer"}}},
    {"if": {"type": "string"}, "then": {"minLength": 1}, "else": {"not": {"type": "array"}}},
    {"type": "object", "additionalProperties": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": ["integer", "object"]}}},
]  # fmt: skip


def accepted(schema: dict[str, Any], schemas: dict[str, Any]) -> list[bool]:
    whole = {**schema, "components": {"schemas": schemas}}
    validator = jsonschema_rs.Draft202012Validator(whole)
    return [validator.is_valid(value) for value in VALUES]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_what_is_placed_accepts_the_same(schema: dict[str, Any]) -> None:
    made, shared = placed(schema, _Schemas().namer("n"))
    before = jsonschema_rs.Draft202012Validator(schema)
    assert accepted(made, shared) == [before.is_valid(value) for value in VALUES]
    assert not {"'$id'", "'$anchor'", "'$defs'", "'definitions'"} & set(re.findall(r"'\S+'", str([made, shared])))


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_what_can_be_left_out_can_be_null(schema: dict[str, Any]) -> None:
    made, shared = placed(schema, _Schemas().namer("n"))
    assert accepted(nullable(made), shared) == [
        fits or value is None for fits, value in zip(accepted(made, shared), VALUES, strict=True)
    ]


def test_each_that_is_referred_to_is_a_component_of_its_own() -> None:
    schema = {
        "properties": {"$ref": {"$ref": "#/$defs/a"}, "b": {"$ref": "#"}, "c": {"$ref": "#/properties/b/items"}},
        "default": {"$ref": "#"},
        "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}, "unused": {"type": "string"}},
    }
    schema["properties"]["b"] = {"type": "array", "items": {"type": "string"}, "contains": {"$ref": "#"}}  # type: ignore[index]
    made, shared = placed(schema, lambda word: f"n__{word}" if word else "n")
    assert made == {"$ref": f"{AT}n"}
    assert shared == {
        "n": {
            "properties": {
                "$ref": {"$ref": f"{AT}n__a"},
                "b": {"type": "array", "items": {"$ref": f"{AT}n__items"}, "contains": {"$ref": f"{AT}n"}},
                "c": {"$ref": f"{AT}n__items"},
            },
            "default": {"$ref": "#"},
        },
        "n__a": {"items": {"$ref": f"{AT}n__a"}},
        "n__items": {"type": "string"},
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/none"},
        {"$ref": "#none"},
        {"$ref": "https://example.com/"},
        {"items": {"$ref": "#/items/0"}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    ],
)
def test_what_leads_nowhere_is_told_as_anything(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a reference leads"):
        placed(schema, str)
    one = Parameter(id="a", type="any", required=True, schema=schema, description="It.")
    assert _schema("n", one, _Schemas()) == {"description": "It."}


def test_components_have_names_that_differ_whatever_they_stand_for() -> None:
    schemas = _Schemas()
    names = [
        schemas.namer(name)(word)
        for name in ("it__Do__A", "it__Do__a", "Envelope", "ä")
        for word in ("", "b", "B", "b ")
    ]
    assert len({folded(name) for name in [*names, *schemas.made]}) == len(names) + len(schemas.made)
    assert all(name.replace("_", "").isalnum() and name.isascii() for name in names)


def test_what_generators_know_is_said_as_they_know_it() -> None:
    assert chosen(["fast", "slow", None]) == {"type": ["string", "null"], "enum": ["fast", "slow", None]}
    assert chosen([2, 1]) == {"type": "integer", "enum": [2, 1]}
    assert chosen([1, "a"]) == {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "integer", "enum": [1]}]}
    assert chosen(["a b", "a-b"])["anyOf"] == [{"type": "string", "const": "a b"}, {"type": "string", "const": "a-b"}]
    assert chosen(["да", "нет"])["anyOf"][0] == {"type": "string", "const": "да"}
    assert explicit({"type": "array"}) == {"type": "array", "items": {}}
    assert explicit({"type": ["integer", "null"]}) == {"type": ["integer", "null"]}
    ways = [{"type": "object", "default": {"a": 1}}, {"type": "null"}]
    assert nullable({"type": "object", "description": "It.", "default": {"a": 1}}) == {
        "description": "It.",
        "anyOf": ways,
    }
