"""States that something goes through: an enum, and a table of the moves there are."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

S = TypeVar("S", bound=enum.Enum)


def move(state: S, to: S, moves: Mapping[S, Container[S]]) -> S:
    """Return the new state.

    Raises:
        RuntimeError: there is no such move, which is a fault in the code.
    """
    if to not in moves[state]:
        raise RuntimeError(f"{type(state).__name__} cannot go from {state.value} to {to.value}")
    return to
