"""What a command takes, and the check of what a caller sent.

Parameters stay raw JSON from the caller's body to the connector's stdin: their first byte tells their type, and only
what a JSON Schema or an enum constrains is decoded.
"""

from __future__ import annotations

import contextlib
import functools
import re
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.connectors.schemas import Schema, bounded
from gateway.errors import InvalidParameters
from gateway.observe.redact import LARGEST
from gateway.observe.telling import secrets_in, tells_plainly

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FITTING = {"str": b'"', "int": b"", "bool": b"tf", "any": b'"-0123456789tfn{['}
_BROKEN = re.compile(rb"[.eE]")
_MAY_HOLD = re.compile(rb"[=@;:]|PRIVATE KEY|[Bb](?:earer|asic) ")
"""What is in a value that has a secret in it."""
_NUMBER = b"-0123456789"
_HOLDING = _NUMBER + b"{["
"""First bytes of what is a number, or may hold one."""
DIGITS = 4300
"""Characters of an integer: Python reads no longer ones, and other languages far shorter ones."""
_ESCAPED = 6
"""Bytes of a character in JSON at most, for one of ASCII."""
HIDDEN = LARGEST
"""Bytes of a secret value that is looked for; of a larger one nothing is shown at all."""
LOOKED_AT = 1 << 14
"""Bytes of any other value that is looked through for what is named like a secret in it."""
_LOOSE = 1 << 20
"""Bytes that a value may be larger than all of its enum, and is compared with it all the same."""
TOLD = 20
"""Problems of one call that are told one by one."""
SHOWN = 100
"""Characters of a name that is not one of ours."""
CONTEXT = "spiff__"
"""What the names of a caller's context begin with."""

_NAMES = {"str": "text", "int": "an integer", "bool": "true or false", "any": "anything"}


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter, as callers see it in the catalogue (`secret` and the validator apart)."""

    id: str
    type: str
    required: bool
    description: str | msgspec.UnsetType = msgspec.UNSET
    default: Any = msgspec.UNSET
    enum: list[Any] | msgspec.UnsetType = msgspec.UNSET
    secret: bool | msgspec.UnsetType = msgspec.UNSET
    schema: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class NotAName(ValueError):
    """A parameter cannot be called what it is called; `name` says what that is."""

    def __init__(self, name: str, fault: str) -> None:
        self.name = name
        super().__init__(fault)


class Signature:
    """All parameters of a command, ready to check calls against."""

    def __init__(
        self, parameters: tuple[Parameter, ...], *, additional: bool = False, enforced: bool = True, filled: bool = True
    ) -> None:
        """Raise ValueError when a JSON Schema among them is none, or a name cannot be one (`NotAName`).

        Not `enforced`: types, enums and schemas only describe, and any value goes to the connector. Not `filled`: the
        connector has defaults of its own for what the caller left out.
        """
        _check_names(parameters)
        self.parameters = tuple(map(_shown, parameters))
        self.additional = additional
        self.enforced = enforced
        self._filled = filled
        self._by_id = {one.id: one for one in parameters}
        self._defaults = {
            one.id: msgspec.Raw(msgspec.json.encode(one.default))
            for one in parameters
            if one.default is not msgspec.UNSET
        }
        self._schemas = {
            one.id: _compiled(one.id, one.schema) for one in parameters if enforced and isinstance(one.schema, dict)
        }
        self._secret = frozenset(one.id for one in parameters if one.secret is True or _hides(one.schema))
        self._hidden = {one.id: names for one in parameters if (names := frozenset(_hidden(one.schema)))}
        self._required = tuple(one.id for one in parameters if one.required)
        self._first_bytes = {one.id: self._first_bytes_of(one) for one in parameters}

    def check(self, sent: Mapping[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
        """Return the parameters, with defaults filled in where that is ours to do.

        Raises:
            InvalidParameters: some are missing, unknown or wrong; all of them are named.
        """
        problems = []
        for name in self._required:
            if name not in sent:
                problems.append(f"{name} is missing")  # noqa: PERF401 - a step less where none is
        for name, raw in sent.items():
            parameter = self._by_id.get(name)
            if parameter is None:
                if not self.additional:
                    problems.append(f"{name if len(name) <= SHOWN else name[:SHOWN] + '...'} is unknown")
            elif self.enforced and bytes(memoryview(raw)[:1]) not in self._first_bytes[name]:
                problem = self._problem(parameter, raw)
                if problem:
                    problems.append(problem)
        if problems:
            known = ", ".join(self._by_id) or "none"
            left = len(problems) - TOLD
            more = f"; {left:,} more" if left > 0 else ""
            raise InvalidParameters(f"{'; '.join(problems[:TOLD])}{more} (parameters: {known})")
        return {**self._defaults, **sent} if self._filled else dict(sent)

    def secret_values(self, sent: Mapping[str, msgspec.Raw]) -> list[str] | None:
        """Return what of the sent values must not be shown; None where there is more than can be looked for.

        Secret is what is declared so, or named so; and what is named so within a value, unless that is large.
        """
        found: list[str] = []
        for name, raw in sent.items():
            view = memoryview(raw)
            if name in self._secret or tells_plainly(name):
                if len(view) > HIDDEN:
                    return None
                found += _texts(raw)
            elif len(view) <= LOOKED_AT and _MAY_HOLD.search(view):
                telling = functools.partial(_told, self._hidden.get(name, frozenset()))
                found += secrets_in(_decoded(raw), telling=telling)
        return found

    def hides(self, name: str) -> bool:
        """Tell whether what is called so, at any depth, must not be shown."""
        return name in self._secret or tells_plainly(name) or any(name in names for names in self._hidden.values())

    def _first_bytes_of(self, one: Parameter) -> bytes:
        """Return the first bytes of values that need no closer look."""
        if isinstance(one.enum, list) or one.id in self._schemas:
            return b""
        holding = _HOLDING if one.secret is True else b""
        return _FITTING[one.type].translate(None, holding)

    def _problem(self, parameter: Parameter, raw: msgspec.Raw) -> str | None:
        try:
            return self._misfit(parameter, _first(raw), raw)
        except RecursionError:
            return f"{parameter.id} is nested too deeply"
        except (ValueError, OverflowError):  # 1e400, or thousands of digits
            return f"{parameter.id} is or holds a number that is out of range"

    def _misfit(self, parameter: Parameter, first: bytes, raw: msgspec.Raw) -> str | None:
        name = parameter.id
        if first == b"n" and not parameter.required:
            return None
        if parameter.type == "int" and first in _NUMBER and len(memoryview(raw)) > DIGITS:
            return f"{name} must be {_NAMES['int']} of at most {DIGITS:,} digits"
        if not _fits(parameter.type, first, raw):
            return f"{name} must be {_NAMES[parameter.type]}, not {_describe(parameter.type, first)}"
        if parameter.secret is True and first in _HOLDING and len(memoryview(raw)) <= HIDDEN:
            msgspec.json.decode(raw)  # what is hidden has to be known
        if isinstance(parameter.enum, list):
            longest = len(msgspec.json.encode(parameter.enum)) * _ESCAPED
            value = msgspec.json.decode(raw) if len(memoryview(raw)) <= longest + _LOOSE else None
            if not any(value == one and type(value) is type(one) for one in parameter.enum):
                return f"{name} must be one of {bounded(parameter.enum)}"
        schema = self._schemas.get(name)
        return schema.fault(name, raw) if schema is not None else None


def _check_names(parameters: tuple[Parameter, ...]) -> None:
    seen = set()
    for one in parameters:
        if one.id.startswith(CONTEXT):
            fault = f"names that begin with {CONTEXT} are the caller's context, never parameters"
            raise NotAName(one.id, f"{fault}: this one never reaches a connector")
        if one.id in seen:
            raise NotAName(one.id, "named twice")
        seen.add(one.id)


def _fits(kind: str, first: bytes, raw: msgspec.Raw) -> bool:
    if kind == "str":
        return first == b'"'
    if kind == "int":
        return first in _NUMBER and not _BROKEN.search(memoryview(raw))
    if kind == "bool":
        return first in b"tf"
    return True


def _texts(raw: msgspec.Raw) -> Iterator[str]:
    """Yield every text and number in a value, at any depth; a number also as it was written."""
    yield from secrets_in(_decoded(raw), secret=True)
    if _first(raw) in _NUMBER:
        yield bytes(raw).decode()


def _told(hidden: frozenset[str], key: str) -> bool:
    return key in hidden or tells_plainly(key)


def _decoded(raw: msgspec.Raw) -> Any:
    with contextlib.suppress(RecursionError, ValueError, OverflowError):  # which is refused elsewhere
        return msgspec.json.decode(raw)
    return None


def _shown(parameter: Parameter) -> Parameter:
    """Return a parameter as it may be listed: without a default that is a secret."""
    is_secret = parameter.secret is True or _hides(parameter.schema) or tells_plainly(parameter.id)
    return msgspec.structs.replace(parameter, default=msgspec.UNSET) if is_secret else parameter


def _hides(schema: Any) -> bool:
    """Tell whether a schema says that its values are not to be read."""
    return isinstance(schema, dict) and (schema.get("writeOnly") is True or schema.get("format") == "password")


def _hidden(schema: Any) -> Iterator[str]:
    """Yield the names, at any depth, whose schema says so."""
    todo = [schema]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            properties = one.get("properties")
            if isinstance(properties, dict):
                yield from (name for name, below in properties.items() if _hides(below))
            todo += one.values()
        elif isinstance(one, list):
            todo += one


def _first(raw: msgspec.Raw) -> bytes:
    return bytes(memoryview(raw)[:1])


def _describe(wanted: str, first: bytes) -> str:
    kinds = {b'"': "text", b"{": "an object", b"[": "a list", b"t": "true", b"f": "false", b"n": "null"}
    return kinds.get(first, "a number with a fraction or exponent" if wanted == "int" else "a number")


def _compiled(name: str, schema: dict[str, Any]) -> Schema:
    try:
        return Schema(schema)
    except ValueError as problem:
        raise ValueError(f"{name}: {problem}") from problem
