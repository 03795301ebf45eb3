"""What a connector answers to `describe`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway.application import Application
from gateway.errors import ConnectorInvalidOutput
from gateway.protocol.document import find_document
from gateway.protocol.told import short, told
from gateway.typeahead import Typeahead

Validate = Literal["strict", "names"]
"""What of a call is checked: types, enums and schemas too, or only that names are known and none is missing."""


class DescribedParameter(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter in the answer to `describe`; keys that are not known here are ignored."""

    id: str
    type: Literal["str", "int", "bool", "any"] = "any"
    required: bool | None = None
    description: str | None = None
    default: Any = msgspec.UNSET
    enum: list[Any] | None = None
    secret: bool = False
    schema: dict[str, Any] | None = None


class DescribedCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A command in the answer to `describe`."""

    name: str
    parameters: list[DescribedParameter] = []
    description: str | None = None
    is_async: bool = msgspec.field(default=False, name="async")
    additional_parameters: bool = False
    idempotent: bool = False
    execute_async: bool = False
    validate: Validate = "strict"
    module: str | None = None
    typeahead: Typeahead | None = None


class DescribedAuth(Application, frozen=True, kw_only=True):
    """An authentication in the answer to `describe`; an operator may say the same keys, and has the last word."""

    name: str
    parameters: list[DescribedParameter] = msgspec.field(default_factory=list)
    description: str | None = None
    module: str | None = None
    problem: str | None = None
    """Why the application's keys are not all there."""


class DescribedProblem(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a connector that its runner had to leave out, and why."""

    module: str
    message: str


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `describe`."""

    commands: list[DescribedCommand] = []
    auths: list[DescribedAuth] = []
    problems: list[DescribedProblem] = []


class _Parts(msgspec.Struct, frozen=True):
    """What a description must have one of."""

    commands: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    auths: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def read_description(stdout: bytearray) -> Description:
    """Read the answer to `describe`.

    Raises:
        ConnectorInvalidOutput: it is not one, or it is an error.
    """
    document, fields, _ = find_document(stdout)
    try:
        error = told(fields.get("error"))
        if error is not None:
            raise ConnectorInvalidOutput(f"it answered {error.error_code}: {short(error.message)}")
        if document[0] == ord("{") and msgspec.json.decode(document, type=_Parts) == _Parts():
            raise ConnectorInvalidOutput('it has no "commands"')
        return msgspec.json.decode(document, type=Description)
    except msgspec.ValidationError as problem:
        raise ConnectorInvalidOutput(str(problem)) from problem
