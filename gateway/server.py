"""Serves until a signal: the first SIGTERM or SIGINT drains, the second stops at once, SIGHUP reloads."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import structlog

from gateway import signals
from gateway.http.acceptors import Acceptors
from gateway.http.app import CONNECTIONS, GATEWAY, build
from gateway.http.connections import LAST_WORDS, Runner, give_back_memory
from gateway.jobs.notices import of_callbacks
from gateway.observe.audit import AuditLine, now
from gateway.observe.tracing import TracesUnavailable, start
from gateway.service import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web

    from gateway.gateway import Gateway
    from gateway.http.connections import Connections
    from gateway.observe.events import Bus
    from gateway.observe.tracing import Tracing
    from gateway.settings import Settings

LOOK = 0.01  # seconds between two looks at whether they have
YOUNG = 10_000  # new objects until the collector looks at them; a call makes hundreds, and leaves no cycles


async def serve(settings: Settings, bus: Bus) -> None:
    """Run the server until it was told to stop and has drained.

    Raises:
        ConfigError: the registry's files or those of TLS cannot be used, or an address cannot be listened at.
    """
    tracing = _tracing(settings, bus)
    app = build(settings, bus, tracing)
    connections = app[CONNECTIONS]
    connections.allow_descriptors()
    give_back_memory()
    runner = Runner(app, connections)
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
            if stop.drain.is_set():  # it came while the files were read
                await _drain(app, runner, stop)
                return
            async with _listening(app, runner):
                await stop.drain.wait()
                await _drain(app, runner, stop)
        finally:
            await runner.cleanup()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)


def _tracing(settings: Settings, bus: Bus) -> Tracing | None:
    """Begin to trace, where the environment asks for it and it can be."""
    if not settings.traces:
        return None
    try:
        return start(settings.traces, version("gateway"), bus.publish)
    except TracesUnavailable as problem:
        structlog.get_logger().warning("traces_off", hint=str(problem))
    return None


@contextlib.asynccontextmanager
async def _listening(app: web.Application, runner: web.AppRunner) -> AsyncIterator[None]:
    """Take connections for the length of the block."""
    gateway, connections = app[GATEWAY], app[CONNECTIONS]
    settings, server = gateway.settings, runner.server
    assert server is not None
    with listening(settings.service, settings.listen, settings.socket_mode) as sockets:
        connections.encryption.take(sockets)
        places = [one.getsockname() for one in sockets]
        watching = asyncio.create_task(
            connections.encryption.watch(gateway.bus.publish), name="watcher of certificates"
        )
        acceptors = Acceptors(server, sockets, connections)
        try:
            await acceptors.open()
            settings.service.tell("READY=1")
            _tell_all(gateway, connections, places)
            yield
        finally:
            acceptors.close()
            watching.cancel()


def _tell_all(gateway: Gateway, connections: Connections, places: list[Any]) -> None:
    """Write into the log where and to whom the gateway listens."""
    log = structlog.get_logger()
    tls = connections.encryption.context is not None
    for place in places:
        if isinstance(place, tuple):
            log.info("listening", host=place[0], port=place[1], tls=tls, path=None)
        else:
            log.info("listening", host=None, port=None, tls=False, path=os.fsdecode(place))
    settings = gateway.settings
    if settings.api_key is None and gateway.registry.clients is None:
        who = "whoever reaches it" if settings.open else "whoever is on this machine"
        hint = f"{who} can call everything; set CONNECTOR_PROXY_API_KEY to close the gateway"
        log.warning("no_api_key", hint=hint)
    for hint in connections.encryption.bare():
        log.warning("no_tls", hint=hint)
    notice = of_callbacks(gateway.callbacks.of(None))
    if notice is not None:
        log.info("callbacks", hint=notice)


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
        gateway = self._app[GATEWAY]
        if gateway.audit is not None:
            gateway.audit.reopen()  # before: a new file is hidden from connectors from here on
        await self._app[CONNECTIONS].encryption.reload(gateway.bus.publish)
        await gateway.registry.reload(retry=True)
        if gateway.audit is not None:
            outcome = "ok" if gateway.registry.problem is None else "failed"
            gateway.audit.put(
                AuditLine(time=now(), event="reload", count=len(gateway.registry.snapshot.statuses), outcome=outcome)
            )
