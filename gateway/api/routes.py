"""The table of routes. A route says who may use it; there is no default."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web


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
