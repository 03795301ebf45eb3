"""Keeps secret values out of everything that is written for people: messages, logs, the status view."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MASK = "[redacted]"
SHORTEST = 4  # characters; anything shorter would tear holes into ordinary words
LARGEST = 1 << 20  # characters of all values
MOST = 1000  # forms of all values; with more, or larger ones, every text is withheld
FEW = 100  # forms that are looked for at once, in a pattern
LONG = 64  # characters of such a form

_TELLING = re.compile(r"(?i)secret|token|passw|api_?key|private_?key|credential|access_?key")


class Redactor:
    """Replaces known values wherever they occur in a text."""

    def __init__(self, values: Iterable[str] = (), *, withholds: bool = False) -> None:
        """Longer values are replaced first, so that one which contains another goes whole.

        `withholds`: no text is shown, whatever it is. So it is with more values than can be looked for.
        """
        self._values = tuple(values)
        self._withholds = withholds or sum(map(len, self._values)) > LARGEST
        forms: set[str] = set()
        for value in () if self._withholds else self._values:
            forms.update(form for form in _forms(value) if len(form) >= SHORTEST)
            if len(forms) > MOST:
                self._withholds = True
                break
        known = sorted(forms, key=len, reverse=True)
        # A pattern is faster to look for and slower to make.
        self._plain = tuple(form for form in known if len(form) > LONG or len(known) > FEW)
        rest = known[len(self._plain) :]
        self._pattern = re.compile("|".join(map(re.escape, rest))) if rest else None

    def __call__(self, text: str) -> str:
        """Return the text without the values."""
        if self._withholds:
            return MASK if text else text
        for value in self._plain:
            text = text.replace(value, MASK)
        return self._pattern.sub(MASK, text) if self._pattern is not None else text

    def __eq__(self, other: object) -> bool:
        """Know the same values."""
        return isinstance(other, Redactor) and (self._values, self._withholds) == (other._values, other._withholds)

    def __hash__(self) -> int:
        """Follow `__eq__`."""
        return hash(self._values)

    def plus(self, values: Iterable[str]) -> Redactor:
        """Return one that knows more values."""
        more = tuple(values)
        return Redactor((*self._values, *more), withholds=self._withholds) if more else self


NOTHING_SHOWN = Redactor(withholds=True)
"""Withholds every text."""


def telling_values(settings: Mapping[str, object]) -> list[str]:
    """Return the values (at any depth) whose key says that they are secret: password, token, api_key ..."""
    found: list[str] = []
    for key, value in settings.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                found += telling_values(one)
            elif isinstance(one, str | int) and not isinstance(one, bool) and _TELLING.search(key):
                found.append(str(one))
    return found


def _forms(value: str) -> Iterator[str]:
    """Yield how a value may turn up: as it is, within JSON, and (a private key) line by line."""
    yield value
    yield msgspec.json.encode(value)[1:-1].decode()
    yield from value.splitlines()
