"""Runs that go on after their answer: a command that calls back by itself has acknowledged its call, and works.

They are not durable, since nobody else knows what they would have told their caller; they are bounded, seen among the
jobs, and can be cancelled.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

import msgspec

from gateway.calls.extension import Acknowledgement, Extension
from gateway.identity import DEFAULT
from gateway.jobs.contract import JobState, JobStatus
from gateway.jobs.futures import looked_at

if TYPE_CHECKING:
    from gateway.calls.call import Call
    from gateway.calls.invoke import Invoker
    from gateway.calls.quotas import Quotas
    from gateway.calls.reply import Reply
    from gateway.connectors.definition import Command, Connector
    from gateway.jobs.contract import Query

PREFIX = "run-"  # of their ids


class Background:
    """Those of this process."""

    def __init__(self, invoker: Invoker, quotas: Quotas) -> None:
        self._invoker = invoker
        self._quotas = quotas
        self._runs: dict[str, tuple[JobStatus, asyncio.Future[Reply]]] = {}

    async def run(self, call: Call, found: tuple[Connector, Command]) -> Reply:
        """Run a command until it has answered, and let it go on; one that ends before it has is an ordinary call.

        Raises:
            GatewayError: it was refused, or failed, before it answered.
        """
        name = f"{PREFIX}{uuid.uuid4().hex[:16]}"
        acknowledgement = Acknowledgement(name)
        call = msgspec.structs.replace(call, acknowledgement=acknowledgement, extension=Extension())
        running = asyncio.ensure_future(self._invoker.invoke(call, found))
        try:
            await asyncio.wait((running, acknowledgement.reply), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the caller hung up
            running.cancel()
            await asyncio.wait((running,))
            raise
        if running.done():
            return running.result()
        client = call.caller.client or DEFAULT
        self._runs[name] = _status(name, call, found[0].name), running
        self._quotas.add(client)
        running.add_done_callback(lambda _: self._runs.pop(name))
        running.add_done_callback(lambda _: self._quotas.give(client))
        running.add_done_callback(looked_at)
        return acknowledgement.reply.result()

    def list(self, query: Query) -> list[JobStatus]:
        """Return those that go on now, the latest first."""
        return [status for status, _ in reversed(self._runs.values()) if query.fits(status)]

    def find(self, name: str) -> JobStatus | None:
        """Return one of them."""
        found = self._runs.get(name)
        return found[0] if found is not None else None

    async def cancel(self, name: str) -> JobStatus | None:
        """Kill one of them with all that it has started; None when there is none."""
        found = self._runs.get(name)
        if found is None:
            return None
        status, running = found
        running.cancel()
        await asyncio.wait((running,))
        return msgspec.structs.replace(status, state=JobState.CANCELLED, finished=time.time())

    def __len__(self) -> int:
        """Count those that go on now."""
        return len(self._runs)


def is_run(name: str) -> bool:
    """Tell whether an id is one of theirs, be it of a run that has ended."""
    return name.startswith(PREFIX)


def _status(name: str, call: Call, connector: str) -> JobStatus:
    caller = call.caller
    return JobStatus(
        id=name,
        connector=connector,
        command=call.command,
        state=JobState.RUNNING,
        accepted=time.time(),
        request_id=caller.request_id,
        client=caller.client,
        task_id=caller.task_id,
        process_instance_id=caller.process_instance_id,
        process_model_identifier=caller.process_model_identifier,
        callback=True,
        background=True,
    )
