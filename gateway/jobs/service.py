"""The port, with an engine that is woken by the first job: whoever has none pays nothing for it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from typing import TYPE_CHECKING

from gateway.errors import GatewayDraining
from gateway.jobs.loops import looked_at
from gateway.jobs.port import (
    EVERY,
    Accepted,
    Health,
    Job,
    JobNotFound,
    JobStatus,
    JobsUnavailable,
    Outcome,
    Query,
    Run,
    State,
)
from gateway.jobs.store import SqliteStore
from gateway.observe.events import StoreChanged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from gateway.jobs.engine import Engine
    from gateway.jobs.settings import CallbacksSection, JobsSection
    from gateway.observe.events import Event

PATIENCE = 5.0  # seconds for the store to commit a job
WAKING = 15.0  # seconds for the engine to start, when a request waits for it
WARMING = 5.0  # seconds at most that a start waits for the engine, so that the first job is not late
AGAIN = 2.0  # seconds between tries to start, while nobody asks


class DurableJobs:
    """Implements `gateway.jobs.port.Jobs`. Cheap to make."""

    def __init__(
        self,
        run: Run,
        *,
        state_dir: Path,
        jobs: JobsSection,
        callbacks: CallbacksSection,
        limit: Callable[[str], int],
        publish: Callable[[Event], None],
        patience: float = PATIENCE,
        **engine: Any,
    ) -> None:
        """`limit` tells how many runs of a connector this gateway may have at once."""
        self._settings = jobs
        self._folder = state_dir / "jobs"
        self._publish = publish
        self._options: dict[str, Any] = {
            "run": run, "folder": self._folder, "jobs": jobs, "callbacks": callbacks, "limit": limit,
            "publish": publish, "patience": patience, **engine,
        }  # fmt: skip
        self._engine: Engine | None = None
        self._waking: asyncio.Task[Engine] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._reason = ""
        self._draining = False
        self._stopped = False

    async def start(self, *, warm: bool = False) -> None:
        """Take up what an earlier gateway left, in the background; with `warm`, be ready for the first job."""
        store = SqliteStore(self._folder / "jobs.sqlite")
        if warm or self._settings.database is not None or await asyncio.to_thread(store.unfinished):
            self.wake()
        if warm and self._keeper is not None:
            await asyncio.wait((self._keeper,), timeout=WARMING)

    def wake(self) -> None:
        """Start the engine in the background, unless it is there."""
        if self._engine is None and self._keeper is None and not self._stopped:
            self._keeper = asyncio.create_task(self._keep_trying())

    async def accept(self, job: Job, running: asyncio.Future[Outcome] | None = None) -> Accepted:
        """Commit a job and start it."""
        if self._draining:  # an engine that sleeps is not woken for it
            raise GatewayDraining(retry_after=5)
        engine = await self._awake()
        accepted: Accepted = await engine.call(engine.accept(job, running))
        return accepted

    async def find_open(self, job: Job) -> Accepted | None:
        """Return the open job of the same task, if there is one."""
        if self._engine is None and self._waking is None:  # `start` wakes it for whatever is open
            return None
        engine = await self._awake()
        found: Accepted | None = await engine.call(engine.find_open(job))
        return found

    async def status(self, job: str) -> JobStatus:
        """Return all that is known of a job."""
        engine = await self._for_reading()
        if engine is None:
            raise JobNotFound(f"there is no job {job}")
        status: JobStatus = await engine.call(engine.status(job))
        return status

    async def list(self, query: Query = EVERY, *, limit: int = 50, offset: int = 0) -> list[JobStatus]:
        """Return jobs, the latest first."""
        engine = await self._for_reading()
        if engine is None:
            return []
        found: list[JobStatus] = await engine.call(engine.find(query, limit, offset))
        return found

    async def cancel(self, job: str, *, tell: bool = True) -> None:
        """Stop an open job."""
        engine = await self._for_reading()
        if engine is None:
            raise JobNotFound(f"there is no job {job}")
        await engine.call(engine.cancel(job, tell=tell))

    async def retry(self, job: str, *, run: bool = False) -> str:
        """Deliver again what a job came to, or run it again."""
        engine = await self._for_reading()
        if engine is None:
            raise JobNotFound(f"there is no job {job}")
        name: str = await engine.call(engine.retry(job, run=run))
        return name

    async def purge(self, *, older_than: float, state: State | None = None) -> int:
        """Remove jobs that ended some time ago."""
        engine = await self._for_reading()
        if engine is None:
            return 0
        removed: int = await engine.call(engine.purge(older_than, state))
        return removed

    def drain(self) -> None:
        """Start no more runs."""
        self._draining = True
        if self._engine is not None:
            self._engine.drain()

    async def stop(self, grace: float = 5.0) -> bool:
        """Let runs be recorded and close."""
        self._stopped = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._waking is not None:
            await asyncio.wait({self._waking}, timeout=WAKING)
        engine, self._engine = self._engine, None
        return self._waking is None if engine is None else await engine.close(grace)

    def health(self) -> Health:
        """Tell whether jobs can be accepted."""
        if self._stopped:
            return Health(ok=False, state="stopped")
        if self._engine is not None:
            fault = self._engine.fault
            return Health(
                ok=not fault, state="unavailable" if fault else "running", reason=fault, open=self._engine.open_jobs,
                node=self._engine.node,
            )  # fmt: skip
        if self._reason:
            return Health(ok=False, state="unavailable", reason=self._reason)
        waking = self._waking is not None or self._keeper is not None
        return Health(ok=True, state="starting") if waking else Health(ok=True, state="asleep", open=0)

    # --- private

    async def _for_reading(self) -> Engine | None:
        """Return the engine; None when there is nothing that it could know."""
        nothing = self._settings.database is None and not (self._folder / "jobs.sqlite").exists()
        return None if self._engine is None and nothing else await self._awake()

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
