"""Callbacks of all clients: each goes where its client's section says, with that client's credentials."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.jobs.callbacks import Callbacks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.jobs.contract import Attempt, Job, Outcome
    from gateway.jobs.settings import CallbacksSection


class Deliveries:
    """One sender for each client that has callbacks. To be used and closed in one event loop."""

    def __init__(self, section_of: Callable[[str | None], CallbacksSection]) -> None:
        """`section_of` tells what holds for a client now."""
        self._section_of = section_of
        self._senders: dict[str | None, Callbacks] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def url(self, job: Job) -> str:
        """Return where a job's callback goes."""
        return self._sender(job).url(job)

    async def deliver(self, job: Job, outcome: Outcome, tried: Sequence[Attempt], age: float = 0.0) -> Attempt:
        """Try once; whatever happens is in the record. `age` is as in `Attempt`."""
        return await self._sender(job).deliver(job, outcome, tried, age)

    async def close(self) -> None:
        """Drop the connections."""
        senders, self._senders = self._senders, {}
        await asyncio.gather(*self._closing, *(sender.close() for sender in senders.values()))

    def _sender(self, job: Job) -> Callbacks:
        client = job.context.client
        section, sender = self._section_of(client), self._senders.get(client)
        if sender is None or sender.section != section:
            if sender is not None:
                closing = asyncio.create_task(sender.close_when_idle())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            sender = self._senders[client] = Callbacks(section)
            sender.open()
        return sender
