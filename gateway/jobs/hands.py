"""The jobs in this gateway's hands: each goes its way here, from its turn to its end."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

from gateway.errors import ConnectorBusy, ConnectorUnavailable
from gateway.jobs.backlog import Backlog, client_of
from gateway.jobs.contract import JobState, Lost, Outcome
from gateway.jobs.futures import Tasks
from gateway.jobs.held import Held
from gateway.jobs.queue import Queue
from gateway.jobs.sealed import unopened
from gateway.jobs.work import interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from gateway.calls.quotas import Quotas
    from gateway.jobs.records import Row
    from gateway.jobs.settings import JobsSection
    from gateway.jobs.work import Work


class Hands:
    """All of them, by their names."""

    def __init__(
        self,
        work: Work,
        *,
        limit: Callable[[str], int],
        settings: JobsSection,
        quotas: Quotas,
        lost: Callable[[str], object],
    ) -> None:
        """`lost` is called with the id of a job that turned out not to be ours any more."""
        self.backlog = Backlog(settings)
        self.queue: Queue[Held] = Queue(limit, lambda held: self._do(held, self._turn(held)), quotas)
        self._quotas = quotas
        self._work = work
        self._longest = settings.max_interruptions
        self._lost = lost
        self._held: dict[str, Held] = {}
        self._tasks = Tasks()

    def __len__(self) -> int:
        """Count them."""
        return len(self._held)

    def get(self, name: str) -> Held | None:
        """Return one."""
        return self._held.get(name)

    @property
    def running(self) -> bool:
        """A command runs, or is about to."""
        return any(held.runs for held in self._held.values())

    @property
    def draining(self) -> bool:
        """Nothing begins any more."""
        return self._work.draining

    def take(self, held: Held) -> None:
        """Take a job that is being accepted."""
        self._held[held.job.id] = held
        self.backlog.add(held.job)

    def let_go(self, held: Held) -> None:
        """Forget a job."""
        if self._held.get(held.job.id) is held:
            del self._held[held.job.id]
            self.backlog.remove(held.job)

    def withdrawn(self, held: Held, reason: str) -> None:
        """Forget a job that is not to be done."""
        held.state = JobState.DEAD
        self.let_go(held)
        self._work.finished(held, reason)

    def start(self, held: Held) -> None:
        """Have a job that was accepted go its way."""
        if held.adopted is not None:
            self._do(held, self._adopt(held))
        else:
            self.queue.put(held.job.connector, client_of(held.job), held.job.priority, held)

    def go_on(self, row: Row) -> None:
        """Take a job up where its row says that it is."""
        held = Held.of(row)
        self.take(held)
        if held.cancelled:
            self._do(held, self._end(held, None))
        elif "outcome" in held.unreadable:
            self._do(held, self._bury(held))
        elif held.outcome is not None:
            self._do(held, self._deliver(held))
        elif held.unreadable:
            self._work.unreadable(held)
            self._do(held, self._deliver(held, unopened()))
        elif (outcome := interruption(held, self._longest)) is not None:
            self._do(held, self._deliver(held, outcome))
        else:
            self.start(held)

    def cancel(self, name: str) -> None:
        """End a job that somebody has cancelled, if it is here."""
        held = self._held.get(name)
        if held is None or held.cancelled:
            return
        held.state = JobState.CANCELLED
        self._work.finished(held)
        if held.task is None:
            self.queue.remove(held)
        self._do(held, self._end(held, held.task))

    def hurry(self, name: str) -> bool:
        """Make the next try to deliver a job now; False when there is none to be made here."""
        held = self._held.get(name)
        if held is None or held.state is not JobState.DELIVERING:
            return False
        held.wake.set()
        return True

    def drain(self) -> None:
        """Begin no more; end the wait for slots, since who gets one now would not begin."""
        self._work.drain()
        self.queue.close()
        for held in self._held.values():
            if held.task is not None and held.state is JobState.WAITING and not held.runs:
                held.task.cancel()

    async def end(self) -> None:
        """Kill what runs, and leave everything as it is recorded."""
        await self._tasks.end()

    # --- a job's way: each tells whether we are done with the job

    async def _turn(self, held: Held) -> bool:
        try:
            outcome = await self._work.run(held)
            if outcome is None:
                return False
            await self._work.settle(held, outcome)
        finally:
            self.queue.leave(held.job.connector, client_of(held.job))
        return await self._deliver(held)

    async def _adopt(self, held: Held) -> bool:
        client = client_of(held.job)
        self._quotas.add(client)
        try:
            came_to = await self._work.once(held)
        finally:
            self._quotas.give(client)
        if isinstance(came_to, Outcome):
            return await self._deliver(held, came_to)
        if isinstance(came_to, ConnectorBusy | ConnectorUnavailable):
            held.task = None
            self.start(held)
        return False

    async def _deliver(self, held: Held, outcome: Outcome | None = None) -> bool:
        if outcome is not None:
            await self._work.settle(held, outcome)
        await self._work.deliver(held)
        return True

    async def _bury(self, held: Held) -> bool:
        self._work.unreadable(held)
        await self._work.bury(held)
        return True

    async def _end(self, held: Held, doing: asyncio.Task[bool] | None) -> bool:
        if doing is not None:
            doing.cancel()
            await asyncio.wait({doing})
        await self._work.tell_cancelled(held)
        return True

    def _do(self, held: Held, work: Coroutine[Any, Any, bool]) -> None:
        held.task = self._tasks.begin(work)
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
            self.let_go(held)
        if isinstance(problem, Lost):
            self._lost(held.job.id)
