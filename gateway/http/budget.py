"""How many bytes of bodies and answers are in memory, over all requests, and their bound."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from gateway.errors import GatewayBusy
from gateway.units import Size

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

FREE = 1 << 16  # bytes of a body, or of an answer, that are not counted: small calls go on, whatever is held
PROGRESS = 1 << 16  # bytes; who sends or takes less within a time-out makes none
STILL = 1.0  # seconds without any progress after which an answer gives way to others
RETRY = 5.0  # seconds


class Budget:
    """The one counter."""

    def __init__(self, most: int) -> None:
        """`most` is in bytes."""
        self.most = most
        self.bodies = 0
        """Bytes of bodies that are being read, or whose calls have no answer yet."""
        self.answers = 0
        """Bytes of answers that have not been sent in full."""
        self._unsent: set[Unsent] = set()

    def check(self, more: int) -> None:
        """Let pass what can still be held.

        Raises:
            GatewayBusy: it is too much.
        """
        if self.bodies + self.answers + more > self.most:
            raise GatewayBusy(
                f"bodies and answers of {Size(self.most)} are held already (gateway.max_held)", retry_after=RETRY
            )

    @contextlib.contextmanager
    def answer(self, size: int, transport: asyncio.Transport | None) -> Iterator[Unsent]:
        """Count an answer while it is sent. It is never refused: what it answers has been done."""
        unsent = Unsent(size, transport)
        self._unsent.add(unsent)
        self.answers += size
        self.make_room()
        try:
            yield unsent
        finally:
            self._unsent.discard(unsent)
            self.answers -= size

    def make_room(self) -> int:
        """Where more is held than may be, give up answers that nobody reads, the longest unread first; return how many.

        One that was just begun, or is being read, is not given up: for a moment there may be more.
        """
        over = self.bodies + self.answers - self.most
        unread = sorted(self._unsent, key=lambda one: one.moved) if over > 0 else ()
        limit = time.monotonic() - STILL
        given_up = 0
        for one in unread:
            if over <= 0 or one.moved > limit:
                break
            one.give_up()
            given_up += 1
            over -= one.size
        return given_up


class Body:
    """One body's share of what is held."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._size = 0

    def expect(self, size: int) -> None:
        """Hear how large it will be, as its sender says.

        Raises:
            GatewayBusy: there is no room for it now.
        """
        if size > FREE:
            self._budget.check(size)

    def grow(self, size: int) -> None:
        """Have so many bytes of it.

        Raises:
            GatewayBusy: there is no room for them.
        """
        if size > FREE:
            more = size - self._size
            self._budget.check(more)
            self._budget.bodies += more
            self._size = size

    def end(self) -> None:
        """Have it no more."""
        self._budget.bodies -= self._size
        self._size = 0


class Unsent:
    """An answer on its way."""

    def __init__(self, size: int, transport: asyncio.Transport | None) -> None:
        self.size = size
        self.moved = time.monotonic()
        """When a part of it was last taken."""
        self._transport = transport

    def move(self) -> None:
        """Note that a part of it was taken."""
        self.moved = time.monotonic()

    def give_up(self) -> None:
        """Break its connection."""
        if self._transport is not None:
            self._transport.abort()
