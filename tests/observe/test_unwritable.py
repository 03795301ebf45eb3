"""A log that cannot be written, and one that nobody reads, stand in no call's way."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.observe.test_metrics import scraped, value
from tests.support import PATIENCE, Answer, Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator

ROOT = Path(__file__).parent.parent.parent
ANY = "commands: {Go: {additional_parameters: true}, Later: {async: true, additional_parameters: true}}"


@contextlib.asynccontextmanager
async def told_to(site: Site, stderr: int, *arguments: str, **limits: float) -> AsyncIterator[Server]:
    """Run a gateway whose log goes to a descriptor, which is closed here; `limits` are its writer's and its keeper's."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        (site.folder / "sitecustomize.py").write_text(
            "from gateway import keeper\nfrom gateway.observe import writer\n"
            + "".join(f"{'keeper' if name == 'SILENCE' else 'writer'}.{name} = {one}\n" for name, one in limits.items())
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--config", str(site.file), "--fd", str(listening.fileno()),
             "--log-format", "json", *arguments],
            stdout=subprocess.DEVNULL, stderr=stderr, stdin=subprocess.DEVNULL, cwd=site.folder,
            pass_fds=(listening.fileno(),), env={**os.environ, "PYTHONPATH": f"{site.folder}:{ROOT}"},
        )  # fmt: skip
        os.close(stderr)
        port = listening.getsockname()[1]
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            server = Server(process, site, site.folder / "no-log", port, session)
            assert (await soon(server.get("/liveness"))).status == 200
            yield server
    finally:
        process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(process.wait, PATIENCE)
    assert status == 0


async def soon(answer: Awaitable[Answer]) -> Answer:
    return await asyncio.wait_for(answer, PATIENCE)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe: the end that the test reads, if it likes to, and the one that the gateway gets."""
    ends = os.pipe()
    yield ends
    with contextlib.suppress(OSError):  # it was closed for the test's sake
        os.close(ends[0])


def effects(site: Site) -> list[str]:
    return (site.folder / "effects").read_text().splitlines()


def with_effects(site: Site) -> None:
    site.level = "off"
    site.script("act.sh", f"cat > /dev/null; echo words >&2; echo done >> {site.folder}/effects; echo 7")
    site.configure(f"act: {{run: [./act.sh], {ANY}}}", gateway="callbacks: {allow: [127.0.0.0/8]}")


async def tells(server: Server, problem: str | None) -> None:
    """Wait until this is told of the log; new work is taken whatever it is."""

    async def told() -> bool:
        ready = await soon(server.get("/v1/readiness"))
        assert (ready.status, ready.json["ok"]) == (200, True)
        return (ready.json.get("log_problem"), (await server.status())["log_problem"]) == (problem, problem)

    await eventually(told)


async def test_calls_answer_as_they_ended_when_the_logs_reader_has_gone(site: Site, pipe: tuple[int, int]) -> None:
    with_effects(site)
    reader, writer = pipe
    async with told_to(site, writer) as server:
        await tells(server, None)
        os.close(reader)
        for number in range(1, 4):
            answer = await soon(server.do("act/Go"))
            assert (answer.status, answer.body, len(effects(site))) == (200, 7, number)
        assert (await soon(server.do("nobody/Go"))).status == 404
        await tells(server, "Broken pipe")
        samples = await scraped(server)
        assert value(samples, "gateway_runs_total", connector="act", command="Go", outcome="ok") == 3
        assert len((await server.status("act"))["last_outcomes"]) == 3


async def test_calls_answer_as_they_ended_when_the_logs_disk_is_full(site: Site) -> None:
    with_effects(site)
    async with told_to(site, os.open("/dev/full", os.O_WRONLY)) as server:
        assert [(await soon(server.do("act/Go"))).body for _ in range(3)] == [7, 7, 7]
        await tells(server, "No space left on device")
        assert len(effects(site)) == 3


async def test_a_job_ends_as_it_ended_without_a_log(site: Site) -> None:
    with_effects(site)
    async with told_to(site, os.open("/dev/full", os.O_WRONLY)) as server:
        accepted = await soon(server.do("act/Later", {"spiff__callback_url": "http://127.0.0.1:9/"}))
        assert accepted.status == 202
        (listed,) = (await server.get("/v1/jobs")).json["jobs"]

        async def outcome() -> Any:
            return (await server.get(f"/v1/jobs/{listed['id']}")).json.get("outcome")

        assert (await eventually(outcome))["status"] == 200
        assert len(effects(site)) == 1


async def test_a_reader_that_stalls_holds_nobody_up_and_gets_what_was_queued(site: Site, pipe: tuple[int, int]) -> None:
    site.script("chatty.sh", "cat > /dev/null; seq 200 >&2; echo 7")
    site.configure(f"chatty: {{run: [./chatty.sh], {ANY}}}")
    reader, writer = pipe
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    async with told_to(site, writer, QUEUE=100_000, BATCH=1000, STALLED=0.2) as server:
        for _ in range(5):
            assert (await soon(server.do("chatty/Go"))).body == 7
        await tells(server, "nobody reads it")
        dropped = value(await scraped(server), "gateway_log_dropped_total")
        assert dropped > 200
        lines = []
        with os.fdopen(os.dup(reader)) as log:
            while not lines or lines[-1]["event"] != "log_dropped":
                lines.append(json.loads(await asyncio.to_thread(log.readline)))
            assert lines.pop()["lines"] == dropped
            await tells(server, None)
            assert (await soon(server.do("chatty/Go", headers={"X-Request-Id": "later"}))).body == 7
            while not lines or lines[-1].get("request_id") != "later" or lines[-1]["event"] != "run":
                lines.append(json.loads(await asyncio.to_thread(log.readline)))
        written = [line["line"] for line in lines if line["event"] == "log"]
        whole = [str(number) for number in range(1, 201)]
        assert written[-200:] == whole
        assert written[:-200] == (whole * 5)[: len(written) - 200]
        assert value(await scraped(server), "gateway_log_dropped_total") == dropped


async def test_a_gateway_whose_log_nobody_reads_ends_in_time(site: Site, pipe: tuple[int, int]) -> None:
    site.script("chatty.sh", "cat > /dev/null; seq 200 >&2; echo 7")
    site.configure(f"chatty: {{run: [./chatty.sh], {ANY}}}")
    _, writer = pipe
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    async with told_to(site, writer, LAST_WORDS=0.2) as server:
        assert (await soon(server.do("chatty/Go"))).body == 7


async def test_a_keeper_does_not_kill_a_gateway_whose_log_nobody_reads(site: Site, pipe: tuple[int, int]) -> None:
    site.script("chatty.sh", "cat > /dev/null; seq 200 >&2; echo 7")
    site.configure(f"chatty: {{run: [./chatty.sh], {ANY}}}")
    _, writer = pipe
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    async with told_to(site, writer, "--restart", STALLED=3, SILENCE=1, LAST_WORDS=0.2) as server:
        assert (await soon(server.do("chatty/Go"))).body == 7
        (first,) = (await server.status())["workers"]
        await tells(server, "nobody reads it")  # by then it would have been killed more than once
        assert (await server.status())["workers"] == [first]


@pytest.mark.parametrize("flood", [r"\n", r"\0"])
async def test_a_flood_of_lines_is_written_near_its_bound_and_holds_nobody_up(site: Site, flood: str) -> None:
    bound = 64 << 10
    site.script("flood.sh", f"cat > /dev/null; yes '' | head -300000 | tr '\\n' '{flood}' >&2; echo 7")
    site.configure(f"flood: {{run: [./flood.sh], max_log: 64KiB, {ANY}}}\necho: {{run: [cat], {ANY}}}")
    async with served(site) as server:
        before = len(server.log())
        flooding = asyncio.create_task(server.do("flood/Go"))
        while not flooding.done():
            assert (await soon(server.get("/liveness"))).status == 200
        assert (await flooding).body == 7
        assert (await soon(server.do("echo/Go"))).status == 200
        lines = [line for line in server.log()[before:].splitlines() if '"log"' in line]
        assert sum(map(len, lines)) < 2.5 * bound
        assert "is dropped from here" in lines[-1]
