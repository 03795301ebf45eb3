"""What an annotation means: one of the four parameter types, whether None will do, a JSON Schema, an Enum's member.

Annotations in quotes (all of them under ``from __future__ import annotations``) are read here and not by
`typing.get_type_hints`: on 3.8 and 3.9 that fails on ``str | None`` and ``list[str]``, and everywhere one name that
cannot be resolved (imported under ``TYPE_CHECKING``, say) makes it give up all the others.
"""

from __future__ import annotations

import ast
import collections.abc
import contextlib
import enum
import types
import typing
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

Namespace = Dict[str, Any]
Schema = Dict[str, Any]

NONE = type(None)
TYPE_NAMES = {str: "str", int: "int", bool: "bool"}
SCHEMA_TYPES = {str: "string", int: "integer", bool: "boolean", float: "number", NONE: "null"}
ARRAYS = (
    list,
    tuple,
    set,
    frozenset,
    collections.abc.Sequence,
    collections.abc.MutableSequence,
    collections.abc.Iterable,
    collections.abc.Collection,
    collections.abc.Set,
    collections.abc.MutableSet,
)
UNIONS = (typing.Union, getattr(types, "UnionType", typing.Union))


class Shape(NamedTuple):
    """What the gateway is told of an annotation. No schema: `type` says it all, or nothing is known."""

    type: str
    nullable: bool
    schema: Optional[Schema]


def shape(annotation: object, namespace: Namespace) -> Shape:
    """Describe an annotation of code whose globals are `namespace`; what cannot be understood is ``any``."""
    members = _members(annotation, namespace)
    kinds = [member for member in members if member is not NONE]
    type_name = TYPE_NAMES.get(kinds[0], "any") if len(kinds) == 1 and _is_class(kinds[0]) else "any"
    nullable = NONE in members or any(None in _literals(member) for member in kinds)
    schema = _union_schema([_schema(member, namespace) for member in members])
    if not schema or (type_name != "any" and not nullable):
        return Shape(type_name, nullable, None)
    return Shape(type_name, nullable, schema)


def with_null(found: Shape) -> Shape:
    """Allow None as well: ``x: str = None`` is an Optional in all but name."""
    if found.nullable:
        return found
    by_type = {name: {"type": SCHEMA_TYPES[kind]} for kind, name in TYPE_NAMES.items()}
    known = found.schema or by_type.get(found.type, {})
    return Shape(found.type, nullable=True, schema=_union_schema([known, {"type": "null"}]) or None)


def revive(annotation: object, value: Any, namespace: Namespace) -> Any:
    """Give the Enum's member for its value, in lists too; any other value as it is. No such member: ValueError."""
    members = _members(annotation, namespace)
    if value is None and NONE in members:
        return value
    enums = [member for member in members if _is_enum(member)]
    for member in enums:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return member(value)
    if isinstance(value, list):
        item = next((typing.get_args(member)[:1] for member in members if typing.get_origin(member) is list), ())
        return [revive(item[0], each, namespace) for each in value] if item else value
    if enums and all(_is_enum(member) or member is NONE for member in members):
        choices = ", ".join(repr(member.value) for choice in enums for member in choice)
        message = f"must be one of {choices}"
        raise ValueError(message)
    return value


def _members(annotation: object, namespace: Namespace) -> List[Any]:
    """Flatten a union; anything else is a union of one."""
    found = _unwrapped(_resolved(annotation, namespace))
    if found is None:
        return [NONE]
    if typing.get_origin(found) in UNIONS:
        return [member for part in typing.get_args(found) for member in _members(part, namespace)]
    if isinstance(found, (str, typing.ForwardRef)):  # an alias of a quoted one
        return _members(found, namespace)
    return [found]


def _unwrapped(found: Any) -> Any:
    """See through Annotated, NewType and ``type X = ...``."""
    for attribute in ("__supertype__", "__value__"):
        if not _is_class(found) and hasattr(found, attribute):
            return _unwrapped(getattr(found, attribute))
    if hasattr(found, "__metadata__") and hasattr(found, "__origin__"):
        return _unwrapped(found.__origin__)
    return found


def _union_schema(schemas: List[Schema]) -> Schema:
    """Allow what any of them allows; an empty one allows everything."""
    if not all(schemas):
        return {}
    if len(schemas) == 1:
        return schemas[0]
    types_only = [schema["type"] for schema in schemas if list(schema) == ["type"]]
    if len(types_only) == len(schemas):
        return {"type": list(dict.fromkeys(types_only))}
    choices = [schema["enum"] for schema in schemas if "enum" in schema]
    nulls = [None] if {"type": "null"} in schemas else []
    if len(choices) + len(nulls) == len(schemas):
        return {"enum": [value for values in choices for value in values] + nulls}
    return {"anyOf": schemas}


def _schema(member: Any, namespace: Namespace) -> Schema:
    choices = [choice.value for choice in member] if _is_enum(member) else _literals(member)
    if choices:
        return _enum_schema(choices)
    kind = typing.get_origin(member) or member
    if not _is_class(kind):
        return {}
    if kind in SCHEMA_TYPES:
        return {"type": SCHEMA_TYPES[kind]}
    arguments = typing.get_args(member)
    if issubclass(kind, collections.abc.Mapping):
        return _with_part("object", "additionalProperties", arguments[1:2], namespace)
    if kind in ARRAYS or issubclass(kind, (list, tuple, set, frozenset)):
        fixed = issubclass(kind, tuple) and arguments[1:] != (Ellipsis,)
        return _with_part("array", "items", () if fixed else arguments[:1], namespace)
    return {}


def _with_part(type_name: str, keyword: str, part: Tuple[Any, ...], namespace: Namespace) -> Schema:
    schema = _union_schema([_schema(member, namespace) for member in _members(part[0], namespace)]) if part else {}
    return {"type": type_name, keyword: schema} if schema else {"type": type_name}


def _enum_schema(values: List[Any]) -> Schema:
    plain = all(value is None or isinstance(value, (str, int, float, bool)) for value in values)
    return {"enum": values} if plain and values else {}


def _literals(member: object) -> List[Any]:
    return list(typing.get_args(member)) if typing.get_origin(member) is typing.Literal else []


def _is_enum(member: Any) -> bool:
    return _is_class(member) and issubclass(member, enum.Enum)


def _is_class(member: Any) -> bool:
    return issubclass(type(member), type)  # isinstance(list[str], type) is True on 3.9 and 3.10


def _resolved(annotation: object, namespace: Namespace) -> Any:
    text = annotation.__forward_arg__ if isinstance(annotation, typing.ForwardRef) else annotation
    if not isinstance(text, str):
        return annotation
    try:
        return _read(ast.parse(text.strip(), mode="eval").body, namespace)
    except (SyntaxError, RecursionError):
        return Any


def _read(node: ast.expr, namespace: Namespace) -> Any:
    """Evaluate an annotation's syntax, where ``|`` and ``list[...]`` mean on 3.8 what they mean on 3.13."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _resolved(node.value, namespace)
    try:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return typing.Union[_read(node.left, namespace), _read(node.right, namespace)]
        if isinstance(node, ast.Subscript):
            return _subscript(node, namespace)
        return _evaluate(node, namespace)
    except Exception:  # noqa: BLE001  (a name that exists for the type checker only, or no type at all)
        return Any


def _subscript(node: ast.Subscript, namespace: Namespace) -> Any:
    base = _read(node.value, namespace)
    inside: Any = node.slice.value if type(node.slice).__name__ == "Index" else node.slice  # type: ignore[attr-defined]  # ast.Index: 3.8
    parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
    if base is typing.Literal:
        return typing.Literal[tuple(_evaluate(part, namespace) for part in parts)]
    if getattr(base, "__name__", getattr(base, "_name", None)) == "Annotated":
        return _read(parts[0], namespace)
    arguments = tuple(_read(part, namespace) for part in parts)
    return _generic(base)[arguments if len(arguments) != 1 else arguments[0]]


def _generic(base: Any) -> Any:
    """Give typing's own form of a class that cannot be subscripted before 3.9."""
    if getattr(base, "__module__", "") == "collections.abc":
        return getattr(typing, base.__name__, base)
    return {
        list: typing.List,
        dict: typing.Dict,
        tuple: typing.Tuple,
        set: typing.Set,
        frozenset: typing.FrozenSet,
        type: typing.Type,
    }.get(base, base)


def _evaluate(node: ast.expr, namespace: Namespace) -> Any:
    code = compile(ast.fix_missing_locations(ast.Expression(node)), "<annotation>", "eval")
    return eval(code, namespace)  # noqa: S307  (the connector's own code, as typing would evaluate it)
