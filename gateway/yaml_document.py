"""A YAML file that remembers on which line each of its keys stands."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
import yaml

from gateway.errors import ConfigError
from gateway.files import read_file
from gateway.sandbox import Level
from gateway.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")
Keys = tuple[str | int, ...]

_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STEP = re.compile(r"\.([A-Za-z_]\w*)|\[(\d+)\]|\[\.\.\.\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(.+?)`")


class Mark(NamedTuple):
    """Where a key stands."""

    path: Path
    line: int


class YamlNode:
    """A part of a document: its data, the keys that lead to it, and where each key below stands."""

    def __init__(self, data: Any, keys: Keys = (), marks: dict[Keys, Mark] | None = None) -> None:
        """`marks` may come from several files: an overlay keeps the place of each key."""
        self.data = data
        self.keys = keys
        self.marks = marks or {}

    def child(self, key: str | int) -> YamlNode:
        """Return the part under one key."""
        return YamlNode(self.data[key], (*self.keys, key), self.marks)

    def mark(self, below: Keys = ()) -> Mark | None:
        """Return where a key stands, or the nearest one above it."""
        keys = (*self.keys, *below)
        return next((self.marks[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in self.marks), None)

    def moved(self, keys: Keys) -> YamlNode:
        """Return this whole document as the part of another one at `keys`."""
        return YamlNode(self.data, keys, {(*keys, *old): mark for old, mark in self.marks.items()})

    def overlaid(self, over: YamlNode) -> YamlNode:
        """Return this with another part of the same keys on top: mappings merge, null removes, the rest replaces."""
        return YamlNode(_merged(self.data, over.data), self.keys, {**self.marks, **over.marks})

    def items(self) -> list[tuple[str, YamlNode]]:
        """Return the parts of a mapping.

        Raises:
            ConfigError: this is no mapping.
        """
        if not isinstance(self.data, dict):
            raise self.error(f"expected a mapping, got {_kind(self.data)}")
        return [(key, self.child(key)) for key in self.data]

    def error(self, problem: str, below: Keys = ()) -> ConfigError:
        """Make the error that names file, line and key."""
        mark = self.mark(below)
        where = f"{mark.path}:{mark.line}: " if mark else ""
        dotted = ".".join(str(key) for key in (*self.keys, *below))
        return ConfigError(f"{where}{dotted}: {problem}" if dotted else f"{where}{problem}")

    def decode(self, kind: type[T], beside: type | None = None) -> T:
        """Turn the data into a type. `beside` has the keys that were taken out before: one of them may be meant.

        Raises:
            ConfigError: it does not fit; file, line and key are named.
        """
        try:
            return msgspec.convert(self.data, kind, dec_hook=_hook)
        except msgspec.ValidationError as problem:
            text, _, where = str(problem).partition(" - at `$")
            below: Keys = tuple(int(n) if n else name or "?" for name, n in _STEP.findall(where.rstrip("`")))
            unknown = _UNKNOWN.search(text)
            if unknown:
                text = "unknown key" + _suggest(unknown[1], kind, beside)
                below = (*below, unknown[1])
            raise self.error(text[:1].lower() + text[1:], below) from None


def load(path: Path) -> YamlNode:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: it cannot be read, does not parse, is empty, or says a key twice.
    """
    try:
        text = read_file(path)
    except OSError as problem:
        raise ConfigError(f"{path}: {problem.strerror}") from problem
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise ConfigError(f"{path}: the file is empty")
        marks: dict[Keys, Mark] = {}
        _note(root, (), marks, path)
        data = loader.construct_document(root)
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1 if problem.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {problem.problem or problem.context}") from problem
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as problem:
        raise ConfigError(f"{path}: not valid YAML: {problem}") from problem
    except RecursionError as problem:
        raise ConfigError(f"{path}: not valid YAML: an alias that contains itself, or far too deep") from problem
    finally:
        loader.dispose()
    node = YamlNode(data, (), marks)
    if not isinstance(data, dict):
        raise node.error(f"expected a mapping at the top, got {_kind(data)}")
    return node


def _note(node: yaml.Node, keys: Keys, marks: dict[Keys, Mark], path: Path) -> None:
    marks.setdefault(keys, Mark(path, node.start_mark.line + 1))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*keys, str(key.value))
            mark = Mark(path, key.start_mark.line + 1)
            if key.tag != "tag:yaml.org,2002:merge":
                if key.tag != "tag:yaml.org,2002:str":
                    raise _key_error(mark, below, f'a key must be text: write "{key.value}" in quotes')
                if below in marks:
                    raise _key_error(mark, below, f"said twice (first on line {marks[below].line})")
            marks[below] = mark
            _note(value, below, marks, path)
    elif keys[-1:] == ("user",) and node.tag == "tag:yaml.org,2002:int" and ":" in node.value:
        raise _key_error(marks[keys], keys, f'to YAML this is a number in base 60: write "{node.value}" in quotes')
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note(value, (*keys, index), marks, path)


def _key_error(mark: Mark, keys: Keys, problem: str) -> ConfigError:
    return ConfigError(f"{mark.path}:{mark.line}: {'.'.join(map(str, keys))}: {problem}")


def _merged(under: Any, over: Any) -> Any:
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    merged = {**under, **{key: _merged(under.get(key), value) for key, value in over.items()}}
    return {key: value for key, value in merged.items() if value is not None or key not in over}


def _hook(kind: type, value: object) -> object:
    parsers: dict[type, Callable[[object], object]] = {
        Duration: Duration.parse,
        Size: Size.parse,
        Level: Level.parse,
    }
    parse = parsers.get(kind)
    if parse is None:
        raise NotImplementedError(f"no rule for {kind}")
    return parse(value)


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing", bool: "a boolean"}
    return names.get(type(value), f"a number ({value})")


def _suggest(name: str, *kinds: type | None) -> str:
    structs = [kind for kind in kinds if kind is not None and issubclass(kind, msgspec.Struct)]
    fields = [field.encode_name for kind in structs for field in msgspec.structs.fields(kind)]
    close = difflib.get_close_matches(name, fields, n=1)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(sorted(fields))})"
