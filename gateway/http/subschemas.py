"""A parameter's JSON Schema as a part of the OpenAPI document, with all schemas within it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Members whose own members have names that say nothing."""
_DATA = frozenset({"const", "default", "enum", "example", "examples"})
"""Members that hold values, and no schemas."""
_SHARED = ("$defs", "definitions")
AT = "#/components/schemas/"


def lifted(name: str, schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a schema with references, and each that it shares, by names that begin with `name`, for the components.

    References begin at its root; there, they begin at the document's.

    It is nothing where there are no references, or some that are no paths from its root: a schema of its own, then.
    """
    found = list(_references(schema))
    if not found or "$id" in schema or not all(one == "#" or one.startswith("#/") for one in found):
        return {}
    shared = {
        f"#/{key}/{part}": f"{name}__{part}"
        for key in _SHARED
        for part, below in (schema.get(key) or {}).items()
        if isinstance(below, dict) and part.isidentifier()
    }
    parts = {made: schema[key][part] for path, made in shared.items() for _, key, part in (path.split("/"),)}
    own = {**schema, **{key: {} for key in _SHARED if key in schema}} if len(parts) == _count(schema) else schema
    own = {key: value for key, value in own.items() if key not in _SHARED or value}
    lead = functools.partial(_led, name=name, shared=shared)
    return {made: _each(one, lead) for made, one in {name: own, **parts}.items()}


def explicit(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that says of each list that its items can be anything, which generators want to hear."""
    made: dict[str, Any] = _each(schema, _with_items)
    return made


# --- private


def _count(schema: dict[str, Any]) -> int:
    return sum(len(schema.get(key) or {}) for key in _SHARED)


def _references(node: Any, *, named: bool = False) -> list[str]:
    if isinstance(node, list):
        return [found for one in node for found in _references(one)]
    if not isinstance(node, dict):
        return []
    reference = node.get("$ref")
    found = [reference] if isinstance(reference, str) and not named else []
    for key, value in node.items():
        if named or key not in _DATA:
            found += _references(value, named=not named and key in _NAMED)
    return found


def _each(node: Any, change: Callable[[dict[str, Any]], dict[str, Any]], *, named: bool = False) -> Any:
    """Return a copy in which each schema was changed; `named`: it is a mapping of schemas."""
    if isinstance(node, list):
        return [_each(one, change) for one in node]
    if not isinstance(node, dict):
        return node
    made = {
        key: value if key in _DATA and not named else _each(value, change, named=not named and key in _NAMED)
        for key, value in node.items()
    }
    return made if named else change(made)


def _with_items(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type")
    is_list = kind == "array" or (isinstance(kind, list) and "array" in kind)
    return {**schema, "items": {}} if is_list and not {"items", "prefixItems"} & schema.keys() else schema


def _led(schema: dict[str, Any], name: str, shared: dict[str, str]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return {**schema, "$ref": AT + _target(reference, name, shared)} if isinstance(reference, str) else schema


def _target(reference: str, name: str, shared: dict[str, str]) -> str:
    for path, made in shared.items():
        if reference == path or reference.startswith(f"{path}/"):
            return made + reference.removeprefix(path)
    return name + reference[1:]
