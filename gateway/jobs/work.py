"""What is done for one job: its run, and its delivery as often as it takes. Each result is recorded before the next."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
import time
import traceback
from typing import TYPE_CHECKING

from gateway import backoff
from gateway.errors import ConnectorBusy, ConnectorUnavailable, GatewayDraining, GatewayError
from gateway.jobs.contract import (
    CANCELLED,
    FAILED,
    INTERRUPTED,
    Attempt,
    JobState,
    Lost,
    Outcome,
    StoreAway,
    Verdict,
    told,
)
from gateway.jobs.sealed import NO_KEY
from gateway.jobs.spans import traced
from gateway.jobs.targets import Refused, host_of, read_url
from gateway.observe.events import CallbackTried, JobFault, JobFinished, JobRan, JobUnreadable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.jobs.cluster import Lease
    from gateway.jobs.contract import Execute
    from gateway.jobs.deliveries import Deliveries
    from gateway.jobs.held import Held
    from gateway.jobs.store import Store
    from gateway.jobs.trouble import Trouble
    from gateway.observe.events import Event
    from gateway.observe.tracing import Tracing

BEGIN = 5.0  # seconds for which a slot is held while the beginning is recorded
UNAVAILABLE = 300.0  # seconds that a job waits for a connector that cannot be served
SLOT_POLL = 0.5  # seconds between looks for a slot that other gateways hold
AGAIN = 3.0  # seconds at most, give or take, until what could not be recorded is tried again


class _AllRun(ConnectorBusy):
    """All of a connector's slots over all gateways are held."""


class Work:
    """Does it. What a method is called with is in this gateway's hands, or Lost is raised."""

    def __init__(
        self,
        *,
        run: Execute,
        store: Store,
        lease: Lease | None,
        callbacks: Deliveries,
        trouble: Trouble,
        publish: Callable[[Event], None],
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self.draining = False
        """Nothing begins any more."""
        self._run = run
        self._store = store
        self._lease = lease
        self._callbacks = callbacks
        self._trouble = trouble
        self._publish = publish

    def drain(self) -> None:
        """Let nothing begin any more."""
        self.draining = True

    async def run(self, held: Held) -> Outcome | None:
        """Run a job, as often as it takes until it has begun; None: it is left to the next start."""
        since = time.monotonic()
        for tried in itertools.count():
            came_to = await self.once(held)
            if isinstance(came_to, ConnectorUnavailable) and time.monotonic() - since > UNAVAILABLE:
                return told(came_to.code, came_to.message, 503)
            if not isinstance(came_to, ConnectorBusy | ConnectorUnavailable):
                return came_to
            await _pause(held, _wait(came_to, tried))
        raise AssertionError

    async def settle(self, held: Held, outcome: Outcome) -> None:
        """Record what a job came to."""
        job = held.job
        state = JobState.DELIVERING if job.context.callback_url else JobState.KEPT
        await self._surely(lambda: self._store.record(job.id, outcome, state))
        held.outcome, held.state = outcome, state
        self._publish(
            JobRan(
                id=job.id, connector=job.connector, command=job.command, status=outcome.status,
                interrupted=held.interrupted,
            )
        )  # fmt: skip
        if state is JobState.KEPT:
            self.finished(held)

    async def deliver(self, held: Held) -> None:
        """Try until the caller has taken the outcome, or it is given up."""
        assert held.outcome is not None
        while held.state is JobState.DELIVERING:
            attempt = await self._try(held, held.outcome)
            held.wake.clear()
            state, reason = _led_to(attempt)
            await self._surely(functools.partial(self._store.tried, held.job.id, held.attempts, state, reason))
            held.state = state
            if not held.open:
                self.finished(held, reason)

    async def bury(self, held: Held) -> None:
        """End a job whose outcome no key opens as a dead letter; what is stored stays, for whoever has the key."""
        await self._surely(lambda: self._store.tried(held.job.id, held.attempts, JobState.DEAD, NO_KEY))
        held.state = JobState.DEAD
        self.finished(held, NO_KEY)

    def unreadable(self, held: Held) -> None:
        """Tell that a job cannot be read in full."""
        job = held.job
        self._publish(JobUnreadable(id=job.id, connector=job.connector, command=job.command, reason=NO_KEY))

    async def tell_cancelled(self, held: Held) -> None:
        """Tell the caller that a job was cancelled, unless there is nobody to tell, or an outcome was recorded."""
        job = held.job
        ends = job.context.callback_url is None or held.outcome is not None
        await self._surely(lambda: self._store.told(job.id, held.attempts, ends=ends))
        outcome = told(CANCELLED, f"{job.title} was cancelled", 409)
        while not ends:
            ends = (await self._try(held, outcome)).verdict is not Verdict.AGAIN
            held.wake.clear()
            await self._surely(functools.partial(self._store.told, job.id, held.attempts, ends=ends))

    def finished(self, held: Held, reason: str = "") -> None:
        """Tell that a job has ended."""
        job = held.job
        self._publish(
            JobFinished(
                id=job.id, connector=job.connector, command=job.command, request_id=job.context.request_id,
                task_id=job.context.task_id, client=job.context.client, state=held.state.value, reason=reason,
                took=max(0.0, time.time() - held.accepted),
            )
        )  # fmt: skip

    # --- running

    async def once(self, held: Held) -> Outcome | ConnectorBusy | ConnectorUnavailable | None:
        """Return what a run came to. That the connector is busy, or cannot be served for now, is no outcome."""
        job = held.job
        try:
            await self._look_for_slot(held)
            running, held.adopted = held.adopted, None
            return await (running or self._run(job, functools.partial(self._begin, held)))
        except (ConnectorBusy, ConnectorUnavailable) as problem:
            if held.state is JobState.RUNNING:
                held.epoch += 1
                await self._surely(lambda: self._store.take_back(job.id, held.epoch))
                held.state = JobState.WAITING
            return problem
        except GatewayDraining:
            return None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            # Whoever had started it has ended it.
            return (
                None if self.draining else told(INTERRUPTED, f"{job.title} was cancelled in the middle of its run", 502)
            )
        except Lost:
            raise
        except GatewayError as problem:
            return told(problem.code, problem.message, 502)
        except Exception as problem:  # noqa: BLE001 - whatever it is, the caller waits for an answer
            self.fault(held, problem)
            return told(FAILED, f"{job.title} could not be run: {type(problem).__name__}", 500)

    async def _look_for_slot(self, held: Held) -> None:
        """See that there is a slot over all gateways, before the job holds one of ours."""
        job = held.job
        if self._lease is None or job.cluster_concurrency is None or held.adopted is not None:
            return
        try:
            busy = await self._store.busy(job.connector)
        except StoreAway as problem:
            raise _AllRun(problem.reason) from problem
        if busy >= job.cluster_concurrency:
            raise _AllRun

    async def _begin(self, held: Held) -> None:
        """Record that a run begins, which holds its slot. A store that does not answer must not keep others from it."""
        job = held.job
        if self.draining:
            raise GatewayDraining(retry_after=5)
        held.begins = True
        try:
            await self._sure()
            limit = job.cluster_concurrency if self._lease is not None else None
            begun = await self._store.begin(job, held.epoch, limit, BEGIN)
            if not begun and not await self._store.owns(job.id):
                raise Lost
        except StoreAway as problem:
            held.state = JobState.RUNNING  # perhaps
            self._trouble.failed(f"the jobs' store failed: {problem.reason}")
            raise ConnectorBusy("it could not be recorded that the run begins", retry_after=BEGIN) from problem
        finally:
            held.begins = False
        if not begun:
            raise _AllRun
        held.state = JobState.RUNNING

    def fault(self, held: Held, problem: BaseException) -> None:
        """Tell of a bug of ours."""
        job = held.job
        self._publish(
            JobFault(
                id=job.id, connector=job.connector, command=job.command, request_id=job.context.request_id,
                traceback="".join(traceback.format_exception(problem)),
            )
        )  # fmt: skip

    # --- delivering

    async def _try(self, held: Held, outcome: Outcome) -> Attempt:
        """Wait for the time of the next try, and try."""
        await _pause(held, held.pause)
        await self._sure()
        job, begun = held.job, time.monotonic()
        host = ""
        with contextlib.suppress(Refused):
            host = host_of(read_url(self._callbacks.url(job)))
        if self._tracing is None:
            attempt = await self._callbacks.deliver(job, outcome, held.attempts, held.age)
        else:
            with traced(self._tracing, job, host, len(held.attempts)) as span:
                attempt = await self._callbacks.deliver(span.job, outcome, held.attempts, held.age)
                span.attempt = attempt
        held.tried(attempt, begun)
        self._publish(
            CallbackTried(
                id=job.id, connector=job.connector, command=job.command, host=host, verdict=attempt.verdict.value,
                status=attempt.status, reason=attempt.reason, took=attempt.took,
            )
        )  # fmt: skip
        return attempt

    # --- the store

    async def _sure(self) -> None:
        if self._lease is not None:
            await self._lease.sure()

    async def _surely(self, record: Callable[[], Awaitable[bool]]) -> None:
        """Record something, however long the store is away.

        Raises:
            Lost: the job is not ours any more.
        """
        for tried in itertools.count():
            try:
                recorded = await record()
            except StoreAway as problem:
                self._trouble.failed(f"the jobs' store failed: {problem.reason}")
                await asyncio.sleep(backoff.wait(tried, 0.1, AGAIN, spread=0.5))
                continue
            self._trouble.worked()
            if not recorded:
                raise Lost
            return


def interruption(held: Held, longest: int) -> Outcome | None:
    """Return what is told of a job whose run was interrupted and may not be repeated; None when it is to be run."""
    job, times = held.job, held.interrupted
    if not times or (job.idempotent and times < longest):
        return None
    again = "" if job.idempotent else "; it is not declared idempotent and was not run again"
    often = "" if times == 1 else f" {times} times"
    said_so = f"{job.title} was interrupted{often} by the end of its gateway in the middle of its run{again}"
    return told(INTERRUPTED, said_so, 502, **{INTERRUPTED: times})


def _led_to(attempt: Attempt) -> tuple[JobState, str]:
    """Return where a try to deliver leads, and why, if that is to be known."""
    if attempt.verdict is Verdict.AGAIN:
        return JobState.DELIVERING, ""
    if attempt.verdict is Verdict.DONE:
        return JobState.DELIVERED, attempt.reason
    return (JobState.UNWANTED if attempt.race else JobState.DEAD), attempt.reason


def _wait(problem: ConnectorBusy | ConnectorUnavailable, tried: int) -> float:
    """Return when to ask again, in seconds."""
    wait = max(backoff.wait(tried, 0.25, 15.0), min(problem.retry_after or 0.0, 60.0))
    return (SLOT_POLL if isinstance(problem, _AllRun) else wait) * random.uniform(0.7, 1.3)  # noqa: S311 - spreads load


async def _pause(held: Held, seconds: float) -> None:
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await held.wake.wait()


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
