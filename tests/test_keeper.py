"""What starts a gateway again, and loses no connection meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import procfs
from tests.support import PATIENCE, Server, Site, cli, eventually, gone, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parent.parent
GO = "commands: {Go: {additional_parameters: true}}"
HANG = f"hang: {{run: [sleep, '1000'], {GO}}}"
ECHO = f"echo: {{run: [cat], {GO}}}"


async def kept(server: Server) -> int:
    """Return the process id of the gateway that is kept."""
    # A connection that is kept alive would be the gateway's, and end with it.
    pid: int = (await server.get("/v1/status", headers={"Connection": "close"})).json["workers"][0]["pid"]
    assert pid != server.pid
    return pid


async def freeze(pid: int) -> None:
    """Stop a process, and wait until it stands still."""
    os.kill(pid, signal.SIGSTOP)
    await eventually(lambda: "State:\tT" in Path(f"/proc/{pid}/status").read_text())


def shrunk(site: Site, module: str = "gateway.keeper", **limits: float) -> dict[str, str]:
    """Return an environment in which a module has other limits."""
    folder = site.folder / "shrunk"
    folder.mkdir(exist_ok=True)
    lines = "".join(f"{module}.{name} = {value}\n" for name, value in limits.items())
    (folder / "sitecustomize.py").write_text(f"import {module}\n{lines}")
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


async def test_a_gateway_that_crashes_is_started_again_and_no_connection_is_lost(site: Site) -> None:
    site.configure(f"{ECHO}\n{HANG}")
    async with served(site, "--restart") as server:
        first = await kept(server)
        lost = asyncio.create_task(server.do("hang/Go"))
        connectors = await eventually(server.connectors)
        await freeze(first)  # what comes now waits in the socket's queue
        waiting = [asyncio.create_task(server.do("echo/Go", {"n": n})) for n in range(20)]
        with socket.create_connection(("127.0.0.1", server.port)):  # and what is there is accepted by nobody
            os.kill(first, signal.SIGKILL)
            answers = await asyncio.gather(*waiting)
        assert [answer.body["params"]["n"] for answer in answers] == list(range(20))
        await gone(connectors)
        assert isinstance((await asyncio.gather(lost, return_exceptions=True))[0], Exception)
        assert await kept(server) != first
        (died,) = server.events("gateway_died", level="error")
        assert (died["pid"], died["status"]) == (first, -signal.SIGKILL)


async def test_it_begins_when_nothing_of_the_one_before_runs_any_more(site: Site) -> None:
    site.level = "off"
    site.python(
        "alone.py",
        "import os, signal, sys, time, json\n"
        "alive = os.environ['DIR'] + '/alive'\n"
        "os.makedirs(alive, exist_ok=True)\n"
        "others = [pid for pid in os.listdir(alive) if os.path.exists(f'/proc/{pid}')]\n"
        "open(f'{alive}/{os.getpid()}', 'w').close()\n"
        "if json.load(sys.stdin)['params'].get('stay'):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    time.sleep(1000)\n"
        "print(json.dumps(others))\n",
    )
    site.configure(f"alone: {{run: [./alone.py], env: {{DIR: {site.folder}}}, concurrency: 1, {GO}}}")
    async with served(site, "--restart") as server:
        stays = asyncio.create_task(server.do("alone/Go", {"stay": True}))
        await eventually(lambda: list((site.folder / "alive").glob("*")) if server.connectors() else None)
        os.kill(await kept(server), signal.SIGKILL)
        assert (await server.do("alone/Go")).body == []
        await asyncio.gather(stays, return_exceptions=True)


async def test_a_gateway_that_hangs_is_killed_and_started_again(site: Site) -> None:
    site.configure(ECHO)
    async with served(site, "--restart", env=shrunk(site, SILENCE=1.5)) as server:
        frozen = await kept(server)
        await freeze(frozen)
        assert (await server.do("echo/Go")).status == 200
        (died,) = server.events("gateway_died", pid=frozen)
        assert "no sign of life" in died["problem"]


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_gateway_that_hangs_does_not_hold_up_the_end(site: Site, signals: int) -> None:
    site.configure(gateway=f"drain: {'100ms' if signals == 1 else '1h'}")
    limits = {"MARGIN": 2, "HURRY": 1000} if signals == 1 else {"HURRY": 0.2}
    async with served(site, "--restart", env=shrunk(site, SILENCE=1000, **limits)) as server:
        frozen = await kept(server)
        await freeze(frozen)
        server.signal(signal.SIGTERM)
        await eventually(lambda: has(frozen, "ShdPnd", signal.SIGTERM))
        if signals == 2:
            server.signal(signal.SIGTERM)
        assert await server.ended() == 1
        assert server.events("gateway_died", pid=frozen)
        await gone({frozen})


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_keeper_that_is_killed_takes_everything_with_it(site: Site, frozen: bool) -> None:
    site.configure(HANG)
    async with served(site, "--restart") as server:
        call = asyncio.create_task(server.do("hang/Go"))
        await eventually(server.connectors)
        everything = server.processes() | server.connectors()
        if frozen:
            await freeze(await kept(server))
        server.signal(signal.SIGKILL)
        await gone(everything)
        await asyncio.gather(call, return_exceptions=True)


async def test_sigterm_drains_and_sighup_reloads(site: Site) -> None:
    gate = site.folder / "gate"
    site.script("slow.sh", f"until [ -e {gate} ]; do sleep 0.02; done; echo 1")
    site.configure(f"slow: {{run: [./slow.sh], {GO}}}")
    async with served(site, "--restart") as server:
        site.configure(f"slow: {{run: [./slow.sh], {GO}}}\n{ECHO}")
        server.signal(signal.SIGHUP)
        await eventually(lambda: server.events("registry_loaded", changed=["echo"]))
        call = asyncio.create_task(server.do("slow/Go"))
        await eventually(server.connectors)
        server.signal(signal.SIGTERM)
        await eventually(lambda: server.events("drain_started", in_flight=1))
        gate.touch()
        assert (await call).status == 200
        assert await server.ended() == 0
        assert not server.events("gateway_died")


def test_what_is_wrong_is_said_once(site: Site) -> None:
    site.file.write_text("defaults: {timeout: long}")
    done = cli(site, "serve", "--restart", "--listen", "127.0.0.1:0")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert f"{site.file}:1: " in done.stderr


@pytest.mark.parametrize("option", ["--restart", "--no-restart"])
def test_a_port_in_use_is_one_clear_line_and_leaves_nothing(site: Site, option: str) -> None:
    site.configure()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = cli(site, "serve", option, "--listen", address)
    assert done.returncode == 2
    assert f"error: cannot listen on {address}: Address already in use" in done.stderr
    assert not (site.state / "run").exists() or os.listdir(site.state / "run") == []


async def test_a_file_that_is_broken_while_it_is_started_again_is_waited_for(site: Site) -> None:
    site.configure(ECHO)
    whole = site.file.read_text()
    async with served(site, "--restart") as server:
        first = await kept(server)
        site.file.write_text("connectors: [")
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: server.events("gateway_died", status=2))
        site.file.write_text(whole)
        assert (await server.do("echo/Go")).status == 200


# --- what several workers were


@pytest.mark.parametrize("workers", ["2", "auto"])
async def test_who_asks_for_several_workers_gets_one_gateway_that_is_kept(site: Site, workers: str) -> None:
    site.configure(ECHO, gateway=f"workers: {workers}")
    async with served(site) as server:
        await kept(server)
        assert len(server.events("workers_ignored", level="warning")) == 1
        assert (await server.do("echo/Go")).status == 200


async def test_one_process_serves_unless_it_is_to_be_kept(site: Site) -> None:
    site.configure(ECHO, gateway="restart: true")
    async with served(site, "--no-restart", "--workers", "1") as server:
        assert (await server.status())["workers"] == [{"worker": 0, "pid": server.pid}]
        assert not server.events("workers_ignored")


def test_a_wrong_number_of_workers_refuses_to_start(site: Site) -> None:
    site.configure()
    done = cli(site, "serve", "--workers", "many")
    assert done.returncode == 2
    assert "--workers" in done.stderr


# --- signals, while it starts and in what it starts


def has(pid: int, mask: str, number: int) -> bool:
    """Tell whether a signal is in one of a process' masks: SigBlk, it has to wait; ShdPnd, it waits."""
    masks = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{mask}:")]
    return bool(masks) and bool(int(masks[0].split()[1], 16) & (1 << (number - 1)))


@contextlib.asynccontextmanager
async def starting(site: Site, option: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Start a gateway and have it as soon as it runs code of ours; its log is in the file `log`."""
    with (site.folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--listen", "127.0.0.1:0", option],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=site.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        await eventually(lambda: process.poll() is not None or has(process.pid, "SigBlk", signal.SIGTERM))
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0


@pytest.mark.parametrize("option", ["--restart", "--no-restart"])
async def test_a_sigterm_that_comes_while_it_starts_ends_it_with_0(site: Site, option: str) -> None:
    site.configure()
    async with starting(site, option) as process:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0
    log = (site.folder / "log").read_text()
    assert "gateway_died" not in log
    assert "Traceback" not in log
    assert not (site.state / "run").exists() or os.listdir(site.state / "run") == []


@pytest.mark.parametrize("option", ["--restart", "--no-restart"])
async def test_a_sighup_that_comes_while_it_starts_ends_nothing(site: Site, option: str) -> None:
    site.configure()
    async with starting(site, option) as process:
        process.send_signal(signal.SIGHUP)
        log = site.folder / "log"
        await eventually(lambda: process.poll() is not None or "listening" in log.read_text())
        assert process.poll() is None
        assert "gateway_died" not in log.read_text()


async def test_a_sighup_that_comes_while_it_is_started_again_ends_nothing(site: Site) -> None:
    site.configure(ECHO)
    async with served(site, "--restart") as server:
        before = await kept(server)
        os.kill(before, signal.SIGKILL)
        (new,) = await eventually(lambda: children(server.pid) - {before})
        os.kill(new, signal.SIGHUP)
        assert await kept(server) == new
        assert len(server.events("gateway_died")) == 1


def children(pid: int) -> set[int]:
    return {one for one, facts in procfs.scan().items() if facts.ppid == pid}


@pytest.mark.parametrize("option", ["--restart", "--no-restart"])
async def test_connectors_have_all_signals(site: Site, option: str) -> None:
    site.script(
        "masks.sh",
        """awk '/^Sig(Blk|Ign)/ {print "\\"0x" $2 "\\""}' /proc/self/status | paste -sd, | sed 's/.*/[&]/'""",
    )
    site.configure(f"masks: {{run: [./masks.sh], {GO}}}")
    async with served(site, option) as server:
        masks: Any = (await server.do("masks/Go")).body
    taken = sum(1 << (number - 1) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    assert [int(mask, 16) & taken for mask in masks] == [0, 0]
