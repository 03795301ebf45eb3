"""Keeps secret values out of everything that is written for people: messages, logs, the status view.

A value is looked for as it is, and in what it may have become on its way: within JSON, a URL, HTML, a shell's or a
program's quotes, one in another, in base64, in hexadecimal digits, in small letters or capitals. What is escaped is not
guessed: the text is read back to what it stands for.
"""

from __future__ import annotations

import functools
import re
from base64 import b64encode
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ahocorasick_rs import BytesAhoCorasick

    Span = tuple[int, int]

MASK = "[redacted]"
SHORTEST = 4  # bytes; anything shorter would tear holes into ordinary words
LARGEST = 1 << 16  # characters of all values
MOST = 1000  # values, each line of one for itself; with more, or larger ones, every text is withheld
HEAD = 48  # bytes of a form that are looked for; what goes on like it is part of it, also where it is cut short
ROUNDS = 3  # how often what is escaped may be escaped again
MEANINGS = 4096  # escapes whose meaning is remembered
ESCAPED = 8  # bytes of what is escaped at most, for one that it stands for

_MASK = MASK.encode()
_WRAPPED = (64, 76)
"""Characters of a line of base64."""
_QUOTES = b"\\'\""
"""They are put around and before what they protect, and doubled: a value is the same without."""
_ESCAPE = re.compile(
    rb"(?<!\\)\\++(?:u(?P<high>d[89ab][0-9a-f]{2})\\++u(?P<low>d[c-f][0-9a-f]{2})"
    rb"|u(?P<long>000[0-9a-f]{5})|u(?P<four>[0-9a-f]{4})|u\{(?P<braced>[0-9a-f]{1,6})\}"
    rb"|x(?P<byte>[0-9a-f]{2})|(?P<octal>[0-3][0-7]{2})|(?P<control>[nrtbfav]))"
    rb"|%(?P<percent>[0-9a-f]{2})"
    rb"|&(?:#(?P<decimal>[0-9]{1,7})|#x(?P<hex>[0-9a-f]{1,6})|(?P<named>lt|gt|amp|quot|apos));"
)
"""In small letters, with all backslashes that stand before one: they come of what is escaped again."""
_NAMED = {b"lt": b"<", b"gt": b">", b"amp": b"&", b"quot": b'"', b"apos": b"'"}
_CONTROL = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f", b"a": b"\a", b"v": b"\v"}


class Redactor:
    """Replaces known values wherever they occur in a text. Cheap to make: what it takes is made for the first text."""

    def __init__(self, values: Iterable[str] = (), *, withholds: bool = False) -> None:
        """`withholds`: no text is shown, whatever it is. So it is with more values than can be looked for."""
        known = tuple(dict.fromkeys(value for value in values if value))
        self._told_to = withholds
        self._known = (_Values(known),) if known else ()

    @functools.cached_property
    def withholds(self) -> bool:
        """Whether no text is shown."""
        return self._told_to or any(values.withheld for values in self._known)

    @functools.cached_property
    def reach(self) -> int:
        """How many bytes a value takes at most, in whatever form."""
        return 0 if self.withholds else max((values.reach for values in self._known), default=0)

    def __call__(self, text: str) -> str:
        """Return the text without the values."""
        if not self._known and not self._told_to:
            return text
        data = text.encode(errors="surrogatepass")
        shown = self.masked(data)
        return text if shown is data else shown.decode(errors="surrogatepass")

    def masked(self, data: bytes) -> bytes:
        """Return a text, as UTF-8, without the values; the same object where there are none in it."""
        if self.withholds:
            return _MASK if data else data
        spans = self._spans(data)
        if not spans:
            return data
        shown, at = bytearray(), 0
        for begin, end in spans:
            shown += data[at:begin]
            shown += _MASK
            at = end
        return bytes(shown + data[at:])

    def cut(self, data: bytes, at: int) -> int:
        """Return where to cut a text so that no value is: there, or where a value begins or ends that stands there."""
        if at < len(data) and not self.withholds:
            for begin, end in self._spans(data):
                if begin < at < end:
                    return begin or end
        return at

    def __eq__(self, other: object) -> bool:
        """Know the same values."""
        return isinstance(other, Redactor) and (self._known, self._told_to) == (other._known, other._told_to)

    def __hash__(self) -> int:
        """Follow `__eq__`."""
        return hash(self._known)

    def plus(self, values: Iterable[str]) -> Redactor:
        """Return one that knows more values; what is made for those of this one is made once."""
        more = Redactor(values)
        if not more._known:
            return self
        more._known = (*self._known, *more._known)
        more._told_to = self._told_to
        return more

    def _spans(self, data: bytes) -> list[Span]:
        """Return where values stand, in order and apart."""
        if not self._known:
            return []
        low = data.lower()
        plain = _plain(low)
        found = [span for values in self._known for span in values.found(low)]
        if plain is not low:
            within = [span for values in self._known for span in values.found(plain)]
            if within:
                begins, ends = _places(low)
                found += ((begins[begin], ends[end - 1]) for begin, end in within)
        return _apart(data, found) if found else found


NO_SECRETS = Redactor()
"""Knows of none."""
NOTHING_SHOWN = Redactor(withholds=True)
"""Withholds every text."""


class _Search(NamedTuple):
    automaton: BytesAhoCorasick
    forms: tuple[tuple[bytes, ...], ...]
    """By the pattern that is found: what begins with it."""
    reach: int


class _Values:
    """Values, and how they are looked for."""

    def __init__(self, values: tuple[str, ...]) -> None:
        self._values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Values) and self._values == other._values

    def __hash__(self) -> int:
        return hash(self._values)

    @functools.cached_property
    def withheld(self) -> bool:
        """Whether there are more than can be looked for."""
        return sum(map(len, self._values)) > LARGEST or sum(len(value.splitlines()) for value in self._values) > MOST

    @property
    def reach(self) -> int:
        return self._search.reach if self._search is not None else 0

    @functools.cached_property
    def _search(self) -> _Search | None:
        forms: dict[bytes, list[bytes]] = {}
        reach = 0
        for value in self._values:
            whole = value.encode(errors="surrogatepass")
            lines = _lines(whole)
            if not value.isascii():  # what is not of ASCII has its capitals here
                lines += [
                    one.encode(errors="surrogatepass")
                    for one in (*value.upper().splitlines(), *value.lower().splitlines())
                ]
            reach = max(reach, 2 * len(whole), *(ESCAPED * len(line) for line in lines))
            for form in dict.fromkeys(_forms(whole, lines)):
                if len(form.strip()) >= SHORTEST:
                    forms.setdefault(form[:HEAD], []).append(form)
        if not forms:
            return None
        # Imported here: a gateway without secrets, or without logs, pays neither the time nor the memory.
        from ahocorasick_rs import BytesAhoCorasick, MatchKind  # noqa: PLC0415

        automaton = BytesAhoCorasick(list(forms), matchkind=MatchKind.LeftmostLongest)
        return _Search(automaton, tuple(map(tuple, forms.values())), reach)

    def found(self, text: bytes) -> list[Span]:
        """Return where they stand in a text in small letters."""
        if self._search is None:
            return []
        automaton, forms, _ = self._search
        spans: list[Span] = []
        for which, begin, end in automaton.find_matches_as_indexes(text):
            if spans and end <= spans[-1][1]:
                continue
            whole = end if end - begin < HEAD else max(_end(text, begin, form) for form in forms[which])
            spans.append((begin, whole))
        return spans


# --- private: the forms of a value


def _lines(value: bytes) -> list[bytes]:
    """Return what is looked for of a value: its lines, since a log has but one of them in a line."""
    return [line for line in value.splitlines() if len(line.strip()) >= SHORTEST] or [value]


def _forms(value: bytes, lines: list[bytes]) -> Iterator[bytes]:
    """Yield what a value may turn up as, in small letters."""
    for line in lines:
        low = line.lower()
        plain = _plain(low)
        yield low
        yield plain
        yield plain.replace(b" ", b"+")  # in the query of a URL
        yield from _base64(line)
        yield line.hex().encode()
    if lines != [value]:
        yield from _base64(value)
        yield value.hex().encode()
    for width in _WRAPPED if len(value) > HEAD else ():
        coded = b64encode(value).rstrip(b"=").lower()
        yield from (coded[at : at + width] for at in range(0, len(coded), width))


def _base64(value: bytes) -> Iterator[bytes]:
    """Yield what the base64 of whatever holds a value has of it, wherever the value begins: of `user:value`, say."""
    for skipped in range(3):
        coded = b64encode(bytes(skipped) + value)
        core = coded[-(-skipped * 8 // 6) : (skipped + len(value)) * 8 // 6].lower()
        yield core
        yield core.translate(bytes.maketrans(b"+/", b"-_"))


# --- private: what a text stands for


def _plain(text: bytes) -> bytes:
    """Return a text in small letters with nothing escaped and without quotes; the same object where that is all one."""
    for _ in range(ROUNDS):
        if not (b"\\" in text or b"%" in text or b"&" in text):
            break
        read = _ESCAPE.sub(_read, text)
        if read == text:
            break
        text = read
    return text.translate(None, _QUOTES)


def _places(text: bytes) -> tuple[list[int], list[int]]:
    """Return where each byte of what `_plain` returns begins in the text, and where it ends."""
    begins, ends = list(range(len(text))), list(range(1, len(text) + 1))
    for _ in range(ROUNDS):
        parts: list[bytes] = []
        first: list[int] = []
        last: list[int] = []
        at = 0
        for found in _ESCAPE.finditer(text):
            begin, end = found.span()
            read = _read(found)
            parts += (text[at:begin], read)
            first += begins[at:begin] + [begins[begin]] * len(read)
            last += ends[at:begin] + [ends[end - 1]] * len(read)
            at = end
        if not parts:
            break
        text = b"".join((*parts, text[at:]))
        begins, ends = first + begins[at:], last + ends[at:]
    kept = [at for at, byte in enumerate(text) if byte not in _QUOTES]
    return [begins[at] for at in kept], [ends[at] for at in kept]


class _Meanings(dict[bytes, bytes]):
    """What escapes stand for, in small letters; those that were met lately."""

    def __missing__(self, escape: bytes) -> bytes:
        if len(self) >= MEANINGS:
            self.clear()
        meaning = self[escape] = _meaning(escape)
        return meaning


_MEANINGS = _Meanings()


def _read(found: re.Match[bytes]) -> bytes:
    return _MEANINGS[found[0]]


def _meaning(escape: bytes) -> bytes:
    found = _ESCAPE.match(escape)
    assert found is not None
    kind = found.lastgroup or ""
    text = found[kind]
    if kind == "low":
        code = 0x10000 + ((int(found["high"], 16) & 0x3FF) << 10) + (int(text, 16) & 0x3FF)
    elif kind in {"byte", "percent"}:
        return bytes((int(text, 16),)).lower()
    elif kind == "named":
        return _NAMED[text]
    elif kind == "control":
        return _CONTROL[text]
    elif kind == "octal":
        return bytes((int(text, 8),)).lower()
    else:
        code = int(text, 10 if kind == "decimal" else 16)
    return chr(code).encode(errors="surrogatepass").lower() if code <= 0x10FFFF else escape


# --- private: places


def _end(text: bytes, begin: int, form: bytes) -> int:
    """Return where what begins like a form stops to be like it."""
    alike, beyond = HEAD, len(form) + 1
    while beyond - alike > 1:
        middle = (alike + beyond) // 2
        if text.startswith(form[:middle], begin):
            alike = middle
        else:
            beyond = middle
    return begin + alike


def _apart(text: bytes, spans: list[Span]) -> list[Span]:
    """Return spans in order, those that overlap as one, and no character in pieces."""
    spans.sort()
    apart: list[Span] = []
    for begin, end in spans:
        while begin > 0 and text[begin] & 0xC0 == 0x80:
            begin -= 1  # noqa: PLW2901
        while end < len(text) and text[end] & 0xC0 == 0x80:
            end += 1  # noqa: PLW2901
        if apart and begin < apart[-1][1]:
            apart[-1] = (apart[-1][0], max(end, apart[-1][1]))
        else:
            apart.append((begin, end))
    return apart
