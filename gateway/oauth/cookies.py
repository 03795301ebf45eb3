"""A sealed text as cookies: named after the sign-in that it belongs to, in parts where one cookie cannot hold it."""

from __future__ import annotations

import hashlib
import itertools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PART = 3800  # characters; browsers keep 4096 bytes of a cookie with its name and attributes

_NAME = re.compile(r"(signin-[0-9a-f]{16}-)[0-9]+")


def name_of(state: str) -> str:
    """Return the beginning of the names of a sign-in's cookies: a browser may have several under way."""
    return f"signin-{hashlib.sha256(state.encode(errors='replace')).hexdigest()[:16]}-"


def parts(state: str, sealed: str) -> dict[str, str]:
    """Return the cookies by name."""
    pieces = [sealed[start : start + PART] for start in range(0, len(sealed), PART)]
    return {f"{name_of(state)}{number}": piece for number, piece in enumerate(pieces)}


def joined(state: str, cookies: Mapping[str, str]) -> str:
    """Return what the cookies of a sign-in hold together; nothing when there are none."""
    return _joined(name_of(state), cookies)


def each(cookies: Mapping[str, str]) -> dict[str, str]:
    """Return what the cookies of all sign-ins hold together, by the beginnings of their names."""
    return {match[1]: _joined(match[1], cookies) for match in map(_NAME.fullmatch, cookies) if match is not None}


def _joined(name: str, cookies: Mapping[str, str]) -> str:
    found = (cookies.get(f"{name}{number}") for number in itertools.count())
    return "".join(itertools.takewhile(bool, found))  # type: ignore[arg-type]
