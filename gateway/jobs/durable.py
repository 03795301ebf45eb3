"""Durable jobs, with an engine that is woken by the first of them: whoever has none pays nothing for it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from typing import TYPE_CHECKING

from gateway.calls.quotas import Quotas
from gateway.errors import GatewayDraining
from gateway.jobs.contract import (
    EVERY,
    Accepted,
    Execute,
    Health,
    Job,
    JobNotFound,
    JobState,
    JobStatus,
    JobsUnavailable,
    Outcome,
    Query,
)
from gateway.jobs.futures import looked_at, unbroken
from gateway.observe.events import StoreChanged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from gateway.jobs.engine import Engine
    from gateway.jobs.settings import CallbacksSection, JobsSection
    from gateway.observe.events import Event

PATIENCE = 5.0  # seconds for the store to commit a job
GLANCE = 2.0  # seconds for it to answer what a call does not wait for
WAKING = 15.0  # seconds for the engine to start, when a request waits for it
WARMING = 5.0  # seconds at most that a start waits for the engine, so that the first job is not late
AGAIN = 2.0  # seconds between tries to start, while nobody asks


class DurableJobs:
    """The jobs of a gateway. Cheap to make. What asks the store may raise JobsUnavailable."""

    def __init__(
        self,
        run: Execute,
        *,
        state_dir: Path,
        jobs: JobsSection,
        callbacks: Callable[[str | None], CallbacksSection],
        limit: Callable[[str], int],
        publish: Callable[[Event], None],
        quotas: Quotas | None = None,
        patience: float = PATIENCE,
        **engine: Any,
    ) -> None:
        """`callbacks` and `quotas` tell what holds for a client, `limit` how many runs of a connector there may be."""
        self._file = None if jobs.database is not None else state_dir / "jobs" / "jobs.sqlite"
        self._publish = publish
        self._options: dict[str, Any] = {
            "run": run, "folder": state_dir / "jobs", "jobs": jobs, "callbacks": callbacks, "limit": limit,
            "quotas": quotas or Quotas(), "publish": publish, "patience": patience, **engine,
        }  # fmt: skip
        self._engine: Engine | None = None
        self._waking: asyncio.Task[Engine] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._reason = ""
        self._draining = False
        self._stopped = False

    async def start(self, *, warm: bool = False) -> None:
        """Take up what an earlier gateway left, in the background; with `warm`, be ready for the first job.

        Does nothing when there is nothing to do.
        """
        if warm or self._file is None or (self._file.exists() and await asyncio.to_thread(_unfinished, self._file)):
            self.wake()
        if warm and self._keeper is not None:
            await asyncio.wait((self._keeper,), timeout=WARMING)

    def wake(self) -> None:
        """Start the engine in the background, unless it is there: there may be a job soon."""
        if self._engine is None and self._keeper is None and not self._stopped:
            self._keeper = asyncio.create_task(self._keep_trying())

    async def accept(self, job: Job, running: asyncio.Future[Outcome] | None = None) -> Accepted:
        """Commit a job and start it. `running` is its run when that is already in progress: it is adopted.

        Raises:
            ConnectorBusy: the backlog is full.
            GatewayDraining: the gateway is shutting down.
        """
        if self._draining:  # an engine that sleeps is not woken for it
            raise GatewayDraining(retry_after=5)
        engine = await self._awake()
        return await unbroken(engine.accept(job, running))

    async def find_open(self, job: Job) -> Accepted | None:
        """Join the open job of the same task and command, if there is one; never wakes an engine that sleeps."""
        if self._engine is None and self._waking is None:  # `start` wakes it for whatever is open
            return None
        return await unbroken((await self._awake()).find_open(job, GLANCE))

    async def status(self, job: str) -> JobStatus:
        """Return all that is known of a job.

        Raises:
            JobNotFound: there is none.
        """
        return await (await self._that_knows(job)).status(job)

    async def list(self, query: Query = EVERY, *, limit: int = 50, offset: int = 0) -> list[JobStatus]:
        """Return jobs, the latest first."""
        return await (await self._awake()).list(query, limit, offset) if self._knows_any else []

    async def count_dead(self) -> dict[str | None, int] | None:
        """Return how many dead letters there are, by client; None while the engine does not run."""
        if self._engine is None:
            return None if self._knows_any else {}
        return await self._engine.count_dead()

    async def cancel(self, job: str) -> None:
        """Stop an open job. Its caller gets the error `job_cancelled`, unless an outcome is recorded.

        Raises:
            JobNotFound: there is none.
            JobConflict: it has ended.
        """
        await unbroken((await self._that_knows(job)).cancel(job))

    async def retry(self, job: str, *, run: bool = False) -> str:
        """Deliver again what a job came to; with `run`, run its command again as a new job. Return the job's id.

        Raises:
            JobNotFound: there is none.
            JobConflict: it is open, or there is nothing to deliver.
        """
        return await unbroken((await self._that_knows(job)).retry(job, run=run))

    async def count_ended(self, *, older_than: float, state: JobState | None = None, most: int) -> int:
        """Return how many jobs `purge` would remove, at most so many."""
        return await (await self._awake()).count_ended(older_than, state, most) if self._knows_any else 0

    async def purge(self, *, older_than: float, state: JobState | None = None) -> int:
        """Remove jobs that ended more than `older_than` seconds ago; return how many. `state` None is every end."""
        return await (await self._awake()).purge(older_than, state) if self._knows_any else 0

    def drain(self) -> None:
        """Start no more runs; those in progress go on."""
        self._draining = True
        if self._engine is not None:
            self._engine.drain()

    async def stop(self, grace: float = 5.0) -> None:
        """Wait at most `grace` seconds for runs to be recorded, leave the rest to the next start, and close.

        Nothing is left of it.
        """
        self._stopped = True
        for task in (self._keeper, self._waking):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close(grace)

    def health(self) -> Health:
        """Tell, at once, whether jobs can be accepted."""
        if self._stopped:
            return Health(ok=False, state="stopped")
        if self._engine is not None:
            return self._engine.health()
        if self._reason:
            return Health(ok=False, state="unavailable", reason=self._reason)
        waking = self._waking is not None or self._keeper is not None
        return Health(ok=True, state="starting") if waking else Health(ok=True, state="asleep", open=0)

    # --- private

    @property
    def _knows_any(self) -> bool:
        """There is an engine, or something that it could know."""
        return self._engine is not None or self._file is None or self._file.exists()

    async def _that_knows(self, job: str) -> Engine:
        if not self._knows_any:
            raise JobNotFound(f"there is no job {job}")
        return await self._awake()

    async def _awake(self) -> Engine:
        if self._stopped:
            raise GatewayDraining(retry_after=5)
        if self._engine is not None:
            return self._engine
        if self._waking is None:
            self._waking = asyncio.create_task(self._wake())
            self._waking.add_done_callback(looked_at)
        try:
            async with asyncio.timeout(WAKING):
                return await asyncio.shield(self._waking)
        except TimeoutError:
            raise JobsUnavailable("the jobs' store does not answer", retry_after=5) from None

    async def _wake(self) -> Engine:
        try:
            module = await asyncio.to_thread(importlib.import_module, "gateway.jobs.engine")
            engine: Engine = module.Engine(**self._options)
            await engine.open()
        except JobsUnavailable as problem:
            if problem.message != self._reason:
                self._publish(StoreChanged(ok=False, reason=problem.message))
            self._reason = problem.message
            raise
        else:
            if self._reason:
                self._publish(StoreChanged(ok=True))
            self._reason = ""
            self._engine = engine
            if self._draining:
                engine.drain()
            return engine
        finally:
            self._waking = None

    async def _keep_trying(self) -> None:
        while self._engine is None and not self._stopped:
            with contextlib.suppress(JobsUnavailable):
                await self._awake()
                return
            await asyncio.sleep(AGAIN)


def _unfinished(file: Path) -> bool:
    """Tell, in a thread, whether a file has jobs to go on with."""
    from gateway.jobs.sqlite import unfinished  # noqa: PLC0415 - whoever has no file needs no driver

    return unfinished(file)
