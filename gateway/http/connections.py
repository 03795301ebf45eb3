"""Connections: what is no request is answered with the envelope too, and nobody holds one without making progress."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import heapq
import resource
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.log import server_logger
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway.errors import RequestTimeout
from gateway.http.budget import PROGRESS, STILL, Budget
from gateway.http.responses import of_error, of_status, unreadable
from gateway.http.tls import Encryption
from gateway.observe.metrics import ConnectionLoad
from gateway.units import Duration, Size

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable, Coroutine

    from gateway.settings import Settings

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

CONTINUE = "100-continue"
MAPPED = 1 << 20  # bytes from which on what is allocated is mapped for itself
_M_MMAP_THRESHOLD = -3  # of <malloc.h>
KEEP_ALIVE = 75.0  # seconds
FIELD = 1 << 15  # bytes of a header: the cookies of a few sign-ins that are under way
HEAD = 1 << 16  # bytes of all headers together
READ_AHEAD = 1 << 16  # bytes of a body that wait for whoever reads it, and as much again
LINGER = (
    2.0  # seconds in which what still comes is thrown away, so that the answer is read before the connection breaks
)
UNREAD = 5.0  # seconds in which the rest of a body that nobody wants is thrown away
SPARE = 64  # connections beyond the most, when all are at work: for probes, others are refused
BATCH = 64  # idle connections that are looked up at once
LAST_WORDS = 5.0  # seconds for connections to send what was answered, at the end
LOOKS = 4  # within a time-out


def give_back_memory() -> None:
    """Have the C library return what was large to the system as soon as it is freed.

    Left alone, glibc raises its threshold to the largest that was ever freed, 32 MiB, and keeps what is below. Another
    library may have no such setting, and needs none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED)


class Connections:
    """How many there are, and may be, how long they may go without progress, and how they are encrypted."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings.

        Raises:
            ConfigError: the files of TLS cannot be used.
        """
        self.budget = Budget(settings.max_held)
        self.most = settings.max_connections
        self.open = 0
        self.read_timeout = settings.read_timeout
        self.write_timeout = settings.write_timeout
        self.encryption = Encryption(settings)
        self._processes = settings.max_processes

    def load(self) -> ConnectionLoad:
        """Return how many there are, and what they hold."""
        budget, ends = self.budget, self.encryption.ends
        until = ends.timestamp() if ends is not None else None
        return ConnectionLoad(self.open, self.most, budget.bodies, budget.answers, budget.most, until)

    def allow_descriptors(self) -> None:
        """Let this process have the descriptors that it needs, or else have less connections, and say so.

        The limit goes no higher than that: connectors inherit it, and some close all that it allows.
        """
        others = 4 * self._processes + SPARE + 256  # runs, cells that wait, files
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = self.most + others
        if soft == resource.RLIM_INFINITY or soft >= needed:
            return
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < needed:
            self.most = max(1, allowed - others)
            hint = f"ulimit -n is {allowed}: {needed} are needed, so there are {self.most} connections at most"
            structlog.get_logger().warning("few_descriptors", hint=hint)


class Connection(RequestHandler):
    """One connection."""

    __slots__ = ("_begun", "_bounds", "_context", "_head", "_mark", "_resumed", "_since", "surplus")

    def __init__(self, manager: web.Server, bounds: Connections, **options: Any) -> None:
        super().__init__(manager, **options)
        self.surplus = False
        """It is one too many: only what needs no key is answered."""
        self._context: object = None
        """What it is encrypted with."""
        self._bounds = bounds
        self._head = 0
        """Bytes of a head that is not there in full."""
        self._begun = 0.0
        """When the first of them came."""
        self._mark = 0
        """Bytes of answers that had not been taken when there was some progress, `_since`."""
        self._since = 0.0
        self._resumed = False
        """A part of an answer has been taken since."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._context = transport.get_extra_info("sslcontext")
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take what has come, and know when it is a head that is not there in full."""
        super().data_received(data)
        waiter = self._waiter
        if waiter is None or waiter.done():
            self._head = 0
            return
        if not self._head:
            self._begun = self._loop.time()
        self._head += len(data)
        if self._head > HEAD:
            self._refuse(HttpProcessingError(code=400, message=f"its headers are longer than {Size(HEAD)}"))

    def resume_writing(self) -> None:
        """Note that a part of an answer was taken."""
        self._resumed = True
        super().resume_writing()

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Send an answer; the last one, where the connection began with a certificate of former times."""
        if self._context is not None and self._context is not self._bounds.encryption.context:
            resp.force_close()
        return super().finish_response(request, resp, start_time)

    def is_idle(self) -> bool:
        """Tell whether it waits for a request, or for nothing but its end."""
        if self._force_close or self._close:
            return not self._force_close and self._current_request is None
        waiter = self._waiter
        return waiter is not None and not waiter.done() and not self._messages

    def idle_since(self) -> float:
        """Return when it began to, on the loop's clock."""
        return self._next_keepalive_close_time - KEEP_ALIVE

    def is_late(self, now: float) -> bool:
        """Tell whether the rest of a head has not come in time; it is then told so."""
        limit = self._bounds.read_timeout
        if not self._head or now - self._begun < limit or not self.is_idle():
            return False
        self._refuse(RequestTimeout(f"the head took longer than {Duration(limit)} (gateway.read_timeout)"))
        return True

    def is_unread(self, unsent: int, now: float, patience: float) -> bool:
        """Tell whether answers, of which so many bytes have not been taken, made no progress for so long."""
        if not unsent:
            self._mark = 0
        elif not self._mark or self._resumed or unsent <= self._mark - PROGRESS:
            self._mark, self._since, self._resumed = unsent, now, False
        else:
            return now - self._since > patience
        return False

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Let aiohttp log it and see whether it can be answered, and answer in our own words."""
        if isinstance(exc, RequestTimeout):
            return _LastWords(self, of_error(exc))
        answer = super().handle_error(request, status, exc, message)
        if not isinstance(exc, HttpProcessingError):
            return answer
        return _LastWords(self, of_status(status, f"the request cannot be read: {unreadable(exc)}"))

    async def linger(self) -> None:
        """Say that no more is sent, and throw away what still comes: what is closed with that unread breaks at once."""
        self._close = True
        if self.transport is not None and self.transport.can_write_eof():
            self.transport.write_eof()
        await asyncio.sleep(LINGER)  # cut short when the other side closes

    def _refuse(self, problem: Exception) -> None:
        """Answer that there will be no request."""
        self._head = 0
        self._messages.append((_ErrInfo(status=400, exc=problem, message=str(problem)), EMPTY_PAYLOAD))
        if self._waiter is not None:
            self._waiter.set_result(None)


class _LastWords(web.Response):
    """An answer after which nothing is read any more."""

    def __init__(self, connection: Connection, answer: web.Response) -> None:
        super().__init__(body=answer.body, status=answer.status, headers=answer.headers)
        self._connection = connection
        self.force_close()

    async def write_eof(self, data: bytes = b"") -> None:
        """Send it, and wait until it was read."""
        await super().write_eof(data)
        await self._connection.linger()


class _Server(web.Server):
    """Makes such connections, and looks after them."""

    bounds: Connections
    _looks: asyncio.TimerHandle | None = None
    _idle: list[Connection]
    _none_idle = float("-inf")
    _cut: Counter[str]
    _unsent = 0
    """Bytes of answers of any size, those of other routes included, that connections had not taken at the last look."""

    def begin(self, bounds: Connections) -> None:
        """Be one: aiohttp makes another kind."""
        self.bounds = bounds
        self._idle = []
        self._cut = Counter()

    def __call__(self) -> RequestHandler:
        """Make a connection."""
        return Connection(self, self.bounds, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Take one more; when that is one too many, the one that was idle for longest goes."""
        super().connection_made(handler, transport)
        self.bounds.open = len(self._connections)
        if self._looks is None:
            self._look()
        over = self.bounds.open - self.bounds.most
        if over <= 0:
            return
        idle = self._longest_idle()
        if idle is not None:
            self._cut["idle"] += 1
            idle.force_close()
        elif over > SPARE:
            self._cut["refused"] += 1
            transport.abort()
        elif isinstance(handler, Connection):
            handler.surplus = True

    def _longest_idle(self) -> Connection | None:
        now = self._loop.time()
        while True:
            while self._idle:
                one = self._idle.pop()
                if one.is_idle():
                    return one
            if now - self._none_idle < self._pause():
                return None
            idle = [one for one in self._connections if isinstance(one, Connection) and one.is_idle()]
            if not idle:
                self._none_idle = now
                return None
            self._idle = heapq.nsmallest(BATCH, idle, key=Connection.idle_since)[::-1]

    def _pause(self) -> float:
        return min(1.0, self.bounds.read_timeout / LOOKS, self.bounds.write_timeout / LOOKS)

    def _look(self) -> None:
        """Cut what makes no progress, and what is too much; again and again, while there are connections."""
        now, unsent = self._loop.time(), 0
        patience = self.bounds.write_timeout if self._unsent <= self.bounds.budget.most else STILL
        for one, transport in list(self._connections.items()):
            assert isinstance(one, Connection)
            if one.is_late(now):
                self._cut["late"] += 1
            size = transport.get_write_buffer_size()
            unsent += size
            if one.is_unread(size, now, patience):
                self._cut["unread"] += 1
                transport.abort()
        self._unsent = unsent
        if given_up := self.bounds.budget.make_room():
            self._cut["unread"] += given_up
        if self._cut:
            late, unread, idle, refused = (self._cut[why] for why in ("late", "unread", "idle", "refused"))
            structlog.get_logger().info("connections_cut", late=late, unread=unread, idle=idle, refused=refused)
            self._cut.clear()
        self.bounds.open = len(self._connections)
        self._looks = self._loop.call_later(self._pause(), self._look) if self._connections else None


class Runner(web.AppRunner):
    """An application whose connections are such."""

    __slots__ = ("_bounds",)

    def __init__(self, app: web.Application, bounds: Connections) -> None:
        super().__init__(
            app,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE,
            lingering_time=UNREAD,
            read_bufsize=READ_AHEAD,
            shutdown_timeout=LAST_WORDS,
            max_field_size=FIELD,
        )
        self._bounds = bounds
        server_logger.addFilter(_without_the_request)

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server  # aiohttp has no place to name it
        assert isinstance(server, _Server)
        server.begin(self._bounds)
        server.request_handler = functools.partial(_asked, server.request_handler)
        return server


def _asked(handler: Handler, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
    """Refuse what is expected beyond 100-continue: aiohttp does so before any middleware, in its own words."""
    if request.headers.get("Expect", CONTINUE).lower() != CONTINUE:
        return _unexpected()
    return handler(request)


async def _unexpected() -> web.Response:
    return of_status(HTTPStatus.EXPECTATION_FAILED, f"of Expect, only {CONTINUE} is understood here")


def _without_the_request(record: logging.LogRecord) -> bool:
    """Keep a request that cannot be read, which may well hold a token, out of the log."""
    problem = record.exc_info[1] if record.exc_info else None
    cause = problem
    while cause is not None and not isinstance(cause, HttpProcessingError | web.RequestPayloadError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        record.msg += f": {type(problem).__name__}"
        record.exc_info = None
    return True
