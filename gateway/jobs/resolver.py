"""Resolves the names that callbacks go to: judged by the address, at the moment of connecting."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from aiohttp.abc import AbstractResolver, ResolveResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.jobs.targets import Targets


class GuardedResolver(AbstractResolver):
    """Resolves a name for one connection, to the addresses that are allowed: what is checked is what is used."""

    def __init__(
        self,
        targets: Targets,
        lookup: Callable[[str, int, socket.AddressFamily], Awaitable[list[ResolveResult]]] | None = None,
    ) -> None:
        self._targets = targets
        self._lookup = lookup or _lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses; one that is refused refuses them all."""
        found = await self._lookup(host, port, family)
        for one in found:
            self._targets.check(host, ip_address(one["host"].partition("%")[0]))
        return found

    async def close(self) -> None:
        """Nothing is held."""


async def _lookup(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
    return [
        ResolveResult(
            hostname=host, host=str(info[4][0]), port=int(info[4][1]), family=info[0], proto=info[2],
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
        for info in infos
    ]  # fmt: skip
