"""One job, from its acceptance to its end: `begin`, `run`, and `callback` as often as it takes.

Each is a step of the engine: its result is recorded once, and whoever goes on after a crash gets it instead of doing
it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import random
import time
import traceback
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
from dbos import DBOS, StepOptions
from dbos import error as dbos_error

from gateway.errors import ConnectorBusy, ConnectorUnavailable, GatewayDraining, GatewayError
from gateway.jobs.hands import Hands, Live
from gateway.jobs.loops import Gone, across
from gateway.jobs.port import (
    CANCELLED,
    FAILED,
    INTERRUPTED,
    OPEN,
    Attempt,
    Job,
    Outcome,
    Run,
    RunLost,
    State,
    Verdict,
    told,
)
from gateway.jobs.records import NOT_BEGUN, notice_of, read_row
from gateway.jobs.start import Start
from gateway.jobs.targets import Refused, host_of, read_url
from gateway.observe.events import CallbackTried, JobFault, JobFinished, JobRan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from gateway.jobs.callbacks import Callbacks
    from gateway.jobs.gate import Gate
    from gateway.jobs.lease import Lease
    from gateway.jobs.settings import JobsSection
    from gateway.observe.events import Event

UNAVAILABLE = 300.0  # seconds that a job waits for a connector that cannot be served
READS = 4  # jobs that read at once how far they came, after a restart: whoever accepts a job is not to wait for all
SLOT_POLL = 0.5  # seconds between looks for a slot that other gateways hold

accepting: contextvars.ContextVar[bool] = contextvars.ContextVar("jobsaccepting", default=False)
"""Set while a job is being committed: the caller waits, and wants to know at once what is wrong."""


class DeadLetter(Exception):
    """A callback was given up. Recorded, its message is the reason."""


class Unwanted(DeadLetter):
    """The caller does not wait for the outcome; nothing is wrong with that. Its name is recorded too."""


class Work:
    """Does jobs, and knows those in this gateway's hands. It lives in the engine's loop."""

    def __init__(
        self,
        *,
        run: Run,
        settings: JobsSection,
        callbacks: Callbacks,
        gate: Gate,
        lease: Lease | None,
        tell: Callable[[Event], None],
    ) -> None:
        self.live = Hands()
        self.adopted: dict[str, asyncio.Future[Outcome]] = {}
        """Runs in progress that jobs are to adopt, by the token that their begin is recorded under."""
        self.abandoned: set[str] = set()
        """Jobs whose caller was told 503 before they were committed."""
        self.draining = False
        self.closing = False
        self._reads = asyncio.Semaphore(READS)
        self._run = run
        self._settings = settings
        self._callbacks = callbacks
        self._gate = gate
        self._lease = lease
        self._tell = tell
        self._gateway = asyncio.get_running_loop()

    async def do(self, text: str, adopted: str) -> str:
        """Do a job; return what is to be known of its delivery.

        `adopted` is the token of a run that was in progress when it was accepted.
        """
        accepting.set(False)
        job = msgspec.json.decode(text, type=Job)
        accepted_here = job.id in self.live
        live = self.live.take(job.id, job)
        live.task = asyncio.current_task()
        state, reason = State.DELIVERED if job.context.callback_url else State.KEPT, ""
        try:
            if not accepted_here:
                await self._reads.acquire()
                live.reads = True
            outcome = await self._outcome(live, adopted)
            live.state = State.DELIVERING
            if job.context.callback_url:
                reason = await self._deliver(live, outcome)
        except DeadLetter as dead:
            state, reason = State.UNWANTED if isinstance(dead, Unwanted) else State.DEAD, str(dead)
            raise
        except dbos_error.DBOSWorkflowCancelledError:
            state = State.CANCELLED
            raise
        except BaseException:
            state = live.state
            raise
        finally:
            self._has_read(live)
            running = self.adopted.pop(adopted, None)
            if running is not None and state is State.CANCELLED:
                with contextlib.suppress(RuntimeError):
                    self._gateway.call_soon_threadsafe(running.cancel)
            self.live.let_go(job.id, live)
            if state not in OPEN:
                self._tell(
                    JobFinished(
                        id=job.id, connector=job.connector, command=job.command, state=state.value, reason=reason
                    )
                )
        return reason

    async def _outcome(self, live: Live, adopted: str) -> Outcome:
        """Run the command, unless its outcome is recorded.

        Each run is preceded by a recorded step that names the execution which is about to run. Whoever finds another
        execution's name there, and no outcome, knows that a crash interrupted the run.
        """
        execution = adopted if adopted in self.adopted else uuid.uuid4().hex
        interrupted = 0
        for number in itertools.count():
            try:
                began = adopted if adopted and number == 0 else await self._step("begin", self._begin, live, execution)
                recorded = await self._step("run", self._run_once, live, adopted, began == execution, interrupted)
            finally:
                await self._leave(live)
            if recorded == NOT_BEGUN:
                continue
            if recorded:
                return msgspec.json.decode(recorded, type=Outcome)
            interrupted += 1
            live.interrupted = interrupted
        raise AssertionError

    async def _begin(self, live: Live, execution: str) -> str:
        """Wait for a place and a slot. The run holds both while what this returns is recorded, and goes on then."""
        try:
            await self._place(live)
            await self._reach(live)
        except asyncio.CancelledError:
            if live.cancelled:
                message = f"job {live.job.id} was cancelled while it waited"
                raise dbos_error.DBOSWorkflowCancelledError(message) from None
            raise
        return execution

    async def _place(self, live: Live) -> None:
        """Wait for its turn among the jobs of its connector: here, and where they are counted, over all gateways."""
        job = live.job
        live.turn = asyncio.ensure_future(self._gate.enter(job.connector, job.priority))
        try:
            if live.cancelled:
                live.turn.cancel()
            await live.turn
        finally:
            live.turn = None
        live.placed = True
        slots = job.cluster_concurrency
        if self._lease is not None and slots is not None:
            while not await asyncio.to_thread(self._lease.take, job.connector, slots, job.id):
                await self._pause(live, SLOT_POLL * random.uniform(0.7, 1.3))  # noqa: S311 - spreads load
                _check(live)
            live.slotted = True

    async def _reach(self, live: Live) -> None:
        """Start the run as often as it takes until it holds its slot, or has come to something without one."""
        since = time.monotonic()
        for tried in itertools.count():
            _check(live)
            if self.draining:
                await _for_ever()
            live.start = start = Start(self._gateway, self._run, live.job)
            if await start.reached():
                await self._sure()
                if start.holds and not live.cancelled and not self.draining:
                    start.committing = True
                    return
            if live.cancelled or self.draining:
                await start.end()
                continue
            came_to = await self._came_to(live, start.outcome())
            if isinstance(came_to, ConnectorUnavailable) and time.monotonic() - since > UNAVAILABLE:
                came_to = told(came_to.code, came_to.message, 503)
            if isinstance(came_to, Outcome):
                live.told = came_to
                return
            await self._pause(live, _wait(came_to, tried))

    async def _leave(self, live: Live) -> None:
        start, live.start, live.told = live.start, None, None
        if start is not None:
            await start.end()
        if live.placed:
            live.placed = False
            self._gate.leave(live.job.connector)
        if live.slotted and self._lease is not None:
            live.slotted = False
            await asyncio.to_thread(self._lease.give, live.job.id)

    async def _run_once(self, live: Live, adopted: str, ours: bool, interrupted: int) -> str:  # noqa: FBT001
        """Return the outcome to record; nothing when the run was interrupted and may be repeated."""
        job = live.job
        interrupted += not ours
        live.interrupted = interrupted
        if await self._withdrawn(job):
            live.withdrawn = True
            raise DeadLetter("it was never accepted: the caller was told that the store did not answer in time")
        outcome = None
        if ours:
            try:
                outcome = await self._go(live, adopted)
            except RunLost:
                live.state = State.WAITING
                live.interrupted = interrupted = interrupted + 1
            else:
                if outcome is None:
                    return NOT_BEGUN
        if outcome is None:
            if job.idempotent and interrupted < self._settings.max_interruptions:
                return ""
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

    async def _withdrawn(self, job: Job) -> bool:
        """Tell whether nobody was told 202 for a job that was committed too late."""
        while job.id in self.abandoned:
            try:
                verdict = "withdrawn"
                if self._lease is not None:
                    verdict = await asyncio.to_thread(self._lease.verdict, job.id, "withdrawn")
            except psycopg.Error:  # not before it is certain
                await asyncio.sleep(SLOT_POLL)
                continue
            if job.id in self.abandoned:
                self.abandoned.discard(job.id)
                return verdict == "withdrawn"
        return False

    async def _go(self, live: Live, adopted: str) -> Outcome | None:
        """Let the run begin, and return what it came to; None when it did not begin after all.

        Its slot may be gone: it is given back when it takes long to record the beginning.
        """
        running = self.adopted.pop(adopted, None)
        if running is not None:
            outcome = across(self._gateway, lambda: _result(running))
        elif live.told is not None:
            return live.told
        elif live.start is not None and live.start.go():
            outcome = live.start.outcome()
        else:
            return None
        live.state = State.RUNNING
        came_to = await self._came_to(live, outcome)
        if isinstance(came_to, Outcome):
            return came_to
        live.state = State.WAITING
        return None

    async def _came_to(self, live: Live, running: Awaitable[Outcome]) -> Outcome | ConnectorBusy | ConnectorUnavailable:
        """Return what a run came to. That the connector is busy, or cannot be served for now, is no outcome."""
        job = live.job
        try:
            return await running
        except (ConnectorBusy, ConnectorUnavailable) as problem:
            return problem
        except GatewayDraining:
            live.state = State.WAITING  # for the next start; this one's end need not wait for it
            await _for_ever()
        except Gone:  # by whoever had started it
            if not self.draining:
                return told(INTERRUPTED, f"{job.title} was cancelled in the middle of its run", 502)
            live.state = State.WAITING
            await _for_ever()
        except RunLost:
            raise
        except GatewayError as problem:
            return told(problem.code, problem.message, 502)
        except Exception as problem:  # noqa: BLE001 - whatever it is, the caller waits for an answer
            self._tell(
                JobFault(
                    id=job.id,
                    connector=job.connector,
                    command=job.command,
                    request_id=job.context.request_id,
                    traceback="".join(traceback.format_exception(problem)),
                )
            )
            return told(FAILED, f"{job.title} could not be run: {type(problem).__name__}", 500)
        raise AssertionError

    async def _deliver(self, live: Live, outcome: Outcome) -> str:
        """Try until the caller has taken it; return what it said of that, if anything.

        Raises:
            DeadLetter: it was given up.
        """
        tried: list[Attempt] = []
        while True:
            recorded = await self._step("callback", self._put, live, outcome, tuple(tried))
            attempt = msgspec.json.decode(recorded, type=Attempt)
            tried.append(attempt)
            if attempt.verdict is Verdict.DONE:
                return attempt.reason
            if attempt.verdict is Verdict.DEAD:
                raise (Unwanted if attempt.race else DeadLetter)(attempt.reason)
            live.wake.clear()
            if live.cancelled:
                continue
            await self._pause(live, attempt.at + attempt.wait - time.time())

    async def _put(self, live: Live, outcome: Outcome, tried: tuple[Attempt, ...]) -> str:
        await self._sure()
        job = live.job
        attempt = await self._callbacks.deliver(job, outcome, tried)
        host = ""
        with contextlib.suppress(Refused):
            host = host_of(read_url(self._callbacks.url(job)))
        self._tell(
            CallbackTried(
                id=job.id, connector=job.connector, command=job.command, host=host, verdict=attempt.verdict.value,
                status=attempt.status, reason=attempt.reason, took=attempt.took,
            )
        )  # fmt: skip
        return msgspec.json.encode(attempt).decode()

    def hold_back(self) -> None:
        """End the wait for slots: a drain begins, and who gets one now would not begin."""
        for live in self.live.values():
            if live.start is not None:
                live.start.hold_back()

    async def tell_cancelled(self, text: str) -> None:
        """Cancel a job and tell its caller."""
        accepting.set(False)
        job = msgspec.json.decode(text, type=Job)
        self.live.left.discard(notice_of(job.id))
        await DBOS.cancel_workflow_async(job.id)
        if await self._step("look", self._look, job.id) == "CANCELLED":
            live = self.live.take(notice_of(job.id), job)
            live.task = asyncio.current_task()
            live.state = State.DELIVERING
            try:
                await self._deliver(live, told(CANCELLED, f"{job.title} was cancelled", 409))
            finally:
                self.live.let_go(notice_of(job.id), live)

    async def _look(self, name: str) -> str:
        return (await read_row(name)).status

    async def _step(self, name: str, function: Callable[..., Coroutine[Any, Any, str]], *arguments: Any) -> str:
        """Do something once: its result is recorded, and returned ever after."""
        if self.closing:  # a job that was fetched while we leave: it stays as it is recorded
            await _for_ever()

        async def body(*given: Any) -> str:
            if isinstance(given[0], Live):
                self._has_read(given[0])
            return await function(*given)

        options = StepOptions(name=name, preemptible=name == "run")
        result: str = await DBOS.run_step_async(options, body, *arguments)
        return result

    def _has_read(self, live: Live) -> None:
        """It has read what is recorded of it, and does something now."""
        if live.reads:
            live.reads = False
            self._reads.release()

    async def _pause(self, live: Live, seconds: float) -> None:
        self._has_read(live)
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await live.wake.wait()

    async def _sure(self) -> None:
        """Wait until nobody can think that this gateway is dead: a frozen one must not act before it knows."""
        while self._lease is not None and not self._lease.sure():  # noqa: ASYNC110 - it beats in a thread
            await asyncio.sleep(0.1)


def _check(live: Live) -> None:
    if live.cancelled:
        raise asyncio.CancelledError


def _wait(problem: ConnectorBusy | ConnectorUnavailable, tried: int) -> float:
    """Return when to ask again, in seconds."""
    wait: float = max(min(0.25 * 2 ** min(tried, 10), 15.0), min(problem.retry_after or 0.0, 60.0))
    return wait * random.uniform(0.7, 1.3)  # noqa: S311 - spreads load


async def _result(running: asyncio.Future[Outcome]) -> Outcome:
    return await running


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()
