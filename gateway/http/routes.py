"""The table of routes. A route says who may use it; there is no default."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import hdrs, web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CONSOLE = "/console"
"""How the paths of the console's pages begin."""
SIGN_IN = "/v1/auth/"
"""How the paths of browsers begin that sign in."""
DOCS = "/docs"
"""The page that shows the OpenAPI document; below it are its files."""
KEY_HEADER = "Spiff-Connector-Proxy-Api-Key"
"""The header of the API key; a bearer token does as well."""


CLIENTS = "/clients/{client}"
"""Before the path of a route: whose world it is asked for. Browsers that sign in have no key that would say so."""


class Access(enum.Enum):
    """Who may use a route."""

    OPEN = "open"
    """Everybody."""
    KEY = "key"
    """Whoever sends a key, when there are some: he sees what is his client's."""
    CALL = "call"
    """The same, but for viewers: it does something."""
    OPERATOR = "operator"
    """Operators."""
    CONSOLE = "console"
    """Whoever has logged in to the console, where there are keys."""
    CONSOLE_CALL = "console, call"
    """The same, but for viewers: it does something."""
    CONSOLE_OPERATOR = "console, operator"
    """Operators that have logged in to the console."""
    METRICS = "metrics"
    """As the setting `gateway.metrics` says."""
    TYPEAHEAD = "typeahead"
    """As the setting `gateway.typeahead` says."""


class Route(NamedTuple):
    """One method on one path."""

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    access: Access
    head: bool = True
    """Whether GET only looks, so that HEAD can look too."""
    event: str | None = None
    """What a request is called in the audit; None: it is none of its business."""


def is_of_clients(route: Route) -> bool:
    """Tell whether what a route answers depends on who asks."""
    if route.path.startswith(CONSOLE):
        return False
    return route.access is not Access.OPEN or route.path.startswith((SIGN_IN, DOCS))


def whole(routes: list[Route]) -> list[Route]:
    """Return them, and HEAD wherever GET looks, and for each path OPTIONS, which tells its methods."""
    own = {route.path for route in routes if route.method == hdrs.METH_HEAD}
    gets = [route for route in routes if route.method == hdrs.METH_GET and route.head and route.path not in own]
    heads = [route._replace(method=hdrs.METH_HEAD, event=None) for route in gets]
    routes = [*routes, *heads]
    return [*routes, *(_options(path, routes) for path in dict.fromkeys(route.path for route in routes))]


def _options(path: str, routes: list[Route]) -> Route:
    here = [route for route in routes if route.path == path]
    allowed = ", ".join(sorted({hdrs.METH_OPTIONS, *(route.method for route in here)}))
    (access,) = {route.access for route in here}

    async def options(_request: web.Request) -> web.Response:
        return web.Response(headers={hdrs.ALLOW: allowed})

    return Route(hdrs.METH_OPTIONS, path, options, access)
