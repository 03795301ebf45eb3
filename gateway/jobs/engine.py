"""The engine: DBOS Transact. A job is one workflow; what it did is recorded step by step and never done again.

It lives in a thread and an event loop of its own and reaches into the gateway's loop for one thing: to run a command.
Importing this module imports DBOS, so only `gateway.jobs.service` does, when there is work.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import sqlite3
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowAttributes, SetWorkflowID
from dbos import error as dbos_error
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import ConnectorBusy, GatewayDraining
from gateway.jobs import pauses
from gateway.jobs.callbacks import Callbacks
from gateway.jobs.gate import Gate
from gateway.jobs.lease import PACE, Lease, Pace, said
from gateway.jobs.loops import LoopThread
from gateway.jobs.port import (
    OPEN,
    Accepted,
    Job,
    JobConflict,
    JobNotFound,
    JobStatus,
    JobsUnavailable,
    Outcome,
    Query,
    Run,
    State,
)
from gateway.jobs.quiet import quieten
from gateway.jobs.records import (
    ACTIVE,
    NOT_BEGUN,
    STATUSES,
    Summary,
    attempts_of,
    notice_of,
    outcomes,
    read_row,
    status_of,
    summary_of,
    text_of,
)
from gateway.jobs.recovery import Recovery
from gateway.jobs.retention import Retention
from gateway.jobs.store import SqliteStore
from gateway.jobs.work import Work, accepting
from gateway.observe.events import JobAccepted, NodeLost, StoreChanged
from gateway.units import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from dbos import StepInfo, WorkflowStatus

    from gateway.jobs.settings import CallbacksSection, JobsSection
    from gateway.observe.events import Event

# What a recorded job's next start has to understand. Change it only after every open job has ended: a job whose
# version nobody has is never run.
VERSION = "1"
AGAIN = 1.0  # seconds until a store that failed is asked again for the jobs in it
TROUBLE = 60.0  # seconds for which a store that failed is told to be unhealthy, unless it works again before
_ROWS = 200  # a page when a list is filtered here
_SCANNED = 5000  # rows that one filtered list looks at


class Engine:
    """DBOS, its store, and the jobs in this gateway's hands. One a process: DBOS is a singleton."""

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
        self._patience = patience
        self._gateway = asyncio.get_running_loop()
        self._thread = LoopThread("jobs")
        self._callbacks = Callbacks(callbacks)
        self._gate = Gate(limit)
        self._retention = Retention(float(jobs.keep), jobs.keep_count)
        self._sweeper: asyncio.Task[None] | None = None
        self._clock: pauses.Clock | None = None
        self._taking_over: threading.Thread | None = None
        self._fault = ""
        self._trouble = (0.0, "")
        self._recovery: Recovery | None = None
        self.node = f"gateway-{uuid.uuid4().hex[:12]}"  # never used again: nobody runs a dead node's jobs by chance
        if jobs.database is None:
            self._store: SqliteStore | None = SqliteStore(folder / "jobs.sqlite")
            self._lease: Lease | None = None
        else:
            self._store = None
            self._lease = Lease(
                jobs.database, self.node, pace=pace, take_over=self._take_over, changed=self._store_changed
            )

        self._work = Work(
            run=run, settings=jobs, callbacks=self._callbacks, gate=self._gate, lease=self._lease, tell=self._tell
        )

    # --- from the gateway's loop

    @property
    def open_jobs(self) -> int:
        """Return how many jobs are in this gateway's hands."""
        return self._work.live.open

    @property
    def fault(self) -> str:
        """Return what is wrong with the store, or nothing."""
        since, trouble = self._trouble
        return self._fault or (trouble if time.monotonic() - since < TROUBLE else "")

    async def open(self) -> None:
        """Take the store and start.

        Raises:
            JobsUnavailable: the store cannot be used.
        """
        await asyncio.to_thread(self._take_store)
        self._thread.start()
        try:
            await self._thread.call(self._launch())
        except BaseException as problem:
            await self._thread.stop()
            await asyncio.to_thread(self._destroy)
            if isinstance(problem, Exception):
                raise JobsUnavailable(f"the jobs' store cannot be used: {said(problem)}") from problem
            raise

    async def close(self, grace: float) -> bool:
        """Let runs end for `grace` seconds, leave the rest as it is recorded, and give the store up.

        Tell whether nothing is left: a thread whose statement the store does not answer cannot be stopped.
        """
        self.drain()
        until = time.monotonic() + grace
        # Polled: they change in another loop.
        while time.monotonic() < until and any(one.runs for one in list(self._work.live.values())):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await self._thread.call(self._quit())
        await asyncio.to_thread(self._destroy)
        await self._thread.stop()
        return await asyncio.to_thread(_threads_ended)

    def drain(self) -> None:
        """Start no more runs."""
        self._work.draining = True
        self._thread.post(self._gate.close)
        self._thread.post(self._work.hold_back)

    async def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something in the engine's loop.

        Raises:
            JobsUnavailable: the store does not answer.
        """
        try:
            return await self._thread.call(self._bounded(work))
        except (SQLAlchemyError, dbos_error.DBOSException) as problem:
            raise JobsUnavailable(self._failed(said(getattr(problem, "orig", None) or problem))) from problem

    def _failed(self, reason: str) -> str:
        """Note that the store failed; return what to tell."""
        if not self.fault:
            self._tell(StoreChanged(ok=False, reason=reason))
        self._trouble = (time.monotonic(), f"the jobs' store failed: {reason}")
        return self._trouble[1]

    async def _bounded(self, work: Coroutine[Any, Any, Any]) -> Any:
        if self._fault:
            work.close()
            raise JobsUnavailable(self._fault, retry_after=5)
        # For what only reads. `accept` minds the time itself: what it has begun cannot be taken back.
        task = asyncio.ensure_future(work)
        done, _ = await asyncio.wait({task}, timeout=2 * self._patience)
        if not done:
            raise JobsUnavailable(self._failed("it does not answer"), retry_after=5)
        return task.result()

    # --- start and end, in the engine's loop

    async def _launch(self) -> None:
        config: DBOSConfig = {
            "name": "gateway",
            "executor_id": self.node,
            "application_version": VERSION,
            "serializer": DBOSPortableJSONSerializer(),  # the default is pickle: whoever writes the store runs code
            "log_level": "ERROR",
            "sys_db_pool_size": 5,
            "max_executor_threads": 64,  # they sleep while the store is away
            "use_listen_notify": False,  # nothing waits for a message; pgbouncer works
            "notification_listener_polling_interval_sec": 0.25,  # asks nobody; closing waits for it
            "scheduler_polling_interval_sec": 3600.0,
        }
        if self._store is not None:
            config["system_database_url"] = self._store.url
        else:
            config["system_database_url"] = self._settings.database
            config["dbos_system_schema"] = "gateway_jobs"
            config["db_engine_kwargs"] = {"connect_args": {"options": "-c synchronous_commit=on"}}
        self._clock = pauses.bound()
        engine = DBOS(config=config)
        quieten(DBOS.logger)
        # Never counted by DBOS: a restart of the gateway is no fault of a job. What a run's crash costs is counted
        # by its "begin" steps.
        self._workflow = DBOS.workflow(name="job", max_recovery_attempts=None)(_workflow(self._work))
        self._notice = DBOS.workflow(name="notice", max_recovery_attempts=None)(_notice(self._work))
        DBOS.launch()
        self._clock.database = engine._sys_db  # noqa: SLF001
        self._callbacks.open()
        sqlalchemy_event.listen(engine._sys_db.engine, "handle_error", _hold_on)  # noqa: SLF001 - see _hold_on
        self._recovery = Recovery(engine._sys_db, self.node, VERSION, lambda: self._work.closing)  # noqa: SLF001
        if self._store is not None:
            left = await asyncio.to_thread(self._recovery.open_jobs)
            self._work.live.left = left.difference(self._work.live)
            if left:
                self._take_over(None)
        self._sweeper = asyncio.create_task(self._retention.sweep_for_ever())

    async def _quit(self) -> None:
        self._work.closing = True
        self._gate.close()
        tasks = [live.task for live in self._work.live.values() if live.task is not None]
        if self._sweeper is not None:
            tasks.append(self._sweeper)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._callbacks.close()

    def _take_store(self) -> None:
        if self._store is not None:
            self._store.open()
        if self._lease is not None:
            self._lease.join()
            self._lease.start()  # at once: a slow start must not look like a death

    def _destroy(self) -> None:
        if self._clock is not None:
            self._clock.end()
        DBOS.destroy(destroy_registry=True)
        if self._lease is not None:
            self._lease.leave()
        if self._store is not None:
            self._store.close()

    # --- the port's verbs, in the engine's loop

    async def accept(self, job: Job, running: asyncio.Future[Outcome] | None) -> Accepted:
        """Commit a job and start it."""
        begun = time.monotonic()
        if self._work.draining:
            raise GatewayDraining(retry_after=5)
        starting = asyncio.ensure_future(self._start(job, running))
        done, _ = await asyncio.wait({starting}, timeout=self._patience)
        if not done:
            self._withdraw(starting)
            raise JobsUnavailable(self._failed(f"it did not answer within {self._patience:g} s"), retry_after=5)
        accepted = starting.result()
        if self._trouble[1]:
            self._trouble = (0.0, "")
            self._tell(StoreChanged(ok=True))
        self._tell(
            JobAccepted(
                id=accepted.id, connector=job.connector, command=job.command, request_id=job.context.request_id,
                joined=accepted.joined, took=time.monotonic() - begun,
            )
        )  # fmt: skip
        return accepted

    async def find_open(self, job: Job) -> Accepted | None:
        """Return the open job of the same task, if there is one."""
        name, is_open = await _name_of(job)
        return await self._joined(name) if is_open else None

    async def status(self, name: str) -> JobStatus:
        """Return all that is known of a job."""
        row = await read_row(name)
        steps = await DBOS.list_workflow_steps_async(name)
        runs = outcomes(steps)
        attempts = attempts_of(steps)
        if row.status == "CANCELLED":
            attempts += attempts_of(await DBOS.list_workflow_steps_async(notice_of(name)))
        return msgspec.structs.replace(
            self._told(row, steps),
            outcome=next((one for one in runs if one is not None), None),
            attempts=tuple(attempts),
        )

    async def find(self, query: Query, limit: int, offset: int) -> list[JobStatus]:
        """Return jobs, the latest first."""
        found: list[JobStatus] = []
        for start in range(0, _SCANNED, _ROWS):
            rows = await DBOS.list_workflows_async(
                name="job",
                status=STATUSES.get(query.state),
                sort_desc=True,
                limit=_ROWS,
                offset=start,
                load_input=False,
            )
            for row in rows:
                if not query.fits(summary_of(row)):
                    continue
                steps = None
                if row.status in ACTIVE and row.workflow_id not in self._work.live:
                    steps = await DBOS.list_workflow_steps_async(row.workflow_id)
                status = self._told(row, steps)
                if query.state in {None, status.state}:
                    found.append(status)
            if len(found) >= offset + limit or len(rows) < _ROWS:
                break
        return found[offset : offset + limit]

    async def cancel(self, name: str, *, tell: bool) -> None:
        """Stop an open job."""
        status = await self.status(name)
        if status.state not in OPEN:
            raise JobConflict(f"job {name} is {status.state.value}")
        if tell and status.callback and status.outcome is None:
            row = await read_row(name, load_input=True)
            # Recorded first: when this gateway dies now, the caller is told all the same.
            with SetWorkflowID(notice_of(name)):
                await DBOS.start_workflow_async(self._notice, text_of(row))
        await DBOS.cancel_workflow_async(name)
        self._work.live.left.discard(name)
        if name in self._work.live:
            self._work.live[name].cancel()

    async def retry(self, name: str, *, run: bool) -> str:
        """Deliver again, or run again as a new job."""
        status = await self.status(name)
        if status.state in OPEN:
            live = self._work.live.get(name)
            if run or live is None or live.state is not State.DELIVERING:
                raise JobConflict(f"job {name} is {status.state.value}")
            live.wake.set()
            return name
        if run:
            row = await read_row(name, load_input=True)
            return (await self.accept(msgspec.json.decode(text_of(row), type=Job), None)).id
        steps = await DBOS.list_workflow_steps_async(name)
        recorded = [
            one["function_id"]
            for one in steps
            if one["function_name"] == "run" and one["output"] and one["output"] != NOT_BEGUN
        ]
        if not recorded or not status.callback:
            raise JobConflict(f"job {name} has nothing to deliver")
        await DBOS.rewind_workflow_async(name, start_step=recorded[-1] + 1)
        return name

    async def purge(self, older_than: float, state: State | None) -> int:
        """Remove jobs that ended some time ago."""

        def wanted(row: WorkflowStatus) -> bool:
            if row.name != "job":  # a notice, which goes with the job that was cancelled
                return state in {None, State.CANCELLED}
            return state is None or status_of(row, None).state is state

        return await self._retention.purge(older_than, wanted)

    # --- accepting

    async def _start(self, job: Job, running: asyncio.Future[Outcome] | None) -> Accepted:
        accepting.set(True)
        name, is_open = await _name_of(job)
        if is_open:
            return await self._joined(name)
        hands = self._work.live
        if hands.open >= self._settings.backlog or hands.size > self._settings.backlog_size:
            raise ConnectorBusy(f"{hands.open} jobs of {Size(hands.size)} are open (jobs.backlog)", retry_after=30)
        job = msgspec.structs.replace(job, id=name)
        live = hands.take(name, job)
        token = uuid.uuid4().hex if running is not None else ""
        if running is not None:
            self._work.adopted[token] = running
        try:
            with (
                SetWorkflowAttributes(msgspec.to_builtins(Summary.of(job))),
                SetWorkflowID(name, workflow_id_reuse_policy="reject"),
            ):
                await DBOS.start_workflow_async(self._workflow, msgspec.json.encode(job).decode(), token)
        except BaseException as problem:
            self._work.adopted.pop(token, None)
            if live.task is None:
                hands.let_go(name, live)
            if isinstance(problem, dbos_error.DBOSWorkflowIDInUseError):  # another request was faster
                return await self._joined(name)
            raise
        return Accepted(id=name)

    async def _joined(self, name: str) -> Accepted:
        """Join an open job, also one whose own caller was told 503 before it was committed."""
        live = self._work.live.get(name)
        if live is None and self._lease is not None:  # another gateway's, which may be about to withdraw it
            try:
                verdict = await asyncio.to_thread(self._lease.verdict, name, "joined")
            except psycopg.Error as problem:
                raise JobsUnavailable(f"the jobs' database does not answer: {problem}", retry_after=5) from problem
            if verdict == "withdrawn":
                raise JobsUnavailable("a job of the same task is being withdrawn", retry_after=1)
        if live is not None and live.withdrawn:
            raise JobsUnavailable("a job of the same task is being withdrawn", retry_after=1)
        if live is not None:
            live.wanted = True
        self._work.abandoned.discard(name)
        return Accepted(id=name, joined=True)

    def _withdraw(self, starting: asyncio.Future[Accepted]) -> None:
        """The caller was told 503. Should the commit still happen, the job must not run."""

        def late(done: asyncio.Future[Accepted]) -> None:
            if not done.cancelled() and done.exception() is None and not done.result().joined:
                live = self._work.live.get(done.result().id)
                if live is not None and not live.wanted:
                    self._work.abandoned.add(done.result().id)

        starting.add_done_callback(late)

    def _told(self, row: WorkflowStatus, steps: list[StepInfo] | None) -> JobStatus:
        live = self._work.live.get(row.workflow_id)
        return status_of(row, steps) if live is None else status_of(row, steps, live.state, live.interrupted)

    # --- the world

    def _tell(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the gateway's loop is closed
            self._gateway.call_soon_threadsafe(self._publish, event)

    def _store_changed(self, ok: bool, reason: str) -> None:  # noqa: FBT001 - as the lease calls it
        self._fault = "" if ok else reason
        self._trouble = (0.0, "")
        self._tell(StoreChanged(ok=ok, reason=reason))

    def _take_over(self, nodes: list[str] | None) -> None:
        """Take up what dead gateways left, with a file what all earlier ones left.

        Not in the lease's own thread, which must go on beating when the store goes.
        """
        recovery = self._recovery
        if recovery is None or (self._taking_over is not None and self._taking_over.is_alive()):
            return

        def take_over() -> None:
            for node in nodes or ():
                with contextlib.suppress(SQLAlchemyError):  # they are found again
                    self._tell(NodeLost(node=node, jobs=recovery.take_up([node])))

        def take_up() -> None:
            pause = threading.Event()
            while not self._work.closing:
                with contextlib.suppress(SQLAlchemyError):
                    recovery.take_up(None)
                    break
                pause.wait(AGAIN)

        what = take_up if nodes is None else take_over
        self._taking_over = threading.Thread(target=what, name="jobs-take-over", daemon=True)
        self._taking_over.start()


def _workflow(work: Work) -> Callable[[str, str], Coroutine[Any, Any, str]]:
    async def job(text: str, adopted: str) -> str:
        return await work.do(text, adopted)

    return job


def _notice(work: Work) -> Callable[[str], Coroutine[Any, Any, None]]:
    async def notice(text: str) -> None:
        await work.tell_cancelled(text)

    return notice


def _hold_on(context: Any) -> None:
    """Make the engine wait, rather than fail a job, when its store cannot be written for now.

    DBOS repeats a statement whose connection was lost, for as long as it takes, and fails a workflow on any other
    error: a full disk would cost a job its result. Only whoever accepts a job wants to know at once.
    """
    problem = context.original_exception
    passing = isinstance(problem, sqlite3.OperationalError) or type(problem) is sqlite3.DatabaseError
    if getattr(problem, "sqlstate", None) == "25006":  # a read-only standby, in the middle of a failover
        passing = True
    if passing and not accepting.get():
        context.is_disconnect = True


def _threads_ended() -> bool:
    """Give DBOS's threads a moment to end."""
    until = time.monotonic() + 1.0
    for thread in threading.enumerate():
        if thread.name.startswith("dbos-executor-"):
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                return False
    return True


async def _name_of(job: Job) -> tuple[str, bool]:
    """Return a job's id, and whether it is open already: the same task has one open job."""
    if job.context.task_id is None:
        return uuid.uuid4().hex, False
    known = f"{job.context.client}\0{job.context.task_id}\0{job.connector}\0{job.command}"
    base = hashlib.sha256(known.encode()).hexdigest()[:24]
    for number in itertools.count():
        name = f"{base}-{number}"
        try:
            row = await read_row(name)
        except JobNotFound:
            return name, False
        if row.status in ACTIVE:
            return name, True
    raise AssertionError("unreachable")
