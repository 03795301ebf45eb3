"""Which commands are sources of suggestions: what is said of them has to fit what they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import Quarantine
from gateway.sections import TypeaheadEntry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.connectors.parameters import Signature
    from gateway.typeahead import Typeahead
    from gateway.yaml_document import YamlNode

_TYPES = {"prefix": "str", "limit": "int"}


def declared(node: YamlNode, signature: Signature) -> Typeahead | None:
    """Read the `typeahead` of a command in YAML.

    Raises:
        ConfigError: it does not fit the command; file, line and key are named.
    """
    if node.data.get("typeahead") is None:
        return None
    below = node.child("typeahead")
    entry = below.decode(TypeaheadEntry)
    for key, fault in _faults(entry, signature):
        raise below.error(fault, (key,))
    return entry


def told(where: str, typeahead: Typeahead | None, signature: Signature) -> Typeahead | None:
    """Take what an answer to `describe` says; `where` is for messages.

    Raises:
        Quarantine: it does not fit the command.
    """
    for key, fault in _faults(typeahead, signature) if typeahead is not None else ():
        raise Quarantine(f"describe, {where}: typeahead.{key}: {fault}")
    return typeahead


def _faults(typeahead: Typeahead, signature: Signature) -> Iterator[tuple[str, str]]:
    if not typeahead.category or "/" in typeahead.category:
        yield "category", "a category is not empty and has no /"
    given = {"prefix": typeahead.prefix, "limit": typeahead.limit}
    known = {one.id: one for one in signature.parameters}
    for key, name in given.items():
        if name is None:
            continue
        if name not in known:
            if not signature.additional:
                yield key, f"the command has no parameter {name} (it has: {', '.join(known) or 'none'})"
        elif known[name].type not in {"any", _TYPES[key]}:
            yield key, f"the parameter {name} is of type {known[name].type}, not {_TYPES[key]}"
    for one in signature.parameters:
        if one.required and one.id not in given.values():
            yield "prefix", f"the command requires {one.id} too, which nobody would send"
