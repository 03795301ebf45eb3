"""References within a parameter's JSON Schema, which begin at its root: here they begin at the OpenAPI document's."""

from __future__ import annotations

from typing import Any

_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Members whose own members have names that say nothing."""
_DATA = frozenset({"const", "default", "enum", "example", "examples"})
"""Members that hold values, and no schemas."""
_SHARED = ("$defs", "definitions")
AT = "#/components/schemas/"


def lifted(name: str, schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a schema with references, and each that it shares, by names that begin with `name`, for the components.

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
    return {made: _led(one, name, shared) for made, one in {name: own, **parts}.items()}


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


def _led(node: Any, name: str, shared: dict[str, str], *, named: bool = False) -> Any:
    if isinstance(node, list):
        return [_led(one, name, shared) for one in node]
    if not isinstance(node, dict):
        return node
    made = {}
    for key, value in node.items():
        if key == "$ref" and isinstance(value, str) and not named:
            made[key] = AT + _target(value, name, shared)
        elif key in _DATA and not named:
            made[key] = value
        else:
            made[key] = _led(value, name, shared, named=not named and key in _NAMED)
    return made


def _target(reference: str, name: str, shared: dict[str, str]) -> str:
    for path, made in shared.items():
        if reference == path or reference.startswith(f"{path}/"):
            return made + reference.removeprefix(path)
    return name + reference[1:]
