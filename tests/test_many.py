"""What a call costs does not grow with the connectors that are registered beside it, nor what it waits for others."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import sys
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from gateway.calls.call import Call
from gateway.gateway import Gateway
from gateway.http.connections import Connections
from gateway.http.facts import SLICE
from gateway.http.handlers import Handlers
from gateway.identity import Identity, Role
from gateway.observe.events import Bus
from gateway.observe.metrics import Metrics
from gateway.observe.outcomes import Recent
from gateway.protocol.request import Caller
from gateway.settings import read_settings
from tests.support import served

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import FrameType

    from tests.support import Site


async def functions_called(site: Site, entry: str, connectors: int) -> int:
    """Return how many functions of Python one call takes, once there has been one."""
    site.configure("\n".join(f"c{number}: {{{entry}, commands: {{good: {{}}}}}}" for number in range(connectors)))
    settings, _ = read_settings(site.file)
    gateway = Gateway(settings, Bus())
    await gateway.open()
    call = Call(connector="c0", command="good", params={}, caller=Caller(request_id="r"))
    counted = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event == "call"

    try:
        await gateway.invoker.invoke(call)
        sys.setprofile(count)
        await gateway.invoker.invoke(call)
        return counted
    finally:
        sys.setprofile(None)
        await gateway.close()


@pytest.mark.parametrize("mode", ["spawn", "standby", "fork", "persistent"])
async def test_a_call_takes_no_more_with_many_connectors_than_with_one(site: Site, mode: str) -> None:
    (site.folder / "act.py").write_text("def good():\n    return 1\n")
    entry = f"runtime: python, module: ./act.py, mode: {mode}, warm: 0"
    one = await functions_called(site, entry, 1)
    assert await functions_called(site, entry, 500) < one + 250


async def turns_meanwhile(work: Awaitable[object]) -> int:
    """Return how often somebody else had a turn before something was done."""
    doing, turns = asyncio.ensure_future(work), 0
    while not doing.done():
        turns += 1
        await asyncio.sleep(0)
    await doing
    return turns


@pytest.mark.parametrize("client", ["", "?client=default"])
async def test_the_status_of_many_connectors_lets_calls_have_their_turn(site: Site, client: str) -> None:
    count = 500
    site.configure("\n".join(f"c{number}: {{run: [cat], commands: {{good: {{}}}}}}" for number in range(count)))
    settings, _ = read_settings(site.file)
    gateway, connections = Gateway(settings, Bus()), Connections(settings)
    recent = Recent(lambda: datetime.datetime.now(datetime.UTC))
    handlers = Handlers(gateway, Metrics(gateway, "0", connections.load), recent, "0", connections)
    await gateway.open()
    try:
        request = make_mocked_request("GET", f"/v1/status{client}")
        request._state["identity"] = Identity(role=Role.OPERATOR)  # as the middleware does
        assert await turns_meanwhile(handlers.status(request)) > 2 * count // SLICE
        answer = await handlers.status(request)
        assert isinstance(answer, web.Response)
        assert isinstance(answer.body, bytes)
        assert len(json.loads(answer.body)["connectors"]) == count
    finally:
        await gateway.close()


async def test_the_metrics_of_many_come_in_pieces_with_the_requests_id(site: Site) -> None:
    site.configure("\n".join(f"c{number}: {{run: [cat], commands: {{Go: {{}}}}}}" for number in range(30)))
    async with served(site) as server:
        for number in range(30):
            assert (await server.do(f"c{number}/Go")).status == 200
        answer = await server.request("GET", "/metrics", headers={"X-Request-Id": "scrape-1"})
        assert answer.headers["X-Request-Id"] == "scrape-1"
        assert int(answer.headers["Content-Length"]) == len(answer.raw)
        assert b'gateway_runs_total{connector="c29",command="Go",outcome="ok"} 1.0\n' in answer.raw
        assert answer.raw.endswith(b"\n")
        head = await server.request("HEAD", "/metrics")
        assert (head.status, head.raw) == (200, b"")
        assert int(head.headers["Content-Length"]) > 1000
        assert (await server.do("c0/Go")).status == 200  # on the same connection


async def test_a_reader_that_hangs_up_in_the_middle_of_the_metrics_harms_nobody(site: Site) -> None:
    site.configure("\n".join(f"c{number}: {{run: [cat], commands: {{Go: {{}}}}}}" for number in range(30)))
    async with served(site) as server:
        for number in range(30):
            await server.do(f"c{number}/Go")
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in await reader.readline()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        assert (await server.get("/metrics")).status == 200
        assert not [one for one in server.events() if json.dumps(one).count("Traceback")]
