"""The port in a worker that does not run the engine: everything is asked of the first worker, over its socket.

A job is handed over on a websocket, so that a run in progress can stay in the worker where it began: the worker tells
what it came to, and is told to cancel it. Whoever finds the websocket closed instead knows that the other is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
import msgspec

from gateway.errors import GatewayDraining, GatewayError
from gateway.jobs.loops import looked_at
from gateway.jobs.port import EVERY, Accepted, Health, Job, JobStatus, JobsUnavailable, Outcome, Query, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from gateway.team import Team

PREFIX = "/team/jobs"  # of the routes on the first worker's socket
ENGINE = 0  # the worker that runs the engine
PATIENCE = 5.0  # seconds for the first worker to be replaced when it is away
ANSWER = 30.0  # seconds for it to answer; its engine may have to start, and minds the time itself
GLANCE = 2.0  # seconds for it to answer what a call does not wait for
_LOOK = 0.05  # seconds between looks for it

T = TypeVar("T")


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `list`."""

    query: Query
    limit: int
    offset: int


class Cancelling(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `cancel`."""

    job: str
    tell: bool


class Retrying(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `retry`."""

    job: str
    run: bool


class Purging(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `purge`."""

    older_than: float
    state: State | None


class Offer(msgspec.Struct, frozen=True, kw_only=True, tag="offer"):
    """The first message: a job. `running`: it runs already, in this worker of this generation."""

    job: Job
    running: bool
    worker: int
    generation: int


class Taken(msgspec.Struct, frozen=True, kw_only=True, tag="taken"):
    """The answer: it is committed and synced."""

    accepted: Accepted


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """The other answer, or what a run came to: an error, which is raised again on the other side."""

    code: str
    message: str
    logs: tuple[str, ...] = ()
    retry_after: float | None = None

    @classmethod
    def of(cls, problem: GatewayError) -> Failure:
        """Write an error down."""
        return cls(code=problem.code, message=problem.message, logs=problem.logs, retry_after=problem.retry_after)

    def error(self) -> GatewayError:
        """Return an error of the same class."""
        kind = next((one for one in _kinds(GatewayError) if one.code == self.code), JobsUnavailable)
        return kind(self.message, logs=self.logs, retry_after=self.retry_after)


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """What a run in progress came to; no outcome: it was cancelled."""

    outcome: Outcome | None


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """The run in progress is to be killed."""


Message = Offer | Taken | Failure | Ended | Cancel


async def messages(channel: Any) -> AsyncIterator[Message]:
    """Read one side of a websocket, until the other side closes it or is gone."""
    async for message in channel:
        if message.type is aiohttp.WSMsgType.BINARY:
            yield msgspec.msgpack.decode(message.data, type=Message)


def next_of(told: AsyncIterator[Message]) -> asyncio.Task[Message | None]:
    """Begin to wait for the next message; None when there will be none."""

    async def hear() -> Message | None:
        return await anext(told, None)

    return asyncio.create_task(hear())


async def send(channel: Any, message: Message) -> None:
    """Write one message; to whom is gone, nothing."""
    with contextlib.suppress(ConnectionError, aiohttp.ClientError):
        await channel.send_bytes(msgspec.msgpack.encode(message))


class RemoteJobs:
    """Implements `gateway.jobs.port.Jobs`."""

    def __init__(self, team: Team, *, patience: float = PATIENCE) -> None:
        self._team = team
        self._patience = patience
        self._session: aiohttp.ClientSession | None = None
        self._offers: set[asyncio.Task[None]] = set()
        self._draining = False
        self._seen = Health(ok=True, state="remote")

    async def start(self, *, warm: bool = False) -> None:
        """Do nothing: the first worker starts the engine."""

    async def accept(self, job: Job, running: asyncio.Future[Outcome] | None = None) -> Accepted:
        """Hand a job over; it is committed when this returns."""
        if self._draining:
            raise GatewayDraining(retry_after=5)
        taken: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        taken.add_done_callback(looked_at)  # whoever waits may hang up
        offer = asyncio.create_task(self._offer(job, running, taken))
        self._offers.add(offer)
        offer.add_done_callback(self._offers.discard)
        return await asyncio.shield(taken)

    def wake(self) -> None:
        """The first worker does it by itself."""

    async def find_open(self, job: Job) -> Accepted | None:
        """Return the open job of the same task, if there is one. Nobody waits for a worker that is away."""
        found: Accepted | None = await self._ask("find_open", job, Accepted | None, patience=0, within=GLANCE)
        return found

    async def status(self, job: str) -> JobStatus:
        """Return all that is known of a job."""
        status: JobStatus = await self._ask("status", job, JobStatus)
        return status

    async def list(self, query: Query = EVERY, *, limit: int = 50, offset: int = 0) -> list[JobStatus]:
        """Return jobs, the latest first."""
        listing = Listing(query=query, limit=limit, offset=offset)
        found: list[JobStatus] = await self._ask("list", listing, tuple[JobStatus, ...])
        return [*found]

    async def cancel(self, job: str, *, tell: bool = True) -> None:
        """Stop an open job."""
        await self._ask("cancel", Cancelling(job=job, tell=tell), None)

    async def retry(self, job: str, *, run: bool = False) -> str:
        """Deliver again what a job came to, or run it again."""
        name: str = await self._ask("retry", Retrying(job=job, run=run), str)
        return name

    async def purge(self, *, older_than: float, state: State | None = None) -> int:
        """Remove jobs that ended some time ago."""
        removed: int = await self._ask("purge", Purging(older_than=older_than, state=state), int)
        return removed

    def drain(self) -> None:
        """Hand nothing over any more; runs that were are told of when they end."""
        self._draining = True

    async def stop(self, grace: float = 5.0) -> bool:
        """Tell what runs came to, for at most `grace` seconds."""
        self._draining = True
        if self._offers:
            _, late = await asyncio.wait(self._offers, timeout=grace)
            for offer in late:
                offer.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        return True

    async def look(self) -> None:
        """Ask the first worker for its health, for whoever is about to ask for ours."""
        try:
            self._seen = await self._ask("health", None, Health, patience=0, within=GLANCE)
        except JobsUnavailable as problem:
            self._seen = Health(ok=False, state="unavailable", reason=problem.message)

    def health(self) -> Health:
        """Tell whether the first worker is there, and what it said last."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self._team.socket(ENGINE))
            except BlockingIOError:  # it is there, and has much to do
                pass
            except OSError:
                return Health(ok=False, state="unavailable", reason=_AWAY)
        return self._seen

    # --- private

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                "http://worker",
                connector=aiohttp.UnixConnector(self._team.socket(ENGINE), limit=0),
                timeout=aiohttp.ClientTimeout(total=ANSWER),
                headers=self._team.headers,
            )
        return self._session

    async def _ask(
        self, verb: str, arguments: Any, kind: Any, *, patience: float | None = None, within: float = ANSWER
    ) -> Any:
        data = msgspec.msgpack.encode(arguments)
        timeout = aiohttp.ClientTimeout(total=within)

        async def post() -> tuple[int, bytes]:
            async with self._open().post(f"{PREFIX}/{verb}", data=data, timeout=timeout) as response:
                return response.status, await response.read()

        status, answer = await _reach(post, self._patience if patience is None else patience)
        if status != _OK:
            raise JobsUnavailable(f"the worker that keeps the jobs failed to {verb}")
        told = msgspec.msgpack.decode(answer)
        if "failure" in told:
            raise msgspec.convert(told["failure"], Failure).error()
        return msgspec.convert(told["result"], kind)

    async def _offer(self, job: Job, running: asyncio.Future[Outcome] | None, taken: asyncio.Future[Accepted]) -> None:
        try:
            channel = await self._connect()
        except GatewayError as problem:
            taken.set_exception(problem)
            return
        async with channel:
            offer = Offer(
                job=job, running=running is not None, worker=self._team.worker, generation=self._team.generation
            )
            await send(channel, offer)
            told = messages(channel)
            try:
                async with asyncio.timeout(ANSWER):
                    answer = await anext(told, None)
            except TimeoutError:
                answer = None
            if not isinstance(answer, Taken):
                away = JobsUnavailable(_AWAY, retry_after=2)
                taken.set_exception(answer.error() if isinstance(answer, Failure) else away)
                return
            taken.set_result(answer.accepted)
            if running is not None and not answer.accepted.joined:
                await _tell_end(channel, told, running)

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        async def connect() -> aiohttp.ClientWebSocketResponse:
            return await self._open().ws_connect(f"{PREFIX}/offer", max_msg_size=0)

        return await _reach(connect, self._patience)


_AWAY = "the worker that keeps the jobs is away; it is being replaced"
_OK = 200


async def _reach(ask: Callable[[], Awaitable[T]], patience: float) -> T:
    """Ask the first worker, and wait for it while it is away. What may have reached it is not asked again."""
    clock = asyncio.get_running_loop().time
    until = clock() + patience
    while True:
        try:
            return await ask()
        except aiohttp.ClientConnectorError as problem:
            if clock() >= until:
                raise JobsUnavailable(_AWAY, retry_after=2) from problem
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            raise JobsUnavailable(_AWAY, retry_after=2) from problem
        await asyncio.sleep(_LOOK)


async def _tell_end(channel: Any, told: AsyncIterator[Message], running: asyncio.Future[Outcome]) -> None:
    """Tell what a run came to; kill it when that is asked for, or when nobody is there to be told."""
    hearing = next_of(told)
    try:
        await asyncio.wait((hearing, running), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            running.cancel()
            return
        await send(channel, _end_of(running))
        await asyncio.wait({hearing}, timeout=ANSWER)  # the other side closes when it has read it
    finally:
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)


def _end_of(running: asyncio.Future[Outcome]) -> Message:
    if running.cancelled():
        return Ended(outcome=None)
    problem = running.exception()
    if problem is None:
        return Ended(outcome=running.result())
    if isinstance(problem, GatewayError):
        return Failure.of(problem)
    return Failure(code=GatewayError.code, message=f"the run failed: {type(problem).__name__}")


def _kinds(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
    yield kind
    for one in kind.__subclasses__():
        yield from _kinds(one)
