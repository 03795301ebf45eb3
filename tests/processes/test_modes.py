"""What every mode of obtaining a process promises, in every runtime; and how it is contained."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from gateway.cells.groups import Groups
from tests.installing import installed
from tests.one_gateway import nothing_is_left, nothing_is_left_of_the_file  # noqa: F401
from tests.support import PATIENCE, Answer, Server, Site, eventually, gone, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

FIXTURES = Path(__file__).parent.parent / "fixtures" / "modes"
COMMANDS = (
    "Echo",
    "Facts",
    "Leave",
    "Random",
    "Descriptors",
    "Run",
    "Deaf",
    "Log",
    "Burn",
    "Take",
    "Big",
    "Raise",
    "Tell",
    "Exit",
)
DECLARED = "commands: {" + ", ".join(f"{name}: {{additional_parameters: true}}" for name in COMMANDS) + "}"
LINES = {"spawn": "", "standby": "", "persistent": ", --lines"}
RUNTIMES = {
    "python": ("spawn", "standby", "fork", "persistent"),
    "exec": ("spawn", "standby", "persistent"),
    "node": ("spawn", "standby", "persistent") if shutil.which("node") else (),
    "java": ("spawn", "standby", "persistent") if shutil.which("javac") else (),
}
NAMES = [f"{runtime}-{mode}" for runtime, modes in RUNTIMES.items() for mode in modes]
SNOW = '☃ æ \0 \u2028 "quoted" \\ \n\t \N{GRINNING FACE}'
# A tree whose every process writes its number: one in the group, one that leads a session and is deaf, one that has lost
# its parent, its environment and its folder.
TREE = """
trap '' TERM
setsid sh -c 'trap "" TERM; echo pid $$ >&2; sleep 1000; true' &
(setsid env -i sh -c 'cd /; echo pid $$ >&2; exec sleep 1000 </dev/null >/dev/null 2>&1' &)
echo pid $$ >&2
sleep 1000
true
"""

pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")


KINDS = ("cgroup", "sweep", "apart")


def lay_out(site: Site, kind: str) -> None:
    """Have a connector for each runtime and mode: under control groups, or swept up after, or in namespaces."""
    site.level = "standard" if kind == "apart" else "off"
    shutil.copytree(FIXTURES, site.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    script = site.folder / "act_exec.py"
    site.python("act_exec.py", script.read_text())
    own = {
        "python": "runtime: python, module: ./act.py",
        "exec": f"run: [./act_exec.py%s], {DECLARED}",
        "node": "runtime: node, module: ./act.mjs",
        "java": "runtime: java, class: modes.Act, sources: [./java]",
    }
    lines = []
    for runtime, modes in RUNTIMES.items():
        for mode in modes:
            keys = own[runtime] % LINES[mode] if runtime == "exec" else own[runtime]
            lines.append(f"{runtime}-{mode}: {{{keys}, mode: {mode}, max_memory: 256MiB}}")
    limits = "max_output: 6MiB\nmax_log: 64KiB\nconcurrency: 4\nqueue: 100"
    site.configure("\n".join(lines), defaults=limits, gateway=f"cgroup: {str(kind == 'cgroup').lower()}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Server]]:
    """A gateway of each kind."""
    sites = {kind: Site(tmp_path_factory.mktemp(kind)) for kind in KINDS}
    for kind, site in sites.items():
        lay_out(site, kind)
    java = [name for name in NAMES if name.startswith("java")]
    if java:
        installed(sites["cgroup"], *java)
        installed(sites["apart"], *java)  # its own: an archive of classes knows where it was made
        shutil.copytree(sites["cgroup"].state, sites["sweep"].state, symlinks=True)
    async with contextlib.AsyncExitStack() as stack:
        servers = {kind: await stack.enter_async_context(served(site)) for kind, site in sites.items()}
        for server in servers.values():
            states = (await server.status())["connectors"]
            assert {one: states[one]["state"] for one in NAMES} == dict.fromkeys(NAMES, "ready"), states
        yield servers


@pytest.fixture(params=["cgroup", "apart"])
async def gateway(both: dict[str, Server], request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """One of them, over connections that end with the test."""
    async with connected(both[request.param]) as server:
        yield server


@pytest.fixture(params=["cgroup", "sweep"])
async def contained(both: dict[str, Server], request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """Each of them."""
    if request.param == "cgroup":
        groups = Groups.open(f"probe-{os.getpid()}")
        if groups is None:
            pytest.skip("no writable control groups here")
        groups.close()
    async with connected(both[request.param]) as server:
        yield server


class connected:  # noqa: N801
    """A shared gateway over connections of this test's loop."""

    def __init__(self, shared: Server) -> None:
        self._shared = shared

    async def __aenter__(self) -> Server:
        shared = self._shared
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return Server(shared.process, shared.site, shared._log, shared.port, self._session)

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()


def every(*modes: str, runtimes: tuple[str, ...] = tuple(RUNTIMES)) -> pytest.MarkDecorator:
    """Run a test for every connector of these modes (all of them when none is named)."""
    names = [one for one in NAMES if one.split("-")[0] in runtimes and (not modes or one.split("-")[1] in modes)]
    return pytest.mark.parametrize("connector", names)


async def each(check: Callable[[str], Awaitable[None]], *, at_once: int = 4, names: list[str] = NAMES) -> None:
    """Run a check that takes long for every connector, a few at once; all failures are told by connector."""
    turns = asyncio.Semaphore(at_once)
    failures: list[Exception] = []

    async def one(name: str) -> None:
        async with turns:
            try:
                await check(name)
            except Exception as failure:  # noqa: BLE001
                failure.add_note(f"connector {name}")
                failures.append(failure)

    await asyncio.gather(*(one(name) for name in names))
    if failures:
        raise ExceptionGroup("connectors", failures)


def script(text: str) -> dict[str, str]:
    return {"b64": base64.b64encode(text.encode()).decode()}


def run(gateway: Server, answer: Answer) -> dict[str, Any]:
    (event,) = gateway.events("run", request_id=answer.headers["X-Request-Id"])
    return event


def logged(gateway: Server, request_id: str) -> list[str]:
    return [one["line"] for one in gateway.events("log", request_id=request_id)]


def pids(gateway: Server, request_id: str) -> set[int]:
    return {int(line[4:]) for line in logged(gateway, request_id) if line.startswith("pid ")}


async def growing(gateway: Server, connector: str, request_id: str, **headers: str) -> asyncio.Task[Answer]:
    """Have a connector grow its tree, and wait until it stands."""
    call = asyncio.create_task(
        gateway.do(f"{connector}/Deaf", script(TREE), headers={"X-Request-Id": request_id, **headers})
    )
    await eventually(lambda: len(pids(gateway, request_id)) == 3 or call.done())
    return call


# --- requests and results


@every()
async def test_a_call_is_answered_and_so_are_the_next_ones(gateway: Server, connector: str) -> None:
    for number in range(3):
        answer = await gateway.do(f"{connector}/Echo", {"text": f"{number} {SNOW}"})
        assert answer.status == 200, answer.raw
        assert answer.body["params"] == {"text": f"{number} {SNOW}"}
        assert answer.body["context"]["request_id"] == answer.headers["X-Request-Id"]


@every()
async def test_five_megabytes_go_in_and_out(gateway: Server, connector: str) -> None:
    text = "☃\u2028xyz" * 600_000
    answer = await gateway.do(f"{connector}/Echo", {"text": text[:1_700_000]})
    assert answer.body["params"]["text"] == text[:1_700_000]
    answer = await gateway.do(f"{connector}/Big", {"size": 5_000_000})
    assert len(answer.body) == 5_000_000


@every()
async def test_a_pretty_printed_request_is_one_request(gateway: Server, connector: str) -> None:
    answer = await gateway.do(
        f"{connector}/Echo", data=b'{\n\r\n  "text":\n"a",\r\n "spiff__task_data": {\n"b":\r1\n}\n}\n'
    )
    assert (answer.status, answer.body["params"]) == (200, {"text": "a"})


@every()
async def test_what_is_told_and_what_is_raised_are_two_things(gateway: Server, connector: str) -> None:
    told = await gateway.do(f"{connector}/Tell")
    assert (told.status, told.code, told.message) == (200, "no_paper", "tray 2")
    raised = await gateway.do(f"{connector}/Raise")
    if connector.startswith("exec"):  # it has no host that catches it
        assert (raised.status, raised.code) == (502, "connector_failed")
    else:
        assert (raised.status, raised.code, raised.message) == (500, "NoPaper", "tray 2")
    assert (await gateway.do(f"{connector}/Echo", {"text": ""})).status == 200


@every()
async def test_what_is_logged_is_logged_with_its_own_request(gateway: Server, connector: str) -> None:
    answers = [await gateway.do(f"{connector}/Log", {"text": f"line {number}"}) for number in range(3)]
    answers += await asyncio.gather(
        *(gateway.do(f"{connector}/Log", {"text": f"line {number}"}) for number in range(3, 6))
    )
    silent = await gateway.do(f"{connector}/Echo", {"text": ""})
    for number, answer in enumerate(answers):
        assert (answer.status, answer.body) == (200, {})
        lines = logged(gateway, answer.headers["X-Request-Id"])
        assert f"line {number}" in lines
        assert set(lines) <= {f"line {number}", f"printed line {number}"}
    assert logged(gateway, silent.headers["X-Request-Id"]) == []


# --- what a run is, and how it ends


@every()
async def test_the_event_of_a_run_says_what_it_took(gateway: Server, connector: str) -> None:
    answer = await gateway.do(f"{connector}/Burn", {"ms": 150})
    event = run(gateway, answer)
    assert (event["outcome"], event["status"], event["pid"]) == ("ok", 0, answer.body["pid"])
    assert 0.1 <= event["cpu_user"] + event["cpu_system"] <= event["wall"] + 3
    assert 1 << 20 < event["peak_rss"] < 256 << 20


@every()
async def test_a_death_of_a_signal_is_named_and_costs_one_request(gateway: Server, connector: str) -> None:
    answer = await gateway.do(f"{connector}/Run", script("echo ouch >&2; kill -9 $PPID; sleep 1000"))
    assert (answer.status, answer.code) == (502, "connector_crashed")
    assert f"{connector}/Run died of SIGKILL" in answer.message
    assert answer.message.endswith("; stderr: ouch")
    assert run(gateway, answer)["signal"] == "SIGKILL"
    assert (await gateway.do(f"{connector}/Echo", {"text": ""})).status == 200


@every()
async def test_an_exit_status_is_a_failure(gateway: Server, connector: str) -> None:
    answer = await gateway.do(f"{connector}/Exit", {"status": 7})
    assert (answer.status, answer.code) == (502, "connector_failed")
    assert run(gateway, answer)["status"] == 7


@every()
async def test_a_result_over_its_bound_is_refused(gateway: Server, connector: str) -> None:
    answer = await gateway.do(f"{connector}/Big", {"size": 7 << 20})
    assert (answer.status, answer.code) == (502, "connector_output_too_large")
    assert (await gateway.do(f"{connector}/Echo", {"text": ""})).status == 200


@every()
async def test_a_log_over_its_bound_is_cut_and_the_next_one_is_not(gateway: Server, connector: str) -> None:
    answer = await gateway.do(
        f"{connector}/Run", script("head -c 200000 /dev/zero | tr '\\0' x | fold -w 4000 >&2; echo last >&2")
    )
    lines = logged(gateway, answer.headers["X-Request-Id"])
    assert answer.body == {"status": 0}
    assert sum(len(line) + 1 for line in lines[:-1]) <= (64 << 10) + 1
    assert "bound of 65536 bytes" in lines[-1]
    answer = await gateway.do(f"{connector}/Log", {"text": "heard"})
    assert "heard" in logged(gateway, answer.headers["X-Request-Id"])


# --- the folder and the environment


@every()
async def test_the_folder_is_private_and_home_and_for_temporary_files(gateway: Server, connector: str) -> None:
    first, second = [(await gateway.do(f"{connector}/Facts")).body for _ in range(2)]
    assert Path(first["cwd"]).parents[2] == gateway.site.state / "run"
    assert first["cwd"] == first["tmpdir"] == first["home"]
    if connector.endswith("persistent"):
        assert os.path.exists(first["cwd"])
    else:
        assert first["cwd"] != second["cwd"]
        assert not os.path.exists(first["cwd"])
        assert not os.path.exists(second["cwd"])


@every()
async def test_a_request_finds_no_files_of_another(gateway: Server, connector: str) -> None:
    left = "echo secret >left; mkdir -p deep/er; echo secret >deep/er/left; ln -s /etc link; chmod 0 deep; chmod 777 ."
    assert (await gateway.do(f"{connector}/Run", script(left))).body == {"status": 0}
    answer = await gateway.do(
        f"{connector}/Run", script("ls -A >&2; stat -c %a . >&2; echo $HOME $TMPDIR >&2; pwd >&2")
    )
    mode, homes, folder = logged(gateway, answer.headers["X-Request-Id"])
    assert (mode, homes) == ("700", f"{folder} {folder}")


@every("persistent")
async def test_the_folder_of_a_process_that_stays_goes_with_it(gateway: Server, connector: str) -> None:
    answer = await gateway.do(f"{connector}/Run", script("touch left; pwd >&2; kill -9 $PPID; sleep 1000"))
    (folder,) = logged(gateway, answer.headers["X-Request-Id"])
    assert not os.path.exists(folder)


@every("spawn", "standby", "fork", runtimes=("python", "exec"))
async def test_nothing_is_shared_between_requests(gateway: Server, connector: str) -> None:
    assert (await gateway.do(f"{connector}/Leave", {"name": "x"})).status == 200
    facts = [(await gateway.do(f"{connector}/Facts")).body for _ in range(3)]
    assert [(one["calls"], one["left"]) for one in facts] == [(1, None)] * 3
    if gateway.site.level == "off":  # each cell counts processes for itself
        assert len({one["pid"] for one in facts}) == 3


@every("persistent")
async def test_a_process_that_stays_serves_one_request_after_the_other(gateway: Server, connector: str) -> None:
    facts = [(await gateway.do(f"{connector}/Facts")).body for _ in range(3)]
    assert len({one["pid"] for one in facts}) == 1
    assert facts[2]["calls"] == facts[0]["calls"] + 2


@every("fork", "standby", runtimes=("python",))
async def test_chance_is_not_the_same_in_two_processes(gateway: Server, connector: str) -> None:
    answers = await asyncio.gather(*(gateway.do(f"{connector}/Random") for _ in range(6)))
    for values in zip(*(answer.body for answer in answers), strict=True):
        assert len(set(values)) == 6


@every("spawn", "standby", "fork", runtimes=("python", "exec"))
async def test_a_process_leads_its_own_session(gateway: Server, connector: str) -> None:
    facts = (await gateway.do(f"{connector}/Facts")).body
    assert facts["session"] == facts["pid"]


@every("spawn", "standby", "fork", runtimes=("python", "exec"))
async def test_descriptors_are_the_three_pipes_of_the_request(gateway: Server, connector: str) -> None:
    waiting = [
        asyncio.create_task(
            gateway.do(
                f"{connector}/Run",
                script("echo ready >&2; sleep 1000"),
                headers={"X-Request-Id": f"fd-{connector}-{number}"},
            )
        )
        for number in range(2)
    ]
    for number in range(2):
        await eventually(lambda number=number: "ready" in logged(gateway, f"fd-{connector}-{number}"))
    found = (await gateway.do(f"{connector}/Descriptors")).body
    # A host of ours leaves /dev/null where the request was, and has a copy of stdout for the result.
    assert {"0", "1", "2"} <= set(found) <= {"0", "1", "2", "3"}
    assert all(target.startswith("pipe:") or target == "/dev/null" for target in found.values()), found
    for call in waiting:
        call.cancel()
    await eventually(lambda: len(gateway.events("run", outcome="cancelled", connector=connector, command="Run")) >= 2)


@pytest.mark.parametrize(
    ("connector", "environment"),
    [("python-spawn", True), ("exec-spawn", True), ("python-fork", True), ("python-standby", False)],
)
async def test_a_trace_is_in_the_environment_of_what_is_started_for_the_request(
    gateway: Server, connector: str, environment: bool
) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    options = {"headers": {"traceparent": trace}}
    assert (await gateway.do(f"{connector}/Facts", **options)).body["trace"] == (trace if environment else None)
    assert (await gateway.do(f"{connector}/Echo", {"text": ""}, **options)).body["context"]["traceparent"] == trace
    assert (await gateway.do(f"{connector}/Facts")).body["trace"] is None


# --- containment


async def test_a_deadline_kills_all_that_a_request_has_started(contained: Server) -> None:
    async def check(connector: str) -> None:
        request_id = f"deadline-{connector}"
        begun = time.monotonic()
        answer = await (await growing(contained, connector, request_id, **{"X-Timeout": "1.5"}))
        assert (answer.status, answer.code) == (504, "connector_timeout"), answer.raw
        processes = pids(contained, request_id)
        assert len(processes) == 3
        # Without control groups, one that left no trace dies with the last run that can have started it.
        await gone(processes)
        assert time.monotonic() - begun < 15
        assert (await contained.do(f"{connector}/Echo", {"text": ""})).status == 200

    await each(check, at_once=7)


async def test_a_caller_who_hangs_up_ends_all_that_his_request_has_started(contained: Server) -> None:
    async def check(connector: str) -> None:
        request_id = f"hang-up-{connector}"
        call = await growing(contained, connector, request_id)
        processes = pids(contained, request_id)
        assert len(processes) == 3, call
        call.cancel()
        await gone(processes)
        (event,) = await eventually(lambda: contained.events("run", request_id=request_id))
        assert event["outcome"] == "cancelled"
        assert (await contained.do(f"{connector}/Echo", {"text": ""})).status == 200

    await each(check, at_once=7)


async def test_what_a_finished_request_left_running_is_gone(contained: Server) -> None:
    async def check(connector: str) -> None:
        request_id = f"left-{connector}"
        left = """
            sleep 1000 &
            echo pid $! >&2
            (setsid env -i sh -c 'cd /; echo pid $$ >&2; : >"$1"; exec sleep 1000 </dev/null >/dev/null 2>&1' - "$PWD/up" &)
            while [ ! -e up ]; do sleep 0.01; done
        """
        answer = await contained.do(f"{connector}/Run", script(left), headers={"X-Request-Id": request_id})
        assert (answer.status, answer.body) == (200, {"status": 0})
        processes = pids(contained, request_id)
        assert len(processes) == 2
        await gone(processes, 5)

    await each(check, at_once=1)


@every(runtimes=("python",))
async def test_what_a_request_has_detached_lives_until_its_own_end(gateway: Server, connector: str) -> None:
    gate, request_id = gateway.site.folder / f"gate-{connector}", f"helper-{connector}"
    detached = f"""
        (setsid env -i sh -c 'cd /; echo $$ >"$1"; exec sleep 1000 </dev/null >/dev/null 2>&1' - "$PWD/up" &)
        while [ ! -s up ]; do sleep 0.01; done
        echo up >&2
        while [ ! -e {gate} ]; do sleep 0.01; done
        kill -0 $(cat up)
    """
    try:
        calls = [
            asyncio.create_task(
                gateway.do(f"{connector}/Run", script(detached), headers={"X-Request-Id": f"{request_id}-{number}"})
            )
            for number in range(2)
        ]
        for number in range(2):
            await eventually(lambda name=f"{request_id}-{number}": "up" in logged(gateway, name))
        for _ in range(3):  # others come and go beside them
            assert (await gateway.do(f"{connector}/Echo", {"text": ""})).status == 200
        gate.touch()
        answers = [await call for call in calls]
    finally:
        gate.unlink(missing_ok=True)
    assert [(answer.status, answer.body) for answer in answers] == [(200, {"status": 0})] * 2


async def test_memory_over_the_bound_is_found_in_the_process_and_below_it(contained: Server) -> None:
    async def check(connector: str) -> None:
        grandchild = script("head -c 400000000 /dev/zero | tail -c 400000000 | (sleep 1000; cat)")
        for command, parameters in (("Take", {"mib": 320}), ("Run", grandchild)):
            answer = await contained.do(f"{connector}/{command}", parameters)
            assert (answer.status, answer.code) == (502, "connector_out_of_memory"), answer.raw
            if connector.startswith("java") and "filled its heap" in answer.message:
                continue  # whose bound was less
            assert "256MiB of memory (max_memory)" in answer.message
            assert run(contained, answer)["wall"] < 15
        assert (await contained.do(f"{connector}/Echo", {"text": ""})).status == 200

    await each(check, at_once=2)


async def test_a_storm_of_calls_given_up_leaves_what_is_kept_and_nothing_else(contained: Server) -> None:
    async def hang_up(connector: str, patience: float) -> None:
        try:
            answer = await asyncio.wait_for(
                contained.do(f"{connector}/Run", script("setsid sleep 1000 & sleep 1000")), patience
            )
        except TimeoutError:
            return
        assert answer.status == 429, answer.raw

    chance = random.Random(7)
    names = [name for name in NAMES if not name.startswith("java")]
    await contained.get("/liveness")
    await asyncio.gather(*(hang_up(name, chance.uniform(0, 1.2)) for name in names * 8))
    await eventually(lambda: _idle(contained), 2 * PATIENCE)
    answers = await asyncio.gather(*(contained.do(f"{name}/Echo", {"text": ""}) for name in NAMES))
    assert {answer.status for answer in answers} == {200}
    await eventually(lambda: _only_the_kept(contained), 2 * PATIENCE)


async def _idle(gateway: Server) -> bool:
    status: dict[str, Any] = await gateway.status()
    return not status["processes"]["in_flight"]


async def _only_the_kept(gateway: Server) -> bool:
    kept = (await gateway.status())["processes"]["kept"]
    (run_folder,) = (gateway.site.state / "run").iterdir()
    folders = list(run_folder.glob("[0-9]*/[0-9]*"))
    return len(gateway.connectors()) == kept == len(folders)


# --- the end of the gateway, and of its cells

RESIDENT = [name for name in NAMES if name.split("-")[0] in {"python", "exec"} and not name.endswith("spawn")]


@pytest.fixture(params=["cgroup", "sweep"])
def small(site: Site, both: dict[str, Server], request: pytest.FixtureRequest) -> Site:
    """A site without node and java, for a gateway that is to be killed."""
    lay_out(site, request.param)
    text = site.file.read_text().splitlines()
    site.file.write_text("\n".join(line for line in text if not line.strip().startswith(("java", "node"))))
    return site


async def test_killing_the_gateway_ends_what_is_kept_and_what_runs(small: Site) -> None:
    async with served(small) as gateway:
        await eventually(lambda: _only_the_kept(gateway))
        calls = [await growing(gateway, connector, connector) for connector in RESIDENT]
        trees = set().union(*(pids(gateway, connector) for connector in RESIDENT))
        assert len(trees) == 3 * len(RESIDENT)
        processes = gateway.processes() | gateway.connectors() | trees
        gateway.signal(signal.SIGKILL)
        await gone(processes)
        for call in calls:
            with pytest.raises(aiohttp.ClientError):
                await call
    assert not list((small.state / "run").iterdir())


async def test_killing_the_cells_fails_what_runs_and_everything_works_again(small: Site) -> None:
    async with served(small) as gateway:
        await eventually(lambda: _only_the_kept(gateway))
        for round_ in ("first", "second"):
            calls = [await growing(gateway, connector, f"{round_}-{connector}") for connector in RESIDENT]
            old = gateway.connectors()
            for cell in gateway.cells():
                os.kill(cell, signal.SIGKILL)
            for answer in await asyncio.gather(*calls):
                assert (answer.status, answer.code) == (502, "connector_crashed")
            await gone(old)
            answers = await asyncio.gather(*(gateway.do(f"{name}/Facts") for name in RESIDENT))
            assert [answer.status for answer in answers] == [200] * len(RESIDENT)
        await eventually(lambda: _only_the_kept(gateway))
        assert not gateway.events("connector_warning")


async def test_killing_the_cells_while_nothing_runs_costs_no_call(small: Site) -> None:
    async with served(small) as gateway:
        await eventually(lambda: _only_the_kept(gateway))
        old = gateway.connectors()
        for cell in gateway.cells():
            os.kill(cell, signal.SIGKILL)
        await gone(old)
        answers = await asyncio.gather(*(gateway.do(f"{name}/Facts") for name in RESIDENT))
        assert [answer.status for answer in answers] == [200] * len(RESIDENT)
        assert not gateway.events("connector_warning")
