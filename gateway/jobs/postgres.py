"""A PostgreSQL database that gateways share: a few connections, and no statement that waits for ever.

Whatever takes too long has its connection shut: a server that is frozen answers no cancellation either.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import socket
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus

from gateway.jobs.contract import StoreAway
from gateway.jobs.database import Effect, Step, not_held, said
from gateway.jobs.futures import unbroken
from gateway.observe.redact import Redactor
from gateway.observe.telling import secrets_within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

SCHEMA = "gateway_jobs"
CONNECT: dict[str, Any] = {
    "connect_timeout": 3,
    "options": f"-c statement_timeout=3000 -c lock_timeout=3000 -c synchronous_commit=on -c search_path={SCHEMA}",
    "keepalives_idle": 3,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
    "application_name": "gateway-jobs",
}
_NAME = re.compile(r":([a-z_]+)")


class Postgres:
    """Implements `gateway.jobs.database.Database`."""

    shared = True
    now = "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
    tables = f"SELECT tablename FROM pg_tables WHERE schemaname = '{SCHEMA}'"
    setup: tuple[str, ...] = ("SELECT pg_advisory_xact_lock(727400)", f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    turn = "SELECT pg_advisory_xact_lock(727401, hashtext(:name))"

    def __init__(self, url: str, connections: int = 4) -> None:
        self._url = url
        self._redact = Redactor(secrets_within(url))
        self._places = asyncio.Semaphore(connections)
        self._idle: list[Connection] = []
        self._running: dict[asyncio.Task[Any], Connection | None] = {}

    async def open(self) -> None:
        """See that it answers."""
        await self.run(("SELECT 1", {}), patience=CONNECT["connect_timeout"] + 1.0)

    async def run(self, *steps: Step, patience: float, reads: bool = False) -> list[Effect]:  # noqa: ARG002 - it is all the same here
        """Do all steps in one transaction."""
        return await unbroken(self._run(steps, patience))

    async def close(self) -> None:
        """Shut the connections; what they do fails."""
        for task, connection in self._running.items():
            if connection is None:
                task.cancel()
            else:  # not cancelled: the driver would ask the server, and wait for it
                _shut(connection)
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._forget()

    async def _run(self, steps: tuple[Step, ...], patience: float) -> list[Effect]:
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = None
        clock = asyncio.get_running_loop().time
        until = clock() + patience
        try:
            async with self._connected(until) as connection:
                self._running[task] = connection
                return await self._do(connection, steps)
        except StoreAway as problem:
            if clock() >= until:  # what the driver says of a connection that we have shut is of no interest
                raise StoreAway(f"it did not answer within {patience:g} s", sent=problem.sent) from None
            raise
        except asyncio.CancelledError:
            pass
        finally:
            del self._running[task]
        raise StoreAway("it is closed")

    async def _do(self, connection: Connection, steps: tuple[Step, ...]) -> list[Effect]:
        try:
            if len(steps) == 1:
                return [await _result(connection, *steps[0])]
            async with connection.transaction():
                return [await _result(connection, *step) for step in steps]
        except (psycopg.DataError, UnicodeError) as problem:
            raise not_held(problem) from problem
        except psycopg.Error as problem:
            raise StoreAway(said(problem), sent=True) from problem

    @contextlib.asynccontextmanager
    async def _connected(self, until: float) -> AsyncIterator[Connection]:
        """Have a connection until then."""
        try:
            async with asyncio.timeout_at(until):
                await self._places.acquire()
        except TimeoutError:
            raise StoreAway("it is busy") from None
        try:
            connection = await self._connect(until)
            shut = asyncio.get_running_loop().call_at(until, _shut, connection)
            try:
                yield connection
            finally:
                shut.cancel()
                await self._take_back(connection)
        finally:
            self._places.release()

    async def _connect(self, until: float) -> Connection:
        if self._idle:
            return self._idle.pop()
        try:
            async with asyncio.timeout_at(until):
                return await psycopg.AsyncConnection.connect(self._url, autocommit=True, **CONNECT)
        except (psycopg.Error, OSError, TimeoutError) as problem:
            reason = said(problem, self._redact)
        raise StoreAway(reason)  # out here: what has failed holds a descriptor

    async def _take_back(self, connection: Connection) -> None:
        if not connection.closed and connection.info.transaction_status is TransactionStatus.IDLE:
            self._idle.append(connection)
            return
        await connection.close()
        await self._forget()  # the others are no better, when the server was away

    async def _forget(self) -> None:
        while self._idle:
            await self._idle.pop().close()


async def _result(connection: Connection, statement: str, values: Any) -> Effect:
    cursor = await connection.execute(_translated(statement), values)
    return Effect(await cursor.fetchall() if cursor.description else [], cursor.rowcount)


@functools.cache
def _translated(statement: str) -> bytes:
    """Return a statement with its values where the driver wants them."""
    return _NAME.sub(r"%(\1)s", statement.replace("%", "%%")).encode()


def _shut(connection: Connection) -> None:
    """End whatever waits for the server."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
