"""What a docstring says about a command and its parameters: Google's ``Args:`` and Sphinx's ``:param x:``."""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

_FIELD = re.compile(r":(?P<field>\w+)(?P<words>[^:]*):\s*(?P<text>.*)")
_PARAMETER_FIELDS = frozenset({"param", "parameter", "arg", "argument", "key", "keyword"})
_SECTION = re.compile(r"(?P<title>Args|Arguments|Parameters|Params|Keyword Args|Returns?|Raises|Yields|Examples?):\s*$")
_PARAMETER_SECTIONS = frozenset({"Args", "Arguments", "Parameters", "Params", "Keyword Args"})
_ENTRY = re.compile(r"(?P<indent>\s+)\*{0,2}(?P<name>\w+)\s*(?:\([^)]*\))?:\s*(?P<text>.*)")


class Docstring(NamedTuple):
    """The text before the first section or field, and one text a parameter; empty when there is none."""

    description: str
    parameters: dict[str, str]


def parse(docstring: str | None) -> Docstring:
    """Read a docstring; what is in neither style is description."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    cut = next((at for at, line in enumerate(lines) if _FIELD.match(line) or _SECTION.match(line)), len(lines))
    parameters: dict[str, list[str]] = {}
    _read_fields(lines[cut:], parameters)
    _read_sections(lines[cut:], parameters)
    texts = {name: " ".join(part for part in parts if part) for name, parts in parameters.items()}
    return Docstring("\n".join(lines[:cut]).strip(), {name: text for name, text in texts.items() if text})


def _read_fields(lines: list[str], parameters: dict[str, list[str]]) -> None:
    current: list[str] | None = None
    for line in lines:
        field = _FIELD.match(line)
        if field:
            words = field["words"].split()  # ":param str name:" holds a type as well
            wanted = field["field"] in _PARAMETER_FIELDS and words
            current = parameters.setdefault(words[-1].lstrip("*"), [field["text"].strip()]) if wanted else None
        elif not line.startswith((" ", "\t")):
            current = None
        elif current is not None:
            current.append(line.strip())


def _read_sections(lines: list[str], parameters: dict[str, list[str]]) -> None:
    inside = False
    indent = ""  # of this section's entries; what lies deeper continues one
    current: list[str] | None = None
    for line in lines:
        if line and not line[0].isspace():
            section = _SECTION.match(line)
            inside = bool(section and section["title"] in _PARAMETER_SECTIONS)
            indent, current = "", None
        elif inside and line.strip():
            entry = _ENTRY.match(line)
            if entry and entry["indent"] == (indent or entry["indent"]):
                indent = entry["indent"]
                current = parameters.setdefault(entry["name"], [entry["text"].strip()])
            elif current is not None:
                current.append(line.strip())
