"""Removes jobs that ended, by age and by number. DBOS keeps everything for ever."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from typing import TYPE_CHECKING

from dbos import DBOS
from dbos import error as dbos_error
from sqlalchemy.exc import SQLAlchemyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbos import WorkflowStatus

SWEEP = 60.0  # seconds between two sweeps
ENDED = ["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
_BATCH = 200


class Retention:
    """What is kept: `age` seconds after its end, `count` at most."""

    def __init__(self, age: float, count: int) -> None:
        self._age = age
        self._count = count

    async def sweep_for_ever(self) -> None:
        """Sweep now and then."""
        while True:
            with contextlib.suppress(SQLAlchemyError, dbos_error.DBOSException):  # the store is away, others tell
                await self.sweep()
            await asyncio.sleep(SWEEP)

    async def sweep(self) -> int:
        """Remove what is too old and what is too much; return how many."""
        before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=self._age)
        removed = 0
        while old := await DBOS.list_workflows_async(
            status=ENDED, completed_before=before.isoformat(), limit=_BATCH, load_input=False, load_output=False
        ):
            gone = len(await self._remove(old))
            removed += gone
            if not gone:
                break
        while more := await DBOS.list_workflows_async(
            status=ENDED, sort_desc=True, offset=self._count, limit=_BATCH, load_input=False, load_output=False
        ):
            gone = len(await self._remove(more))
            removed += gone
            if not gone:
                break
        return removed

    async def purge(self, age: float, wanted: Callable[[WorkflowStatus], bool]) -> int:
        """Remove what ended more than `age` seconds ago and is wanted so; return how many jobs."""
        before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)
        removed = kept = 0
        # The latest first: a task's jobs go from the last to the first.
        while rows := await DBOS.list_workflows_async(
            status=ENDED, completed_before=before.isoformat(), sort_desc=True, offset=kept, limit=_BATCH,
            load_input=False, load_output=False,
        ):  # fmt: skip
            doomed = await self._remove([row for row in rows if wanted(row)])
            removed += sum(row.name == "job" and row.workflow_id in doomed for row in rows)
            kept += len(rows) - len(doomed)
        return removed

    async def _remove(self, rows: list[WorkflowStatus]) -> set[str]:
        names = [row.workflow_id for row in rows]
        successors = [_successor(name) for name in names if _successor(name)]
        # A task's jobs are numbered, and an open one is found by counting from the first: none goes before the last.
        following = await DBOS.list_workflows_async(
            workflow_ids=successors or ["-"], load_input=False, load_output=False
        )
        there = {row.workflow_id for row in following}
        doomed: set[str] = set()
        for name in sorted(names, key=_number, reverse=True):
            if _successor(name) not in there - doomed:
                doomed.add(name)
        if doomed:
            await DBOS.delete_workflows_async(list(doomed))
        return doomed


def _number(name: str) -> int:
    number = name.rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def _successor(name: str) -> str:
    base, dash, number = name.rpartition("-")
    return f"{base}-{int(number) + 1}" if dash and number.isdigit() else ""
