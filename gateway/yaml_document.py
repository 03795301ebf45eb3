"""A YAML file that remembers on which line each of its keys stands."""

from __future__ import annotations

import difflib
import functools
import math
import operator
import re
from collections import ChainMap, Counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
import yaml

from gateway.errors import ConfigError
from gateway.files import read_file, unusable
from gateway.observe.redact import Redactor
from gateway.observe.telling import secrets_in, tells
from gateway.sandbox import Level
from gateway.secrets import Filler, Keys, NoSecret, Secrets, Use, literal, nowhere, reference
from gateway.units import Duration, Rate, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping
    from pathlib import Path

T = TypeVar("T")

MOST = 8 << 20  # bytes of a file
NESTED = 1000  # levels that are parsed at all, by code that recurses in C
VALUES = 500_000  # keys and values of a file, those that its aliases stand for included
ENTRY = 50_000  # of them in one entry of a section
DEEP = 100  # levels that whoever uses them goes down
NEWLINE = b"\n"
SECRETS = "secrets"
"""The section that says where secrets are."""

_Base: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE = "tag:yaml.org,2002:"
_MERGE = f"{_CORE}merge"
_PLAIN = "!"  # the tag that says: text
_STEP = re.compile(r"\.([A-Za-z_]\w*)|\[(\d+)\]|\[\.\.\.\]")
_QUOTED = re.compile(r"(['\"]).{3,}?\1")
"""What the parser quotes: a password that begins with `!` or `*`, it may be."""
_UNKNOWN = re.compile(r"Object contains unknown field `(.+?)`")


class Mark(NamedTuple):
    """Where a key stands."""

    path: Path
    line: int
    text: str | None = None
    """Its value as it is written, where that is a number, a truth or nothing."""


class YamlNode:
    """A part of a document: its data, the keys that lead to it, and where each key below stands."""

    def __init__(
        self,
        data: Any,
        keys: Keys = (),
        marks: MutableMapping[Keys, Mark] | None = None,
        faults: dict[Keys, ConfigError] | None = None,
        secrets: tuple[str, ...] = (),
    ) -> None:
        """`marks` may come from several files: an overlay keeps the place of each key."""
        self.data = data
        self.keys = keys
        self.marks: MutableMapping[Keys, Mark] = marks or {}
        self.secrets = secrets
        """The values that stand in it in the place of references, and what of them may be shown alone."""
        self.is_resolved = False
        """There are no references in it any more."""
        self._faults = faults or {}

    def child(self, key: str | int) -> YamlNode:
        """Return the part under one key."""
        return self._part(self.data[key], (*self.keys, key))

    def holding(self, data: Any) -> YamlNode:
        """Return this part with other data in it."""
        return self._part(data, self.keys)

    def _part(self, data: Any, keys: Keys) -> YamlNode:
        part = YamlNode(data, keys, self.marks, self._faults, self.secrets)
        part.is_resolved = self.is_resolved
        return part

    def fault(self) -> ConfigError | None:
        """Return what is wrong with this part of the file, whatever it is meant for; its data is not all there then."""
        return next((fault for keys, fault in self._faults.items() if keys[: len(self.keys)] == self.keys), None)

    def written(self, *below: str | int) -> str | None:
        """Return a value as it is written, where YAML takes that for a number, a truth or nothing."""
        mark = self.marks.get((*self.keys, *below))
        return mark.text if mark is not None else None

    def mark(self, below: Keys = ()) -> Mark | None:
        """Return where a key stands, or the nearest one above it."""
        keys = (*self.keys, *below)
        return next((self.marks[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in self.marks), None)

    @property
    def literal(self) -> Any:
        """Its data without what only names a secret."""
        return self.data if self.is_resolved else literal(self.data)

    def alone(self) -> YamlNode:
        """Return this part as a whole document."""
        above = len(self.keys)
        return YamlNode(
            self.data, (), {keys[above:]: mark for keys, mark in self.marks.items() if keys[:above] == self.keys}
        )

    def moved(self, keys: Keys) -> YamlNode:
        """Return this whole document as the part of another one at `keys`."""
        return YamlNode(self.data, keys, {(*keys, *old): mark for old, mark in self.marks.items()})

    def overlaid(self, over: YamlNode) -> YamlNode:
        """Return this with another part of the same keys on top: mappings merge, null removes, the rest replaces."""
        return YamlNode(_merged(self.data, over.data), self.keys, ChainMap(over.marks, self.marks))

    def resolved(
        self,
        secrets: Secrets,
        left: Callable[[Keys], bool] = nowhere,
        mapping: Callable[[Keys], bool] = nowhere,
        *,
        lenient: bool = False,
    ) -> tuple[YamlNode, tuple[Use, ...]]:
        """Return this with secrets in the place of what refers to them, and what was used.

        Args:
            secrets: where they are looked up.
            left: tells by its keys, from here on, what stays as it is written.
            mapping: tells so what can only be a mapping, and is no reference though `secret` is its only key.
            lenient: leave out what needs a secret that is missing.

        Raises:
            ConfigError: one is missing; it and its place are named.
        """

        def failed(keys: Keys, problem: NoSecret) -> None:
            if not lenient:
                mark = self.mark(keys)
                raise _key_error(mark, (*self.keys, *keys), str(problem)) if mark else ConfigError(str(problem))

        filler = Filler(secrets, failed, left, mapping)
        data = filler.whole(self.data)
        uses = tuple(use._replace(keys=(*self.keys, *use.keys)) for use in filler.uses)
        values = (*self.secrets, *secrets_in(filler.values, secret=True))
        found = YamlNode(data, self.keys, self.marks, self._faults, tuple(dict.fromkeys(values)))
        found.is_resolved = True
        return found, uses

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
        problem = Redactor((*self.secrets, *self._telling()))(problem)
        return ConfigError(f"{where}{dotted}: {problem}" if dotted else f"{where}{problem}")

    def _telling(self) -> Iterator[str]:
        """Yield what is secret by the names of keys. The section `secrets` only says where some are."""
        data = self.literal
        if self.keys[:1] == (SECRETS,):
            return
        if not self.keys and isinstance(data, dict):
            data = {key: value for key, value in data.items() if key != SECRETS}
        is_secret = any(isinstance(key, str) and tells(key) for key in self.keys)
        yield from secrets_in(data, secret=is_secret)

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
            else:
                text += self._instead(text, below) + _choices(text, kind, below)
            raise self.error(text[:1].lower() + text[1:], below) from None

    def _instead(self, problem: str, below: Keys) -> str:
        """Say what to write, where one kind of value was meant to be another."""
        text = self.written(*below)
        if text and problem.startswith("Expected `str"):
            return f': write "{text}" in quotes'
        if problem.startswith("Expected `bool") and problem.endswith("`str`"):
            return ": write true or false"
        if problem.startswith("Expected `array") and problem.endswith("`str`"):
            return f": write a list, [{functools.reduce(operator.getitem, below, self.data)}]"
        return ""


def load(path: Path, *, entries: str | None = None) -> YamlNode:
    """Read a YAML file whose top level is a mapping.

    What is wrong with one entry of the section `entries` is left to whoever asks for that (`YamlNode.fault`).

    Raises:
        ConfigError: it cannot be read, does not parse, is empty, says a key twice, or has something that is no data.
    """
    node = read(path, entries=entries)
    if not isinstance(node.data, dict):
        raise node.error(f"expected a mapping at the top, got {_kind(node.data)}")
    return node


def read(path: Path, *, entries: str | None = None) -> YamlNode:
    """Read a YAML file, whatever its top level is.

    Raises:
        ConfigError: as `load` does.
    """
    try:
        text = read_file(path, most=MOST)
    except OSError as problem:
        raise ConfigError(unusable(problem)) from problem
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                raise ConfigError(f"{path}: the file is empty")
            builder = _Builder(path, loader)
            data = builder.build(root, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as problem:
        raise ConfigError(f"{path}:{_place(problem.problem_mark)}: not valid YAML: {_said(problem, text)}") from problem
    except yaml.reader.ReaderError as problem:
        before = text[: problem.position]
        place = f"{before.count(NEWLINE) + 1}:{len(before) - before.rfind(NEWLINE)}"
        raise ConfigError(f"{path}:{place}: not valid YAML: not text: {problem.reason}") from problem
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as problem:
        raise ConfigError(f"{path}: not valid YAML: {problem}") from problem
    for keys, fault in builder.faults.items():
        if len(keys) < 2 or keys[0] != entries:
            raise fault
    return YamlNode(data, (), builder.marks, builder.faults)


class _Loader(_Base):  # type: ignore[misc]
    """Takes for a number or a truth what JSON takes for one, and nothing else: `NO`, `007` and `12:30` are text."""

    def __init__(self, text: bytes) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def descend_resolver(self, parent: yaml.Node | None, _index: object) -> None:
        """Be called before each node; it would look for resolvers by path, which nobody has."""
        self._depth += 1
        self._nodes += 1
        if self._depth > NESTED:
            raise yaml.composer.ComposerError(None, None, f"nested more than {NESTED} levels deep", _start(parent))
        if self._nodes > VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {VALUES} keys and values", _start(parent))

    def ascend_resolver(self) -> None:
        """Be called after each node."""
        self._depth -= 1


_Loader.yaml_implicit_resolvers = {}
for _tag, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"-?(?:0|[1-9][0-9]*)", "-0123456789"),
    ("float", r"-?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", "-.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"{_CORE}{_tag}", re.compile(f"(?:{_form})\\Z"), list(_first))


class _Builder:
    """Makes data of nodes, notes where each key stands, and what is wrong without stopping at it."""

    def __init__(self, path: Path, loader: Any) -> None:
        self.marks: dict[Keys, Mark] = {}
        self.faults: dict[Keys, ConfigError] = {}
        self._path = path
        self._loader = loader
        self._values: Counter[Keys] = Counter()
        self._open: set[int] = set()

    def build(self, node: yaml.Node, keys: Keys) -> Any:
        """Return what a node stands for. What an alias refers to is made anew at each place, and counted there."""
        self.marks.setdefault(keys, Mark(self._path, node.start_mark.line + 1))
        if self._is_too_much(node, keys):
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, keys)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == f"{_CORE}map":
                return self._mapping(node, keys)
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{_CORE}seq":
                return [self.build(value, (*keys, index)) for index, value in enumerate(node.value)]
        finally:
            self._open.discard(id(node))
        return self._fault(keys, _unknown(node))

    def _is_too_much(self, node: yaml.Node, keys: Keys) -> bool:
        entry = keys[:2]
        for counted in {(), entry}:
            self._values[counted] += 1
        if self._values[()] > VALUES:
            problem = f"its aliases stand for more than {VALUES} keys and values"
            raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        if self._values[entry] > ENTRY and entry:
            self._fault(entry, f"more than {ENTRY} keys and values, those that aliases stand for included")
        elif len(keys) > DEEP:
            self._fault(entry, f"nested more than {DEEP} levels deep")
        elif id(node) in self._open:
            self._fault(keys, "an alias that contains itself")
        else:
            return False
        return True

    def _scalar(self, node: yaml.ScalarNode, keys: Keys) -> Any:
        kind = node.tag.removeprefix(_CORE)
        if kind == "str" or node.tag == _PLAIN:
            return node.value
        if kind not in {"bool", "int", "float", "null"}:
            return self._fault(keys, _unknown(node))
        self.marks[keys] = self.marks[keys]._replace(text=node.value)
        try:
            value = self._loader.yaml_constructors[node.tag](self._loader, node)
        except (ValueError, LookupError):
            return self._fault(keys, f'"{node.value[:40]}" is no {kind}')
        if isinstance(value, float) and not math.isfinite(value):
            return self._fault(keys, f'JSON has no number "{node.value[:40]}": write it in quotes')
        return value

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        data: dict[str, Any] = {}
        lines: dict[str, int] = {}
        bases: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _MERGE:
                bases += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            below, line = (*keys, name), key.start_mark.line + 1
            if name in lines:
                self._fault(below, f"said twice (first on line {lines[name]})", line)
                continue
            lines[name] = line
            self.marks[below] = Mark(self._path, line)
            if key.tag not in {f"{_CORE}str", _PLAIN}:
                self._fault(below, f'a key must be text: write "{name}" in quotes')
            data[name] = self.build(value, below)
        for base in bases:
            self._merge(base, data, keys)
        return data

    def _merge(self, base: yaml.Node, data: dict[str, Any], keys: Keys) -> None:
        """Add what a mapping does not say itself."""
        if not isinstance(base, yaml.MappingNode) or id(base) in self._open:
            self._fault(keys, "<< takes another mapping, or a list of them")
            return
        said = {id(one) for one, _ in base.value if isinstance(one, yaml.ScalarNode) and one.value in data}
        rest = [pair for pair in base.value if id(pair[0]) not in said]
        self._open.add(id(base))
        more = self.build(yaml.MappingNode(base.tag, rest, base.start_mark, base.end_mark), keys)
        self._open.discard(id(base))
        data.update(more or {})

    def _fault(self, keys: Keys, problem: str, line: int | None = None) -> None:
        mark = self.marks[keys] if line is None else Mark(self._path, line)
        self.faults.setdefault(keys, _key_error(mark, keys, problem))


def _start(node: yaml.Node | None) -> yaml.Mark | None:
    return node.start_mark if node is not None else None


def _place(mark: yaml.Mark | None) -> str:
    return f"{mark.line + 1}:{mark.column + 1}" if mark is not None else "1"


def _said(problem: yaml.MarkedYAMLError, text: bytes) -> str:
    mark, said = problem.problem_mark, str(problem.problem or problem.context)
    if (
        mark
        and said.startswith("found character that cannot")
        and text.split(NEWLINE)[mark.line][mark.column :][:1] == b"\t"
    ):
        return "found a tab where YAML takes spaces only"
    if problem.context and problem.context.startswith("expected"):
        return f"{problem.context}, {said}"
    return "an anchor of this name was there before" if said == "second occurrence" else _QUOTED.sub("...", said)


def _unknown(node: yaml.Node) -> str:
    if node.tag.startswith(_CORE):
        return f"the tag {node.tag.replace(_CORE, '!!')[:80]} is none of plain data"
    return "a tag that is none of plain data: a text that begins with ! is written in quotes"  # it may be a password


def _key_error(mark: Mark, keys: Keys, problem: str) -> ConfigError:
    where = f"{mark.path}:{mark.line}: "
    return ConfigError(f"{where}{'.'.join(map(str, keys))}: {problem}" if keys else f"{where}{problem}")


def _merged(under: Any, over: Any) -> Any:
    if not isinstance(under, dict) or not isinstance(over, dict) or {reference(under), reference(over)} != {None}:
        return over
    merged = {**under, **{key: _merged(under.get(key), value) for key, value in over.items()}}
    return {key: value for key, value in merged.items() if value is not None or key not in over}


def _hook(kind: type, value: object) -> object:
    parsers: dict[type, Callable[[object], object]] = {
        Duration: Duration.parse,
        Size: Size.parse,
        Rate: Rate.parse,
        Level: Level.parse,
    }
    parse = parsers.get(kind)
    if parse is None:
        raise NotImplementedError(f"no rule for {kind}")
    return parse(value)


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing", bool: "a boolean"}
    return names.get(type(value), f"a number ({value})")


def _choices(problem: str, kind: type, below: Keys) -> str:
    """Say which values there may be where one is none of them."""
    if not problem.startswith("Invalid enum value"):
        return ""
    found = _kinds(msgspec.inspect.type_info(kind))
    for step in below:
        inner: list[msgspec.inspect.Type] = []
        for one in found:
            if isinstance(one, msgspec.inspect.StructType):
                inner += (field.type for field in one.fields if field.encode_name == step)
            elif isinstance(one, msgspec.inspect.ListType):
                inner.append(one.item_type)
            elif isinstance(one, msgspec.inspect.DictType):
                inner.append(one.value_type)
        found = [kind for one in inner for kind in _kinds(one)]
    known = [member.value for one in found if isinstance(one, msgspec.inspect.EnumType) for member in one.cls]
    known += [value for one in found if isinstance(one, msgspec.inspect.LiteralType) for value in one.values]
    return f" (known: {', '.join(map(str, known))})" if known else ""


def _kinds(one: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    return list(one.types) if isinstance(one, msgspec.inspect.UnionType) else [one]


def _suggest(name: str, *kinds: type | None) -> str:
    structs = [kind for kind in kinds if kind is not None and issubclass(kind, msgspec.Struct)]
    fields = [field.encode_name for kind in structs for field in msgspec.structs.fields(kind)]
    close = difflib.get_close_matches(name, fields, n=1)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(sorted(fields))})"
