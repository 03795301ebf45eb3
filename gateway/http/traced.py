"""The span of a call as HTTP's server sees it, and the W3C trace context that callers send."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from aiohttp import web
from yarl import URL

from gateway.http.audited import noted, outcome_of
from gateway.http.proxies import UNIX, address_of, base_of
from gateway.http.routes import CLIENTS
from gateway.identity import DEFAULT
from gateway.observe.audit import shown
from gateway.observe.tracing import SpanKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from gateway.http.routes import Route
    from gateway.observe.tracing import Attributes, Span, Tracing

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

EVENTS = frozenset({"call", "replay"})
"""What requests are called that have a span."""
NAMELESS = frozenset({401, 403, 404})
"""Statuses of requests that may name whatever they like: names of spans are few."""
_SPAN = "span"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")


Trace = tuple[str | None, str | None]
"""`traceparent` and `tracestate`; None for what is none."""
NO_TRACE: Trace = (None, None)


def trace_of(request: web.Request) -> Trace:
    """Return the trace context that a call is done in: its span's, or its caller's where there are no spans."""
    span: Span | None = request.get(_SPAN)
    return _of_caller(request) if span is None else (span.traceparent, span.tracestate)


def _of_caller(request: web.Request) -> Trace:
    """Return the trace context that the caller sends."""
    traceparent = request.headers.get("traceparent")
    if traceparent is None or not _TRACEPARENT.fullmatch(traceparent):
        return NO_TRACE
    tracestate = ",".join(request.headers.getall("tracestate", ()))
    return traceparent, tracestate if _TRACESTATE.fullmatch(tracestate) else None


class Traced:
    """Makes a span of each request that is a call."""

    def __init__(self, tracing: Tracing, routes: Iterable[Route]) -> None:
        self._tracing = tracing
        self._calls = {(route.method, route.path) for route in routes if route.event in EVENTS}
        self._known: dict[web.AbstractRoute, str | None] = {}

    @web.middleware
    async def tell(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Trace a request: the outermost step around it."""
        path = self._path(request)
        if path is None:
            return await handler(request)
        names, route = request.match_info, f"{request.method} {path}"
        title = shown(f"{names['connector']}/{names['command']}") if "connector" in names else None
        span = self._tracing.begin(title or route, SpanKind.SERVER, _of_caller(request), _asked(request, path))
        request[_SPAN] = span
        try:
            response = await handler(request)
        except asyncio.CancelledError:
            span.end(_came_to(request, None), error="cancelled")
            raise
        status = response.status
        told = _came_to(request, status)
        error = str(told["gateway.outcome"]) if status >= 500 else None
        span.end(told, error=error, name=route if status in NAMELESS else None)
        return response

    def _path(self, request: web.Request) -> str | None:
        """Return the route of a call, None where it is none; it is known from then on."""
        route = request.match_info.route
        if route in self._known:
            return self._known[route]
        path = route.resource.canonical if route.resource is not None else ""
        found = path if (request.method, path.removeprefix(CLIENTS)) in self._calls else None
        if path:
            self._known[route] = found
        return found


def _asked(request: web.Request, path: str) -> Attributes:
    """Return what is known of a request at its beginning, by the conventions of OpenTelemetry for HTTP."""
    peer = address_of(request)
    try:
        base = URL(base_of(request))
        where = base.scheme, base.host, base.port
    except ValueError:  # a caller may write anything there
        where = request.scheme, None, None
    return {
        "http.request.method": request.method,
        "http.route": path,
        "url.scheme": where[0],
        "url.path": shown(request.rel_url.raw_path),
        "server.address": shown(where[1]),
        "server.port": where[2],
        "client.address": None if peer == UNIX else peer or None,
        "network.protocol.version": f"{request.version.major}.{request.version.minor}",
    }


def _came_to(request: web.Request, status: int | None) -> Attributes:
    """Return what has become of it; without a status its caller has hung up."""
    notes, names, who = noted(request), request.match_info, request.get("identity")
    return {
        "gateway.connector": shown(names.get("connector") or notes.get("connector")),
        "gateway.command": shown(names.get("command") or notes.get("command")),
        "http.response.status_code": status,
        "gateway.client": (who.client or DEFAULT) if who is not None else None,
        "gateway.request_id": request.get("request_id"),
        "gateway.task_id": shown(notes.get("task_id")),
        "gateway.job": notes.get("job"),
        "gateway.outcome": "cancelled" if status is None else notes.get("outcome") or outcome_of(status),
    }
