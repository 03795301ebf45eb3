"""Serves until a signal: the first SIGTERM or SIGINT drains, the second stops at once, SIGHUP reloads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import signal
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.log import server_logger
from aiohttp.web_protocol import RequestHandler

from gateway import signals
from gateway.http.app import GATEWAY, build
from gateway.http.responses import of_status, unreadable
from gateway.jobs.notices import of_callbacks
from gateway.service import BACKLOG, sockets

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable

    from gateway.gateway import Gateway
    from gateway.observe.events import Bus
    from gateway.settings import Settings

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

CONTINUE = "100-continue"
KEEP_ALIVE = 75.0  # seconds
LAST_WORDS = 5.0  # seconds for connections to send what was answered
LOOK = 0.01  # seconds between two looks at whether they have
FIELD = 1 << 15  # bytes of a header: the cookies of a few sign-ins that are under way
YOUNG = 10_000  # new objects until the collector looks at them; a call makes hundreds, and leaves no cycles


async def serve(settings: Settings, bus: Bus) -> None:
    """Run the server until it was told to stop and has drained.

    Raises:
        ConfigError: the registry's files cannot be used.
        OSError: the address cannot be listened on.
    """
    app = build(settings, bus)
    runner = _Runner(
        app,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=KEEP_ALIVE,
        shutdown_timeout=LAST_WORDS,
        max_field_size=FIELD,
    )
    server_logger.addFilter(_without_the_request)
    stop = _Signals(app)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.on_signal)
    loop.add_signal_handler(signal.SIGHUP, stop.on_reload)
    settings.service.beat()
    with signals.taken():
        await runner.setup()
        gc.collect()
        gc.freeze()  # what is there now stays
        gc.set_threshold(YOUNG)
        stop.up.set()
        try:
            if not stop.drain.is_set():
                await _listen(runner, app[GATEWAY])
                await stop.drain.wait()
            await _drain(app, runner, stop)
        finally:
            await runner.cleanup()


async def _listen(runner: web.AppRunner, gateway: Gateway) -> None:
    settings = gateway.settings
    for one in sockets(settings.service, settings.host, settings.port):
        await web.SockSite(runner, one, backlog=BACKLOG).start()
    settings.service.tell("READY=1")
    for address in [one for one in runner.addresses if isinstance(one, tuple)]:
        structlog.get_logger().info("listening", host=address[0], port=address[1])
    if settings.api_key is None:
        who = "whoever reaches it" if settings.open else "whoever is on this machine"
        hint = f"{who} can call everything; set CONNECTOR_PROXY_API_KEY to close the gateway"
        structlog.get_logger().warning("no_api_key", hint=hint)
    notice = of_callbacks(gateway.destinations)
    if notice is not None:
        structlog.get_logger().info("callbacks", hint=notice)


async def _drain(app: web.Application, runner: web.AppRunner, stop: _Signals) -> None:
    # The listener stays open: probes and metrics must see the drain.
    gateway = app[GATEWAY]
    gateway.settings.service.tell("STOPPING=1")
    grace = gateway.settings.drain
    gateway.admission.drain(grace)
    gateway.registry.stop()
    if gateway.submitter.jobs is not None:
        gateway.submitter.jobs.drain()
    drained = asyncio.create_task(gateway.admission.drained(grace))
    at_once = asyncio.create_task(stop.at_once.wait())
    await asyncio.wait((drained, at_once), return_when=asyncio.FIRST_COMPLETED)
    if not drained.done():
        gateway.admission.stop_all(grace=0)
    at_once.cancel()
    await drained
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_sent(runner), LAST_WORDS)


class _Connection(RequestHandler):
    """A connection on which also what is no request is answered with the envelope."""

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Let aiohttp log it and see whether it can be answered, and answer in our own words."""
        answer = super().handle_error(request, status, exc, message)
        if not isinstance(exc, HttpProcessingError):
            return answer
        ours = of_status(status, f"the request cannot be read: {unreadable(exc)}")
        ours.force_close()
        return ours


class _Server(web.Server):
    """Makes such connections."""

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    """An application whose connections are such."""

    __slots__ = ()

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server  # aiohttp has no place to name it
        server.request_handler = functools.partial(_asked, server.request_handler)
        return server


def _asked(handler: Handler, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
    """Refuse what is expected beyond 100-continue: aiohttp does so before any middleware, in its own words."""
    if request.headers.get(hdrs.EXPECT, CONTINUE).lower() != CONTINUE:
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


async def _sent(runner: web.AppRunner) -> None:
    """Wait until what was answered has left us: closing a connection is not waiting for what it has still to send."""
    connections = runner.server.connections if runner.server is not None else []
    while any(one.transport is not None and one.transport.get_write_buffer_size() for one in connections):  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(LOOK)


class _Signals:
    """What signals have asked for so far."""

    def __init__(self, app: web.Application) -> None:
        self.drain = asyncio.Event()
        self.at_once = asyncio.Event()
        self.up = asyncio.Event()
        self._app = app
        self._reload: asyncio.Task[None] | None = None

    def on_signal(self) -> None:
        (self.at_once if self.drain.is_set() else self.drain).set()

    def on_reload(self) -> None:
        self._reload = asyncio.create_task(self._read_again())

    async def _read_again(self) -> None:
        await self.up.wait()  # it may have been asked for while the first reading was under way
        await self._app[GATEWAY].registry.reload(retry=True)
