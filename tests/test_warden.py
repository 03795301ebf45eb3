"""The warden: nothing of a run outlives it, with control groups and without, whoever is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.warden import procfs
from gateway.warden.cgroup import Groups
from tests.support import Answer, Server, Site, eventually, gone, served

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = "commands: {Go: {additional_parameters: true}}"

# Each says "ready" once for every process that it consists of.
FAMILY = """
    import os, signal, sys
    def ready():
        os.write(2, b"ready\\n")
    if os.fork() == 0:  # in the group
        ready()
        signal.pause()
    if os.fork() == 0:  # a session of its own, deaf to everything that can be ignored
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        ready()
        signal.pause()
    if os.fork() == 0:  # its parent is dead, it holds no pipe, and nothing tells where it came from
        os.setsid()
        if os.fork() == 0:
            os.chdir("/")
            for fd in (0, 1):
                os.close(fd)
            ready()
            os.close(2)
            os.execve(sys.executable, [sys.executable, "-ISc", "import signal; signal.pause()"], {})
        os._exit(0)
    os.wait()
    ready()
    signal.pause()
"""
DAEMON = """
    import os, sys
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.chdir("/")
            for fd in (0, 1, 2):
                os.close(fd)
            os.write(writing, str(os.getpid()).encode())
            os.execve(sys.executable, [sys.executable, "-ISc", "import signal; signal.pause()"], {})
        os._exit(0)
    os.wait()
    print(int(os.read(reading, 20)), flush=True)
"""
HUNGRY = """
    import os, time
    if os.fork() == 0:
        os.setsid()
        os.environ.clear()
        data = b"x" * (200 << 20)
    time.sleep(1000)
"""
FOREST = """
    import os, signal
    def grow(depth):
        for child in range(2 if depth else 0):
            if os.fork() == 0:
                if child:
                    os.setsid()
                grow(depth - 1)
                break
        else:
            os.write(2, b"ready\\n")
            signal.pause()
    grow(5)
"""


@pytest.fixture(params=["cgroup", "sweep"])
def containment(request: pytest.FixtureRequest) -> str:
    """How the gateway holds its processes."""
    if request.param == "cgroup":
        groups = Groups.open(f"probe-{os.getpid()}")
        if groups is None:
            pytest.skip("no writable control groups here")
        groups.close()
    return request.param


@pytest.fixture
def contained(site: Site, containment: str) -> Site:
    """A site with the connectors of this file."""
    site.python("family.py", FAMILY)
    site.python("daemon.py", DAEMON)
    site.python("forest.py", FOREST)
    site.python("hungry.py", HUNGRY)
    site.script("wait.sh", "setsid sleep 1000 &\necho ready >&2\nsleep 1000")
    site.script("echo.sh", "cat")
    names = ("family", "daemon", "forest")
    site.configure(
        "\n".join(
            [
                *(f"{name}: {{run: [./{name}.py], timeout: 60s, {COMMANDS}}}" for name in names),
                f"hungry: {{run: [./hungry.py], max_memory: 64MiB, {COMMANDS}}}",
                f"wait: {{run: [./wait.sh], {COMMANDS}}}",
                f"echo: {{run: [./echo.sh], {COMMANDS}}}",
            ]
        ),
        gateway=f"cgroup: {'true' if containment == 'cgroup' else 'false'}",
    )
    return site


async def started(gateway: Server, connector: str, processes: int) -> asyncio.Task[Answer]:
    """Begin a call and wait until all of its processes have said "ready"."""
    before = len(gateway.events("log", connector=connector, line="ready"))
    call = asyncio.create_task(gateway.do(f"{connector}/Go"))
    await eventually(
        lambda: len(gateway.events("log", connector=connector, line="ready")) == before + processes or call.done()
    )
    assert not call.done()
    return call


def warden(gateway: Server) -> int:
    (child,) = [one.pid for one in procfs.scan().values() if one.ppid == gateway.pid]
    return child


def instance(site: Site) -> str:
    (folder,) = (site.state / "run").iterdir()
    return folder.name


def control_groups(name: str) -> list[Path]:
    """The directories of one gateway's wardens."""
    return [path for path in Path("/sys/fs/cgroup").rglob(f"gateway-{name}-*") if path.is_dir()]


def group(pid: int) -> str:
    (line,) = [one for one in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if one.startswith("0::")]
    return line[3:]


async def test_each_run_has_a_control_group_where_there_are_any(contained: Site, containment: str) -> None:
    async with served(contained) as gateway:
        calls = [await started(gateway, "wait", 1) for _ in range(2)]
        groups = {group(pid) for pid in gateway.connectors()}
        if containment == "cgroup":
            assert {path.rpartition("/")[2] for path in groups} == {"slot-0", "slot-1"}
            assert all(f"gateway-{instance(contained)}-1/" in path for path in groups)
        else:
            assert groups == {group(os.getpid())}
            assert not control_groups(instance(contained))
        name = instance(contained)
        for call in calls:
            call.cancel()
        await eventually(lambda: not gateway.connectors())
        for _ in range(3):
            assert (await gateway.do("echo/Go")).status == 200
        assert len([one for path in control_groups(name) for one in path.glob("slot-*")]) <= 3, (
            "two that are used again, and the one that the warden waits in"
        )
    assert not control_groups(name)


async def test_a_hang_up_ends_a_family_however_it_is_detached(contained: Site) -> None:
    async with served(contained) as gateway:
        call = await started(gateway, "family", 4)
        processes = gateway.connectors()
        assert len(processes) == 4
        call.cancel()
        await gone(processes)
        assert not gateway.connectors()


async def test_a_daemon_that_a_result_leaves_behind_is_swept_before_the_answer(contained: Site) -> None:
    async with served(contained) as gateway:
        answer = await gateway.do("daemon/Go")
        assert answer.status == 200
        assert not os.path.exists(f"/proc/{answer.body}")
        assert not gateway.connectors()


async def test_a_daemon_goes_and_the_processes_of_another_run_stay(contained: Site, containment: str) -> None:
    async with served(contained) as gateway:
        other = await started(gateway, "family", 4)
        kept = gateway.connectors()
        answer = await gateway.do("daemon/Go")
        assert answer.status == 200
        assert kept <= gateway.connectors()
        if containment == "cgroup":
            assert gateway.connectors() == kept
        # Without control groups nothing tells whose it is as long as the older run lives, and it may stay that long.
        other.cancel()
        await gone({answer.body, *kept})
        assert not gateway.connectors()


async def test_a_tree_of_63_processes_dies_as_one(contained: Site) -> None:
    async with served(contained) as gateway:
        call = await started(gateway, "forest", 63)
        processes = gateway.connectors()
        assert len(processes) == 63
        call.cancel()
        await gone(processes)
        assert not gateway.connectors()
        assert (await gateway.do("echo/Go")).status == 200


async def test_memory_that_a_detached_grandchild_takes_counts(contained: Site) -> None:
    async with served(contained) as gateway:
        answer = await gateway.do("hungry/Go")
        assert (answer.status, answer.code) == (502, "connector_out_of_memory")
        assert float(answer.headers["X-Run-Duration"]) < 5
        assert not gateway.connectors()


async def test_killing_the_gateway_ends_everything_however_it_is_detached(contained: Site) -> None:
    async with served(contained) as gateway:
        name = instance(contained)
        calls = [
            await started(gateway, "family", 4),
            await started(gateway, "wait", 1),
            await started(gateway, "wait", 1),
        ]
        processes = gateway.processes() | gateway.connectors()
        assert len(processes) == 11
        gateway.signal(signal.SIGKILL)
        await gone(processes)
        for call in calls:
            with pytest.raises(Exception, match=r"Server disconnected|reset"):
                await call
    assert not list((contained.state / "run").iterdir())
    assert not control_groups(name)


async def test_killing_the_warden_fails_what_is_in_flight_and_the_next_call_works(contained: Site) -> None:
    async with served(contained) as gateway:
        name = instance(contained)
        calls = [await started(gateway, "family", 4), await started(gateway, "wait", 1)]
        old = warden(gateway)
        processes = gateway.connectors()
        assert len(processes) == 7
        before = gateway.descriptors()
        os.kill(old, signal.SIGKILL)
        for answer in await asyncio.gather(*calls):
            assert (answer.status, answer.code) == (502, "connector_crashed")
            assert "process that watches over it" in answer.message
        await gone(processes)
        for _ in range(3):
            assert (await gateway.do("echo/Go")).status == 200
        assert warden(gateway) != old
        assert not list((contained.state / "run" / name).glob("[0-9]*"))
        assert gateway.descriptors() <= before
        os.kill(warden(gateway), signal.SIGKILL)
        await eventually(lambda: not gateway.processes())
        assert (await gateway.do("echo/Go")).status == 200
        assert (await gateway.status("wait"))["circuit"] == "closed"
    assert not control_groups(name)


async def test_polite_signals_do_not_end_the_warden(contained: Site) -> None:
    async with served(contained) as gateway:
        call = await started(gateway, "wait", 1)
        one = warden(gateway)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(one, number)
        assert (await gateway.do("echo/Go")).status == 200
        assert warden(gateway) == one
        assert not call.done()
        call.cancel()


async def test_no_zombie_waits_for_the_end_of_a_run(site: Site) -> None:
    site.python(
        "daemons.py",
        """
        import os, signal
        for _ in range(5):
            if os.fork() == 0:
                if os.fork() == 0:
                    os._exit(0)
                os._exit(0)
            os.wait()
        os.write(2, b"ready\\n")
        signal.pause()
        """,
    )
    site.configure(f"daemons: {{run: [./daemons.py], {COMMANDS}}}")
    async with served(site) as gateway:
        call = await started(gateway, "daemons", 1)
        await eventually(lambda: len(gateway.connectors()) == 1)
        call.cancel()


# --- numbers of processes


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def test_a_stranger_under_a_known_number_is_not_killed(sleeper: subprocess.Popen[bytes]) -> None:
    seen = procfs.stat(sleeper.pid)
    assert seen is not None
    procfs.kill_exactly(sleeper.pid, seen._replace(started=seen.started - 1))
    procfs.kill_exactly(sleeper.pid, None)
    assert sleeper.poll() is None
    procfs.kill_exactly(sleeper.pid, seen)
    assert sleeper.wait() == -signal.SIGKILL
    procfs.kill_exactly(sleeper.pid, seen)  # nobody there any more


def test_a_name_with_spaces_and_brackets_does_not_confuse_the_facts(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.write_text("#!/bin/sh\necho ready\nread line\n")
    program.chmod(0o755)
    with subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path, env={"TMPDIR": "/x/1"}
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        facts = procfs.stat(process.pid)
        assert facts is not None
        assert (facts.ppid, facts.session) == (os.getpid(), os.getsid(0))
        assert procfs.mentions(process.pid, str(tmp_path))
        assert procfs.mentions(process.pid, "/x/1")
        assert procfs.mentions(process.pid, "/x")
        assert not procfs.mentions(process.pid, "/x/11")
        assert not procfs.mentions(process.pid, f"{tmp_path}0")
        assert procfs.memory(process.pid).resident > 0


def test_what_is_gone_has_no_facts(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    assert procfs.stat(sleeper.pid) is None
    assert procfs.memory(sleeper.pid) == (0, 0)
    assert not procfs.mentions(sleeper.pid, "/")


def test_a_table_knows_who_comes_from_whom() -> None:
    table = {pid: procfs.Stat(pid, "S", ppid, 1, 1) for pid, ppid in ((1, 0), (2, 1), (3, 2), (4, 2), (5, 1), (7, 6))}
    assert procfs.descendants({2}, table) == {2, 3, 4}
    assert procfs.descendants({2, 6}, table) == {2, 3, 4, 6, 7}
    assert procfs.descendants({9}, table) == {9}
    for roots in ({2, 1, 5}, {4, 3, 2, 1}, {5, 1}):
        order = procfs.parents_first(roots, table)
        assert sorted(order) == [1, 2, 3, 4, 5]
        assert all(order.index(ppid) < order.index(pid) for pid, ppid in ((2, 1), (3, 2), (4, 2), (5, 1)))
