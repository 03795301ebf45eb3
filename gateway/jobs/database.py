"""What the store asks of a database, and gets from `sqlite.py` and `postgres.py` alike.

The statements are the store's. A database does them in one transaction, in bounded time, and says whether it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gateway.errors import InvalidRequest
from gateway.observe.redact import NO_SECRETS

if TYPE_CHECKING:
    from gateway.observe.redact import Redactor

Values = Mapping[str, Any]
Step = tuple[str, Values]
"""A statement, with `:name` where a value goes, and the values."""


class Effect(NamedTuple):
    """What one statement came to: the rows that it returned, or how many it changed."""

    rows: list[tuple[Any, ...]]
    changed: int


class Database(Protocol):
    """One of the two."""

    shared: bool
    """Several gateways use it, and one of them can be dead."""
    now: str
    """The SQL for the database's own time, in seconds."""
    tables: str
    """The SQL for the names of the tables that are there."""
    setup: tuple[str, ...]
    """What comes first in the transaction that makes the tables."""
    turn: str
    """What makes whoever asks for the same `:name` wait, until the end of the transaction."""

    async def open(self) -> None:
        """Begin.

        Raises:
            StoreAway: it cannot be used.
        """

    async def run(self, *steps: Step, patience: float, reads: bool = False) -> list[Effect]:
        """Do all steps in one transaction, or none; what is changed is synced. `reads` changes nothing.

        Whoever is cancelled while it waits leaves the steps to be done.

        Raises:
            StoreAway: it failed, or took longer than `patience` seconds.
            InvalidRequest: a value is none that it can hold, which says nothing about itself. Nothing was done.
        """

    async def close(self) -> None:
        """End, within a moment: nothing is left."""


def not_held(problem: BaseException) -> InvalidRequest:
    """Return what is told of a value that a database cannot hold."""
    return InvalidRequest(f"the jobs' store cannot hold a value of the request: {said(problem)}")


def said(problem: BaseException, redact: Redactor = NO_SECRETS) -> str:
    """Return the first line of what a driver says; its others may quote the statement."""
    lines = redact(str(problem)).strip().splitlines()
    return lines[0][:200] if lines else type(problem).__name__
