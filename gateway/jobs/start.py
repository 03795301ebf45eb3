"""A run on its way to its process: it waits for its slot, and then until it is recorded that it begins.

What was begun and has no outcome was interrupted by a crash. So nothing counts as begun that still waits for a slot,
and no process is started before its beginning is recorded.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING, Any

from gateway.errors import ConnectorBusy, GatewayDraining
from gateway.jobs.loops import across, looked_at

if TYPE_CHECKING:
    from gateway.jobs.port import Job, Outcome, Run

PATIENCE = 5.0  # seconds for which a slot is held while the beginning is recorded


class Start:
    """One such run. It lives in the engine's loop, and the run itself in the gateway's."""

    def __init__(self, gateway: asyncio.AbstractEventLoop, run: Run, job: Job) -> None:
        self.committing = False
        """Its beginning is being recorded, or was: nobody but the run itself ends it now."""
        self._stopped = False
        self._engine = asyncio.get_running_loop()
        self._slot: asyncio.Future[None] = self._engine.create_future()
        self._permit: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._task = asyncio.ensure_future(across(gateway, lambda: run(job, self._begin)))
        self._task.add_done_callback(looked_at)

    @property
    def holds(self) -> bool:
        """It has a slot and waits to begin."""
        return self._slot.done() and not self._permit.cancelled() and not self._task.done()

    async def reached(self) -> bool:
        """Wait until it holds its slot; False when it ended instead."""
        either: set[asyncio.Future[Any]] = {self._slot, self._task}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return self.holds

    def go(self) -> bool:
        """Let it begin; False when it has given its slot back, or has ended."""
        if not self.holds or not self._permit.set_running_or_notify_cancel():
            return False
        self._permit.set_result(None)
        return True

    async def outcome(self) -> Outcome:
        """Wait for its end, and kill it when the wait is cancelled. It raises what a `Run` may."""
        return await self._task

    def hold_back(self) -> None:
        """End it, unless it begins already."""
        if not self.committing:
            self._stop()

    async def end(self) -> None:
        """End it, whatever it does, and wait for that."""
        self._stop()
        await asyncio.wait({self._task})

    def _stop(self) -> None:
        """Cancel it, once: a second time would end the wait for its end."""
        if not self._stopped:
            self._stopped = True
            self._task.cancel()

    async def _begin(self) -> None:
        """Ask to begin, in the gateway's loop. A store that does not answer must not keep calls from their slots."""
        try:
            self._engine.call_soon_threadsafe(self._has_slot)
        except RuntimeError:  # the engine is closed
            raise GatewayDraining(retry_after=5) from None
        permit = asyncio.wrap_future(self._permit)
        try:
            await asyncio.wait({permit}, timeout=PATIENCE)
        finally:
            given_up = self._permit.cancel()
        if given_up:
            raise ConnectorBusy("it could not be recorded that the run begins", retry_after=PATIENCE)

    def _has_slot(self) -> None:
        if not self._slot.done():
            self._slot.set_result(None)
