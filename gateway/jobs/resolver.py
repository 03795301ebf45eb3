"""Connects callbacks: where they go is judged by the address that is connected to, at the moment of connecting."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import socket
import threading
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.jobs.targets import Refused, host_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import AddrInfoType, Connection
    from aiohttp.tracing import Trace

    from gateway.jobs.targets import Targets

MOST = 64  # lookups at once

_HOST: contextvars.ContextVar[str] = contextvars.ContextVar("host")
"""Whom the connection is for that is being made."""


class GuardedConnector(aiohttp.TCPConnector):
    """Makes no socket for an address that the rule refuses, however it was come by: a literal is resolved by nobody."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        super().__init__(
            resolver=GuardedResolver(targets),
            use_dns_cache=False,
            limit=100,
            # A connection that was used before may be closed just now, and nobody could tell what had arrived.
            force_close=True,
            socket_factory=self._socket,
        )

    async def connect(  # the signature is aiohttp's
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> Connection:
        """Connect; tasks that are begun for it inherit whom it is for."""
        token = _HOST.set(host_of(req.url))
        try:
            return await super().connect(req, traces, timeout)
        finally:
            _HOST.reset(token)

    def _socket(self, info: AddrInfoType) -> socket.socket:
        family, kind, proto, _, place = info
        host = _HOST.get()
        try:
            address = ip_address(str(place[0]).partition("%")[0])
        except ValueError as problem:  # the system would resolve it once more
            raise Refused(f"{host} leads to no address") from problem
        self._targets.check(host, address)
        return socket.socket(family, kind, proto)


class GuardedResolver(AbstractResolver):
    """Resolves a name for one connection, to the addresses that are allowed: what is checked is what is used."""

    def __init__(
        self,
        targets: Targets,
        lookup: Callable[[str, int, socket.AddressFamily], Awaitable[list[ResolveResult]]] | None = None,
    ) -> None:
        self._targets = targets
        self._lookup = lookup or _lookup
        self._turns = asyncio.Semaphore(MOST)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses; one that is refused refuses them all."""
        async with self._turns:
            found = await self._lookup(host, port, family)
        for one in found:
            self._targets.check(host, ip_address(one["host"].partition("%")[0]))
        return found

    async def close(self) -> None:
        """Nothing is held."""


async def _lookup(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    look = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, family=family)
    infos = await _aside(look)
    return [
        ResolveResult(
            hostname=host, host=str(info[4][0]), port=int(info[4][1]), family=info[0], proto=info[2],
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
        for info in infos
    ]  # fmt: skip


async def _aside(look: Callable[[], Any]) -> Any:
    """Look up in a thread of its own.

    It takes half a minute where nobody answers. The loop's threads are for what is quick: a few such lookups would keep
    large results waiting, and the end of the process too.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Any] = loop.create_future()

    def tell(infos: Any, problem: OSError | UnicodeError | None) -> None:
        if found.done():  # nobody waits any more
            return
        if problem is None:
            found.set_result(infos)
        else:
            found.set_exception(problem)

    def work() -> None:
        infos: Any = None
        problem: OSError | UnicodeError | None = None
        try:
            infos = look()
        except (OSError, UnicodeError) as told:
            problem = told
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, infos, problem)

    threading.Thread(target=work, name="lookup", daemon=True).start()
    return await found
