"""The table of routes. A route says who may use it; there is no default."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import hdrs, web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


class Access(enum.Enum):
    """Who may use a route."""

    OPEN = "open"
    """Everybody."""
    KEY = "key"
    """Whoever sends the API key, when there is one."""
    METRICS = "metrics"
    """As the setting `gateway.metrics` says."""
    TYPEAHEAD = "typeahead"
    """As the setting `gateway.typeahead` says."""
    TEAM = "team"
    """The other workers of the same gateway, over a Unix socket; over TCP it is no route at all."""


class Route(NamedTuple):
    """One method on one path."""

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    access: Access


def read(path: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]], access: Access) -> list[Route]:
    """Return the routes of what is only looked at: HEAD answers as GET does, without the body."""
    return [Route(method, path, handler, access) for method in (hdrs.METH_GET, hdrs.METH_HEAD)]


def with_options(routes: list[Route]) -> list[Route]:
    """Return the routes, and for each path one that says which methods it has. It is as open as they are.

    So is HEAD, which is refused where GET does something.
    """
    return [*routes, *(more for path in dict.fromkeys(route.path for route in routes) for more in _more(path, routes))]


def _more(path: str, routes: list[Route]) -> Iterator[Route]:
    methods = {route.method for route in routes if route.path == path}
    allowed = sorted({hdrs.METH_OPTIONS, *methods})
    (access,) = {route.access for route in routes if route.path == path}

    async def options(_request: web.Request) -> web.Response:
        return web.Response(headers={hdrs.ALLOW: ", ".join(allowed)})

    async def refused(request: web.Request) -> web.Response:
        raise web.HTTPMethodNotAllowed(request.method, allowed)

    yield Route(hdrs.METH_OPTIONS, path, options, access)
    if hdrs.METH_GET in methods and hdrs.METH_HEAD not in methods:
        yield Route(hdrs.METH_HEAD, path, refused, access)
