"""Takes up the jobs that gateways left which are dead now.

Their rows are put into the queue that the engine looks at each second. DBOS does the same with a commit a job, and
with all of them at once in memory; here a commit is for many, the oldest first, and the next wait until those are
taken up.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy
from dbos._utils import INTERNAL_QUEUE_NAME as QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dbos._sys_db import SystemDatabase
    from sqlalchemy import ColumnElement

COUNT = 1000  # jobs
SIZE = 16 << 20  # bytes of their parameters
_LOOK = 0.05  # seconds between looks whether they are taken up


class Found(NamedTuple):
    """A job, and the bytes that it is recorded in."""

    name: str
    size: int


class Recovery:
    """It blocks: it runs in threads. Where `nodes` is None, everybody but `node`, this gateway, is dead."""

    def __init__(self, database: SystemDatabase, node: str, version: str, stopped: Callable[[], bool]) -> None:
        self._engine = database.engine
        self._jobs = database.tables.workflow_status
        self._node = node
        self._version = version
        self._stopped = stopped
        self._pause = threading.Event()

    def open_jobs(self) -> set[str]:
        """Return the names of all jobs that have not ended, in a store that nobody else uses."""
        columns = self._jobs.c
        query = sqlalchemy.select(columns.workflow_uuid).where(
            columns.status.in_(("PENDING", "ENQUEUED")), columns.application_version == self._version
        )
        with self._engine.begin() as connection:
            return set(connection.execute(query).scalars())

    def take_up(self, nodes: Sequence[str] | None) -> int:
        """Queue the jobs of dead gateways; return how many. What another takes up at the same time is not counted."""
        taken = 0
        while not self._stopped():
            batch = self._oldest(nodes)
            if not batch:
                break
            taken += self._queue(batch, nodes)
            while not self._stopped() and self._queued():
                self._pause.wait(_LOOK)
        return taken

    def _oldest(self, nodes: Sequence[str] | None) -> list[str]:
        columns = self._jobs.c
        query = (
            sqlalchemy.select(
                columns.workflow_uuid, sqlalchemy.func.coalesce(sqlalchemy.func.length(columns.inputs), 0)
            )
            .where(*self._left_by(nodes))
            .order_by(columns.created_at)
            .limit(COUNT)
        )
        with self._engine.begin() as connection:
            return fitting([Found(*row) for row in connection.execute(query)], SIZE)

    def _queue(self, names: Sequence[str], nodes: Sequence[str] | None) -> int:
        columns = self._jobs.c
        change = (
            sqlalchemy.update(self._jobs)
            .where(columns.workflow_uuid.in_(names), *self._left_by(nodes))
            .values(
                status="ENQUEUED",
                owner_xid=None,
                started_at_epoch_ms=None,
                queue_name=sqlalchemy.func.coalesce(columns.queue_name, QUEUE),
            )
        )
        with self._engine.begin() as connection:
            return connection.execute(change).rowcount

    def _queued(self) -> bool:
        columns = self._jobs.c
        query = sqlalchemy.select(columns.workflow_uuid).where(
            columns.queue_name == QUEUE, columns.status == "ENQUEUED", columns.application_version == self._version
        )
        with self._engine.begin() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def _left_by(self, nodes: Sequence[str] | None) -> list[ColumnElement[bool]]:
        columns = self._jobs.c
        return [
            columns.status == "PENDING",
            columns.executor_id != self._node if nodes is None else columns.executor_id.in_(nodes),
            columns.application_version == self._version,
        ]


def fitting(found: Sequence[Found], size: int) -> list[str]:
    """Return the first of those jobs that are no larger together; at least one."""
    names: list[str] = []
    for one in found:
        size -= one.size
        if names and size < 0:
            break
        names.append(one.name)
    return names
