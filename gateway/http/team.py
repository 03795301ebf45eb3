"""What the first of several workers, which runs the jobs' engine, does for the others. Served on its socket alone."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from gateway.errors import GatewayDraining, GatewayError
from gateway.http.routes import Access, Route
from gateway.jobs.port import Job, JobsUnavailable, Outcome, RunLost
from gateway.jobs.remote import (
    PREFIX,
    Cancel,
    Cancelling,
    Ended,
    Failure,
    Listing,
    Offer,
    Purging,
    RemoteJobs,
    Retrying,
    Taken,
    messages,
    next_of,
    send,
)
from gateway.processes.supervisor import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gateway.gateway import Gateway
    from gateway.jobs.port import Health, Jobs
    from gateway.jobs.remote import Message


class TeamHandlers:
    """The routes below /team/jobs."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._offers: set[asyncio.Task[None]] = set()

    def routes(self) -> list[Route]:
        """Return the table of routes; none where there is no team."""
        if self._gateway.team is None:
            return []
        return [
            Route("GET", f"{PREFIX}/offer", self.offer, Access.TEAM),
            self._route("health", None, lambda jobs, _: _health(jobs)),
            self._route("find_open", Job, lambda jobs, job: jobs.find_open(job)),
            self._route("status", str, lambda jobs, job: jobs.status(job)),
            self._route("list", Listing, lambda jobs, one: jobs.list(one.query, limit=one.limit, offset=one.offset)),
            self._route("cancel", Cancelling, lambda jobs, asked: jobs.cancel(asked.job, tell=asked.tell)),
            self._route("retry", Retrying, lambda jobs, asked: jobs.retry(asked.job, run=asked.run)),
            self._route("purge", Purging, lambda jobs, asked: jobs.purge(**msgspec.structs.asdict(asked))),
        ]

    async def look(self) -> None:
        """Have the first worker's view of jobs at hand, for what this one is about to tell."""
        if isinstance(self._gateway.desk.jobs, RemoteJobs):
            await self._gateway.desk.jobs.look()

    async def offer(self, request: web.Request) -> web.WebSocketResponse:
        """Take a job, and with it perhaps a run that stays where it is."""
        channel = web.WebSocketResponse(max_msg_size=0)
        await channel.prepare(request)
        # In a task of its own: this handler is cancelled when the other side is gone, and that has to be told.
        offer = asyncio.create_task(self._take(channel))
        self._offers.add(offer)
        offer.add_done_callback(self._offers.discard)
        await asyncio.shield(offer)
        return channel

    # --- private

    def _route(self, verb: str, kind: Any, do: Callable[[Jobs, Any], Awaitable[Any]]) -> Route:
        async def handler(request: web.Request) -> web.Response:
            told: dict[str, Any]
            try:
                # Not `request.read`: what another worker has let in is not measured again.
                arguments = msgspec.msgpack.decode(await request.content.read(), type=kind)
                told = {"result": await do(self._jobs(), arguments)}
            except GatewayError as problem:
                told = {"failure": Failure.of(problem)}
            return web.Response(body=msgspec.msgpack.encode(told))

        return Route("POST", f"{PREFIX}/{verb}", handler, Access.TEAM)

    async def _take(self, channel: web.WebSocketResponse) -> None:
        told = messages(channel)
        offer = await anext(told, None)
        if not isinstance(offer, Offer):
            return
        running: asyncio.Future[Outcome] | None = None
        if offer.running:
            running = asyncio.get_running_loop().create_future()
            running.add_done_callback(_looked_at)
        try:
            # Counted as in flight: a drain waits for what the other worker has to tell.
            with self._gateway.supervisor.invocation() if offer.running else contextlib.nullcontext():
                accepted = await self._jobs().accept(offer.job, running)
                await send(channel, Taken(accepted=accepted))
                if running is not None and not accepted.joined:
                    await self._follow(channel, told, offer, running)
        except GatewayError as problem:
            await send(channel, Failure.of(problem))
        finally:
            await channel.close()

    async def _follow(
        self,
        channel: web.WebSocketResponse,
        told: AsyncIterator[Message],
        offer: Offer,
        running: asyncio.Future[Outcome],
    ) -> None:
        """Pass on what a run in another worker comes to, and a cancellation to there."""
        hearing = next_of(told)
        await asyncio.wait((hearing, running), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await send(channel, Cancel())
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
            return
        message = hearing.result()
        if message is None:
            assert self._gateway.team is not None
            await self._gateway.team.ended(offer.worker, offer.generation)
        if not running.done():
            self._settle(running, message, offer.worker)

    def _settle(self, running: asyncio.Future[Outcome], message: Message | None, worker: int) -> None:
        match message:
            case Ended(outcome=None):
                running.cancel()
            case Ended(outcome=outcome) if outcome is not None:
                running.set_result(outcome)
            case Failure(code=GatewayDraining.code) if self._gateway.supervisor.state is State.SERVING:
                running.set_exception(RunLost(f"worker {worker} was stopped"))
            case Failure():
                running.set_exception(message.error())
            case _:
                running.set_exception(RunLost(f"worker {worker} died"))

    def _jobs(self) -> Jobs:
        if self._gateway.desk.jobs is None:
            raise JobsUnavailable("this gateway keeps no jobs")
        return self._gateway.desk.jobs


async def _health(jobs: Jobs) -> Health:
    return jobs.health()


def _looked_at(future: asyncio.Future[Outcome]) -> None:
    if not future.cancelled():
        future.exception()
