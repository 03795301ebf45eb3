"""Examples of calls: those that an author wrote down beside a connector, and those that can be made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import ConfigError, InvalidParameters
from gateway.yaml_document import read

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.connectors.parameters import Parameter, Signature

_SCHEMA_TYPES = {"str": "string", "int": "integer", "bool": "boolean"}
_BY_TYPE: dict[str, Any] = {"str": "example", "int": 1, "bool": True, "any": "example"}
_BY_SCHEMA_TYPE: dict[str, Any] = {"boolean": True, "null": None}
_BY_FORMAT = {
    "date": "2026-11-24",
    "date-time": "2026-11-24T12:00:00Z",
    "duration": "PT1M",
    "email": "ada@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "time": "12:00:00Z",
    "uri": "https://example.com/",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
}
_COMBINED = frozenset({"$ref", "allOf", "anyOf", "oneOf"})
_DEEPEST = 20
_MOST = 1000  # values that are made up for one parameter
_LONGEST = 1 << 14  # characters of a text that is made up


class Expect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an example's answer must be: an error of this code, or else a result that has (at least) this body."""

    error_code: str | None = None
    body: Any = msgspec.UNSET


class Example(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One call."""

    command: str
    params: dict[str, Any] = {}
    task_data: dict[str, Any] = {}
    expect: Expect | None = None
    skip: str | None = None
    """Why the command must not be run by a test at all."""


def find_examples(name: str, folder: Path) -> Path | None:
    """Return the file of a connector's examples, None when it has none.

    It is `tests.yaml` in the connector's own folder; a connector without one has `NAME.tests.yaml` where it is defined.
    """
    own = ("tests.yaml", "test.yaml") if (folder / "connector.yaml").exists() else ()
    names = (*own, f"{name}.tests.yaml", f"{name}.test.yaml")
    return next((folder / one for one in names if (folder / one).exists()), None)


def read_examples(file: Path) -> tuple[Example, ...]:
    """Read a file of examples: a YAML list of `Example`.

    Raises:
        ConfigError: it cannot be read, or is no such list.
    """
    examples = read(file)
    try:
        return tuple(examples.decode(list[Example], Example))
    except ConfigError as problem:
        raise ConfigError(
            f"{problem}; expected a list of {{command, params, expect: {{error_code, body}}}}"
        ) from problem


def made_up(signature: Signature) -> dict[str, Any] | None:
    """Return parameters that a command accepts, the optional ones left out; None when none were found."""
    try:
        params = {one.id: _value(one) for one in signature.parameters if one.required}
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ):  # a schema that says something unusual
        return None
    return params if is_accepted(signature, params) else None


def is_accepted(signature: Signature, params: dict[str, Any]) -> bool:
    """Tell whether a command accepts parameters."""
    try:
        signature.check(as_sent(params))
    except InvalidParameters:
        return False
    return True


def as_sent(params: dict[str, Any]) -> dict[str, msgspec.Raw]:
    """Return parameters as a caller sends them."""
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in params.items()}


def is_subset(expected: Any, actual: Any) -> bool:
    """Tell whether everything that is expected is there; mappings may have more, at any depth."""
    if isinstance(expected, dict):
        return isinstance(actual, dict) and all(
            key in actual and is_subset(value, actual[key]) for key, value in expected.items()
        )
    if isinstance(expected, list):
        return (
            isinstance(actual, list)
            and len(expected) == len(actual)
            and all(is_subset(one, other) for one, other in zip(expected, actual, strict=True))
        )
    return bool(expected == actual) and isinstance(expected, bool) == isinstance(actual, bool)


def _value(parameter: Parameter) -> Any:
    if isinstance(parameter.enum, list) and parameter.enum:
        return parameter.enum[0]
    if isinstance(parameter.schema, dict):
        return _Maker(parameter.schema).value({"type": _SCHEMA_TYPES.get(parameter.type), **parameter.schema})
    return _BY_TYPE[parameter.type]


class _Maker:
    """Makes values for the usual schemas; whether they fit is for the caller to see."""

    def __init__(self, root: dict[str, Any]) -> None:
        """`root` is where `$ref` leads from."""
        self._root = root
        self._left = _MOST

    def value(self, schema: Any, depth: int = 0) -> Any:
        """Return a value for a schema that is this far below the root."""
        self._left -= 1
        if not isinstance(schema, dict) or depth > _DEEPEST or self._left < 0:
            return "example"
        for key in ("const", "default"):
            if key in schema:
                return schema[key]
        for key in ("examples", "enum"):
            if isinstance(schema.get(key), list) and schema[key]:
                return schema[key][0]
        if parts := _parts(schema, self._root):
            rest = {key: one for key, one in schema.items() if key not in _COMBINED}
            return self.value({**rest, **parts}, depth + 1)
        return self._of_type(schema, depth)

    def _of_type(self, schema: dict[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if isinstance(kind, list) and kind:
            kind = kind[0]
        if kind == "object" or (kind is None and "properties" in schema):
            properties = schema.get("properties", {})
            return {name: self.value(properties.get(name, {}), depth + 1) for name in schema.get("required", [])}
        if kind == "array":
            most = max(1, min(schema.get("minItems", 1), self._left))
            return [self.value(schema.get("items", {}), depth + 1) for _ in range(most)]
        if kind in {"integer", "number"}:
            return _number(schema)
        return _text(schema) if kind in {"string", None} else _BY_SCHEMA_TYPE.get(str(kind), "example")


def _parts(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Return what a schema says by other ones: those of allOf together, of anyOf and oneOf the first."""
    found: list[Any] = [*schema.get("allOf", ()), *schema.get("anyOf", ())[:1], *schema.get("oneOf", ())[:1]]
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        target: Any = root
        for step in filter(None, reference[1:].split("/")):
            target = target.get(step.replace("~1", "/").replace("~0", "~"), {}) if isinstance(target, dict) else {}
        found.append(target)
    merged: dict[str, Any] = {}
    for one in found:
        for key, value in one.items() if isinstance(one, dict) else ():
            below = merged.get(key)
            if isinstance(below, dict) and isinstance(value, dict):
                merged[key] = {**below, **value}
            else:
                merged[key] = [*below, *value] if key == "required" and isinstance(below, list) else value
    return merged


def _number(schema: dict[str, Any]) -> Any:
    least = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1 if "exclusiveMinimum" in schema else None)
    if least is None:
        least = schema.get("maximum", schema["exclusiveMaximum"] - 1 if "exclusiveMaximum" in schema else 1)
    step = schema.get("multipleOf")
    return -(-least // step) * step if step else least


def _text(schema: dict[str, Any]) -> str:
    text = _BY_FORMAT.get(str(schema.get("format")), "example")
    least, most = min(schema.get("minLength", 0), _LONGEST), schema.get("maxLength", _LONGEST)
    return text.ljust(least, "e")[:most]
