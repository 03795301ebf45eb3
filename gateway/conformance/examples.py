"""Examples of calls: those that an author wrote down beside a connector, and those that can be made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import ConfigError, InvalidParameters
from gateway.yaml_document import read

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.connectors.parameters import Parameter, Signature

_BY_TYPE: dict[str, Any] = {"str": "example", "int": 1, "bool": True, "any": "example"}
_BY_SCHEMA_TYPE: dict[str, Any] = {"string": "example", "integer": 1, "number": 1, "boolean": True, "null": None}


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
    params = {one.id: _value(one) for one in signature.parameters if one.required}
    try:
        signature.check({name: msgspec.Raw(msgspec.json.encode(value)) for name, value in params.items()})
    except InvalidParameters:
        return None
    return params


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
        return _of_schema(parameter.schema)
    return _BY_TYPE[parameter.type]


def _of_schema(schema: dict[str, Any]) -> Any:
    """Return a value for the usual schemas; whether it fits is for the caller to see."""
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("examples", "enum"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0]
    kind = schema.get("type")
    if isinstance(kind, list) and kind:
        kind = kind[0]
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _of_schema(properties.get(name, {})) for name in schema.get("required", [])}
    if kind == "array":
        return [_of_schema(schema.get("items", {}))] * max(1, schema.get("minItems", 1))
    if kind in {"integer", "number"}:
        return schema.get("minimum", schema.get("maximum", 1))
    return _BY_SCHEMA_TYPE.get(str(kind), "example")
