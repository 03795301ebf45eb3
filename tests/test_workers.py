"""Several gateway processes on one port."""

from __future__ import annotations

import asyncio
import contextlib
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

from tests import procfs
from tests.support import PATIENCE, Server, Site, cli, eventually, gone, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parent.parent
GO = "commands: {Go: {additional_parameters: true}}"
WORKERS = 3

# Notes how many of it are alive at once, itself included, for as long as the gate file is absent.
COUNTING = """
mkdir -p $DIR/alive; one=$(mktemp -p $DIR/alive)
while [ ! -e $DIR/gate ]; do sleep 0.02; done
ls $DIR/alive | wc -l
rm $one
"""


@pytest.fixture
async def team(site: Site) -> AsyncIterator[Server]:
    """A gateway with three workers; `echo` answers, `slow` waits for the file `gate` and has two slots."""
    site.script("echo.sh", "cat")
    site.script("slow.sh", COUNTING)
    site.script("hang.sh", "sleep 1000")
    site.configure(
        f"""
        echo: {{run: [./echo.sh], {GO}}}
        slow: {{run: [./slow.sh], env: {{DIR: {site.folder}}}, concurrency: 2, queue: 50, {GO}}}
        hang: {{run: [./hang.sh], {GO}}}
        """,
        gateway=f"workers: {WORKERS}",
    )
    async with served(site) as server:
        await eventually(lambda: len(server.events("listening")) == WORKERS)
        yield server


async def pids(team: Server) -> list[int]:
    return [one["pid"] for one in (await team.status())["workers"]]


def noted(site: Site) -> int:
    """Tell how many of COUNTING have noted that they are alive; they do so some time after their start."""
    return len(list((site.folder / "alive").glob("*")))


async def fresh(team: Server, target: str, params: Any = None) -> Any:
    """Call over a connection of its own, so that the kernel chooses a worker anew."""
    return await team.do(target, params, headers={"Connection": "close"})


async def test_all_workers_serve_the_port(team: Server) -> None:
    assert len(set(await pids(team))) == WORKERS
    await asyncio.gather(*(fresh(team, "echo/Go") for _ in range(30)))
    assert len(team.events("run", outcome="ok")) == 30
    table = procfs.scan()
    have_cells = {table[cell].ppid for cell in team.cells() if cell in table}
    assert have_cells >= set(await pids(team))


async def test_concurrency_is_exact_over_all_workers(team: Server, site: Site) -> None:
    calls = [asyncio.create_task(fresh(team, "slow/Go")) for _ in range(12)]

    async def queued() -> bool:
        return bool((await team.status("slow"))["queued"] == 10)

    await eventually(queued)
    assert (await team.status("slow"))["in_flight"] == 2
    await eventually(lambda: noted(site) == 2)
    (site.folder / "gate").touch()
    answers = await asyncio.gather(*calls)
    assert {answer.status for answer in answers} == {200}
    assert {answer.body for answer in answers} <= {1, 2}


@contextlib.asynccontextmanager
async def talking_to(worker: int, site: Site) -> AsyncIterator[aiohttp.ClientSession]:
    """Have a session with one worker, on the socket on which it answers the others."""
    (socket,) = site.state.glob(f"run/team-*/worker-{worker}.sock")
    folder = os.open(socket.parent, os.O_RDONLY)  # the path may be too long for an address
    try:
        connector = aiohttp.UnixConnector(f"/proc/self/fd/{folder}/{socket.name}")
        async with aiohttp.ClientSession("http://worker", connector=connector) as session:
            yield session
    finally:
        os.close(folder)


async def on(worker: int, site: Site, target: str, params: Any = None) -> Any:
    """Call a connector in one worker; return the result."""
    async with talking_to(worker, site) as session, session.post(f"/v1/do/{target}", json=params or {}) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return answer["command_response"]["body"]


async def get(worker: int, site: Site, path: str) -> Any:
    """Ask one worker."""
    async with talking_to(worker, site) as session, session.get(path) as response:
        return await (response.json() if response.content_type == "application/json" else response.text())


LINES = """
import json, os, sys
for line in sys.stdin:
    params = json.loads(line)["params"]
    os.write(3, json.dumps({"pid": os.getpid(), "alive": [os.path.exists(f"/proc/{pid}") for pid in params["old"]]}).encode() + b"\\n")
"""


@contextlib.asynccontextmanager
async def two_workers(site: Site, connectors: str, gateway: str = "") -> AsyncIterator[Server]:
    site.python("lines.py", LINES)
    site.configure(connectors, gateway=f"workers: 2\n{gateway}")
    async with served(site) as server:
        await eventually(lambda: len(server.events("listening")) == 2)
        yield server


async def test_a_persistent_process_gives_way_to_one_in_another_worker(site: Site) -> None:
    line = f"line: {{run: [./lines.py], mode: persistent, concurrency: 1, {GO}}}"
    site.level = "off"
    async with two_workers(site, line) as server:
        await eventually(lambda: len(server.connectors()) == 1)
        old = list(server.connectors())
        for worker in (1, 0, 1):
            answer = await on(worker, site, "line/Go", {"old": old})
            assert answer["alive"] == [False] * len(old), "it is gone before there is another"
            old.append(answer["pid"])
            assert server.connectors() == {answer["pid"]}
        again = await on(1, site, "line/Go", {"old": []})
        assert again["pid"] == old[-1]


async def test_what_one_worker_keeps_gives_way_to_calls_of_another(site: Site) -> None:
    site.script("slow.sh", COUNTING)
    entries = f"""
    line: {{run: [./lines.py], mode: persistent, concurrency: 3, warm: 3, {GO}}}
    slow: {{run: [./slow.sh], env: {{DIR: {site.folder}}}, {GO}}}
    """
    async with two_workers(site, entries, "max_processes: 3") as server:
        kept = await eventually(lambda: server.connectors() if len(server.connectors()) == 3 else None)
        calls = [asyncio.create_task(on(1, site, "slow/Go")) for _ in range(2)]
        await eventually(lambda: len(kept & server.connectors()) == 1)
        assert (await server.status())["processes"] == {"in_flight": 2, "kept": 1, "max": 3}
        (site.folder / "gate").touch()
        await asyncio.gather(*calls)
        await eventually(lambda: len(server.connectors()) == 3)


async def test_status_shows_outcomes_of_every_worker(team: Server) -> None:
    await asyncio.gather(*(fresh(team, "echo/Go") for _ in range(9)))
    assert len((await team.status("echo"))["last_outcomes"]) == 9


async def test_status_shows_what_any_worker_has_found_out(site: Site) -> None:
    (site.folder / "act.py").write_text("import socket\npair = socket.socketpair()\ndef Go(): pass\n")
    site.configure("act: {runtime: python, module: ./act.py}", gateway="workers: 2")
    async with served(site) as team:
        (event,) = await eventually(lambda: team.events("connector_warning"))  # the first keeps processes for all
        for _ in range(6):
            answer = await team.get("/v1/status", headers={"Connection": "close"})
            status = answer.json["connectors"]["act"]
            assert (status["mode"], status["notices"]) == ("standby", [event["message"]])


async def test_a_crashed_worker_is_replaced_and_its_slots_are_free_again(team: Server, site: Site) -> None:
    before = await pids(team)
    calls = [asyncio.create_task(fresh(team, "slow/Go")) for _ in range(2)]
    await eventually(lambda: noted(site) == 2)
    connectors = team.connectors()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    await gone(connectors)
    assert all(isinstance(one, Exception) for one in await asyncio.gather(*calls, return_exceptions=True))

    async def replaced() -> bool:
        try:
            now = await pids(team)
        except OSError:  # nobody listens for a moment
            return False
        return len(now) == WORKERS and None not in now and not set(now) & set(before)

    await eventually(replaced)
    (site.folder / "gate").touch()
    answers = await asyncio.gather(*(fresh(team, "slow/Go") for _ in range(4)))
    assert {answer.status for answer in answers} == {200}
    assert team.events("worker_died")


DESCRIBING = """
request=$(cat)
case $request in
*'"op":"describe"'*)
  echo x >> $DIR/$1.asked
  sleep 0.3
  if [ $1 = flaky ] && mkdir $DIR/broken; then echo 'not now' >&2; exit 1; fi
  echo '{"commands": [{"name": "Go", "parameters": []}]}';;
*) echo 1;;
esac
"""


async def test_one_worker_asks_what_a_connector_can_do_and_all_tell_the_same(site: Site) -> None:
    site.script("describing.sh", DESCRIBING)
    entries = "\n".join(
        f"{name}: {{run: [./describing.sh, {name}], env: {{DIR: {site.folder}}}}}" for name in ("good", "flaky")
    )
    async with two_workers(site, entries) as server:
        await eventually(lambda: len((site.folder / "flaky.asked").read_text().split()) == 2)

        async def settled() -> bool:
            states = [await get(worker, site, "/v1/status?alone") for worker in (0, 1)]
            return {one["connectors"]["flaky"]["state"] for one in states} == {"ready", "quarantined"}

        await eventually(settled)
        for worker in (0, 1):
            flaky = (await get(worker, site, "/v1/status"))["connectors"]["flaky"]
            assert (flaky["state"], "not now" in flaky["reason"]) == ("quarantined", True)
            assert "gateway_quarantined 1.0" in await get(worker, site, "/metrics")
        assert (site.folder / "good.asked").read_text().split() == ["x"]

        async def healed() -> bool:
            flaky = (await server.status())["connectors"]["flaky"]
            return bool(flaky["state"] == "ready")

        await eventually(healed)
        assert len((site.folder / "flaky.asked").read_text().split()) == 2


async def test_sigterm_drains_all_workers(team: Server, site: Site) -> None:
    calls = [asyncio.create_task(fresh(team, "slow/Go")) for _ in range(6)]

    async def busy() -> bool:
        return bool((await team.status("slow"))["queued"] == 4)

    await eventually(busy)
    team.signal(signal.SIGTERM)
    await eventually(lambda: len(team.events("drain_started")) == WORKERS)
    (site.folder / "gate").touch()
    assert {answer.status for answer in await asyncio.gather(*calls)} == {200}
    assert await team.ended() == 0


async def test_sighup_reloads_all_workers(team: Server, site: Site) -> None:
    site.configure(f"other: {{run: [./echo.sh], {GO}}}", gateway=f"workers: {WORKERS}")
    team.signal(signal.SIGHUP)
    await eventually(lambda: len(team.events("registry_loaded", removed=["echo", "hang", "slow"])) == WORKERS)
    for _ in range(6):
        answer = await team.get("/v1/commands", headers={"Connection": "close"})
        assert [one["id"] for one in answer.json] == ["other/Go"]


async def test_killing_the_master_stops_the_workers_and_their_connectors(team: Server) -> None:
    call = asyncio.create_task(fresh(team, "hang/Go"))
    await eventually(team.connectors)
    everything = team.processes() | team.connectors()
    team.signal(signal.SIGKILL)
    await gone(everything)
    await asyncio.gather(call, return_exceptions=True)


@contextlib.asynccontextmanager
async def workers_of(site: Site, count: int = WORKERS) -> AsyncIterator[list[aiohttp.ClientSession]]:
    """Have a session with each worker, over its socket."""
    (folder,) = (site.state / "run").glob("team-*")
    async with contextlib.AsyncExitStack() as stack:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # short enough for a socket's address
        stack.callback(os.close, handle)
        sessions = []
        for worker in range(count):
            connector = aiohttp.UnixConnector(f"/proc/self/fd/{handle}/worker-{worker}.sock")
            sessions.append(
                await stack.enter_async_context(aiohttp.ClientSession("http://worker", connector=connector))
            )
        yield sessions


def shrunk(site: Site, **limits: float) -> dict[str, str]:
    """Return the environment of a gateway whose master has other limits; `team__BEAT` is gateway.team.BEAT."""
    folder = site.folder / "shrunk"
    folder.mkdir()
    lines = []
    for name, value in limits.items():
        module, constant = name.split("__")
        lines.append(f"import gateway.{module}\ngateway.{module}.{constant} = {value}\n")
    (folder / "sitecustomize.py").write_text("".join(lines))
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


def has_died(server: Server, pid: int) -> Any:
    return server.events("worker_died", pid=pid)


@pytest.mark.parametrize("limit", ["concurrency: 1", "concurrency: 9"], ids=["concurrency", "max_processes"])
async def test_who_waits_starts_when_the_worker_that_held_the_slot_has_died(site: Site, limit: str) -> None:
    site.script("once.sh", "mkdir $DIR/first 2>/dev/null && exec sleep 1000\necho 1")
    site.configure(
        f"once: {{run: [./once.sh], env: {{DIR: {site.folder}}}, {limit}, queue_timeout: 1h, timeout: 1h, {GO}}}",
        gateway=f"workers: {WORKERS}\nmax_processes: {9 if limit.endswith('1') else 1}",
    )
    async with served(site) as server:
        await eventually(lambda: len(server.events("listening")) == WORKERS)
        async with workers_of(site) as (_, holder, waiter):
            held = asyncio.create_task(holder.post("/v1/do/once/Go", json={}))
            await eventually((site.folder / "first").exists)
            waiting = asyncio.create_task(waiter.post("/v1/do/once/Go", json={}))

            async def queued() -> bool:
                return bool((await server.status("once"))["queued"] == 1)

            await eventually(queued)
            os.kill((await pids(server))[1], signal.SIGKILL)
            assert (await asyncio.wait_for(waiting, PATIENCE)).status == 200
            await asyncio.gather(held, return_exceptions=True)


async def test_a_worker_that_hangs_is_killed_and_replaced(site: Site) -> None:
    site.configure(f"echo: {{run: [cat], {GO}}}", gateway=f"workers: {WORKERS}")
    async with served(site, env=shrunk(site, team__BEAT=0.6)) as server:
        await eventually(lambda: len(server.events("listening")) == WORKERS)
        frozen = (await pids(server))[1]
        os.kill(frozen, signal.SIGSTOP)
        died = await eventually(lambda: has_died(server, frozen))
        assert "no sign of life" in died[0]["problem"]
        await eventually(lambda: len(server.events("listening")) == WORKERS + 1)
        now = await pids(server)
        assert None not in now
        assert frozen not in now
        assert len(server.events("worker_died")) == 1


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_worker_that_hangs_does_not_hold_up_the_end(site: Site, signals: int) -> None:
    site.configure(gateway=f"workers: {WORKERS}\ndrain: {'100ms' if signals == 1 else '1h'}")
    limits = {"master__MARGIN": 2, "master__HURRY": 1000} if signals == 1 else {"master__HURRY": 0.2}
    async with served(site, env=shrunk(site, team__BEAT=1000, **limits)) as server:
        await eventually(lambda: len(server.events("listening")) == WORKERS)
        frozen = (await pids(server))[1]
        os.kill(frozen, signal.SIGSTOP)
        server.signal(signal.SIGTERM)
        await eventually(lambda: len(server.events("drain_finished")) == WORKERS - 1)
        if signals == 2:
            server.signal(signal.SIGTERM)
        assert await server.ended() == 1
        assert has_died(server, frozen)
        await gone({frozen})
    assert os.listdir(site.state / "run") == []


async def test_a_worker_that_hangs_dies_with_its_master(team: Server) -> None:
    call = asyncio.create_task(fresh(team, "hang/Go"))
    await eventually(team.connectors)
    everything = team.processes() | team.connectors()
    for pid in await pids(team):
        os.kill(pid, signal.SIGSTOP)
    team.signal(signal.SIGKILL)
    await gone(everything)
    await asyncio.gather(call, return_exceptions=True)


async def test_a_replaced_worker_has_the_settings_of_the_others(site: Site) -> None:
    configured = "workers: 2\napi_key: {key}\nmax_processes: {many}"
    site.configure(gateway=configured.format(key="first", many=7))
    async with served(site) as server:
        await eventually(lambda: len(server.events("listening")) == 2)
        server.session.headers["Authorization"] = "Bearer first"
        before = await pids(server)
        site.configure(f"echo: {{run: [cat], {GO}}}", gateway=configured.format(key="second", many=8))
        os.kill(before[1], signal.SIGKILL)
        await eventually(lambda: len(server.events("listening")) == 3)
        assert None not in await pids(server)
        async with workers_of(site, 2) as workers:
            for worker in workers:
                refused = await worker.get("/v1/commands", headers={"Authorization": "Bearer second"})
                assert refused.status == 401
                answer = await worker.get("/v1/status?alone", headers={"Authorization": "Bearer first"})
                assert (await answer.json())["processes"]["max"] == 7


def blocked(pid: int, number: int) -> bool:
    """Tell whether a signal has to wait until the process takes it."""
    masks = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk:")]
    return bool(masks) and bool(int(masks[0].split()[1], 16) & (1 << (number - 1)))


@contextlib.asynccontextmanager
async def starting(site: Site, workers: int) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Start a gateway and have it as soon as it runs code of ours; its log is in the file `log`."""
    with (site.folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--listen", "127.0.0.1:0", "--workers", str(workers)],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=site.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        await eventually(lambda: process.poll() is not None or blocked(process.pid, signal.SIGTERM))
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_sigterm_that_comes_while_it_starts_ends_it_with_0(site: Site, workers: int) -> None:
    site.configure()
    async with starting(site, workers) as process:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0
    log = (site.folder / "log").read_text()
    assert "worker_died" not in log
    assert "Traceback" not in log
    assert not (site.state / "run").exists() or os.listdir(site.state / "run") == []


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_sighup_that_comes_while_it_starts_ends_nothing(site: Site, workers: int) -> None:
    site.configure()
    async with starting(site, workers) as process:
        process.send_signal(signal.SIGHUP)
        log = site.folder / "log"
        await eventually(lambda: process.poll() is not None or log.read_text().count("listening") == workers)
        assert process.poll() is None
        assert "worker_died" not in log.read_text()


async def test_a_sighup_that_comes_while_a_worker_starts_ends_nothing(team: Server) -> None:
    before = set(await pids(team))
    os.kill(min(before), signal.SIGKILL)
    children = f"/proc/{team.pid}/task/{team.pid}/children"
    (new,) = await eventually(lambda: set(map(int, Path(children).read_text().split())) - before)
    os.kill(new, signal.SIGHUP)
    await eventually(lambda: len(team.events("listening")) == WORKERS + 1)
    assert new in await pids(team)
    assert len(team.events("worker_died")) == 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_connectors_have_all_signals(site: Site, workers: int) -> None:
    site.script(
        "masks.sh",
        """awk '/^Sig(Blk|Ign)/ {print "\\"0x" $2 "\\""}' /proc/self/status | paste -sd, | sed 's/.*/[&]/'""",
    )
    site.configure(f"masks: {{run: [./masks.sh], {GO}}}", gateway=f"workers: {workers}")
    async with served(site) as server:
        masks = (await server.do("masks/Go")).body
    taken = sum(1 << (number - 1) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    assert [int(mask, 16) & taken for mask in masks] == [0, 0]


async def test_lines_of_several_workers_stay_whole_on_a_pipe(site: Site) -> None:
    long = "x" * 7000
    site.script("noisy.sh", f"for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do echo {long} >&2; done; echo 1")
    site.configure(f"noisy: {{run: [./noisy.sh], {GO}}}")
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--listen", "127.0.0.1:0", "--workers", "2", "--log-format", "json"],
        stdout=write, stderr=write, stdin=subprocess.DEVNULL, cwd=site.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(write)
    log = bytearray()

    def follow() -> None:
        while some := os.read(read, 3000):  # less than a line: the writers are faster
            log.extend(some)

    following = asyncio.create_task(asyncio.to_thread(follow))
    try:
        await eventually(lambda: log.count(b"listening") == 2)
        async with workers_of(site, 2) as workers:
            for _ in range(3):
                calls = [worker.post("/v1/do/noisy/Go", json={}) for worker in workers for _ in range(6)]
                assert {answer.status for answer in await asyncio.gather(*calls)} == {200}
    finally:
        process.terminate()
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0
        await following
        os.close(read)
    lines = [json.loads(line) for line in log.splitlines()]
    assert sum(line.get("line") == long for line in lines) == 3 * 12 * 16
    assert {line["worker"] for line in lines} == {0, 1}


async def test_the_log_of_one_process_names_no_worker(site: Site) -> None:
    site.configure()
    async with served(site) as server:
        assert "worker" not in server.events("listening")[0]


def test_a_wrong_number_of_workers_refuses_to_start(site: Site) -> None:
    site.configure()
    done = cli(site, "serve", "--workers", "many")
    assert done.returncode == 2
    assert "--workers" in done.stderr


def test_a_configuration_that_cannot_be_used_ends_the_master_too(site: Site) -> None:
    site.file.write_text("connectors: [")
    done = cli(site, "serve", "--workers", "2", "--listen", "127.0.0.1:0")
    assert done.returncode == 2


@pytest.mark.parametrize("section", ["gateway: {jobs: {backlog: 0}}", "defaults: {timeout: long}"])
def test_what_is_wrong_is_said_once(site: Site, section: str) -> None:
    site.file.write_text(section)
    done = cli(site, "serve", "--workers", "2", "--listen", "127.0.0.1:0")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert f"{site.file}:1: " in done.stderr
    assert os.listdir(site.state / "run") == []


def test_a_port_in_use_is_one_clear_line_and_leaves_nothing(site: Site) -> None:
    site.configure()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = cli(site, "serve", "--workers", "2", "--listen", address)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: cannot listen on {address}: Address already in use")
    assert os.listdir(site.state / "run") == []


def test_a_state_dir_that_cannot_be_used_is_named(site: Site) -> None:
    (site.folder / "occupied").write_text("")
    site.configure(gateway="state_dir: occupied")
    done = cli(site, "serve", "--workers", "2", "--listen", "127.0.0.1:0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: gateway.state_dir: ")
