"""The engine: DBOS Transact. A job is one workflow; what it did is recorded step by step and never done again.

    begin, run        once, or again after a crash when the job is idempotent
    callback ...      one step a try

It lives in a thread and an event loop of its own and reaches into the gateway's loop for one thing: to run a command.
Importing this module imports DBOS, so only `gateway.jobs.service` does, when there is work.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import itertools
import random
import sqlite3
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowAttributes, SetWorkflowID, StepOptions
from dbos import error as dbos_error
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import ConnectorBusy, ConnectorUnavailable, GatewayDraining, GatewayError
from gateway.jobs.callbacks import Callbacks
from gateway.jobs.gate import Gate
from gateway.jobs.lease import PACE, Lease, Pace, said
from gateway.jobs.loops import Gone, LoopThread, across
from gateway.jobs.port import (
    CANCELLED,
    FAILED,
    INTERRUPTED,
    OPEN,
    Accepted,
    Attempt,
    CallbackTried,
    Job,
    JobAccepted,
    JobConflict,
    JobFinished,
    JobNotFound,
    JobRan,
    JobStatus,
    JobsUnavailable,
    NodeLost,
    Outcome,
    Run,
    State,
    StoreChanged,
    Verdict,
    told,
)
from gateway.jobs.quiet import quieten
from gateway.jobs.retention import Retention
from gateway.jobs.store import SqliteStore
from gateway.units import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from dbos import StepInfo, WorkflowStatus

    from gateway.events import Event
    from gateway.jobs.settings import CallbacksSection, JobsSection

# What a recorded job's next start has to understand. Change it only after every open job has ended: a job whose
# version nobody has is never run.
VERSION = "1"
TROUBLE = 60.0  # seconds for which a store that failed is told to be unhealthy, unless it works again before
UNAVAILABLE = 300.0  # seconds that a job waits for a connector that cannot be served
SLOT_POLL = 0.5  # seconds between looks for a slot that other gateways hold
ACTIVE = ["PENDING", "ENQUEUED", "DELAYED"]
_ROWS = 200  # a page when a list is filtered here
_SCANNED = 5000  # rows that one filtered list looks at

_accepting: contextvars.ContextVar[bool] = contextvars.ContextVar("jobs_accepting", default=False)


class DeadLetter(Exception):
    """A callback was given up. Recorded, its message is the reason."""


class _Summary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What lists show of a job, kept beside its (large) input."""

    connector: str
    command: str
    request_id: str
    client: str | None = None
    task_id: str | None = None
    callback: bool = False


class _Live:
    """A job in this gateway's hands."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.size = len(job.params) + len(job.task_data)
        self.state = State.WAITING
        self.interrupted = 0
        self.cancelled = False
        self.wake = asyncio.Event()
        self.turn: asyncio.Future[None] | None = None
        self.task: asyncio.Task[Any] | None = None
        self.placed = False
        self.slotted = False

    def cancel(self) -> None:
        """Stop waiting for whatever it is: the next step finds the cancellation."""
        self.cancelled = True
        self.wake.set()
        if self.turn is not None:
            self.turn.cancel()


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
        self._run = run
        self._settings = jobs
        self._publish = publish
        self._patience = patience
        self._gateway = asyncio.get_running_loop()
        self._thread = LoopThread("jobs")
        self._callbacks = Callbacks(callbacks)
        self._gate = Gate(limit)
        self._live: dict[str, _Live] = {}
        self._adopted: dict[str, asyncio.Future[Outcome]] = {}
        self._abandoned: set[str] = set()
        self._draining = self._closing = self._launched = False
        self._retention = Retention(float(jobs.keep), jobs.keep_count)
        self._sweeper: asyncio.Task[None] | None = None
        self._taking_over: threading.Thread | None = None
        self._fault = ""
        self._trouble = (0.0, "")
        if jobs.database is None:
            self.node = "gateway"  # the next start of this file's one gateway takes up what this one leaves
            self._store: SqliteStore | None = SqliteStore(folder / "jobs.sqlite")
            self._lease: Lease | None = None
        else:
            self.node = f"gateway-{uuid.uuid4().hex[:12]}"  # never used again: nobody runs a dead node's jobs by chance
            self._store = None
            self._lease = Lease(
                jobs.database, self.node, pace=pace, take_over=self._take_over, changed=self._store_changed
            )

    # --- from the gateway's loop

    @property
    def open_jobs(self) -> int:
        """Return how many jobs are in this gateway's hands."""
        return len(self._live)

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

        Tell whether nothing is left: a thread that waits for the store cannot be stopped.
        """
        self.drain()
        until = time.monotonic() + grace
        # Polled: they change in another loop.
        while time.monotonic() < until and any(one.state is State.RUNNING for one in list(self._live.values())):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await self._thread.call(self._quit())
        await asyncio.to_thread(self._destroy)
        await self._thread.stop()
        return await asyncio.to_thread(_threads_ended)

    def drain(self) -> None:
        """Start no more runs."""
        self._draining = True
        self._thread.post(self._gate.close)

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
        engine = DBOS(config=config)
        quieten(DBOS.logger)
        # Never counted by DBOS: a restart of the gateway is no fault of a job. What a run's crash costs is counted
        # by its "begin" steps.
        self._workflow = DBOS.workflow(name="job", max_recovery_attempts=None)(self._make_workflow())
        self._notice = DBOS.workflow(name="notice", max_recovery_attempts=None)(self._make_notice())
        self._callbacks.open()
        DBOS.launch()
        sqlalchemy_event.listen(engine._sys_db.engine, "handle_error", _hold_on)  # noqa: SLF001 - see _hold_on
        self._sweeper = asyncio.create_task(self._retention.sweep_for_ever())
        self._launched = True

    async def _quit(self) -> None:
        self._closing = True
        self._gate.close()
        tasks = [live.task for live in self._live.values() if live.task is not None]
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
        DBOS.destroy(destroy_registry=True)
        if self._lease is not None:
            self._lease.leave()
        if self._store is not None:
            self._store.close()

    # --- the port's verbs, in the engine's loop

    async def accept(self, job: Job, running: asyncio.Future[Outcome] | None) -> Accepted:
        """Commit a job and start it."""
        begun = time.monotonic()
        if self._draining:
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

    async def status(self, name: str) -> JobStatus:
        """Return all that is known of a job."""
        row = await self._row(name)
        steps = await DBOS.list_workflow_steps_async(name)
        runs = _outcomes(steps)
        attempts = _attempts(steps)
        if row.status == "CANCELLED":
            attempts += _attempts(await DBOS.list_workflow_steps_async(_notice_of(name)))
        return msgspec.structs.replace(
            self._status(row, steps),
            outcome=next((one for one in runs if one is not None), None),
            attempts=tuple(attempts),
        )

    async def find(self, state: State | None, connector: str | None, limit: int, offset: int) -> list[JobStatus]:
        """Return jobs, the latest first."""
        found: list[JobStatus] = []
        for start in range(0, _SCANNED, _ROWS):
            rows = await DBOS.list_workflows_async(
                name="job", status=_STATUSES.get(state), sort_desc=True, limit=_ROWS, offset=start, load_input=False
            )
            for row in rows:
                if connector is not None and _summary(row).connector != connector:
                    continue
                steps = None
                if row.status in ACTIVE and row.workflow_id not in self._live:
                    steps = await DBOS.list_workflow_steps_async(row.workflow_id)
                status = self._status(row, steps)
                if state in {None, status.state}:
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
            row = await self._row(name, load_input=True)
            # Recorded first: when this gateway dies now, the caller is told all the same.
            with SetWorkflowID(_notice_of(name)):
                await DBOS.start_workflow_async(self._notice, _text(row))
        await DBOS.cancel_workflow_async(name)
        if name in self._live:
            self._live[name].cancel()

    async def retry(self, name: str, *, run: bool) -> str:
        """Deliver again, or run again as a new job."""
        status = await self.status(name)
        if status.state in OPEN:
            live = self._live.get(name)
            if run or live is None or live.state is not State.DELIVERING:
                raise JobConflict(f"job {name} is {status.state.value}")
            live.wake.set()
            return name
        if run:
            row = await self._row(name, load_input=True)
            return (await self.accept(msgspec.json.decode(_text(row), type=Job), None)).id
        steps = await DBOS.list_workflow_steps_async(name)
        recorded = [one["function_id"] for one in steps if one["function_name"] == "run" and one["output"]]
        if not recorded or not status.callback:
            raise JobConflict(f"job {name} has nothing to deliver")
        await DBOS.rewind_workflow_async(name, start_step=recorded[-1] + 1)
        return name

    # --- accepting

    async def _start(self, job: Job, running: asyncio.Future[Outcome] | None) -> Accepted:
        _accepting.set(True)
        name = uuid.uuid4().hex
        if job.context.task_id is not None:
            known = f"{job.context.client}\0{job.context.task_id}\0{job.connector}\0{job.command}"
            base = hashlib.sha256(known.encode()).hexdigest()[:24]
            for number in itertools.count():
                name = f"{base}-{number}"
                try:
                    row = await self._row(name)
                except JobNotFound:
                    break
                if row.status in ACTIVE:
                    self._abandoned.discard(name)
                    return Accepted(id=name, joined=True)
        size = sum(live.size for live in self._live.values())
        if len(self._live) >= self._settings.backlog or size > self._settings.backlog_size:
            raise ConnectorBusy(f"{len(self._live)} jobs of {Size(size)} are open (jobs.backlog)", retry_after=30)
        job = msgspec.structs.replace(job, id=name)
        if name in self._live:
            return Accepted(id=name, joined=True)  # it is being committed for another request
        self._live[name] = _Live(job)
        if running is not None:
            self._adopted[name] = running
        try:
            return await self._commit(job, adopted=uuid.uuid4().hex if running is not None else "")
        except dbos_error.DBOSWorkflowIDInUseError:  # another gateway was faster
            self._forget(name)
            return Accepted(id=name, joined=True)
        except BaseException:
            self._forget(name)
            raise

    async def _commit(self, job: Job, adopted: str) -> Accepted:
        context = job.context
        summary = _Summary(
            connector=job.connector, command=job.command, request_id=context.request_id, client=context.client,
            task_id=context.task_id, callback=context.callback_url is not None,
        )  # fmt: skip
        with (
            SetWorkflowAttributes(msgspec.to_builtins(summary)),
            SetWorkflowID(job.id, workflow_id_reuse_policy="reject"),
        ):
            await DBOS.start_workflow_async(self._workflow, msgspec.json.encode(job).decode(), adopted)
        return Accepted(id=job.id)

    def _withdraw(self, starting: asyncio.Future[Accepted]) -> None:
        """The caller was told 503. Should the commit still happen, the job must not run."""

        def late(done: asyncio.Future[Accepted]) -> None:
            if not done.cancelled() and done.exception() is None and not done.result().joined:
                self._abandoned.add(done.result().id)

        starting.add_done_callback(late)

    def _forget(self, name: str) -> None:
        self._live.pop(name, None)
        self._adopted.pop(name, None)

    # --- one job

    def _make_workflow(self) -> Callable[[str, str], Coroutine[Any, Any, None]]:
        async def job(text: str, adopted: str) -> None:
            await self._work(text, adopted)

        return job

    def _make_notice(self) -> Callable[[str], Coroutine[Any, Any, None]]:
        async def notice(text: str) -> None:
            await self._tell_cancelled(text)

        return notice

    async def _work(self, text: str, adopted: str) -> None:
        _accepting.set(False)
        job = msgspec.json.decode(text, type=Job)
        live = self._live.setdefault(job.id, _Live(job))
        live.task = asyncio.current_task()
        state, reason = State.DELIVERED if job.context.callback_url else State.KEPT, ""
        try:
            outcome = await self._outcome(live, adopted)
            live.state = State.DELIVERING
            if job.context.callback_url:
                await self._deliver(live, outcome)
        except DeadLetter as dead:
            state, reason = State.DEAD, str(dead)
            raise
        except dbos_error.DBOSWorkflowCancelledError:
            state = State.CANCELLED
            raise
        except BaseException:
            state = live.state
            raise
        finally:
            running = self._adopted.get(job.id)
            if running is not None and state is State.CANCELLED:
                with contextlib.suppress(RuntimeError):
                    self._gateway.call_soon_threadsafe(running.cancel)
            if self._live.get(job.id) is live:
                self._forget(job.id)
            if state not in OPEN:
                self._tell(
                    JobFinished(
                        id=job.id, connector=job.connector, command=job.command, state=state.value, reason=reason
                    )
                )

    async def _outcome(self, live: _Live, adopted: str) -> Outcome:
        """Run the command, unless its outcome is recorded.

        Each run is preceded by a recorded step that names the execution which is about to run. Whoever finds another
        execution's name there, and no outcome, knows that a crash interrupted the run.
        """
        execution = adopted if adopted and live.job.id in self._adopted else uuid.uuid4().hex
        for number in itertools.count():
            try:
                began = adopted if adopted and number == 0 else await self._step("begin", self._begin, live, execution)
                recorded = await self._step("run", self._run_once, live, began == execution, number)
            finally:
                await self._leave(live)
            if recorded:
                return msgspec.json.decode(recorded, type=Outcome)
            live.interrupted = number + 1
        raise AssertionError

    async def _begin(self, live: _Live, execution: str) -> str:
        """Wait for a place."""
        job = live.job
        live.turn = asyncio.ensure_future(self._gate.enter(job.connector, job.priority))
        try:
            if live.cancelled:
                live.turn.cancel()
            await live.turn
        except asyncio.CancelledError:
            if live.cancelled:
                raise dbos_error.DBOSWorkflowCancelledError(f"job {job.id} was cancelled while it waited") from None
            raise
        finally:
            live.turn = None
        live.placed = True
        slots = self._settings.concurrency.get(job.connector)
        if self._lease is not None and slots is not None:
            while not await asyncio.to_thread(self._lease.take, job.connector, slots, job.id):
                await self._pause(live, SLOT_POLL * random.uniform(0.7, 1.3))  # noqa: S311 - spreads load
                if live.cancelled:
                    raise dbos_error.DBOSWorkflowCancelledError(f"job {job.id} was cancelled while it waited")
            live.slotted = True
        await self._sure()
        return execution

    async def _leave(self, live: _Live) -> None:
        if live.placed:
            live.placed = False
            self._gate.leave(live.job.connector)
        if live.slotted and self._lease is not None:
            live.slotted = False
            await asyncio.to_thread(self._lease.give, live.job.id)

    async def _run_once(self, live: _Live, ours: bool, number: int) -> str:  # noqa: FBT001 - a recorded step's argument
        """Return the outcome to record; nothing when the run was interrupted and may be repeated."""
        job = live.job
        interrupted = number + (not ours)
        live.interrupted = interrupted
        if job.id in self._abandoned:
            self._abandoned.discard(job.id)
            raise DeadLetter("it was never accepted: the caller was told that the store did not answer in time")
        if ours:
            live.state = State.RUNNING
            outcome = await self._try(live)
        elif job.idempotent and interrupted < self._settings.max_interruptions:
            return ""
        else:
            again = "" if job.idempotent else "; it is not declared idempotent and was not run again"
            times = "" if interrupted == 1 else f" {interrupted} times"
            said_so = f"{job.title} was interrupted{times} by the end of its gateway in the middle of its run{again}"
            outcome = told(INTERRUPTED, said_so, 502, **{INTERRUPTED: interrupted})
        self._tell(
            JobRan(
                id=job.id, connector=job.connector, command=job.command, status=outcome.status, interrupted=interrupted
            )
        )
        return msgspec.json.encode(outcome).decode()

    async def _try(self, live: _Live) -> Outcome:
        """Run until there is an outcome: that the connector is busy is none."""
        job, begun = live.job, time.monotonic()
        for tried in itertools.count():
            running = self._adopted.pop(job.id, None)
            try:
                if running is not None:
                    return await across(self._gateway, lambda running=running: _result(running))  # type: ignore[misc]
                return await across(self._gateway, lambda: self._run(job))
            except (ConnectorBusy, ConnectorUnavailable) as problem:
                if isinstance(problem, ConnectorUnavailable) and time.monotonic() - begun > UNAVAILABLE:
                    return told(problem.code, problem.message, 503)
                wait = max(min(0.25 * 2 ** min(tried, 10), 15.0), min(problem.retry_after or 0.0, 60.0))
                await asyncio.sleep(wait * random.uniform(0.7, 1.3))  # noqa: S311 - spreads load
            except (GatewayDraining, Gone):
                await _for_ever()
            except GatewayError as problem:
                return told(problem.code, problem.message, 502)
            except Exception as problem:  # noqa: BLE001 - whatever it is, the caller waits for an answer
                return told(FAILED, f"{job.title} could not be run: {type(problem).__name__}", 500)
        raise AssertionError

    async def _deliver(self, live: _Live, outcome: Outcome) -> None:
        """Try until the caller has taken it.

        Raises:
            DeadLetter: it was given up.
        """
        tried: list[Attempt] = []
        while True:
            recorded = await self._step("callback", self._put, live, outcome, tuple(tried))
            attempt = msgspec.json.decode(recorded, type=Attempt)
            tried.append(attempt)
            if attempt.verdict is Verdict.DONE:
                return
            if attempt.verdict is Verdict.DEAD:
                raise DeadLetter(attempt.reason)
            live.wake.clear()
            if live.cancelled:
                continue
            await self._pause(live, attempt.at + attempt.wait - time.time())

    async def _put(self, live: _Live, outcome: Outcome, tried: tuple[Attempt, ...]) -> str:
        await self._sure()
        job = live.job
        attempt = await self._callbacks.deliver(job, outcome, tried)
        with contextlib.suppress(ValueError):
            host = urlsplit(job.context.callback_url or "").hostname or ""
            self._tell(
                CallbackTried(
                    id=job.id, connector=job.connector, command=job.command, host=host, verdict=attempt.verdict.value,
                    status=attempt.status, reason=attempt.reason, took=attempt.took,
                )
            )  # fmt: skip
        return msgspec.json.encode(attempt).decode()

    async def _tell_cancelled(self, text: str) -> None:
        """Cancel a job and tell its caller."""
        _accepting.set(False)
        job = msgspec.json.decode(text, type=Job)
        await DBOS.cancel_workflow_async(job.id)
        if await self._step("look", self._look, job.id) == "CANCELLED":
            live = _Live(job)
            self._live[_notice_of(job.id)] = live
            live.task = asyncio.current_task()
            live.state = State.DELIVERING
            try:
                await self._deliver(live, told(CANCELLED, f"{job.title} was cancelled", 409))
            finally:
                self._live.pop(_notice_of(job.id), None)

    async def _look(self, name: str) -> str:
        return (await self._row(name)).status

    async def _step(self, name: str, function: Callable[..., Coroutine[Any, Any, str]], *arguments: Any) -> str:
        """Do something once: its result is recorded, and returned ever after."""
        if self._closing:  # a job that was fetched while we leave: it stays as it is recorded
            await _for_ever()
        options = StepOptions(name=name, preemptible=name == "run")
        result: str = await DBOS.run_step_async(options, function, *arguments)
        return result

    async def _pause(self, live: _Live, seconds: float) -> None:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await live.wake.wait()

    async def _sure(self) -> None:
        """Wait until nobody can think that this gateway is dead: a frozen one must not act before it knows."""
        while self._lease is not None and not self._lease.sure():  # noqa: ASYNC110 - it beats in a thread
            await asyncio.sleep(0.1)

    # --- what is recorded

    async def _row(self, name: str, *, load_input: bool = False) -> WorkflowStatus:
        rows = await DBOS.list_workflows_async(workflow_ids=[name], name="job", load_input=load_input)
        if not rows:
            raise JobNotFound(f"there is no job {name}")
        return rows[0]

    def _status(self, row: WorkflowStatus, steps: list[StepInfo] | None) -> JobStatus:
        summary = _summary(row)
        live = self._live.get(row.workflow_id)
        interrupted = live.interrupted if live is not None else 0
        if row.status == "SUCCESS":
            state = State.DELIVERED if summary.callback else State.KEPT
        elif row.status == "CANCELLED":
            state = State.CANCELLED
        elif row.status not in ACTIVE:
            state = State.DEAD
        elif live is not None:
            state = live.state
        else:
            state = _state_of(steps or [])
        if steps is not None:
            recorded = [0 if one is None else one.run.get(INTERRUPTED, 0) for one in _outcomes(steps)]
            interrupted = max([interrupted, sum(one is None for one in _outcomes(steps)), *recorded])
        return JobStatus(
            id=row.workflow_id, connector=summary.connector, command=summary.command, state=state,
            accepted=(row.created_at or 0) / 1000, finished=row.completed_at / 1000 if row.completed_at else None,
            request_id=summary.request_id, client=summary.client, task_id=summary.task_id, callback=summary.callback,
            node=row.executor_id, reason=str(row.error) if state is State.DEAD and row.error is not None else "",
            interrupted=interrupted,
        )  # fmt: skip

    # --- the world

    def _tell(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the gateway's loop is closed
            self._gateway.call_soon_threadsafe(self._publish, event)

    def _store_changed(self, ok: bool, reason: str) -> None:  # noqa: FBT001 - as the lease calls it
        self._fault = "" if ok else reason
        self._trouble = (0.0, "")
        self._tell(StoreChanged(ok=ok, reason=reason))

    def _take_over(self, nodes: list[str]) -> None:
        """Recover dead nodes' jobs; not in the lease's own thread, which must go on beating when the store goes."""
        if not self._launched or (self._taking_over is not None and self._taking_over.is_alive()):
            return

        def recover() -> None:
            for node in nodes:
                with contextlib.suppress(SQLAlchemyError, dbos_error.DBOSException):
                    # There is no public way that checks whose job it is: `resume_workflows` would also take one that
                    # runs elsewhere. A test holds this one to what it does today.
                    jobs = DBOS._recover_pending_workflows([node])  # noqa: SLF001
                    self._tell(NodeLost(node=node, jobs=len(jobs)))

        self._taking_over = threading.Thread(target=recover, name="jobs-take-over", daemon=True)
        self._taking_over.start()


_STATUSES: dict[State | None, str | list[str] | None] = {
    None: None,
    State.WAITING: ACTIVE,
    State.RUNNING: ACTIVE,
    State.DELIVERING: ACTIVE,
    State.DELIVERED: "SUCCESS",
    State.KEPT: "SUCCESS",
    State.CANCELLED: "CANCELLED",
    State.DEAD: ["ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"],
}


def _hold_on(context: Any) -> None:
    """Make the engine wait, rather than fail a job, when its store cannot be written for now.

    DBOS repeats a statement whose connection was lost, for as long as it takes, and fails a workflow on any other
    error: a full disk would cost a job its result. Only whoever accepts a job wants to know at once.
    """
    problem = context.original_exception
    passing = isinstance(problem, sqlite3.OperationalError) or type(problem) is sqlite3.DatabaseError
    if getattr(problem, "sqlstate", None) == "25006":  # a read-only standby, in the middle of a failover
        passing = True
    if passing and not _accepting.get():
        context.is_disconnect = True


async def _result(running: asyncio.Future[Outcome]) -> Outcome:
    return await running


def _threads_ended() -> bool:
    """Give DBOS's threads a moment to end."""
    until = time.monotonic() + 1.0
    for thread in threading.enumerate():
        if thread.name.startswith("dbos-executor-"):
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                return False
    return True


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()


def _notice_of(name: str) -> str:
    return f"{name}.cancelled"


def _text(row: WorkflowStatus) -> str:
    assert row.input is not None
    return str(row.input["args"][0])


def _summary(row: WorkflowStatus) -> _Summary:
    return msgspec.convert(row.attributes or {"connector": "", "command": "", "request_id": ""}, _Summary)


def _outcomes(steps: list[StepInfo]) -> list[Outcome | None]:
    """Return the recorded runs; one that was interrupted, and may be repeated, is None."""
    return [
        msgspec.json.decode(str(one["output"]), type=Outcome) if one["output"] else None
        for one in steps
        if one["function_name"] == "run" and one["error"] is None
    ]


def _attempts(steps: list[StepInfo]) -> list[Attempt]:
    recorded = [str(one["output"]) for one in steps if one["function_name"] == "callback" and one["output"]]
    return [msgspec.json.decode(one, type=Attempt) for one in recorded]


def _state_of(steps: list[StepInfo]) -> State:
    """Return where an open job is that is not in this gateway's hands."""
    if any(one is not None for one in _outcomes(steps)):
        return State.DELIVERING
    return State.RUNNING if steps and steps[-1]["function_name"] == "begin" else State.WAITING
