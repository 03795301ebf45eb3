"""Asks another worker of the same gateway, over its socket, with the caller's own key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import msgspec
import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.team import Team

PATIENCE = 2.0  # seconds that another worker has to answer
ALONE = "alone"  # in the query: a worker is asked for what it alone knows
_PASSED_ON = {"authorization", "spiff-connector-proxy-api-key"}


class Told(NamedTuple):
    """What another worker answered."""

    status: int
    value: Any


async def ask(
    team: Team, worker: int, path: str, headers: Mapping[str, str], *, method: str = "GET", patience: float = PATIENCE
) -> Told | None:
    """Return its answer; None when it does not give one in time."""
    passed_on = {name: value for name, value in headers.items() if name.lower() in _PASSED_ON} | team.headers
    connector = aiohttp.UnixConnector(team.socket(worker))
    timeout = aiohttp.ClientTimeout(total=patience)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(method, f"http://worker{path}", headers=passed_on) as response,
        ):
            return Told(response.status, msgspec.json.decode(await response.read()))
    except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as problem:
        structlog.get_logger().warning("worker_silent", asked=worker, problem=repr(problem))
        return None
