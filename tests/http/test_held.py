"""What clients hold without making progress: connections, heads, bodies, answers. It is bounded, and it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import Answer, Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ANY = "commands: {Go: {additional_parameters: true}}"
BODY = 700_000  # bytes: more than half of what may be held where a MiB may
PART = 100_000  # bytes
LARGE = 8 << 20  # bytes of a result: more than a kernel takes for a client that does not read
PATH = "/v1/do/echo/Go"


class Client:
    """A connection that does what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def head(self, size: int, *more: str, path: str = PATH) -> None:
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {size}", *more]
        self.send("\r\n".join((*lines, "", "")).encode())

    def ask(self, path: str) -> None:
        self.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    async def answer(self) -> Answer:
        """Read one answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers: Any = dict(line.split(": ", 1) for line in lines[1:] if line)
        return Answer(int(lines[0].split()[1]), headers, await self.reader.readexactly(int(headers["Content-Length"])))

    async def closed(self) -> bytes:
        """Read until the other side has closed, in whatever way."""
        with contextlib.suppress(ConnectionError):
            return await self.reader.read()
        return b""


@contextlib.asynccontextmanager
async def connected(gateway: Server) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1 << 16)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


def large(site: Site) -> str:
    """Return the entry of a connector that answers `LARGE`."""
    site.script("large.sh", f"head -c {LARGE} /dev/zero | tr '\\0' 1")
    return f"large: {{run: [./large.sh], max_output: 16MiB, {ANY}}}"


async def unread(gateway: Server, stack: contextlib.AsyncExitStack, count: int) -> None:
    """Have so many clients ask for a large answer and not read it, until all of them could."""
    for _ in range(count):
        client = await stack.enter_async_context(connected(gateway))
        client.head(2, path="/v1/do/large/Go")
        client.send(b"{}")
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await eventually(lambda: len(gateway.events("run")) == count)


def assert_told(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.code) == (status, code)
    assert set(answer.json) == {"command_response", "command_response_version", "error", "spiff__logs"}


def object_of(size: int) -> bytes:
    return b'{"a":"' + b"x" * (size - 8) + b'"}'


async def held(gateway: Server) -> tuple[int, int]:
    """Return the bytes of bodies and of answers that are held."""
    found = (await gateway.status())["held"]
    return found["bodies"], found["answers"]


def echo(site: Site, gateway: str, more: str = "") -> None:
    site.configure(f"echo: {{run: [cat], {ANY}}}\n{more}", gateway=gateway)


# --- what comes too slowly


async def test_a_body_that_stops_coming_ends_with_a_408(site: Site) -> None:
    echo(site, "read_timeout: 200ms")
    async with served(site) as gateway:
        for length in (PART, 10):
            async with connected(gateway) as client:
                client.head(1_000_000)
                client.send(b"x" * length)
                answer = await client.answer()
                assert_told(answer, 408, "request_timeout")
                assert "64KiB in 200ms (gateway.read_timeout)" in answer.message
        assert await held(gateway) == (0, 0)
        assert not gateway.events("run")
        assert not gateway.events("internal_error")


@pytest.mark.parametrize("start", [b"", b"GET /liveness HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["first", "second"])
async def test_a_head_that_comes_drop_by_drop_ends_with_a_408(site: Site, start: bytes) -> None:
    echo(site, "read_timeout: 200ms")
    async with served(site) as gateway, connected(gateway) as client:
        if start:
            client.send(start)
            assert (await client.answer()).status == 200
        client.send(b"GET /liveness HTTP/1.1\r\nX-Slow: ")
        answer = asyncio.create_task(client.answer())

        def dropped() -> bool:
            client.send(b"x")
            return answer.done()

        await eventually(dropped)
        assert_told(await answer, 408, "request_timeout")
        await client.closed()
        await eventually(lambda: gateway.events("connections_cut", late=1))
        assert "Traceback" not in gateway.log()


async def test_a_chunked_body_that_comes_drop_by_drop_ends_too(site: Site) -> None:
    echo(site, "read_timeout: 200ms")
    async with served(site) as gateway, connected(gateway) as client:
        client.send(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        answer = asyncio.create_task(client.answer())

        def dropped() -> bool:
            client.send(b"1\r\nx\r\n")
            return answer.done()

        await eventually(dropped)
        assert_told(await answer, 408, "request_timeout")


async def test_a_body_that_goes_on_coming_is_waited_for(site: Site) -> None:
    echo(site, "read_timeout: 3s")
    async with served(site) as gateway, connected(gateway) as client:
        body = object_of(20 * PART)
        client.head(len(body))
        for start in range(0, len(body), PART):
            client.send(body[start : start + PART])
            await client.writer.drain()
            await asyncio.sleep(
                0.2
            )  # what is tried is a slow sender: all of it takes longer than a body may stand still
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("size", [200_000, 5_000_000])
async def test_a_flood_of_headers_is_answered_before_the_connection_breaks(site: Site, size: int) -> None:
    echo(site, "read_timeout: 30s")
    async with served(site) as gateway:
        for header in (b"X-Long: ", b"X-More: x\r\n"):
            flood = header * (size // len(header)) if header.endswith(b"\n") else header + b"x" * size
            async with connected(gateway) as client:
                client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + flood + b"\r\n\r\n")
                assert_told(await client.answer(), 400, "invalid_request")


async def test_many_headers_that_are_short_enough_each_are_bounded_together(site: Site) -> None:
    echo(site, "read_timeout: 30s")
    async with served(site) as gateway, connected(gateway) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        for number in range(100):
            client.send(f"X-{number}: {'x' * 30_000}\r\n".encode())
        answer = await client.answer()
        assert_told(answer, 400, "invalid_request")
        assert "longer than 64KiB" in answer.message


# --- what is not taken


async def test_an_answer_that_nobody_reads_ends(site: Site) -> None:
    echo(site, "write_timeout: 300ms", large(site))
    async with served(site) as gateway, contextlib.AsyncExitStack() as stack:
        await unread(gateway, stack, 5)

        async def nothing() -> bool:
            return await held(gateway) == (0, 0) and (await gateway.status())["connections"]["open"] <= 2

        await eventually(nothing)
        assert sum(event["unread"] for event in gateway.events("connections_cut")) == 5


async def test_who_asks_on_and_on_and_reads_nothing_is_cut_off(site: Site) -> None:
    echo(site, "write_timeout: 300ms")
    async with served(site) as gateway, connected(gateway) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20_000)
        await eventually(lambda: gateway.events("connections_cut", unread=1))


async def test_answers_that_nobody_reads_are_given_up_where_they_are_too_much(site: Site) -> None:
    echo(site, "write_timeout: 1h\nmax_request: 1MiB\nmax_held: 12MiB", large(site))
    async with served(site) as gateway, contextlib.AsyncExitStack() as stack:
        await unread(gateway, stack, 4)

        async def one_is_left() -> bool:
            return LARGE <= (await held(gateway))[1] <= 12 << 20

        await eventually(one_is_left)
        for _ in range(3):
            assert len((await gateway.do("large/Go")).raw) > LARGE  # who reads gets all of it


async def test_so_are_answers_of_other_routes(site: Site) -> None:
    commands = {f"Go{number}": {"description": "x" * 5000} for number in range(40)}
    catalogue = {"run": ["cat"], "commands": commands}
    echo(site, "write_timeout: 1h\nmax_request: 512KiB\nmax_held: 512KiB", f"many: {json.dumps(catalogue)}")
    async with served(site) as gateway, contextlib.AsyncExitStack() as stack:
        for _ in range(6):
            client = await stack.enter_async_context(connected(gateway))
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(b"GET /v1/commands HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
        await eventually(lambda: sum(event["unread"] for event in gateway.events("connections_cut")) >= 4)


# --- how much is held


@pytest.fixture
async def small(site: Site) -> AsyncIterator[Server]:
    """A gateway that holds a MiB."""
    echo(site, "max_request: 1MiB\nmax_held: 1MiB")
    async with served(site) as gateway:
        yield gateway


async def holding(gateway: Server, client: Client) -> None:
    """Have it hold most of a body."""
    client.head(1_000_000)
    client.send(b"x" * BODY)

    async def is_held() -> bool:
        return (await held(gateway))[0] == BODY

    await eventually(is_held)


async def test_more_than_may_be_held_is_refused_and_small_calls_go_on(small: Server) -> None:
    async with connected(small) as client:
        await holding(small, client)
        for size in (BODY, 400_000):
            refused = await small.do("echo/Go", data=object_of(size))
            assert_told(refused, 503, "gateway_busy")
            assert int(refused.headers["Retry-After"]) >= 1
            assert "1MiB are held already (gateway.max_held)" in refused.message
        for size in (10, 60_000, 200_000):
            assert (await small.do("echo/Go", data=object_of(size))).status == 200
        assert (await held(small))[0] == BODY

    async def empty() -> bool:
        return await held(small) == (0, 0)

    await eventually(empty)  # it has hung up
    assert (await small.do("echo/Go", data=object_of(BODY))).status == 200


async def test_what_cannot_fit_is_refused_before_it_comes(small: Server) -> None:
    async with connected(small) as client, connected(small) as other:
        await holding(small, client)
        other.head(900_000)
        assert_told(await other.answer(), 503, "gateway_busy")
    async with connected(small) as client:
        client.head(2_000_000)
        assert_told(await client.answer(), 413, "request_too_large")


async def test_what_is_announced_and_does_not_come_is_not_held(small: Server) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            client = await stack.enter_async_context(connected(small))
            client.head(1_000_000)
            client.send(b"x" * 1000)
        assert (await small.do("echo/Go", data=object_of(BODY))).status == 200
        assert await held(small) == (0, 0)


async def test_a_body_without_a_length_is_refused_where_it_fits_no_more(small: Server) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b"x" * PART

    async with connected(small) as client:
        await holding(small, client)
        assert_told(await small.do("echo/Go", data=chunks()), 503, "gateway_busy")


async def test_a_body_is_held_while_its_call_waits(site: Site) -> None:
    site.script("gated.sh", f"while [ ! -e {site.folder}/gate ]; do sleep 0.01; done; echo 1")
    gated = f"gated: {{run: [./gated.sh], concurrency: 1, {ANY}}}"
    echo(site, "max_request: 1MiB\nmax_held: 2MiB", gated)
    async with served(site) as gateway:
        calls = [asyncio.create_task(gateway.do("gated/Go", data=object_of(BODY))) for _ in range(2)]

        async def both() -> bool:
            return (await held(gateway))[0] == 2 * BODY

        await eventually(both)
        assert_told(await gateway.do("echo/Go", data=object_of(BODY)), 503, "gateway_busy")
        (site.folder / "gate").touch()
        assert [(await call).status for call in calls] == [200, 200]
        assert await held(gateway) == (0, 0)


async def test_a_body_that_grows_when_it_is_unpacked_counts_as_what_it_becomes(small: Server) -> None:
    bomb = gzip.compress(b"x" * 100_000_000)
    refused = await small.do("echo/Go", data=bomb, headers={"Content-Encoding": "gzip"})
    assert_told(refused, 413, "request_too_large")
    async with connected(small) as client:
        await holding(small, client)
        packed = gzip.compress(object_of(BODY))
        assert_told(await small.do("echo/Go", data=packed, headers={"Content-Encoding": "gzip"}), 503, "gateway_busy")


async def test_who_waits_for_a_go_gets_it_when_there_is_room(small: Server) -> None:
    async with connected(small) as client, connected(small) as other:
        body = object_of(BODY)
        other.head(len(body), "Expect: 100-continue")
        assert (await other.reader.readuntil(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
        other.send(body)
        assert (await other.answer()).status == 200
        await holding(small, client)
        other.head(len(body), "Expect: 100-continue")
        assert_told(await other.answer(), 503, "gateway_busy")
    async with connected(small) as client:
        client.head(2_000_000, "Expect: 100-continue")
        assert_told(await client.answer(), 413, "request_too_large")


async def test_the_rest_of_a_body_that_nobody_wants_is_not_read_as_requests(small: Server) -> None:
    for path in (PATH, "/v1/commands", "/liveness"):
        async with connected(small) as client:
            inner = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n"
            client.head(2_000_000, path=path)
            answer = await client.answer()
            assert (answer.status, answer.headers["Connection"]) == (413 if path == PATH else 405, "close")
            client.send(inner * 1000)
            client.writer.write_eof()
            assert await client.closed() == b""


# --- how many connections there are


async def test_the_connection_that_was_idle_for_longest_makes_room(site: Site) -> None:
    echo(site, "max_connections: 8")
    async with served(site) as gateway, contextlib.AsyncExitStack() as stack:
        clients = []
        for _ in range(30):
            client = await stack.enter_async_context(connected(gateway))
            client.ask("/liveness")
            assert (await client.answer()).status == 200
            clients.append(client)
        assert [await client.closed() for client in clients[:15]] == [b""] * 15
        clients[-1].ask("/liveness")
        assert (await clients[-1].answer()).status == 200
        await eventually(lambda: sum(event["idle"] for event in gateway.events("connections_cut")) >= 15)


async def test_probes_are_answered_when_all_connections_are_at_work(site: Site) -> None:
    site.script("gated.sh", f"while [ ! -e {site.folder}/gate ]; do sleep 0.01; done; echo 1")
    echo(site, "max_connections: 4", f"gated: {{run: [./gated.sh], concurrency: 8, {ANY}}}")
    async with served(site) as gateway, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(gateway)) for _ in range(4)]
        for client in clients:
            client.head(2, path="/v1/do/gated/Go")
            client.send(b"{}")
        await eventually(lambda: len(gateway.connectors()) >= 4)
        for _ in range(3):
            async with connected(gateway) as probe:
                probe.ask("/liveness")
                assert (await probe.answer()).status == 200
                probe.ask("/v1/commands")
                refused = await probe.answer()
                assert_told(refused, 503, "gateway_busy")
                assert "gateway.max_connections" in refused.message
                assert await probe.closed() == b""
        (site.folder / "gate").touch()
        for client in clients:
            assert (await client.answer()).status == 200


async def test_what_is_thrown_away_makes_room_for_who_asks(site: Site) -> None:
    echo(site, "max_connections: 3\nmax_request: 1MiB")
    async with served(site) as gateway, contextlib.AsyncExitStack() as stack:
        for number in range(20):
            client = await stack.enter_async_context(connected(gateway))
            if number % 2:
                client.send(b"no request\r\n\r\n")
            else:
                client.head(2_000_000)
            assert (await client.answer()).status == 400 + 13 * (number % 2 == 0)
            async with connected(gateway) as other:
                other.ask("/v1/commands")
                assert (await other.answer()).status == 200


async def test_a_burst_beyond_that_is_not_let_in(site: Site) -> None:
    echo(site, "max_connections: 1")
    async with served(site) as gateway, contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(connected(gateway))
        client.head(10)

        async def refused() -> bool:
            many = [stack.enter_async_context(connected(gateway)) for _ in range(100)]
            await asyncio.gather(*many, return_exceptions=True)
            return any(event["refused"] for event in gateway.events("connections_cut"))

        await eventually(refused)
        client.send(b'{"a": 123}')
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("raised", [True, False])
async def test_the_limit_of_descriptors_is_raised_or_there_are_less_connections(site: Site, *, raised: bool) -> None:
    if raised and resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 5000:
        pytest.skip("no more descriptors than that are to be had here")
    echo(site, "listen: 127.0.0.1:0")
    limit = "ulimit -Sn 256" if raised else "ulimit -n 1024"
    log = site.folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["sh", "-c", f"{limit}; exec {sys.executable} -m gateway serve --log-format json"],
            stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, cwd=site.folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
        )  # fmt: skip
    try:
        await eventually(lambda: "listening" in log.read_text() or process.poll() is not None)
        events = {event["event"]: event for event in map(json.loads, log.read_text().splitlines())}
        soft = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0]
        if raised:
            assert soft > 4096
            assert "few_descriptors" not in events
        else:
            assert soft == 1024
            assert events["few_descriptors"]["level"] == "warning"
            assert "so there are 448 connections at most" in events["few_descriptors"]["hint"]
    finally:
        process.terminate()
        assert process.wait(20) == 0
