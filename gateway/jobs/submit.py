"""Decides whether a call is answered or becomes a job: its command says so, its caller asks, or it takes long."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec

from gateway.calls.call import Call
from gateway.calls.extension import Extension
from gateway.errors import GatewayError, InvalidRequest
from gateway.identity import called
from gateway.jobs.contract import Accepted, Begin, Job, JobsUnavailable, Outcome
from gateway.jobs.futures import looked_at
from gateway.protocol.document import read_object
from gateway.protocol.envelope import as_envelope, error_envelope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from gateway.calls.invoke import Invoker
    from gateway.calls.reply import Reply
    from gateway.connectors.definition import Command, Connector
    from gateway.connectors.registry import Registry
    from gateway.jobs.background import Background
    from gateway.jobs.destinations import Directory
    from gateway.jobs.durable import DurableJobs
    from gateway.jobs.targets import Refused


class Submitter:
    """Takes every call."""

    def __init__(self, registry: Registry, invoker: Invoker, background: Background, directory: Directory) -> None:
        """`directory` says where callbacks may go."""
        self._background = background
        self._registry = registry
        self._invoker = invoker
        self._directory = directory
        self._status_of: Callable[[Reply | GatewayError], int] = lambda _: 200
        self.jobs: DurableJobs | None = None
        """The engine; None where jobs are not kept (one command on the command line)."""

    def keep_jobs(self, jobs: DurableJobs, status_of: Callable[[Reply | GatewayError], int]) -> None:
        """Begin to make jobs of calls; `status_of` tells the HTTP status that a synchronous caller would get."""
        self.jobs = jobs
        self._status_of = status_of

    async def submit(self, call: Call, *, respond_async: bool = False) -> Reply | Accepted:
        """Run a command and return its reply, or commit it as a job.

        Raises:
            GatewayError: it was refused, or failed.
        """
        if self.jobs is None:
            return await self._invoker.invoke(call)
        begun = asyncio.get_running_loop().time()
        try:
            connector, command = found = await self._registry.find(
                call.connector, call.command, client=call.caller.client, since=begun, within=call.timeout
            )
            becomes_job = respond_async or (command.is_async and call.caller.callback_url is not None)
            if becomes_job:
                command.signature.check(call.params)
        except GatewayError as problem:
            raise self._invoker.refused(call, problem) from None
        if becomes_job:
            refusal = self._refusal(call)
            if refusal is not None:
                raise InvalidRequest(f"{call.connector}/{call.command}: {refusal}")
            return await self.jobs.accept(_job(call, connector, command))
        call = msgspec.structs.replace(call, begun=begun)
        if command.execute_async and call.caller.callback_url is not None:
            return await self._background.run(call, found)
        after = self._promoted_after(call, connector, command)
        if after is None:
            return await self._invoker.invoke(call, found)
        return await self._run_or_promote(call, connector, command, after)

    async def run(self, job: Job, begin: Begin) -> Outcome:
        """Run a job's command once; this is what the engine is given.

        Raises:
            ConnectorBusy, ConnectorUnavailable, GatewayDraining: it was not run; the engine knows when to ask again.
        """
        call = Call(
            connector=called(job.connector),
            command=job.command,
            params=read_object(job.params.encode()),
            task_data=msgspec.Raw(job.task_data.encode()),
            caller=job.context,
            job=job.id,
            timeout=job.timeout,
            on_slot=begin,
        )
        return await self._outcome(self._invoker.invoke(call))

    def expects_jobs(self) -> bool:
        """Tell whether a call of some command can become a job."""
        promotes = self._directory.any_credentials()
        return any(
            command.is_async or (promotes and may_be_promoted(connector, command))
            for connector in self._registry.snapshot.ready()
            for command in (connector.commands or {}).values()
        )

    def concurrency(self, connector: str) -> int:
        """Return how many runs of a connector (by its registered name) this gateway may have at once."""
        status = self._registry.snapshot.statuses.get(connector)
        found = status.connector if status is not None else None
        return found.limits.concurrency if found is not None else 1

    def _promoted_after(self, call: Call, connector: Connector, command: Command) -> float | None:
        """Return the seconds after which a call becomes a job; None where its outcome could not be delivered."""
        after, url = connector.limits.promote_after, call.caller.callback_url
        if url is None or after is None or not may_be_promoted(connector, command):
            return None
        return after if self._directory.of(call.caller.client).deliverable(url) else None

    async def _run_or_promote(
        self, call: Call, connector: Connector, command: Command, after: float
    ) -> Reply | Accepted:
        jobs = self._jobs()
        if call.caller.task_id is not None:
            with contextlib.suppress(JobsUnavailable):  # who cannot say so does not stand in the way of the call
                joined = await jobs.find_open(_job(call, connector, command, with_values=False))
                if joined is not None:
                    command.signature.check(call.params)
                    return joined
        extension, place = Extension(), _Hold()
        call = msgspec.structs.replace(call, extension=extension, on_slot=place.leave)
        running = asyncio.ensure_future(self._invoker.invoke(call, (connector, command)))
        try:
            done, _ = await asyncio.wait((running,), timeout=_left(call, after))
            if not done:
                job = msgspec.structs.replace(_job(call, connector, command), promoted=True)
                if place.kept:
                    with place.held():
                        accepted = await self._make_job_instead(jobs, job, running)
                else:
                    with extension.held():
                        accepted = await self._promote(jobs, job, running)
                        extension.granted = accepted is not None
                        extension.job = accepted.id if accepted is not None else None
                if accepted is not None:
                    return accepted
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.wait((running,))
            raise

    async def _make_job_instead(self, jobs: DurableJobs, job: Job, running: asyncio.Future[Reply]) -> Accepted | None:
        """Make a job of a call that has not begun; None when it cannot be, and stays the call that it was."""
        try:
            accepted = await jobs.accept(job)
        except GatewayError:
            return None
        running.add_done_callback(looked_at)
        running.cancel()
        return accepted

    async def _promote(self, jobs: DurableJobs, job: Job, running: asyncio.Future[Reply]) -> Accepted | None:
        """Make a job of a run in progress; None when it cannot be, and stays the call that it was."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        settling = asyncio.ensure_future(self._settle(running, outcome))
        outcome.add_done_callback(lambda _: settling)  # and keep it alive until then
        try:
            accepted = await jobs.accept(job, outcome)
        except GatewayError:
            return None
        # A job that is cancelled kills its run; one that joined another is a second run of it, which nobody waits for.
        outcome.add_done_callback(lambda done: running.cancel() if done.cancelled() else None)
        if accepted.joined:
            running.cancel()
        return accepted

    async def _settle(self, running: asyncio.Future[Reply], outcome: asyncio.Future[Outcome]) -> None:
        try:
            told = await self._outcome(asyncio.shield(running))
        except asyncio.CancelledError:
            outcome.cancel()
        except GatewayError as problem:
            if not outcome.done():
                outcome.set_exception(problem)
        else:
            if not outcome.done():
                outcome.set_result(told)

    async def _outcome(self, replying: Awaitable[Reply]) -> Outcome:
        try:
            reply = await replying
        except GatewayError as problem:
            status = self._status_of(problem)
            if problem.code in _ASK_AGAIN:
                raise
            body = error_envelope(problem.code, problem.message, problem.logs)
            run = msgspec.to_builtins(problem.run) if problem.run is not None else {}
            return Outcome(status=status, body=body.decode(), run=run)
        return Outcome(
            status=self._status_of(reply),
            body=as_envelope(reply.result).decode(),
            run={**msgspec.to_builtins(reply.run), "logs": list(reply.logs)},
            legacy=reply.result.status is not None,
        )

    def _refusal(self, call: Call) -> Refused | None:
        """Tell why the outcome may not go to where the caller wants it, as far as that shows without asking DNS."""
        url = call.caller.callback_url
        return self._directory.of(call.caller.client).refusal(url) if url is not None else None

    def _jobs(self) -> DurableJobs:
        if self.jobs is None:
            raise JobsUnavailable("this gateway keeps no jobs")
        return self.jobs


class _Hold:
    """A call's place in the queue for a slot. While it is held the call may have its slot, and starts nothing."""

    def __init__(self) -> None:
        self.kept = True
        self._go = asyncio.Event()
        self._go.set()

    async def leave(self) -> None:
        """Leave the queue, with a slot."""
        await self._go.wait()
        self.kept = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold it while a job is being made of the call."""
        self._go.clear()
        try:
            yield
        finally:
            self._go.set()


def _left(call: Call, seconds: float) -> float:
    """Return what is left of a time that began when a call came."""
    now = asyncio.get_running_loop().time()
    return max(0.0, (now if call.begun is None else call.begun) + seconds - now)


def may_be_promoted(connector: Connector, command: Command) -> bool:
    """Tell whether a call of a command may become a job while it runs.

    What a connector with authentications answers may hold refreshed tokens, which only a synchronous caller keeps.
    """
    after = connector.limits.promote_after
    return after is not None and after < command.timeout and not command.execute_async and not connector.auths


_ASK_AGAIN = {"connector_busy", "connector_unavailable", "gateway_draining"}


def _job(call: Call, connector: Connector, command: Command, *, with_values: bool = True) -> Job:
    """Make a job of a call; without its values it is good for looking up its task, and costs no copy of them."""
    return Job(
        connector=connector.name,
        command=call.command,
        params=msgspec.json.encode(call.params).decode() if with_values else "{}",
        task_data=bytes(call.task_data).decode() if with_values else "{}",
        timeout=command.job_timeout if call.timeout is None else min(call.timeout, command.job_timeout),
        priority=command.priority,
        cluster_concurrency=connector.cluster_concurrency,
        idempotent=command.rerun,
        context=call.caller,
    )
