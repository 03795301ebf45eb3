"""Puts HTTP around a gateway: the middleware, the routes, what is opened and closed."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import re
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

import aiohttp_cors
from aiohttp import hdrs, web

from gateway import origins
from gateway.gateway import Gateway
from gateway.http import middleware
from gateway.http.audited import Audited
from gateway.http.calls import wait_for_the_handler
from gateway.http.connections import Connections
from gateway.http.console.pages import Console, install
from gateway.http.console.sessions import Sessions
from gateway.http.console.views import Views
from gateway.http.handlers import Handlers
from gateway.http.keys import Authenticator
from gateway.http.proxies import PROXIES, Proxies
from gateway.http.responses import status_of
from gateway.http.routes import CLIENTS, is_of_clients, whole
from gateway.http.traced import Traced
from gateway.identity import DEFAULT
from gateway.observe.history import History
from gateway.observe.metrics import Metrics
from gateway.observe.outcomes import Recent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.http.routes import Route
    from gateway.observe.events import Bus
    from gateway.observe.tracing import Tracing
    from gateway.origins import Origin
    from gateway.settings import Settings

GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway")
CONNECTIONS: web.AppKey[Connections] = web.AppKey("connections")
ROUTES: web.AppKey[tuple[Route, ...]] = web.AppKey("routes")
"""The table of routes, but for those below /clients/{client}."""
_NAMED = re.compile(r"{(\w+)}")


def build(settings: Settings, bus: Bus, tracing: Tracing | None = None) -> web.Application:
    """Make the application; nothing is started before its start-up."""
    gateway = Gateway(settings, bus, tracing)
    gateway.keep_jobs(status_of)
    gateway.keep_runs()
    connections = Connections(settings)
    metrics = Metrics(gateway, version("gateway"), connections.load)
    recent = Recent(functools.partial(datetime.datetime.now, datetime.UTC))
    bus.listen(metrics, *Metrics.kinds, called="metrics")
    bus.listen(recent, *Recent.kinds, called="status")
    handlers = Handlers(
        gateway, metrics, recent, version("gateway"), connections, redirects=functools.partial(_redirects, gateway)
    )
    authenticator = Authenticator(gateway.registry, settings.api_key)
    sessions = Sessions(settings, authenticator)
    history = History(metrics, gateway.busy, time.monotonic)
    shown = Views(gateway, metrics, history, recent, connections)
    pages = whole(Console(gateway, shown, sessions, connections).routes())
    routes = [*handlers.routes(), *pages]
    middlewares = [middleware.around(settings, gateway.registry, routes, authenticator, sessions)]
    if gateway.audit is not None:
        audited = Audited(gateway.audit, routes)
        bus.listen(audited, *Audited.kinds, called="audit")
        middlewares = [audited.tell, *middlewares, *([audited.admit] if gateway.audit.required else [])]
    if tracing is not None:
        middlewares.insert(0, Traced(tracing, routes).tell)
    app = web.Application(
        middlewares=middlewares,
        client_max_size=settings.max_request,
    )
    app[GATEWAY] = gateway
    app[CONNECTIONS] = connections
    app[ROUTES] = tuple(routes)
    app[PROXIES] = Proxies(settings.trusted_proxies)
    for route in (*routes, *(route._replace(path=CLIENTS + route.path) for route in routes if is_of_clients(route))):
        if route in pages:
            continue
        if route.method != hdrs.METH_OPTIONS or not settings.cors_origins:
            app.router.add_route(route.method, _pattern(route.path), route.handler, expect_handler=wait_for_the_handler)
    if settings.cors_origins:  # it adds OPTIONS itself, for preflights
        options = aiohttp_cors.ResourceOptions(allow_headers="*", expose_headers="*")  # type: ignore[no-untyped-call]
        cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(settings.cors_origins, options))
        for added in list(app.router.routes()):
            cors.add(added)
    for route in pages:  # no other origin's business
        app.router.add_route(route.method, _pattern(route.path), route.handler, expect_handler=wait_for_the_handler)
    install(app)
    app.cleanup_ctx.append(_opened)
    if settings.console:
        app.cleanup_ctx.append(functools.partial(_kept, history))
    return app


def _pattern(path: str) -> str:
    """Return a path as the router wants it: a name in it may hold braces, too, which it would not match by itself."""
    return _NAMED.sub(r"{\1:[^/]+}", path)


def _redirects(gateway: Gateway, client: str | None) -> tuple[Origin, ...]:
    """Return where a client's browsers may be sent back to: to its own backend, if its file names one."""
    callbacks = gateway.callbacks.section(client)
    named = functools.partial(
        origins.rules, rewrite=callbacks.rewrite, hosts=callbacks.hosts, allow=callbacks.allow or ()
    )
    known = (gateway.registry.clients or {}).get(client or DEFAULT)
    own = named(None) if known is not None and known.callbacks is not None else ()
    return own or named(gateway.settings.oauth.redirects)


async def _opened(app: web.Application) -> AsyncIterator[None]:
    await app[GATEWAY].open()
    yield
    await app[GATEWAY].close()


async def _kept(history: History, _app: web.Application) -> AsyncIterator[None]:
    keeping = asyncio.create_task(history.keep())
    yield
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
