"""The engine: a store, the jobs in this gateway's hands, and the verbs for them.

It lives in the gateway's loop. Importing this module imports no driver; making an engine imports the one that it needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from typing import TYPE_CHECKING

import msgspec

from gateway.errors import ConnectorBusy, GatewayDraining
from gateway.jobs.cluster import PACE, Lease, Pace
from gateway.jobs.contract import (
    OPEN,
    Accepted,
    Execute,
    Health,
    Job,
    JobConflict,
    JobNotFound,
    JobState,
    JobStatus,
    JobsUnavailable,
    Outcome,
    Query,
    StoreAway,
)
from gateway.jobs.deliveries import Deliveries
from gateway.jobs.futures import Tasks
from gateway.jobs.hands import Hands
from gateway.jobs.held import Held
from gateway.jobs.recovery import Recovery
from gateway.jobs.retention import sweep_for_ever, watch_for_ever
from gateway.jobs.sealed import NO_KEY, Sealing
from gateway.jobs.store import Store
from gateway.jobs.trouble import Trouble
from gateway.jobs.work import Work
from gateway.observe.events import JobAccepted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gateway.calls.quotas import Quotas
    from gateway.jobs.database import Database
    from gateway.jobs.records import Row
    from gateway.jobs.settings import CallbacksSection, JobsSection
    from gateway.observe.events import Event
    from gateway.observe.tracing import Tracing

BEAT = 3.0  # seconds for the store to take a beat
LOOK = 0.02  # seconds between looks whether the last run is recorded


class Engine:
    """It runs from `open` to `close`."""

    def __init__(
        self,
        *,
        run: Execute,
        folder: Path,
        jobs: JobsSection,
        callbacks: Callable[[str | None], CallbacksSection],
        limit: Callable[[str], int],
        quotas: Quotas,
        publish: Callable[[Event], None],
        patience: float,
        pace: Pace = PACE,
        tracing: Tracing | None = None,
    ) -> None:
        self._settings = jobs
        self._publish = publish
        self._trouble = Trouble(publish)
        self._callbacks = Deliveries(callbacks)
        self._tasks = Tasks()
        self._databases = _databases(jobs.database, folder)
        self.node = f"gateway-{uuid.uuid4().hex[:12]}"  # never used again: a statement under it is fenced
        self.store = Store(self._databases[0], self.node, patience, Sealing(jobs.keys))
        self._recovery = Recovery(self.store, publish)
        self._lease: Lease | None = None
        if jobs.database is not None:
            self._lease = Lease(
                Store(self._databases[1], self.node, BEAT), pace=pace, trouble=self._trouble,
                beaten=self._recovery.end_cancelled, steady=self._recovery.take_over,
            )  # fmt: skip
        work = Work(
            run=run, store=self.store, lease=self._lease, callbacks=self._callbacks, trouble=self._trouble,
            publish=publish, tracing=tracing,
        )  # fmt: skip
        self.hands = Hands(work, limit=limit, settings=jobs, quotas=quotas, lost=self._recovery.look_again)
        self._recovery.hands = self.hands

    async def open(self) -> None:
        """Take the store and start.

        Raises:
            JobsUnavailable: the store cannot be used.
        """
        try:
            for database in self._databases:
                await database.open()
            await self.store.migrate()
            await (self.store.enter() if self._lease is None else self._lease.start())
            await self.store.start_clock()
            await self._recovery.look(alone=self._lease is None)
        except StoreAway as problem:
            await self._give_up()
            raise JobsUnavailable(self._said(problem)) from problem
        except BaseException:
            await self._give_up()
            raise
        self._recovery.begin()
        self._tasks.begin(sweep_for_ever(self.store, self._settings))
        self._tasks.begin(watch_for_ever(self.store.clock, self._publish))

    def drain(self) -> None:
        """Start no more runs."""
        self.hands.drain()

    async def close(self, grace: float) -> None:
        """Let runs end for `grace` seconds, leave the rest as it is recorded, and give the store up."""
        self.hands.drain()
        until = time.monotonic() + grace
        while time.monotonic() < until and self.hands.running:  # noqa: ASYNC110 - they are many
            await asyncio.sleep(LOOK)
        await self._give_up()

    def health(self) -> Health:
        """Tell whether jobs can be accepted."""
        fault = self._trouble.reason
        return Health(
            ok=not fault, state="unavailable" if fault else "running", reason=fault, open=self._open, node=self.node
        )

    # --- the verbs

    async def accept(self, job: Job, running: asyncio.Future[Outcome] | None = None) -> Accepted:
        """Commit a job and start it."""
        begun = time.monotonic()
        if self.hands.draining:
            raise GatewayDraining(retry_after=5)
        with self._told():
            accepted = await self._add(job, running)
        self._trouble.worked()
        self._publish(
            JobAccepted(
                id=accepted.id, connector=job.connector, command=job.command, request_id=job.context.request_id,
                joined=accepted.joined, took=time.monotonic() - begun,
            )
        )  # fmt: skip
        return accepted

    async def find_open(self, job: Job, patience: float) -> Accepted | None:
        """Join the open job of the same task, if there is one."""
        with self._told():
            return None if await self.store.find_open(job, patience) is None else await self._join(job)

    async def status(self, name: str) -> JobStatus:
        """Return all that is known of a job."""
        return (await self._row(name)).status()

    async def list(self, query: Query, limit: int, offset: int) -> list[JobStatus]:
        """Return jobs, the latest first."""
        with self._told():
            return [row.status() for row in await self.store.listed(query, limit, offset)]

    async def count_dead(self) -> dict[str | None, int]:
        """Return how many dead letters there are, by client."""
        with self._told():
            return await self.store.count_dead()

    async def cancel(self, name: str) -> None:
        """Stop an open job. Whoever has it in its hands ends it, and tells its caller."""
        row = await self._row(name)
        with self._told():
            if await self.store.cancel(name) is None:
                raise JobConflict(f"job {name} is {row.state}")
        self.hands.cancel(name)

    async def retry(self, name: str, *, run: bool) -> str:
        """Deliver again, or run again as a new job."""
        row = await self._row(name)
        if JobState(row.state) in OPEN:
            if run or not self.hands.hurry(name):
                raise JobConflict(f"job {name} is {row.state}")
            return name
        if set(row.unreadable) & ({"params", "task_data"} if run else {"outcome"}):
            raise JobConflict(f"job {name} cannot be done again: {NO_KEY}")
        job = row.read_job()
        if run:
            return (await self.accept(job)).id
        with self._told():
            try:
                again = await self.store.deliver_again(job)
            except StoreAway:
                self._recovery.look_again(name)
                raise
        if again is None:
            raise JobConflict(f"job {name} has nothing to deliver")
        self.hands.go_on(again)
        return name

    async def count_ended(self, older_than: float, state: JobState | None, most: int) -> int:
        """Count the jobs that `purge` would remove, at most so many."""
        with self._told():
            return await self.store.count_ended(older_than, state, most)

    async def purge(self, older_than: float, state: JobState | None) -> int:
        """Remove jobs that ended some time ago."""
        with self._told():
            return await self.store.purge(older_than, state)

    # --- private

    @property
    def _open(self) -> int:
        return len(self.hands) + self._recovery.left

    async def _add(self, job: Job, running: asyncio.Future[Outcome] | None) -> Accepted:
        try:
            self.hands.backlog.check(job, self._recovery.left)
        except ConnectorBusy:
            joined = await self._join(job) if job.context.task_id is not None else None
            if joined is None:
                raise
            return joined
        job = msgspec.structs.replace(job, id=uuid.uuid4().hex)
        held = Held(job, JobState.WAITING if running is None else JobState.RUNNING, running)
        self.hands.take(held)
        try:
            while not await self.store.add(job, held.state, accepted=time.time()):
                joined = await self._join(job)
                if joined is not None:
                    self.hands.let_go(held)
                    return joined
        except StoreAway as problem:
            if problem.sent:
                self._recovery.withdraw(held)
            else:
                self.hands.let_go(held)
            raise
        except Exception:  # it cannot be held, say: nothing was done
            self.hands.let_go(held)
            raise
        self.hands.start(held)
        return Accepted(id=job.id)

    async def _join(self, job: Job) -> Accepted | None:
        name = await self.store.join(job)
        return None if name is None else Accepted(id=name, joined=True)

    async def _row(self, name: str) -> Row:
        with self._told():
            row = await self.store.read(name)
        if row is None:
            raise JobNotFound(f"there is no job {name}")
        return row

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Tell whoever asks what is wrong with the store, at once when that is known."""
        if self._lease is not None and self._lease.away:
            raise JobsUnavailable(self._lease.away, retry_after=5)
        try:
            yield
        except StoreAway as problem:
            self._trouble.failed(f"the jobs' store failed: {problem.reason}")
            raise JobsUnavailable(self._trouble.reason, retry_after=5) from problem

    def _said(self, problem: StoreAway) -> str:
        if problem.reason.startswith("the jobs' "):
            return problem.reason
        where = "the jobs' store cannot be used" if self._lease is None else "the jobs' database does not answer"
        return f"{where}: {problem.reason}"

    async def _give_up(self) -> None:
        """End everything, and leave the store to others."""
        await self.hands.end()
        for part in (self._recovery, self._tasks):
            await part.end()
        await self._callbacks.close()
        if self._lease is not None:
            await self._lease.stop()
        for database in self._databases:
            await database.close()


def _databases(url: str | None, folder: Path) -> Sequence[Database]:
    """Return the database; of a shared one a second way into it, for the lease alone."""
    if url is None:
        from gateway.jobs.sqlite import Sqlite  # noqa: PLC0415 - one of the drivers is needed

        return (Sqlite(folder / "jobs.sqlite"),)
    from gateway.jobs.postgres import Postgres  # noqa: PLC0415

    return Postgres(url), Postgres(url, connections=1)
