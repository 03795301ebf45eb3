"""An engine in this process, and a caller that takes callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.abc import ResolveResult

from gateway.jobs.contract import OPEN, Job, Outcome
from gateway.jobs.durable import DurableJobs
from gateway.jobs.settings import CallbacksSection, JobsSection
from gateway.protocol.request import Caller
from gateway.units import Duration
from tests.support import eventually, listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from gateway.jobs.contract import Begin, JobStatus
    from gateway.jobs.store import Store
    from gateway.observe.events import Event

QUICK = CallbacksSection(first_delay=Duration(0.05), timeout=Duration(2))


def envelope(body: Any) -> str:
    return json.dumps({"command_response": {"body": body}, "command_response_version": 2, "error": None})


def job(command: str = "Do", *, callback: str | None = None, task: str | None = None, **more: Any) -> Job:
    context = Caller(request_id="r-1", task_id=task, callback_url=callback)
    return Job(connector=more.pop("connector", "fake"), command=command, context=context, **more)


class Runner:
    """The `run` that the engine is given. It answers at once, or when `release` is set; a slot is free when `slot` is."""

    def __init__(self) -> None:
        self.queued: list[Job] = []
        self.started: list[Job] = []
        self.cancelled: list[str] = []
        self.release = asyncio.Event()
        self.release.set()
        self.slot = asyncio.Event()
        self.slot.set()
        self.taken = 0
        """Slots that are held now."""
        self.refusals: list[BaseException] = []
        """Raised without a slot, one after another."""
        self.problems: list[BaseException] = []
        """Raised by runs that began."""

    def hold(self) -> None:
        self.release.clear()

    async def __call__(self, job: Job, begin: Begin) -> Outcome:
        self.queued.append(job)
        if self.refusals:
            raise self.refusals.pop(0)
        await self.slot.wait()
        self.taken += 1
        try:
            await begin()
            return await self._run(job)
        finally:
            self.taken -= 1

    async def _run(self, job: Job) -> Outcome:
        self.started.append(job)
        if self.problems:
            raise self.problems.pop(0)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(job.id)
            raise
        return Outcome(status=200, body=envelope({"command": job.command}), run={"wall": 0.1})

    @property
    def commands(self) -> list[str]:
        return [one.command for one in self.started]


class Bench:
    """One engine on one folder; `again` is the next start of the same gateway."""

    def __init__(self, folder: Path, database: str | None, options: dict[str, Any]) -> None:
        self.folder = folder
        self.database = database
        self.runner = Runner()
        self.events: list[Event] = []
        self.limit = 8
        self._options: dict[str, Any] = {}
        self._callbacks = QUICK
        self._section: dict[str, Any] = {}
        self._set(options)
        self.jobs = self.make()

    def _set(self, options: dict[str, Any]) -> None:
        self._section |= {name: options.pop(name) for name in JobsSection.__struct_fields__ if name in options}
        self._callbacks = options.pop("callbacks", self._callbacks)
        self._options |= options

    def make(self) -> DurableJobs:
        """Make the next engine on the same store."""
        return DurableJobs(
            self.runner,
            state_dir=self.folder,
            limit=lambda _connector: self.limit,
            publish=self.events.append,
            jobs=JobsSection(database=self.database, **self._section),
            callbacks=lambda _client: self._callbacks,
            **self._options,
        )

    async def again(self, **options: Any) -> None:
        """Die in the middle of everything, and start again."""
        await self.jobs.stop(grace=0)
        self.runner = Runner()
        self._set(options)
        self.jobs = self.make()
        await self.jobs.start()

    async def accept(self, one: Job, running: asyncio.Future[Outcome] | None = None) -> str:
        return (await self.jobs.accept(one, running)).id

    async def ended(self, name: str) -> JobStatus:
        async def look() -> JobStatus | None:
            status = await self.jobs.status(name)
            return None if status.state in OPEN else status

        return await eventually(look)

    async def reaches(self, name: str, condition: Callable[[JobStatus], Any]) -> JobStatus:
        async def look() -> JobStatus | None:
            status = await self.jobs.status(name)
            return status if condition(status) else None

        return await eventually(look)

    @property
    def store(self) -> Store:
        """What the engine has: it is awake."""
        assert self.jobs._engine is not None
        return self.jobs._engine.store

    def told(self, kind: type[Event]) -> list[Any]:
        return [one for one in self.events if isinstance(one, kind)]


@contextlib.asynccontextmanager
async def bench(folder: Path, database: str | None = None, **options: Any) -> AsyncIterator[Bench]:
    """Have one; `options` are keys of the section `jobs`, or what an engine is made with."""
    made = Bench(folder, database, options)
    try:
        yield made
    finally:
        made.runner.release.set()
        await made.jobs.stop(grace=0)


class Backend:
    """Takes callbacks; `answers` are given one after another, the last for ever."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[tuple[dict[str, str], Any]] = []
        self.answers: list[Callable[[web.Request], Awaitable[web.StreamResponse]] | int] = [200]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((dict(request.headers), await request.json()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=answer) if isinstance(answer, int) else await answer(request)


@contextlib.asynccontextmanager
async def caller() -> AsyncIterator[Backend]:
    made = Backend()
    app = web.Application()
    app.router.add_put("/{path:.*}", made.handle)
    async with listening(app) as url:
        made.url = f"{url}/callback"
        yield made


def answering(*addresses: str):
    """Return a look-up that gives another address each time."""
    left = list(addresses)

    async def lookup(host: str, port: int, _family: socket.AddressFamily) -> list[ResolveResult]:
        address = left.pop(0)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)
        ]  # fmt: skip

    return lookup
