"""How many jobs are open here and how large they are, over all and by client, and whether there is room for another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.errors import ConnectorBusy
from gateway.identity import DEFAULT
from gateway.jobs.records import size_of
from gateway.units import Size

if TYPE_CHECKING:
    from gateway.jobs.contract import Job
    from gateway.jobs.settings import JobsSection

AGAIN = 30  # seconds after which a refused caller may come again


class _Part(msgspec.Struct):
    count: int = 0
    size: int = 0


def client_of(job: Job) -> str:
    """Return whose a job is."""
    return job.context.client or DEFAULT


class Backlog:
    """Each accept asks for room: nothing is summed up for it.

    A backlog that is full still takes jobs of a client with less than its share, which is that of as many as have jobs
    here, until there is twice as much as may be: what was accepted before is not given up.
    """

    def __init__(self, settings: JobsSection) -> None:
        self.count = 0
        self.size = 0
        """Bytes of their parameters."""
        self._most = settings.backlog
        self._largest = settings.backlog_size
        self._parts: dict[str, _Part] = {}

    def add(self, job: Job) -> None:
        """Count a job."""
        self._count(job, 1)

    def remove(self, job: Job) -> None:
        """Count a job no more."""
        self._count(job, -1)

    def check(self, job: Job, left: int) -> None:
        """See whether there is room for a job beside those that are counted, and `left` more that are not.

        Raises:
            ConnectorBusy: there is none.
        """
        client = client_of(job)
        count, size = self.count + left, self.size
        if count < self._most and size <= self._largest:
            return
        own = self._parts.get(client, _Part())
        clients = len(self._parts.keys() | {client})
        has_less = own.count < self._most / clients and own.size < self._largest / clients
        if clients > 1 and has_less and count < 2 * self._most and size <= 2 * self._largest:
            return
        if job.context.client is not None:  # of others' jobs it is told nothing
            raise ConnectorBusy(
                f"the backlog is full, and {own.count} jobs of this client are open (jobs.backlog)", retry_after=AGAIN
            )
        raise ConnectorBusy(f"{count} jobs of {Size(size)} are open (jobs.backlog)", retry_after=AGAIN)

    # --- private

    def _count(self, job: Job, change: int) -> None:
        client = client_of(job)
        part = self._parts.setdefault(client, _Part())
        part.count += change
        part.size += change * size_of(job)
        self.count += change
        self.size += change * size_of(job)
        if not part.count:
            del self._parts[client]
