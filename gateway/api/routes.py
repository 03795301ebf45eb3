"""The table of routes. A route says who may use it; there is no default."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import hdrs, web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


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
    """Return the routes, and for each path one that says which methods it has. It is as open as they are."""
    return [*routes, *(_options(path, routes) for path in dict.fromkeys(route.path for route in routes))]


def _options(path: str, routes: list[Route]) -> Route:
    allowed = sorted([hdrs.METH_OPTIONS, *(route.method for route in routes if route.path == path)])
    (access,) = {route.access for route in routes if route.path == path}

    async def options(_request: web.Request) -> web.Response:
        return web.Response(headers={hdrs.ALLOW: ", ".join(allowed)})

    return Route(hdrs.METH_OPTIONS, path, options, access)
