"""Forms made from the parameters of a command, and what a filled one says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.errors import InvalidRequest
from gateway.observe.telling import tells_plainly
from gateway.protocol.document import read_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.connectors.definition import Command
    from gateway.connectors.parameters import Parameter

FIELD = "p."
"""Before a parameter's name, as the name of its field."""
MORE = "additional"
"""The field of parameters that are not declared."""
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,4299})")


class Choice(NamedTuple):
    """One of the values that there are: as JSON, and as people read it."""

    value: str
    text: str
    chosen: bool


class Field(NamedTuple):
    """A field of a form."""

    name: str
    label: str
    kind: str
    """`text`, `secret`, `number`, `choice` or `json`."""
    required: bool
    hint: str
    value: str
    choices: tuple[Choice, ...]


def fields(command: Command, filled: Mapping[str, str] | None = None) -> list[Field]:
    """Return the fields of a command; with what was `filled` in before, but for secrets, or else with the defaults."""
    return [_field(one, filled) for one in command.signature.parameters]


def filled_in(command: Command, form: Mapping[str, str]) -> dict[str, msgspec.Raw]:
    """Return the parameters that a form says. What is left empty, and is not required, is not sent.

    Raises:
        InvalidRequest: what has to be JSON is not.
    """
    found: dict[str, msgspec.Raw] = {}
    for one in command.signature.parameters:
        text = form.get(FIELD + one.id, "")
        kind = _kind(one)
        if text or (one.required and kind in {"text", "secret"} and FIELD + one.id in form):
            found[one.id] = _value(one.id, kind, text)
    more = form.get(MORE, "").strip()
    if more and command.signature.additional:
        try:
            found |= read_object(more.encode())
        except (ValueError, msgspec.DecodeError) as problem:
            raise InvalidRequest(f"the additional parameters are not a JSON object: {problem}") from problem
    return found


def _field(one: Parameter, filled: Mapping[str, str] | None) -> Field:
    kind, name = _kind(one), FIELD + one.id
    value = filled.get(name, "") if filled is not None else _default(one, kind)
    return Field(
        name=name,
        label=one.id,
        kind=kind,
        required=one.required,
        hint=one.description if isinstance(one.description, str) else "",
        value="" if kind == "secret" else value,
        choices=tuple(_choices(one, value)) if kind == "choice" else (),
    )


def _kind(one: Parameter) -> str:
    if one.secret is True or tells_plainly(one.id):
        return "secret"
    if isinstance(one.enum, list) or one.type == "bool":
        return "choice"
    return {"str": "text", "int": "number"}.get(one.type, "json")


def _default(one: Parameter, kind: str) -> str:
    if one.default is msgspec.UNSET:
        return ""
    if kind == "text" and isinstance(one.default, str):
        return one.default
    return _json(one.default)


def _choices(one: Parameter, value: str) -> Iterator[Choice]:
    """Yield the values; where there need be none, nothing comes first."""
    if not one.required or not value:
        yield Choice("", "choose" if one.required else "not sent", chosen=not value)
    for each in one.enum if isinstance(one.enum, list) else (True, False):
        text = _json(each)
        yield Choice(text, each if isinstance(each, str) else text, chosen=text == value)


def _value(name: str, kind: str, text: str) -> msgspec.Raw:
    """Return a field's text as JSON; what cannot be is sent as text, and the check of the call says what is wrong."""
    if kind == "number" and _WHOLE.fullmatch(text.strip()):
        return msgspec.Raw(text.strip().encode())
    if kind in {"json", "choice"}:
        try:
            msgspec.json.decode(text.encode(), type=msgspec.Raw)
            read_object(b'{"value":' + text.encode() + b"}")
        except (ValueError, msgspec.DecodeError) as problem:
            raise InvalidRequest(f'{name} is not JSON (a text stands in quotes: "text"): {problem}') from problem
        return msgspec.Raw(text.strip().encode())
    return msgspec.Raw(msgspec.json.encode(text))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
