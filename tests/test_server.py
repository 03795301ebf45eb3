"""Signals: a drain that finishes what is in flight, one that does not, and a reload."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support import Answer, Server, Site, cli, eventually, gone, served

if TYPE_CHECKING:
    from pathlib import Path

ANY = "commands: {Go: {additional_parameters: true}}"


def gated(site: Site) -> Path:
    """Write a connector that says "ready" and waits for the returned file."""
    gate = site.folder / "gate"
    site.script("gated.sh", f"echo ready >&2\nwhile [ ! -e {gate} ]; do sleep 0.01; done\necho 1")
    return gate


def stubborn(site: Site) -> None:
    """Write a connector that says "ready" and never ends by itself, whatever SIGTERM says."""
    site.script("stubborn.sh", "trap '' TERM\necho ready >&2\nwhile :; do sleep 0.05; done")


async def called(gateway: Server, target: str, count: int = 1) -> asyncio.Task[Answer]:
    """Start a call and wait until its process is ready."""
    call = asyncio.create_task(gateway.do(target))
    await eventually(lambda: len(gateway.events("log", line="ready")) == count)
    return call


async def draining(gateway: Server) -> None:
    async def refused() -> bool:
        return (await gateway.get("/v1/readiness")).status == 503

    await eventually(refused)


async def test_sigterm_lets_work_in_flight_finish_and_refuses_new_work(site: Site) -> None:
    gate = gated(site)
    site.configure(f"gated: {{run: [./gated.sh], {ANY}}}")
    async with served(site) as gateway:
        call = await called(gateway, "gated/Go")
        gateway.signal(signal.SIGTERM)
        await draining(gateway)
        assert (await gateway.get("/v1/readiness")).json == {"ok": False, "reason": "draining"}
        assert (await gateway.get("/v1/liveness")).json == {"ok": True}
        metrics = await gateway.get("/metrics")
        assert metrics.status == 200
        assert b'gateway_in_flight{connector="gated"} 1.0' in metrics.raw
        assert b"\ngateway_ready 0.0\n" in metrics.raw
        assert "draining" in [one["kind"] for one in (await gateway.status())["problems"]]
        refused = await gateway.do("gated/Go")
        assert (refused.status, refused.code) == (503, "gateway_draining")
        assert int(refused.headers["Retry-After"]) >= 1
        assert not call.done()
        gate.touch()
        answer = await call
        assert (answer.status, answer.body) == (200, 1)
        assert await gateway.ended() == 0
        assert gateway.events("drain_started", in_flight=1, grace=30.0)
        assert gateway.events("drain_finished", stopped=0)
    assert os.listdir(site.state / "run") == []


async def test_the_drain_lets_an_answer_reach_a_slow_reader_to_its_last_byte(site: Site) -> None:
    size = 20 << 20
    site.script("large.sh", f"printf '\"'; head -c {size} /dev/zero | tr '\\0' x; printf '\"'")
    site.configure(f"large: {{run: [./large.sh], max_output: 30MiB, {ANY}}}")
    async with served(site) as gateway:
        async with gateway.session.post(f"{gateway.url}/v1/do/large/Go", json={}) as response:
            gateway.signal(signal.SIGTERM)
            await draining(gateway)
            assert gateway.events("drain_started")
            assert not gateway.events("drain_finished")
            assert len((await response.json())["command_response"]["body"]) == size
        assert await gateway.ended() == 0
        assert gateway.events("drain_finished", stopped=0)


async def test_work_that_outlasts_the_drain_is_stopped_and_told_so(site: Site) -> None:
    site.script("long.sh", "echo ready >&2\nexec sleep 1000")
    site.configure(f"long: {{run: [./long.sh], concurrency: 1, {ANY}}}", gateway="drain: 200ms")
    async with served(site) as gateway:
        running = await called(gateway, "long/Go")
        waiting = asyncio.create_task(gateway.do("long/Go"))

        async def queued() -> bool:
            return (await gateway.status("long"))["queued"] == 1

        await eventually(queued)
        processes = gateway.connectors()
        gateway.signal(signal.SIGTERM)
        for call in (running, waiting):
            answer = await call
            assert (answer.status, answer.code) == (503, "gateway_draining")
            assert "Retry-After" in answer.headers
        assert await gateway.ended() == 0
        assert gateway.events("drain_finished", stopped=2)
        await gone(processes)


async def test_a_second_sigterm_stops_at_once(site: Site) -> None:
    stubborn(site)
    site.configure(f"stubborn: {{run: [./stubborn.sh], timeout: 1h, {ANY}}}", gateway="drain: 1h")
    async with served(site) as gateway:
        call = await called(gateway, "stubborn/Go")
        processes = gateway.processes()
        gateway.signal(signal.SIGTERM)
        await draining(gateway)
        assert not call.done()
        gateway.signal(signal.SIGTERM)
        answer = await call
        assert (answer.status, answer.code) == (503, "gateway_draining")
        assert await gateway.ended() == 0
        assert gateway.events("drain_finished", stopped=1)
        await gone(processes)


async def test_a_drain_that_is_over_kills_what_ignores_sigterm(site: Site) -> None:
    stubborn(site)
    site.configure(f"stubborn: {{run: [./stubborn.sh], timeout: 1h, {ANY}}}", gateway="drain: 50ms")
    async with served(site) as gateway:
        call = await called(gateway, "stubborn/Go")
        processes = gateway.processes()
        gateway.signal(signal.SIGTERM)
        assert (await call).code == "gateway_draining"
        assert await gateway.ended() == 0
        await gone(processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_gateway_ends_at_once_whoever_keeps_a_connection_open(site: Site, number: int) -> None:
    site.configure(gateway="drain: 1h")
    async with served(site) as gateway:
        assert (await gateway.get("/")).status == 200  # the session keeps this connection
        gateway.signal(number)
        assert await gateway.ended() == 0


async def test_a_caller_that_hangs_up_during_the_drain_ends_it(site: Site) -> None:
    gated(site)
    site.configure(f"gated: {{run: [./gated.sh], {ANY}}}", gateway="drain: 1h")
    async with served(site) as gateway:
        call = await called(gateway, "gated/Go")
        gateway.signal(signal.SIGTERM)
        await draining(gateway)
        call.cancel()
        assert await gateway.ended() == 0
        assert gateway.events("run", outcome="cancelled")


async def test_sighup_reads_the_files_again_and_tries_quarantined_connectors_at_once(site: Site) -> None:
    gate = site.folder / "gate"
    site.script("moody.sh", f"""[ -e {gate} ] || exit 3\necho '{{"commands": [{{"name": "Go"}}]}}'""")
    site.configure("moody: {run: [./moody.sh]}")
    async with served(site) as gateway:
        assert (await gateway.status("moody"))["state"] == "quarantined"
        gate.touch()
        gateway.signal(signal.SIGHUP)

        async def healed() -> bool:
            return await gateway.commands() == ["moody/Go"]

        await eventually(healed, 4)  # by itself it would be tried after five seconds
        site.file.write_text("connectors: [")
        gateway.signal(signal.SIGHUP)
        await eventually(lambda: gateway.events("reload_failed"))
        assert await gateway.commands() == ["moody/Go"]
        assert "connectors.yaml" in (await gateway.status())["registry_problem"]


async def test_work_in_flight_keeps_its_connector_through_a_reload(site: Site) -> None:
    gate = gated(site)
    site.configure(f"gated: {{run: [./gated.sh], {ANY}}}")
    async with served(site) as gateway:
        call = await called(gateway, "gated/Go")
        site.configure(f"other: {{run: [./gated.sh], {ANY}}}")
        gateway.signal(signal.SIGHUP)

        async def reloaded() -> bool:
            return await gateway.commands() == ["other/Go"]

        await eventually(reloaded)
        gate.touch()
        assert (await call).body == 1


def test_a_port_in_use_is_one_clear_line_and_status_2(site: Site) -> None:
    site.configure()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = cli(site, "serve", "--listen", address)
    assert done.returncode == 2
    assert f"error: cannot listen on {address}" in done.stderr
    assert "Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_state_dir_that_cannot_be_used_is_named(site: Site) -> None:
    (site.folder / "occupied").write_text("")
    site.configure(gateway="state_dir: occupied")
    done = cli(site, "serve", "--listen", "127.0.0.1:0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: gateway.state_dir: ")
