"""A parameter's JSON Schema as a part of the OpenAPI document, in the form that generators of clients understand."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Steps = tuple[str | int, ...]
    """The way from a schema's root to a place in it."""

AT = "#/components/schemas/"
NULL: dict[str, Any] = {"type": "null"}
NOTHING_ELSE: dict[str, Any] = {"anyOf": [NULL]}
"""The same, by itself: there are generators that know null only as one of several types."""
_SHARED = frozenset({"$defs", "definitions"})
"""Members that hold schemas for others to refer to."""
_NAMED = _SHARED | {"dependentSchemas", "patternProperties", "properties"}
"""Members whose own members have names that say nothing."""
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
"""Members that are lists of schemas."""
_SINGLE = frozenset({"contains", "else", "if", "items", "not", "propertyNames", "then"})
"""Members that are schemas; those that are often true or false, which generators understand, are not among them."""
_DATA = frozenset({"const", "default", "enum", "example", "examples"})
"""Members that hold values, and no schemas."""
_ABOUT = frozenset({"default", "deprecated", "description", "example", "examples", "readOnly", "title", "writeOnly"})
"""Members that any value fits."""
_CHOOSING = frozenset({"$ref", "allOf", "anyOf", "const", "else", "enum", "if", "not", "oneOf", "then"})
"""Members that may look at a value of any type."""
_PLACE = frozenset({"$anchor", "$comment", "$dynamicAnchor", "$dynamicRef", "$id", "$ref", "$schema", "$vocabulary"})
"""Members that say where a schema is, or where it leads, which is elsewhere in the document."""
_NUMBERS = frozenset({"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"})
_OF_TYPE = {
    "array": frozenset(
        {"contains", "items", "maxContains", "maxItems", "minContains", "minItems", "prefixItems", "unevaluatedItems"}
        | {"uniqueItems"}
    ),
    "integer": _NUMBERS,
    "number": _NUMBERS,
    "object": frozenset(
        {"additionalProperties", "dependentRequired", "dependentSchemas", "maxProperties", "minProperties"}
        | {"patternProperties", "properties", "propertyNames", "required", "unevaluatedProperties"}
    ),
    "string": frozenset({"format", "maxLength", "minLength", "pattern"}),
}
"""Members that look at values of one type alone."""
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def placed(schema: dict[str, Any], called: Callable[[str], str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a schema for a place in the document, and all that its references lead to, for the components.

    References begin at the schema's root, or at what has a name in it; there, at the document's. `called` makes the
    name of a component from a word for it, which is empty for the whole schema.

    Raises:
        ValueError: a reference leads nowhere, or in a circle.
    """
    return _Placing(schema, called).placed()


def explicit(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that accepts the same, and says each thing as generators want to hear it.

    They want to know what the items of a list are, and of what may have several types each by itself, but for null.
    """
    kinds = schema.get("type")
    if isinstance(schema.get("enum"), list) and not schema.keys() - _ABOUT - {"enum", "type"}:
        return {**_only(schema, _ABOUT), **chosen([one for one in schema["enum"] if _may_be(one, kinds)])}
    if "const" in schema and not schema.keys() - _ABOUT - {"const", "type"}:
        return {**_only(schema, _ABOUT), **_exactly(schema["const"])}
    if isinstance(kinds, list) and {"array", "object"} & set(kinds) and not _CHOOSING & schema.keys():
        by_type = frozenset[str]().union(*_OF_TYPE.values()) | {"type"}
        each = [{"type": one, **_only(schema, _OF_TYPE.get(one, frozenset()))} for one in kinds]
        ways = [one if one == NULL else explicit(one) for one in each]
        return _either(_without(schema, by_type), ways)
    if kinds == "null":
        return {**_without(schema, {"type"}), **NOTHING_ELSE}
    is_list = kinds == "array" or (isinstance(kinds, list) and "array" in kinds)
    return {**schema, "items": {}} if is_list and not {"items", "prefixItems"} & schema.keys() else schema


def nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that accepts null, too."""
    kind, choosing = schema.get("type"), _CHOOSING & schema.keys()
    about = _only(schema, _ABOUT)
    if len(about) == len(schema):
        return schema
    if isinstance(kind, str) and kind not in {"array", "object"} and choosing <= {"enum"}:
        more = {"enum": [*schema["enum"], None]} if choosing else {}
        return {**schema, "type": [kind, "null"], **more}
    if schema.keys() - about.keys() == {"anyOf"}:
        return schema if NULL in schema["anyOf"] else {**schema, "anyOf": [*schema["anyOf"], NULL]}
    return _either(about, [_without(schema, about), NULL])


def chosen(values: list[Any]) -> dict[str, Any]:
    """Return the schema of values to choose from.

    Generators know lists of texts, of which they make names, and of integers, and mix none: the others are constants.
    """
    texts = [one for one in values if isinstance(one, str)]
    kinds = {str, int} if len(set(map(folded, texts)) - {""}) == len(texts) else {int}
    ways: list[dict[str, Any]] = [
        {"type": _TYPES[kind], "enum": some}
        for kind in (str, int)
        if kind in kinds and (some := [one for one in values if type(one) is kind])
    ]
    ways += [_exactly(one) for one in values if one is not None and type(one) not in kinds]
    if not ways:
        return NOTHING_ELSE if None in values else {"not": {}}
    one = ways[0] if len(ways) == 1 else {"anyOf": ways}
    return nullable(one) if None in values else one


def folded(name: str) -> str:
    """Return what is left of a name when case and all that is no letter or digit count for nothing.

    Generators write names in the ways of their languages: where that is the same, they write the same.
    """
    return re.sub(r"[^a-z0-9]", "", name.lower())


def refers(value: Any) -> bool:
    """Tell whether a value holds what tools take for a reference, wherever it stands."""
    if isinstance(value, dict):
        return isinstance(value.get("$ref"), str) or any(map(refers, value.values()))
    return isinstance(value, list) and any(map(refers, value))


# --- private


class _Placing:
    """One schema on its way into the document."""

    def __init__(self, root: dict[str, Any], called: Callable[[str], str]) -> None:
        self._root = root
        self._called = called
        self._schemas = dict(_walk(root))
        self._named = {
            mark + one[keyword]: at
            for at, one in reversed(self._schemas.items())
            for keyword, mark in (("$id", ""), ("$anchor", "#"), ("$dynamicAnchor", "#"))
            if isinstance(one.get(keyword), str)
        }
        self._names: dict[Steps, str] = {}
        """What is referred to, and what it is called in the document."""

    def placed(self) -> tuple[dict[str, Any], dict[str, Any]]:
        for at, one in self._schemas.items():
            target = self._target(at, one)
            if target is not None and target not in self._names:
                self._names[target] = self._called(str(target[-1]) if target else "")
        components = {name: self._made(self._at(target), target, target) for target, name in self._names.items()}
        return self._made(self._root, (), None), components

    def _target(self, at: Steps, schema: dict[str, Any]) -> Steps | None:
        """Return where a schema leads, by way of those that do nothing but lead on."""
        seen: set[Steps] = set()
        target: Steps | None = None
        while isinstance(schema, dict) and (reference := schema.get("$ref", schema.get("$dynamicRef"))) is not None:
            target = self._resolved(str(reference), at)
            if target in seen:
                raise ValueError("a reference leads in a circle")
            seen.add(target)
            at, schema = target, self._at(target)
            if not isinstance(schema, dict) or schema.keys() - _PLACE - _SHARED:
                break
        return target

    def _resolved(self, reference: str, at: Steps) -> Steps:
        if reference in self._named:
            return self._named[reference]
        place, _, pointer = reference.partition("#")
        base: Steps | None = self._named.get(place) if place else self._base(at)
        if base is None or (pointer and not pointer.startswith("/")):
            raise ValueError(f"a reference leads nowhere: {reference}")
        for step in unquote(pointer).split("/")[1:]:
            key: str | int = step.replace("~1", "/").replace("~0", "~")
            if isinstance(self._at(base), list) and str(key).isdecimal():
                key = int(key)
            base = (*base, key)
        self._at(base)
        return base

    def _base(self, at: Steps) -> Steps:
        """Return where the references of a place begin: at the nearest schema around it that has an id, or the root."""
        for length in range(len(at), 0, -1):
            if isinstance(self._schemas.get(at[:length], {}).get("$id"), str):
                return at[:length]
        return ()

    def _at(self, at: Steps) -> Any:
        found: Any = self._root
        for step in at:
            try:
                found = found[step]
            except (LookupError, TypeError) as problem:
                raise ValueError(f"a reference leads nowhere: {step}") from problem
        return found

    def _made(self, schema: Any, at: Steps, start: Steps | None) -> dict[str, Any]:
        """Return what stands for a schema in the document; `start` is where the component begins that it is in."""
        if at in self._names and at != start:
            return {"$ref": AT + self._names[at]}
        if not isinstance(schema, dict):
            return {} if schema is not False else {"not": {}}
        made = {
            key: self._below(key, value, (*at, key), start)
            for key, value in schema.items()
            if key not in _PLACE and key not in _SHARED
        }
        target = self._target(at, schema)
        return explicit({"$ref": AT + self._names[target], **made} if target is not None else made)

    def _below(self, key: str, value: Any, at: Steps, start: Steps | None) -> Any:
        if key in _NAMED and isinstance(value, dict):
            return {name: self._made(one, (*at, name), start) for name, one in value.items()}
        if key in _LISTS and isinstance(value, list):
            return [one if one == NULL else self._made(one, (*at, number), start) for number, one in enumerate(value)]
        if key in _SINGLE or (key not in _DATA and isinstance(value, dict)):
            return self._made(value, at, start)
        return value


def _either(about: dict[str, Any], ways: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of what fits one of several; generators want a default that is an object to be of that one."""
    default = about.get("default")
    if isinstance(default, dict):
        ways = [{**one, "default": default} if one.get("type") == "object" else one for one in ways]
        about = _without(about, {"default"})
    return {**about, "anyOf": ways}


def _may_be(value: Any, kinds: Any) -> bool:
    """Tell whether a value is of one of the types that a schema names, where it does."""
    own = _TYPES.get(type(value), "null")
    named = kinds if isinstance(kinds, list) else [kinds]
    return kinds is None or own in named or (own == "integer" and "number" in named)


def _exactly(value: Any) -> dict[str, Any]:
    """Return the schema of one value: generators know constants that are no objects and no lists."""
    if isinstance(value, dict):
        below = {name: _exactly(one) for name, one in value.items()}
        return {"type": "object", "properties": below, "required": list(value), "additionalProperties": False}
    if isinstance(value, list):
        parts = {"prefixItems": list(map(_exactly, value))} if value else {}
        return {"type": "array", **parts, "items": {}, "minItems": len(value), "maxItems": len(value)}
    return {"type": _TYPES[type(value)], "const": value} if value is not None else NOTHING_ELSE


def _walk(node: Any, at: Steps = (), *, named: bool = False) -> Iterator[tuple[Steps, dict[str, Any]]]:
    """Yield each schema in a schema, and where it is; `named`: this is a mapping of schemas."""
    if isinstance(node, list):
        for number, one in enumerate(node):
            yield from _walk(one, (*at, number))
    elif isinstance(node, dict):
        if not named:
            yield at, node
        for key, value in node.items():
            if named or key not in _DATA:
                yield from _walk(value, (*at, key), named=not named and key in _NAMED)


def _only(schema: dict[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key in keys}


def _without(schema: dict[str, Any], keys: Any) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in keys}
