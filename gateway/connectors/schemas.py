"""JSON Schemas of parameters: compiled once, and measured, so that no value holds the event loop.

The validator is native, and has the interpreter for itself while it works: a thread would not help. So how much work a
schema makes of a value is bounded beforehand, and patterns are matched in linear time.
"""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec

from gateway.units import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGEST = Size(4 << 20)
"""Bytes of a list or an object, and of all texts that patterns are matched against, once for each pattern."""
NODES = 200_000
"""Values, at any depth, in one value."""
STEPS = 500_000
"""Comparisons that one value may take; one takes some 50 ns."""
WIDEST = 10_000
"""Comparisons that a schema may make of one value in a value."""
EXPANDED = 50_000
"""Schemas within a schema, once what `$ref` refers to is put in."""
DEEPEST = 60
"""Schemas of the same value around each other, and how deep a schema is nested."""
NESTED = 100
"""Depth of a value whose schema refers to itself."""
PLACED = 10_000
"""Comparisons up to which it is said where `anyOf` or `oneOf` do not fit: the library collects all of it for that."""
PLACED_SIZE = 1 << 18
PATTERN = 1 << 20
"""Bytes of a compiled pattern."""
HASHED = 10
"""Comparisons that `uniqueItems` is worth."""

_HERE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas")
_BELOW = (
    "items", "additionalProperties", "patternProperties", "contains", "propertyNames", "unevaluatedItems",
    "unevaluatedProperties",
)  # fmt: skip


class Schema:
    """A schema, ready to check values."""

    def __init__(self, schema: dict[str, Any]) -> None:
        """Raise ValueError when it is none, or its work cannot be bounded."""
        # Imported here: a gateway without schemas pays neither the time nor the memory.
        import jsonschema_rs  # noqa: PLC0415

        if _depth(schema) > DEEPEST:
            raise ValueError("schema is nested too deeply")
        whole = _Measure(schema, _comparisons)
        self._schema = schema
        self._width = max(whole.loads) + HASHED * whole.hashing
        if self._width > WIDEST:
            raise ValueError(
                f"schema takes more than {WIDEST:,} comparisons for one value: it cannot be checked in time"
            )
        self._patterns = max(_Measure(schema, _patterns).loads)
        self._nested = NESTED if whole.returns else None
        if whole.returns > 1:
            self._nested = min(NESTED, int(math.log(STEPS / self._width, whole.returns)))
        self._collects = whole.collects
        self._levels = whole.returns and whole.hashing
        options = jsonschema_rs.RegexOptions(size_limit=PATTERN, dfa_size_limit=PATTERN)
        try:
            self._validator = jsonschema_rs.Draft202012Validator(schema, pattern_options=options, offline=True)
        except jsonschema_rs.ValidationError as problem:
            hint = ""
            if problem.message.endswith('is not a "regex"'):
                hint = " that can be matched in linear time (there is no look-around and no back-reference)"
            raise ValueError(f"schema is not a JSON Schema: {problem.message}{hint}") from None
        self._mismatch = jsonschema_rs.ValidationError

    def fault(self, name: str, raw: msgspec.Raw) -> str | None:
        """Return what does not fit, None when all does."""
        view = memoryview(raw)
        size, is_text = len(view), view[0] == ord('"')
        if (not is_text and size > LARGEST) or size * self._patterns > LARGEST:
            return f"{name} is larger than its schema can be checked for"
        steps = self._width * (1 if is_text else 1 + sum(map(bytes(view).count, (b",", b"[", b"{"))))
        if steps > min(STEPS, NODES * self._width):
            return f"{name} has more values in it than its schema can be checked for"
        value = msgspec.json.decode(raw)
        fault = None if self._nested is None else self._too_deep(name, value, steps)
        if fault is not None or self._validator.is_valid(value):
            return fault
        if size > PLACED_SIZE or (self._collects and steps > PLACED):
            return f"{name} does not satisfy its schema, and is too large to say where"
        return self._told(name, value)

    def _too_deep(self, name: str, value: Any, steps: int) -> str | None:
        deepest = _depth(value)
        if deepest > (self._nested or 0):
            return f"{name} is nested too deeply"
        if self._levels and steps * deepest > STEPS:
            return f"{name} has more values in it than its schema can be checked for"
        return None

    def _told(self, name: str, value: Any) -> str:
        try:
            self._validator.validate(value)
        except self._mismatch as problem:
            where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in problem.instance_path)
            # The library's own sentence quotes the value, which may be a secret.
            return f"{name}{where} does not satisfy {self._said(problem.schema_path)}"
        return f"{name} does not satisfy its schema"

    def _said(self, path: list[str | int]) -> str:
        """Return the keyword at a place in the schema, or in one that has a name of its own, and its value."""
        for start in (self._schema, *(one for _, one in _named(self._schema))):
            found: Any = start
            try:
                for step in path:
                    found = found[step]
            except (LookupError, TypeError):
                continue
            return f"{path[-1]}: {bounded(found)}"
        return str(path[-1])


def bounded(value: object) -> str:
    """Return a value as JSON for a message."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 200 else text[:200] + "..."


# --- private


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += one.values()
            elif isinstance(one, list):
                below += one
        level = below
    return deepest


def _comparisons(schema: dict[str, Any]) -> int:
    counted = (len(schema[name]) for name in ("enum", "required", "patternProperties") if _sized(schema.get(name)))
    return 1 + len(schema) + sum(counted)


def _patterns(schema: dict[str, Any]) -> int:
    many = schema.get("patternProperties")
    return ("pattern" in schema) + (len(many) if isinstance(many, dict) else 0)


def _sized(value: object) -> bool:
    return isinstance(value, list | dict)


class _Measure:
    """How often one value in a value is compared at most (`loads`, at each depth), and how a schema meets itself.

    `returns`: to how many schemas that are around it one value goes back; more than one doubles the work at each depth.
    """

    def __init__(self, schema: dict[str, Any], own: Callable[[dict[str, Any]], int]) -> None:
        """Raise ValueError when it is without a bottom, or refers to what is not there."""
        self._root = schema
        self._own = own
        self._known: dict[int, list[int]] = {}
        self._around: dict[int, int] = {}
        self._names = dict(_named(schema))
        self._seen = 0
        self.collects = False
        self.hashing = 0
        self.returns = 0
        self.loads, _ = self._of(schema, 0, 0)

    def _of(self, schema: Any, depth: int, here: int) -> tuple[list[int], int]:
        """Measure a schema, at a depth of the value, with so many others around it that look at the same value."""
        if not isinstance(schema, dict):
            return [1], 0
        if id(schema) in self._known:
            return self._known[id(schema)], 0
        if id(schema) in self._around:
            if self._around[id(schema)] == depth:
                raise ValueError("schema refers to itself without a bottom: every value is nested too deeply for it")
            return [1], 1
        self._seen += 1
        if here > DEEPEST or self._seen > EXPANDED:
            raise ValueError("schema refers to itself, or to its parts, too often: it cannot be checked in time")
        root = self._root
        self._root = schema if isinstance(schema.get("$id"), str) else root  # pointers begin there
        self._around[id(schema)] = depth
        loads, returns = [self._own(schema)], 0
        self.collects |= "anyOf" in schema or "oneOf" in schema
        self.hashing += schema.get("uniqueItems") is True
        for one in self._beside(schema):
            more, back = self._of(one, depth, here + 1)
            _add(loads, more)
            returns += back
        if "unevaluatedItems" in schema or "unevaluatedProperties" in schema:
            loads[0] *= 2
        for group in _below(schema):
            met = [self._of(one, depth + 1, 0) for one in group]
            _add(loads, [0, *map(max, zip_longest(*(more for more, _ in met), fillvalue=0))])
            returns += max((back for _, back in met), default=0)
        del self._around[id(schema)]
        self._root = root
        self.returns = max(self.returns, returns)
        if not returns:
            self._known[id(schema)] = loads
        return loads, returns

    def _beside(self, schema: dict[str, Any]) -> Iterator[Any]:
        """Yield the schemas that look at the same value."""
        for name in _HERE:
            one = schema.get(name)
            if isinstance(one, list):
                yield from one
            elif name == "dependentSchemas" and isinstance(one, dict):
                yield from one.values()
            elif one is not None:
                yield one
        for name in ("$ref", "$dynamicRef"):
            if isinstance(schema.get(name), str):
                yield self._referred(schema[name])

    def _referred(self, reference: str) -> Any:
        found: Any = self._names.get(reference)
        place, _, pointer = reference.partition("#")
        if found is None and (not pointer or pointer.startswith("/")):
            found = self._names.get(place) if place else self._root
            for step in unquote(pointer).split("/")[1:]:
                key = step.replace("~1", "/").replace("~0", "~")
                if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                    found = found[int(key)]
                else:
                    found = found.get(key) if isinstance(found, dict) else None
        if found is None:
            raise ValueError(f"schema cannot be checked: its schema refers to {reference}, which is not there")
        return found


def _named(schema: Any) -> Iterator[tuple[str, Any]]:
    """Yield what has a name of its own in a schema."""
    todo = [schema]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            for keyword, mark in (("$id", ""), ("$anchor", "#"), ("$dynamicAnchor", "#")):
                if isinstance(one.get(keyword), str):
                    yield mark + one[keyword], one
            todo += one.values()
        elif isinstance(one, list):
            todo += one


def _below(schema: dict[str, Any]) -> Iterator[list[Any]]:
    """Yield the schemas of the values below, in groups of which one value meets one."""
    for name in ("properties", "prefixItems"):
        one = schema.get(name)
        if _sized(one):
            yield list(one.values()) if isinstance(one, dict) else list(one or ())
    for name in _BELOW:
        one = schema.get(name)
        if name == "patternProperties" and isinstance(one, dict):
            yield from ([pattern] for pattern in one.values())
        elif one is not None:
            yield [one]


def _add(loads: list[int], more: list[int]) -> None:
    loads += [0] * (len(more) - len(loads))
    for depth, load in enumerate(more):
        loads[depth] += load
