"""What a command or an authentication takes, out of an operator's YAML or a connector's description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway.connectors.parameters import NotAName, Parameter, Signature
from gateway.errors import Quarantine
from gateway.sections import ParameterEntry

if TYPE_CHECKING:
    from gateway.protocol.description import DescribedParameter
    from gateway.yaml_document import YamlNode


def declared(node: YamlNode, *, additional: bool = False) -> Signature:
    """Read the `parameters` of an entry in YAML.

    Raises:
        ConfigError: one cannot be used; file, line and key are named.
    """
    below = node.child("parameters").items() if node.data.get("parameters") else ()
    try:
        read = tuple(_parameter(name, one.decode(ParameterEntry)) for name, one in below)
        return Signature(read, additional=additional)
    except NotAName as problem:
        raise node.error(str(problem), ("parameters", problem.name)) from problem
    except ValueError as problem:
        raise node.error(str(problem), ("parameters",)) from problem


def told(
    where: str,
    parameters: list[DescribedParameter],
    *,
    additional: bool = False,
    enforced: bool = True,
    filled: bool = True,
) -> Signature:
    """Take what an answer to `describe` says; `where` is for messages, the rest for `Signature`.

    Raises:
        NotAName: a parameter cannot be called what it is called; the connector may do without what takes it.
        Quarantine: a parameter cannot be used.
    """
    try:
        read = tuple(_parameter(one.id, one) for one in parameters)
        return Signature(read, additional=additional, enforced=enforced, filled=filled)
    except NotAName:
        raise
    except ValueError as problem:
        raise Quarantine(f"describe, {where}: {problem}") from problem


def _parameter(name: str, said: ParameterEntry | DescribedParameter) -> Parameter:
    """Let a default count: what has one is never required."""
    has_default = said.default is not msgspec.UNSET
    return Parameter(
        id=name,
        type=said.type,
        required=not has_default and said.required is not False,
        description=_or_unset(said.description),
        default=said.default,
        enum=_or_unset(said.enum),
        secret=said.secret or msgspec.UNSET,
        schema=_or_unset(said.schema),
    )


def _or_unset(value: Any) -> Any:
    return msgspec.UNSET if value is None else value
