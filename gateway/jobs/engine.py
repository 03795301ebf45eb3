"""The engine: the jobs in this gateway's hands, and what happens to each of them, from its acceptance to its end.

It lives in the gateway's loop. Importing this module imports a database's driver, so only `gateway.jobs.durable` does,
when there is work.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import ConnectorBusy, ConnectorUnavailable, GatewayDraining
from gateway.jobs.callbacks import Callbacks
from gateway.jobs.cluster import PACE, Lease, Pace
from gateway.jobs.contract import (
    OPEN,
    Accepted,
    Health,
    Job,
    JobConflict,
    JobNotFound,
    JobStatus,
    JobsUnavailable,
    Lost,
    Outcome,
    Query,
    Run,
    State,
    StoreAway,
)
from gateway.jobs.hands import Hands, Held
from gateway.jobs.legacy import Legacy
from gateway.jobs.queue import Queue
from gateway.jobs.store import Store
from gateway.jobs.trouble import Trouble
from gateway.jobs.work import Work, interruption
from gateway.observe.events import JobAccepted, NodeLost
from gateway.units import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from gateway.jobs.database import Database
    from gateway.jobs.records import Row
    from gateway.jobs.settings import CallbacksSection, JobsSection
    from gateway.observe.events import Event

COUNT = 1000  # jobs of a dead gateway that are taken up at once
SIZE = 16 << 20  # bytes of their parameters
AGAIN = 1.0  # seconds until a store that failed is asked again for the jobs in it
SWEEP = 60.0  # seconds between two looks for what is too old
LOOK = 0.02  # seconds between looks whether the last run is recorded


class Engine:
    """A store, and the jobs in this gateway's hands."""

    def __init__(
        self,
        *,
        run: Run,
        folder: Path,
        jobs: JobsSection,
        callbacks: CallbacksSection,
        limit: Callable[[str], int],
        publish: Callable[[Event], None],
        patience: float,
        pace: Pace = PACE,
    ) -> None:
        self._settings = jobs
        self._publish = publish
        self._hands = Hands()
        self._queue: Queue[Held] = Queue(limit, lambda held: self._do(held, self._turn(held)))
        self._trouble = Trouble(publish)
        self._callbacks = Callbacks(callbacks)
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = 0
        self.node = f"gateway-{uuid.uuid4().hex[:12]}"  # never used again: a statement under it is fenced
        self._databases = _databases(jobs.database, folder)
        self.store = Store(self._databases[0], self.node, patience)
        self._legacy = Legacy(self.store)
        self._lease: Lease | None = None
        if jobs.database is not None:
            self._lease = Lease(
                Store(self._databases[1], self.node), pace=pace, trouble=self._trouble,
                beaten=self._look_for_cancelled, steady=self._take_over,
            )  # fmt: skip
        self._work = Work(
            run=run, store=self.store, lease=self._lease, callbacks=self._callbacks, trouble=self._trouble,
            publish=publish,
        )  # fmt: skip

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
            await self._legacy.move_open()
            self._left = await self.store.count_orphans() if self._lease is None else 0
        except BaseException as problem:
            await self._give_up()
            if isinstance(problem, StoreAway):
                raise JobsUnavailable(self._said(problem)) from problem
            raise
        self._callbacks.open()
        self._spawn(self._take_up_surely())
        self._spawn(self._sweep_for_ever())

    def drain(self) -> None:
        """Start no more runs; end the wait for slots, since who gets one now would not begin."""
        self._work.draining = True
        self._queue.close()
        for held in self._hands:
            if held.task is not None and held.state is State.WAITING and not held.runs:
                held.task.cancel()

    async def close(self, grace: float) -> None:
        """Let runs end for `grace` seconds, leave the rest as it is recorded, and give the store up."""
        self.drain()
        until = time.monotonic() + grace
        while time.monotonic() < until and any(held.runs for held in self._hands):  # noqa: ASYNC110 - they are many
            await asyncio.sleep(LOOK)
        doing = [held.task for held in self._hands if held.task is not None]
        for task in (*doing, *self._tasks):
            task.cancel()
        await asyncio.gather(*doing, *self._tasks, return_exceptions=True)
        await self._give_up()

    def health(self) -> Health:
        """Tell whether jobs can be accepted."""
        fault = self._trouble.reason
        return Health(
            ok=not fault, state="unavailable" if fault else "running", reason=fault,
            open=len(self._hands) + self._left, node=self.node,
        )  # fmt: skip

    # --- what is asked

    async def accept(self, job: Job, running: asyncio.Future[Outcome] | None = None) -> Accepted:
        """Commit a job and start it."""
        begun = time.monotonic()
        if self._work.draining:
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
        """Return the open job of the same task, if there is one, and join it."""
        with self._told():
            if await self.store.find_open(job, patience) is None:
                return None
            return await self._join(job)

    async def status(self, name: str) -> JobStatus:
        """Return all that is known of a job."""
        return (await self._row(name)).status()

    async def list(self, query: Query, limit: int, offset: int) -> list[JobStatus]:
        """Return jobs, the latest first."""
        with self._told():
            return [row.status() for row in await self.store.listed(query, limit, offset)]

    async def cancel(self, name: str) -> None:
        """Stop an open job. Whoever has it in its hands ends it, and tells its caller."""
        row = await self._row(name)
        with self._told():
            if await self.store.cancel(name) is None:
                raise JobConflict(f"job {name} is {row.state}")
        self._cancelled(name)

    async def retry(self, name: str, *, run: bool) -> str:
        """Deliver again, or run again as a new job."""
        row = await self._row(name)
        held = self._hands.get(name)
        if State(row.state) in OPEN:
            if run or held is None or held.state is not State.DELIVERING:
                raise JobConflict(f"job {name} is {row.state}")
            held.wake.set()
            return name
        job = row.read_job()
        if run:
            return (await self.accept(job)).id
        with self._told():
            try:
                again = await self.store.deliver_again(job)
            except StoreAway as problem:
                self._unsure(name, problem)
                raise
        if again is None:
            raise JobConflict(f"job {name} has nothing to deliver")
        self._go_on(again)
        return name

    async def purge(self, older_than: float, state: State | None) -> int:
        """Remove jobs that ended some time ago."""
        with self._told():
            return await self.store.purge(time.time() - older_than, state)

    # --- accepting

    async def _add(self, job: Job, running: asyncio.Future[Outcome] | None) -> Accepted:
        count, size = len(self._hands) + self._left, self._hands.size
        if count >= self._settings.backlog or size > self._settings.backlog_size:
            joined = await self._join(job) if job.context.task_id is not None else None
            if joined is None:
                raise ConnectorBusy(f"{count} jobs of {Size(size)} are open (jobs.backlog)", retry_after=30)
            return joined
        job = msgspec.structs.replace(job, id=uuid.uuid4().hex)
        held = Held(job, State.WAITING if running is None else State.RUNNING)
        held.adopted = running
        self._hands.take(held)
        try:
            while not await self.store.add(job, held.state, accepted=time.time()):
                joined = await self._join(job)
                if joined is not None:
                    self._hands.let_go(held)
                    return joined
        except StoreAway as problem:
            if problem.sent:
                self._spawn(self._withdraw(held))
            else:
                self._hands.let_go(held)
            raise
        self._start(held)
        return Accepted(id=job.id)

    async def _join(self, job: Job) -> Accepted | None:
        name = await self.store.join(job)
        return None if name is None else Accepted(id=name, joined=True)

    async def _withdraw(self, held: Held) -> None:
        """The caller was told 503. Should the job be committed all the same it must not run, unless somebody joined."""
        while True:
            with contextlib.suppress(StoreAway):
                if await self.store.withdraw(held.job.id):
                    self._hands.let_go(held)
                else:
                    self._start(held)
                return
            await asyncio.sleep(AGAIN)

    # --- a job's way

    def _start(self, held: Held) -> None:
        if held.adopted is not None:
            self._do(held, self._adopt(held))
        else:
            self._queue.put(held.job.connector, held.job.priority, held)

    def _go_on(self, row: Row) -> None:
        """Take a job up where its row says that it is."""
        held = Held(row.read_job(), State(row.state))
        held.interrupted, held.outcome, held.attempts = row.interrupted, row.read_outcome(), [*row.read_attempts()]
        self._hands.take(held)
        if held.cancelled:
            self._do(held, self._end(held, None))
        elif held.outcome is not None:
            self._do(held, self._deliver(held))
        elif (outcome := interruption(held, self._settings.max_interruptions)) is not None:
            self._do(held, self._deliver(held, outcome))
        else:
            self._start(held)

    async def _turn(self, held: Held) -> bool:
        try:
            outcome = await self._work.run(held)
            if outcome is None:
                return False
            await self._work.settle(held, outcome)
        finally:
            self._queue.leave(held.job.connector)
        return await self._deliver(held)

    async def _adopt(self, held: Held) -> bool:
        came_to = await self._work.once(held)
        if isinstance(came_to, Outcome):
            return await self._deliver(held, came_to)
        if isinstance(came_to, ConnectorBusy | ConnectorUnavailable):
            held.task = None
            self._start(held)
        return False

    async def _deliver(self, held: Held, outcome: Outcome | None = None) -> bool:
        if outcome is not None:
            await self._work.settle(held, outcome)
        await self._work.deliver(held)
        return True

    def _cancelled(self, name: str) -> None:
        """End a job that somebody has cancelled, if it is in our hands."""
        held = self._hands.get(name)
        if held is None or held.cancelled:
            return
        held.state = State.CANCELLED
        self._work.finished(held)
        if held.task is None:
            self._queue.remove(held)
        self._do(held, self._end(held, held.task))

    async def _end(self, held: Held, doing: asyncio.Task[bool] | None) -> bool:
        if doing is not None:
            doing.cancel()
            await asyncio.wait({doing})
        await self._work.tell_cancelled(held)
        return True

    def _do(self, held: Held, work: Coroutine[Any, Any, bool]) -> None:
        """Do something for a job; what it returns tells whether we are done with it."""
        held.task = asyncio.create_task(work)
        held.task.add_done_callback(functools.partial(self._done, held))

    def _done(self, held: Held, task: asyncio.Task[bool]) -> None:
        if task.cancelled():  # by a drain, or by whoever goes on with it
            return
        problem = task.exception()
        if held.task is not task:
            return
        if problem is not None and not isinstance(problem, Lost):
            self._work.fault(held, problem)
        if problem is not None or task.result():
            self._hands.let_go(held)
        if isinstance(problem, Lost):
            self._spawn(self._look_again(held.job.id))

    # --- what others left

    async def _take_up_surely(self) -> None:
        """Take up what earlier gateways left, and read what an earlier version recorded."""
        while True:
            with contextlib.suppress(StoreAway):
                await self._take_up()
                await self._legacy.move_ended()
                return
            await asyncio.sleep(AGAIN)

    async def _take_over(self) -> None:
        await self._legacy.move_again()
        for node, count in (await self._take_up()).items():
            self._publish(NodeLost(node=node, jobs=count))

    async def _take_up(self) -> Counter[str]:
        """Take the jobs of dead gateways into our hands, the oldest first; return how many each has left."""
        taken: Counter[str] = Counter()
        while not self._work.draining and (found := await self.store.orphans(COUNT)):
            owners = {name: owner for name, owner, _ in found}
            names = fitting([(name, size) for name, _, size in found], SIZE)
            try:
                rows = await self.store.take(names)
            except StoreAway as problem:
                for name in names:
                    self._unsure(name, problem)
                raise
            for row in sorted(rows, key=lambda row: row.accepted):
                self._go_on(row)
            self._left = max(0, self._left - len(rows))
            taken.update(owners[row.id] for row in rows)
        return taken

    def _unsure(self, name: str, problem: StoreAway) -> None:
        """Nobody knows whether a job came into our hands."""
        if problem.sent:
            self._spawn(self._look_again(name))

    async def _look_again(self, name: str) -> None:
        """Go on with a job if it is ours, and we do not know."""
        while True:
            with contextlib.suppress(StoreAway):
                row = await self.store.mine(name)
                if row is not None and self._hands.get(name) is None:
                    self._go_on(row)
                return
            await asyncio.sleep(AGAIN)

    async def _look_for_cancelled(self) -> None:
        for name in await self.store.cancelled():
            self._cancelled(name)

    # --- the store

    async def _row(self, name: str) -> Row:
        with self._told():
            row = await self.store.read(name)
        if row is None:
            raise JobNotFound(f"there is no job {name}")
        return row

    @contextlib.contextmanager
    def _told(self):  # type: ignore[no-untyped-def] # noqa: ANN202
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

    async def _sweep_for_ever(self) -> None:
        while True:
            with contextlib.suppress(StoreAway):  # others tell
                await self.sweep()
            await asyncio.sleep(SWEEP)

    async def sweep(self) -> int:
        """Remove what is too old and what is too much; return how many."""
        removed = await self.store.purge(time.time() - float(self._settings.keep))
        return removed + await self.store.purge_beyond(self._settings.keep_count)

    async def _give_up(self) -> None:
        await self._callbacks.close()
        if self._lease is not None:
            await self._lease.stop()
        for database in self._databases:
            await database.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _databases(url: str | None, folder: Path) -> Sequence[Database]:
    """Return the database; of a shared one a second way into it, for the lease alone."""
    if url is None:
        from gateway.jobs.sqlite import Sqlite  # noqa: PLC0415 - one of the drivers is needed

        return (Sqlite(folder / "jobs.sqlite"),)
    from gateway.jobs.postgres import Postgres  # noqa: PLC0415

    return Postgres(url), Postgres(url, connections=1)


def fitting(found: Sequence[tuple[str, int]], size: int) -> list[str]:
    """Return the first of those jobs, (id, size) each, that are no larger together; at least one."""
    names: list[str] = []
    for name, own in found:
        size -= own
        if names and size < 0:
            break
        names.append(name)
    return names
