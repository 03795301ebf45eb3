"""Keeps secret values out of everything that is written for people: messages, logs, the status view."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MASK = "[redacted]"
SHORTEST = 4  # characters; anything shorter would tear holes into ordinary words

_TELLING = re.compile(r"(?i)secret|token|passw|api_?key|private_?key|credential|access_?key")


class Redactor:
    """Replaces known values wherever they occur in a text."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        """Longer values are replaced first, so that one which contains another goes whole."""
        self._values = tuple(values)
        forms = {form for value in self._values for form in _forms(value)}
        known = sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        """Return the text without the values."""
        return self._pattern.sub(MASK, text) if self._pattern is not None else text

    def __eq__(self, other: object) -> bool:
        """Know the same values."""
        return isinstance(other, Redactor) and self._values == other._values

    def __hash__(self) -> int:
        """Follow `__eq__`."""
        return hash(self._values)

    def plus(self, values: Iterable[str]) -> Redactor:
        """Return one that knows more values."""
        more = tuple(values)
        return Redactor((*self._values, *more)) if more else self


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
