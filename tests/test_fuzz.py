"""Requests that no client sends, and what is said of them: never that the gateway has a bug. `make fuzz` is the long form."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bench.fuzz import Request, Told, bugs, fuzz, fuzzed, work

if TYPE_CHECKING:
    from pathlib import Path

REQUESTS = 1500


async def test_no_request_finds_a_bug(tmp_path: Path) -> None:
    async with fuzzed(tmp_path) as gateway:
        told = await fuzz(gateway, REQUESTS, seconds=120, seed=3)
        assert bugs(gateway) == []
        assert gateway.process.poll() is None
    assert told.bugs == []
    assert told.statuses["500"] == 0
    assert {"200", "400", "404", "405"} <= set(told.statuses)
    assert told.sent >= REQUESTS


async def test_a_500_is_told_with_what_led_to_it() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 Internal Server Error\r\n\r\n")
        writer.close()

    told = Told()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await work(port, iter([Request("GET", "/", (), b"").written()]), told)
    assert told.statuses == {"500": 1}
    assert told.bugs[0].startswith(b"GET / HTTP/1.1")
