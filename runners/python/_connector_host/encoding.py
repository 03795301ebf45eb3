"""A command's result as JSON text, in UTF-8.

| value | JSON |
| --- | --- |
| str, int, float, bool, None, list, dict | itself |
| tuple (named or not), deque, range, other sequences | array |
| set, frozenset, dict views | array, sorted when its items can be, else by type and text |
| iterator, generator | array, read to its end; of more than 1,000,000 values: an error |
| dataclass, class of attrs, Struct of msgspec | object of its fields |
| model of pydantic | object, as pydantic's own JSON form |
| other mappings | object |
| Enum | its value |
| datetime, date, time | `isoformat()` |
| timedelta | its total seconds |
| Decimal | string: a JSON number would be read back as a float, and 0.10 would be lost |
| UUID, Path, Fraction, addresses and networks of ipaddress | string |
| bytes, bytearray, memoryview | base64 string |
| scalar of NumPy; array of NumPy, array | what `tolist()` gives; NaT is null |
| DataFrame | array of an object a row, without the index |
| Series, Index | array |

Keys may be str, int, float, bool or None (as `json` writes them), or a value above whose JSON form is a string. NaN,
infinities, lone surrogates, circular references and everything else have no JSON form: `InvalidOutputError` says where.
"""

from __future__ import annotations

import base64
import collections.abc
import itertools
import math
import sys
from typing import Any, Callable, Iterator, List, Optional, Tuple

from .errors import InvalidOutputError, one_line
from .own import json, os

LONGEST_PATH = 200
LONGEST = 1_000_000  # values that are yielded: nobody knows whether there is an end


class NoJsonForm(TypeError):
    """A value is of a kind that JSON cannot hold; the message completes "<path> ..."."""


def encode(value: object) -> bytes:
    """Give the value as one line of JSON; `InvalidOutputError` names the place of what has no JSON form."""
    try:
        return _dump(value)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001, S110  (whatever failed: the walk below finds where, or gets around it)
        pass
    walk = _Walk()
    try:
        return _dump(walk.plain(value))
    except RecursionError:
        message = f"{walk.path()} is nested too deeply to have a JSON form"
        raise InvalidOutputError(message) from None


def to_plain(value: object) -> Any:
    """Give a JSON-like value for one of the kinds in the table above; `NoJsonForm` for any other."""
    for module, name, convert in _CONVERSIONS:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(value, kind):
            return convert(value)
    names = _field_names(type(value))
    if names is not None:
        return {name: getattr(value, name) for name in names}
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, collections.abc.Mapping):
        return dict(value)
    if isinstance(value, collections.abc.Set):
        return _sorted(value)
    is_list = isinstance(value, (collections.abc.Sequence, collections.abc.ValuesView))
    listing = list if is_list else getattr(type(value), "tolist", None)
    if callable(listing):
        return listing(value)
    name = type(value).__name__
    article = "an" if name[:1].lower() in "aeio" else "a"
    message = f"is {article} {name}, which has no JSON form"
    raise NoJsonForm(message)


def listed(values: Iterator[Any], path: str = "$") -> List[Any]:
    """Read what is yielded to its end; of more than `LONGEST` values: `InvalidOutputError`."""
    found = list(itertools.islice(values, LONGEST + 1))
    if len(found) > LONGEST:
        raise too_many(path)
    return found


def too_many(path: str = "$") -> InvalidOutputError:
    """Give the error for what yields more than can be a result."""
    return InvalidOutputError(f"{path} yields more than {LONGEST} values")


def is_iterator(value: object) -> bool:
    """Tell whether a value yields others; a file is one to read, and no list of lines."""
    return isinstance(value, collections.abc.Iterator) and not hasattr(value, "read")


def _field_names(kind: Any) -> Optional[List[str]]:
    if hasattr(kind, "__dataclass_fields__"):
        import dataclasses  # noqa: PLC0415  (already loaded, since the value is one)

        return [field.name for field in dataclasses.fields(kind)]
    if hasattr(kind, "__attrs_attrs__"):
        return [field.name for field in kind.__attrs_attrs__]
    return list(kind.__struct_fields__) if hasattr(kind, "__struct_fields__") else None


def _sorted(values: collections.abc.Set[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=lambda item: (type(item).__name__, repr(item)))


def _finite_text(value: Any) -> str:
    if not value.is_finite():
        message = f"is {value!r}, which has no JSON form"
        raise NoJsonForm(message)
    return str(value)


def _pydantic(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else json.loads(value.json())


def _numpy(value: Any) -> Any:
    kind = value.dtype.kind
    # Python has no nanoseconds and no long double: without this they would come as whole numbers, and as themselves.
    as_python = {"M": "M8[us]", "m": "m8[us]", "f": "f8"}.get(kind)
    return (value.astype(as_python) if as_python else value).tolist()


def _null(_value: Any) -> None:
    return None


def _base64(value: Any) -> str:
    return base64.b64encode(value).decode("ascii")


# A class is looked up in the modules that are loaded: without its module there can be no value of it, and importing
# decimal, uuid and datetime would cost every request some milliseconds.
_CONVERSIONS: Tuple[Tuple[str, str, Callable[[Any], Any]], ...] = (
    ("enum", "Enum", lambda value: value.value),
    ("pandas._libs.tslibs.nattype", "NaTType", _null),  # which is a datetime
    ("pandas._libs.missing", "NAType", _null),
    ("datetime", "date", lambda value: value.isoformat()),  # a datetime is a date
    ("datetime", "time", lambda value: value.isoformat()),
    ("datetime", "timedelta", lambda value: value.total_seconds()),
    ("decimal", "Decimal", _finite_text),
    ("uuid", "UUID", str),
    ("builtins", "bytes", _base64),
    ("builtins", "bytearray", _base64),
    ("builtins", "memoryview", _base64),
    ("numpy", "generic", _numpy),
    ("numpy", "ndarray", _numpy),
    ("pandas", "DataFrame", lambda value: value.to_dict("records")),
    ("pydantic", "BaseModel", _pydantic),
    ("fractions", "Fraction", str),
    ("ipaddress", "_IPAddressBase", str),
    ("collections", "UserString", str),
)

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=to_plain)


def _dump(value: object) -> bytes:
    return _ENCODER.encode(value).encode("utf-8")


class _Walk:
    """The slow way, taken when `json` gave up: convert piece by piece and know the path of each."""

    def __init__(self) -> None:
        self._steps: list[str] = []
        self._open: set[int] = set()  # ids of the containers that we are inside of

    def path(self) -> str:
        text = "$" + "".join(self._steps)
        return text if len(text) <= LONGEST_PATH else text[:LONGEST_PATH] + "..."

    def plain(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int):
            return self._integer(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else self._refuse(f"is {value!r}, which has no JSON form")
        if id(value) in self._open:
            return self._refuse("refers back to something that contains it, which has no JSON form")
        self._open.add(id(value))
        plain = self._container(value)
        self._open.discard(id(value))
        return plain

    def _container(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self._key(key): self._inside(_key_step(key), item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._inside(f"[{index}]", item) for index, item in enumerate(value)]
        if is_iterator(value):
            return self.plain(self._read(value))
        return self.plain(self._converted(value))

    def _inside(self, step: str, value: Any) -> Any:
        self._steps.append(step)
        plain = self.plain(value)
        self._steps.pop()
        return plain

    def _converted(self, value: object) -> Any:
        return self._attempt(to_plain, value)

    def _read(self, values: Iterator[Any]) -> Any:
        return self._attempt(lambda values: listed(values, self.path()), values)

    def _attempt(self, convert: Callable[[Any], Any], value: object) -> Any:
        try:
            return convert(value)
        except NoJsonForm as verdict:
            return self._refuse(str(verdict))
        except (RecursionError, MemoryError, InvalidOutputError):
            raise
        except Exception as error:  # noqa: BLE001  (a property or an iterator of the connector's own class)
            return self._refuse(f"could not be read: {one_line(error)}")

    def _key(self, key: Any) -> Any:
        if isinstance(key, str):
            return self._text(key, "has a key that")
        if key is None:
            return key
        if isinstance(key, int):
            return self._integer(key)
        if isinstance(key, float):
            return key if math.isfinite(key) else self._refuse(f"has the key {key!r}, which has no JSON form")
        try:
            plain = to_plain(key)
        except NoJsonForm:
            plain = None
        if isinstance(plain, (str, int, float)):
            return self._key(plain)
        return self._refuse(f"has a key of type {type(key).__name__}, which has no JSON form")

    def _text(self, value: str, what: str = "is text that") -> str:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            self._refuse(f"{what} holds a lone surrogate (character {error.start}), which has no UTF-8 form")
        return value

    def _integer(self, value: int) -> int:
        try:
            int.__repr__(value)
        except ValueError:  # over sys.get_int_max_str_digits()
            self._refuse("is an integer of more digits than Python writes")
        return value

    def _refuse(self, problem: str) -> Any:
        message = f"{self.path()} {problem}"
        raise InvalidOutputError(message) from None


def _key_step(key: object) -> str:
    if isinstance(key, str) and key.isidentifier():
        return f".{key}"
    text = key if isinstance(key, str) else str(key)
    return f"[{json.dumps(text)}]"
