"""Connections to a server that goes away, or freezes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from gateway.errors import InvalidRequest
from gateway.jobs.contract import StoreAway
from gateway.jobs.postgres import Postgres, _translated
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.jobs.postgres import Postgres as Server

ONE = ("SELECT 1", {})
FOR_EVER = 20.0  # seconds, in which it is done


@pytest.fixture
async def store(url: str) -> AsyncIterator[Postgres]:
    made = Postgres(url, connections=2)
    await made.open()
    yield made
    await made.close()


def asleep(seconds: int) -> tuple[str, dict[str, int]]:
    return ("SELECT pg_sleep(:seconds)", {"seconds": seconds})


def test_names_are_where_the_driver_wants_them() -> None:
    assert _translated("SELECT :a_b || '%' WHERE :a_b > :c") == b"SELECT %(a_b)s || '%%' WHERE %(a_b)s > %(c)s"


async def test_all_steps_are_done_or_none(store: Postgres) -> None:
    await store.run(("CREATE SCHEMA gateway_jobs", {}), ("CREATE TABLE t (n int UNIQUE)", {}), patience=FOR_EVER)
    insert = ("INSERT INTO t VALUES (:n)", {"n": 1})
    with pytest.raises(StoreAway, match="duplicate"):
        await store.run(insert, insert, patience=FOR_EVER)
    assert (await store.run(("SELECT n FROM t", {}), patience=FOR_EVER, reads=True))[0].rows == []
    assert [one.changed for one in await store.run(insert, ("DELETE FROM t", {}), patience=FOR_EVER)] == [1, 1]


async def test_a_value_that_it_cannot_hold_says_nothing_about_the_server(store: Postgres) -> None:
    await store.run(("CREATE SCHEMA gateway_jobs", {}), ("CREATE TABLE t (a text, n int)", {}), patience=FOR_EVER)
    insert = "INSERT INTO t VALUES (:a, :n)"
    good = (insert, {"a": "good", "n": 1})
    for wrong in ({"a": "x\0y", "n": 1}, {"a": "\ud800", "n": 1}, {"a": "big", "n": 1 << 70}):
        for steps in ([(insert, wrong)], [good, (insert, wrong)]):
            with pytest.raises(InvalidRequest, match="cannot hold a value"):
                await store.run(*steps, patience=FOR_EVER)
    assert (await store.run(("SELECT a FROM t", {}), patience=FOR_EVER))[0].rows == []
    assert len(store._idle) == 1  # the connection is as good as it was


async def test_a_statement_that_takes_too_long_is_given_up_and_may_have_been_done(store: Postgres) -> None:
    with pytest.raises(StoreAway, match="did not answer within") as raised:
        await store.run(asleep(2), patience=0.2)
    assert raised.value.sent
    assert (await store.run(ONE, patience=FOR_EVER))[0].rows == [(1,)]


async def test_the_server_gives_up_before_we_do(store: Postgres) -> None:
    with pytest.raises(StoreAway, match="statement timeout"):
        await store.run(asleep(4), patience=FOR_EVER)


async def test_whoever_finds_all_connections_taken_waits_and_then_does_not(store: Postgres) -> None:
    taken = [asyncio.create_task(store.run(asleep(1), patience=FOR_EVER)) for _ in range(2)]
    await eventually(lambda: len(store._running) == 2 and None not in store._running.values())
    with pytest.raises(StoreAway, match="did not answer within") as raised:
        await store.run(ONE, patience=0.05)
    assert not raised.value.sent
    await store.run(ONE, patience=FOR_EVER)
    await asyncio.gather(*taken)


async def test_whoever_stops_waiting_does_not_stop_what_was_asked(store: Postgres) -> None:
    await store.run(("CREATE SCHEMA gateway_jobs", {}), ("CREATE TABLE t (n int)", {}), patience=FOR_EVER)
    change = ("INSERT INTO t SELECT 1 FROM pg_sleep(0.2)", {})
    asked = asyncio.create_task(store.run(change, patience=FOR_EVER))
    await eventually(lambda: store._running)
    asked.cancel()

    async def done() -> bool:
        return bool((await store.run(("SELECT n FROM t", {}), patience=FOR_EVER))[0].rows)

    await eventually(done)
    assert asked.cancelled()


async def test_closing_shuts_what_runs(store: Postgres) -> None:
    asked = asyncio.create_task(store.run(asleep(2), patience=FOR_EVER))
    await eventually(lambda: store._running and None not in store._running.values())
    begun = time.monotonic()
    await store.close()
    assert time.monotonic() - begun < 1.9
    with pytest.raises(StoreAway):
        await asked


async def test_closing_does_not_wait_for_a_connection() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    store = Postgres(f"postgresql://gateway@127.0.0.1:{port}/gateway")
    asked = asyncio.create_task(store.run(ONE, patience=FOR_EVER))
    await eventually(lambda: store._running)
    await store.close()
    with pytest.raises(StoreAway, match="closed"):
        await asked
    listening.close()
    await listening.wait_closed()


async def test_a_server_that_is_not_there_is_told_without_the_password() -> None:
    store = Postgres("postgresql://gateway:hunter2@127.0.0.1:1/gateway")
    with pytest.raises(StoreAway, match="refused") as raised:
        await store.open()
    assert not raised.value.sent
    assert "hunter2" not in raised.value.reason
    await store.close()


async def test_a_server_that_is_frozen_holds_nobody_up(fragile: Server) -> None:
    store = Postgres(fragile.url)
    await store.open()
    with psycopg.connect(fragile.url) as connection:
        backends = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'gateway-jobs'"
        ).fetchall()
    server = fragile._server
    assert server is not None
    frozen = [server.pid, *(row[0] for row in backends)]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    for _ in range(2):  # with a connection that is there, and with one that is to be made
        with pytest.raises(StoreAway, match="did not answer within"):
            await store.run(ONE, patience=0.5)
    assert time.monotonic() - begun < 5
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    await store.run(ONE, patience=FOR_EVER)
    await store.close()


async def test_after_an_outage_one_failure_is_enough(fragile: Server) -> None:
    store = Postgres(fragile.url)
    await asyncio.gather(*(store.run(asleep(0), patience=FOR_EVER) for _ in range(4)))
    assert len(store._idle) > 1
    fragile.stop()
    fragile.start()
    with pytest.raises(StoreAway):
        await store.run(ONE, patience=FOR_EVER)
    assert store._idle == []
    await store.run(ONE, patience=FOR_EVER)
    await store.close()
