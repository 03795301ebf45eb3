"""What a connector's process may do, and what becomes of it."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support import Answer, Server, Site, eventually, gone, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

COMMANDS = "commands: {Go: {additional_parameters: true}}"
JAVA = shutil.which("java")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One gateway for most of the file. `act` does what its caller says, the others do one thing each."""
    site = Site(tmp_path_factory.mktemp("process"))
    site.level = "off"
    site.python("act.py", "import json, os, sys, time\nrequest = json.load(sys.stdin)\nexec(request['params']['do'])")
    site.script("shell.sh", "sleep 1000\ntrue")
    site.script("ready.sh", "echo ready >&2\nsleep 1000\ntrue")
    site.script("nest.sh", "setsid sleep 1000 &\nsh -c 'sleep 1000; true' &\necho ready >&2\nsleep 1000\ntrue")
    site.script("gate.sh", f"echo ready >&2\ncat {site.folder}/gate\necho '{{}}'")
    site.script("background.sh", "sleep 1000 &\nsetsid sleep 1000 &\necho '{\"a\": 1}'")
    site.script(
        "filter.sh",
        """exec > >(tr a-z A-Z)\nprintf '["'; head -c 100000 /dev/zero | tr '\\0' x; echo '"]'""",
        shell="/bin/bash",
    )
    site.script(
        "dispositions.sh",
        "grep -E 'Sig(Blk|Ign)|Groups' /proc/self/status >&2\nps -o pid=,pgid=,sid= -p $$ >&2\necho '{}'",
    )
    site.script("bare.sh", "").write_text("echo no interpreter line\n")
    site.script("plain.sh", "echo '{}'").chmod(0o644)
    site.script("garbage", "").write_bytes(b"\x7fELF garbage")
    (site.folder / "folder").mkdir()
    site.file.write_text("")
    os.mkfifo(site.folder / "gate")
    site.configure(
        f"""
        act: {{run: [./act.py], env: {{FAX_LINE: 2, EMPTY: ""}}, {COMMANDS}}}
        brief: {{run: [./act.py], timeout: 2s, {COMMANDS}}}
        fresh: {{run: [./act.py], {COMMANDS}}}
        tight: {{run: [./act.py], max_memory: 64MiB, {COMMANDS}}}
        shell: {{run: [./shell.sh], timeout: 300ms, {COMMANDS}}}
        ready: {{run: [./ready.sh], {COMMANDS}}}
        nest: {{run: [./nest.sh], concurrency: 24, queue: 100, {COMMANDS}}}
        gate: {{run: [./gate.sh], {COMMANDS}}}
        background: {{run: [./background.sh], {COMMANDS}}}
        filter: {{run: [./filter.sh], {COMMANDS}}}
        dispositions: {{run: [./dispositions.sh], {COMMANDS}}}
        missing: {{run: [./missing.sh], {COMMANDS}}}
        bare: {{run: [./bare.sh], {COMMANDS}}}
        plain: {{run: [./plain.sh], {COMMANDS}}}
        garbage: {{run: [./garbage], {COMMANDS}}}
        folder: {{run: [./folder], {COMMANDS}}}
        wordy: {{run: [./act.py], env: {{LONG: "{"x" * 200_000}"}}, {COMMANDS}}}
        wordier: {{run: [./act.py], env: {{LONG: "{"x" * 2_000_000}"}}, {COMMANDS}}}
        """
    )
    async with served(
        site, env={"CANARY": "tweet", "LD_PRELOAD_X": "1", "LC_CTYPE": "C", "PYTHONPATH_X": "1"}
    ) as gateway:
        yield gateway


@pytest.fixture
async def gateway(shared: Server) -> AsyncIterator[Server]:
    """The shared gateway over connections that end with the test."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Server(shared.process, shared.site, shared._log, shared.port, session)


async def act(gateway: Server, do: str, connector: str = "act", **options: Any) -> Answer:
    return await gateway.do(f"{connector}/Go", {"do": do}, **options)


async def started(gateway: Server, connector: str, request_id: str) -> asyncio.Task[Answer]:
    """Begin a call of a connector that says "ready", and wait until it does."""
    call = asyncio.create_task(gateway.do(f"{connector}/Go", headers={"X-Request-Id": request_id}))
    await eventually(lambda: gateway.events("log", line="ready", request_id=request_id))
    return call


def run(gateway: Server, answer: Answer) -> dict[str, Any]:
    (event,) = gateway.events("run", request_id=answer.headers["X-Request-Id"])
    return event


async def test_a_command_gets_the_request_and_answers(site: Site) -> None:
    site.script("echo.sh", "cat")
    site.configure(f"echo: {{run: [./echo.sh], config: {{region: north}}, {COMMANDS}}}")
    async with served(site) as gateway:
        answer = await gateway.do("echo/Go", {"text": "☃", "spiff__task_data": {"a": 1}})
    assert answer.status == 200
    assert answer.body["params"] == {"text": "☃"}
    assert answer.body["task_data"] == {"a": 1}
    assert answer.body["config"] == {"region": "north"}
    assert answer.body["context"]["request_id"] == answer.headers["X-Request-Id"]


async def test_a_deadline_kills_a_setsid_grandchild_that_ignores_sigterm(site: Site) -> None:
    site.python(
        "stubborn.py",
        """
        import os, signal, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.environ.clear()
                os.chdir("/")
        print("ready", file=sys.stderr, flush=True)
        signal.pause()
        """,
    )
    site.configure(f"stubborn: {{run: [./stubborn.py], timeout: 500ms, {COMMANDS}}}")
    async with served(site) as gateway:
        call = asyncio.create_task(gateway.do("stubborn/Go"))
        await eventually(lambda: len(gateway.events("log", line="ready")) == 3)
        processes = gateway.connectors()
        assert len(processes) == 3
        answer = await call
        assert (answer.status, answer.code) == (504, "connector_timeout")
        assert not [pid for pid in processes if os.path.exists(f"/proc/{pid}")]


async def test_killing_the_gateway_kills_its_connectors(site: Site) -> None:
    site.script("wait.sh", "setsid sleep 1000 & \n echo ready >&2\n sleep 1000")
    site.configure(f"wait: {{run: [./wait.sh], {COMMANDS}}}")
    async with served(site) as gateway:
        call = asyncio.create_task(gateway.do("wait/Go"))
        await eventually(lambda: gateway.events("log", line="ready"))
        processes = gateway.processes()
        gateway.signal(signal.SIGKILL)
        await gone(processes)
        with pytest.raises(Exception, match="Server disconnected"):
            await call


# --- the end of a run


async def test_the_deadline_kills_what_a_shell_started_and_leaves_no_zombie(gateway: Server) -> None:
    call = asyncio.create_task(gateway.do("shell/Go"))
    await eventually(lambda: len(gateway.connectors()) == 2 or call.done())
    processes = gateway.connectors()
    answer = await call
    assert (answer.status, answer.code) == (504, "connector_timeout")
    assert len(processes) == 2
    assert not [pid for pid in processes if os.path.exists(f"/proc/{pid}")]
    assert not gateway.connectors()


async def test_a_client_that_hangs_up_ends_its_process(gateway: Server) -> None:
    call = await started(gateway, "nest", "hang-up")
    processes = await eventually(lambda: found if len(found := gateway.connectors()) == 5 else None)
    call.cancel()
    await gone(processes, 3)
    (event,) = await eventually(lambda: gateway.events("run", request_id="hang-up"))
    assert event["outcome"] == "cancelled"


async def test_a_client_that_hangs_up_does_not_hurt_another_call(gateway: Server) -> None:
    kept = await started(gateway, "gate", "kept")
    left = [await started(gateway, "gate", f"left-{number}") for number in range(3)]
    for call in left:
        call.cancel()
    await eventually(lambda: len(gateway.events("run", connector="gate", outcome="cancelled")) == 3)
    assert len(gateway.connectors()) == 2
    with (gateway.site.folder / "gate").open("w"):
        pass
    answer = await kept
    assert (answer.status, answer.body) == (200, {})


async def test_cancels_at_any_moment_leave_nothing(gateway: Server) -> None:
    async def hang_up(patience: float) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gateway.do("nest/Go"), patience)

    await gateway.get("/liveness")
    before = gateway.descriptors()
    chance = random.Random(7)
    await asyncio.gather(*(hang_up(chance.uniform(0, 0.6)) for _ in range(80)))
    await eventually(lambda: not gateway.connectors())

    async def idle() -> bool:
        status = await gateway.status()
        return status["processes"]["in_flight"] == 0 and gateway.descriptors() <= before + len(gateway.cells())

    await eventually(idle)
    (run_folder,) = (gateway.site.state / "run").iterdir()
    assert not list(run_folder.glob("[0-9]*/[0-9]*"))
    assert (await act(gateway, "print('{}')")).status == 200


async def test_a_call_ends_with_its_process_and_not_with_its_pipes(gateway: Server) -> None:
    answer = await gateway.do("background/Go")
    assert (answer.status, answer.body) == (200, {"a": 1})
    assert run(gateway, answer)["wall"] < 5
    assert not gateway.connectors()


async def test_what_a_process_substitution_writes_after_the_end_is_in_the_result(gateway: Server) -> None:
    answer = await gateway.do("filter/Go")
    assert (answer.status, answer.body) == (200, ["X" * 100_000])


async def test_a_grandchild_that_waits_for_the_leaders_end_still_has_a_moment(gateway: Server) -> None:
    answer = await act(
        gateway,
        """
reading, writing = os.pipe()
if os.fork() == 0:
    os.close(writing)
    os.read(reading, 1)
    os.write(1, b'{"late": true}')
""",
    )
    assert (answer.status, answer.body) == (200, {"late": True})


async def test_what_lives_longer_than_the_drain_is_cut_off(gateway: Server) -> None:
    answer = await act(gateway, "print('{}', flush=True)\nif os.fork() == 0:\n    time.sleep(1000)")
    assert (answer.status, answer.body) == (200, {})
    assert run(gateway, answer)["wall"] < 5


async def test_the_status_is_the_leaders_and_not_that_of_what_it_left(gateway: Server) -> None:
    answer = await act(
        gateway, "if os.fork() == 0:\n    os.setsid(); time.sleep(1000)\nprint('{}'); sys.stdout.flush(); os._exit(7)"
    )
    assert (answer.status, answer.code) == (502, "connector_failed")
    assert run(gateway, answer)["status"] == 7


# --- what a process gets


async def test_the_environment_is_the_allow_list_and_nothing_else(gateway: Server) -> None:
    answer = await act(gateway, "print(json.dumps({**os.environ, 'cwd': os.getcwd()}))")
    environment = answer.body
    folder = environment.pop("cwd")
    assert Path(folder).parents[2] == gateway.site.state / "run"
    assert environment == {
        "PATH": os.environ["PATH"],
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "FAX_LINE": "2",
        "EMPTY": "",
    }


async def test_a_trace_reaches_the_process(gateway: Server) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    do = "print(json.dumps([os.environ.get('TRACEPARENT'), request['context'].get('traceparent')]))"
    assert (await act(gateway, do, headers={"traceparent": trace})).body == [trace, trace]
    assert (await act(gateway, do, headers={"traceparent": "no such thing"})).body == [None, None]
    do = "print(json.dumps([os.environ.get('TRACESTATE'), request['context'].get('tracestate')]))"
    state = {"tracestate": "vendor=one,other=2"}
    assert (await act(gateway, do, headers={"traceparent": trace, **state})).body == ["vendor=one,other=2"] * 2
    assert (await act(gateway, do, headers=state)).body == [None, None]
    assert (await act(gateway, do, headers={"traceparent": trace, "tracestate": "x=" + "y" * 511})).body == [None, None]


async def test_the_parents_environment_holds_nothing_of_the_gateways(gateway: Server) -> None:
    do = "print(json.dumps(open(f'/proc/{os.getppid()}/environ').read().split(chr(0))))"
    answer = await act(gateway, do)
    assert answer.body == [""]


async def test_text_is_utf_8_everywhere(gateway: Server) -> None:
    do = "import locale; print(json.dumps([sys.stdout.encoding, sys.getfilesystemencoding(), locale.getpreferredencoding(), '☃'], ensure_ascii=False))"
    assert [one.lower() for one in (await act(gateway, do)).body] == ["utf-8", "utf-8", "utf-8", "☃"]


async def test_descriptors_are_the_three_pipes_and_nothing_else(gateway: Server) -> None:
    held = [asyncio.create_task(gateway.do("ready/Go")) for _ in range(3)]
    await eventually(lambda: len(gateway.events("log", connector="ready", line="ready")) >= 3)
    do = "print(json.dumps({fd: os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')}))"
    answer = await act(gateway, do)
    assert sorted(answer.body) == ["0", "1", "2"]
    assert all(target.startswith("pipe:") for target in answer.body.values())
    for call in held:
        call.cancel()
    await eventually(lambda: not gateway.connectors())


async def test_signals_are_as_a_login_shell_has_them(gateway: Server) -> None:
    answer = await gateway.do("dispositions/Go")
    lines = [one["line"].split() for one in gateway.events("log", request_id=answer.headers["X-Request-Id"])]
    facts = {line[0]: line[1:] for line in lines}
    # glibc's posix_spawn leaves its two internal signals, 32 and 33, ignored; no program can use them.
    internal = 0b11 << 31
    assert [int(mask, 16) & ~internal for mask in facts["SigBlk:"] + facts["SigIgn:"]] == [0, 0]
    (numbers,) = [line for line in lines if line[0].isdigit()]
    assert len(set(numbers)) == 1, "it leads its group and its session"


async def test_the_folder_is_private_and_gone_afterwards(gateway: Server) -> None:
    do = "open('left', 'w'); print(json.dumps([os.getcwd(), os.stat('.').st_mode & 0o777, os.listdir('..')]))"
    first, second = [(await act(gateway, do)).body for _ in range(2)]
    assert first[0] != second[0]
    assert first[1] == 0o700
    assert os.path.basename(first[0]) not in second[2]
    assert not os.path.exists(second[0])


@pytest.mark.parametrize("mode", ["500", "300", "000"])
async def test_the_folder_goes_with_subfolders_that_are_closed(gateway: Server, mode: str) -> None:
    do = f"os.makedirs('a/b'); open('a/b/c', 'w'); os.symlink('/etc/hosts', 'a/b/d'); [os.chmod(p, 0o{mode}) for p in ('a/b', 'a', '.')]; print(json.dumps(os.getcwd()))"
    assert not os.path.exists((await act(gateway, do)).body)


# --- bounds


async def test_the_caller_can_shorten_the_deadline(gateway: Server) -> None:
    begun = time.monotonic()
    answer = await act(gateway, "time.sleep(1000)", headers={"X-Timeout": "0.3"})
    assert (answer.status, answer.code) == (504, "connector_timeout")
    assert "deadline of 300ms" in answer.message
    assert time.monotonic() - begun < 15


async def test_the_caller_cannot_lengthen_the_deadline(gateway: Server) -> None:
    begun = time.monotonic()
    do = "print(request['context']['deadline_ms'], file=sys.stderr, flush=True); time.sleep(1000)"
    answer = await act(gateway, do, "brief", headers={"X-Timeout": "60"})
    assert (answer.status, answer.code) == (504, "connector_timeout")
    assert 0 < int(answer.json["spiff__logs"][0]) <= 2000
    assert time.monotonic() - begun < 15


async def test_sigterm_leaves_time_for_last_words(gateway: Server) -> None:
    do = "import signal; signal.signal(15, lambda *_: (print('last words', file=sys.stderr), sys.exit(0))); time.sleep(1000)"
    answer = await act(gateway, do, "brief")
    assert (answer.status, answer.code) == (504, "connector_timeout")
    assert answer.message.endswith("; stderr: last words")


@pytest.mark.parametrize(
    "do",
    [
        "data = bytearray(os.urandom(1 << 20)) * 200; time.sleep(1000)",
        "if os.fork() == 0: data = bytearray(os.urandom(1 << 20)) * 200\ntime.sleep(1000)",
        "data = []\nwhile True: data.append(bytearray(os.urandom(1 << 20)) * 8); time.sleep(0.05)",
    ],
    ids=["at-once", "grandchild", "slowly"],
)
async def test_memory_over_the_bound_is_killed_in_time(gateway: Server, do: str) -> None:
    answer = await act(gateway, do, "tight")
    assert (answer.status, answer.code) == (502, "connector_out_of_memory")
    assert answer.message.startswith("tight/Go used more than 64MiB of memory (max_memory) (after ")
    event = run(gateway, answer)
    assert event["wall"] < 5
    assert event["peak_rss"] > 64 << 20
    assert not gateway.connectors()


async def test_memory_under_the_bound_is_nobodys_business(gateway: Server) -> None:
    answer = await act(gateway, "data = b'x' * (24 << 20); print('{}')", "tight")
    assert answer.status == 200
    assert 24 << 20 < run(gateway, answer)["peak_rss"] < 64 << 20


@pytest.mark.skipif(JAVA is None, reason="there is no java")
async def test_java_starts_under_a_gigabyte_and_writes_more_than_ascii(site: Site) -> None:
    (site.folder / "Snow.java").write_text(
        'public class Snow { public static void main(String[] a) { System.out.println("\\"\\u2603 \\u00e5\\""); } }'
    )
    site.configure(f"java: {{run: [java, -XX:TieredStopAtLevel=1, ./Snow.java], max_memory: 1GiB, {COMMANDS}}}")
    async with served(site) as gateway:
        answer = await gateway.do("java/Go")
    assert (answer.status, answer.body) == (200, "☃ å")


# --- what is told about a run


async def test_the_event_of_a_run_says_what_it_took(gateway: Server) -> None:
    do = "deadline = time.process_time() + 0.2\nwhile time.process_time() < deadline: pass\ndata = b'x' * (40 << 20); print('{}'); sys.stderr.write('four'); sys.exit(0)"
    event = run(gateway, await act(gateway, do, headers={"X-Request-Id": "a.b:c-1"}))
    assert event["request_id"] == "a.b:c-1"
    assert (event["connector"], event["command"], event["outcome"], event["status"]) == ("act", "Go", "ok", 0)
    assert "signal" not in event
    assert 0.2 <= event["cpu_user"] + event["cpu_system"] <= 5
    assert 40 << 20 < event["peak_rss"] < 200 << 20
    assert event["wall"] >= 0.2
    assert (event["result_bytes"], event["log_bytes"]) == (3, 4)
    assert event["pid"] > 0
    assert event["request_bytes"] > len(do)


async def test_a_small_process_is_not_charged_with_the_gateways_memory(gateway: Server) -> None:
    event = run(gateway, await gateway.do("dispositions/Go"))
    assert 0 < event["peak_rss"] < 24 << 20


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGRTMIN])
async def test_a_death_of_a_signal_is_named(gateway: Server, number: signal.Signals) -> None:
    answer = await act(
        gateway,
        f"print('{{}}', flush=True); print('ouch', file=sys.stderr, flush=True); os.kill(os.getpid(), {int(number)})",
    )
    assert (answer.status, answer.code) == (502, "connector_crashed")
    assert answer.message.startswith(f"act/Go died of {signal.Signals(number).name} (after 0.")
    assert answer.message.endswith(" s); stderr: ouch")
    assert answer.json["spiff__logs"] == ["ouch"]
    assert run(gateway, answer)["signal"] == number.name
    assert (await act(gateway, "print('{}')")).status == 200  # and the circuit stays closed


async def test_a_message_names_who_what_how_long_and_the_end_of_the_log(gateway: Server) -> None:
    answer = await act(gateway, "[print('step', n, file=sys.stderr) for n in range(300)]; sys.exit(9)")
    assert answer.message.startswith("act/Go failed with exit status 9 (after 0.")
    assert answer.message.endswith("step 298\nstep 299")
    assert len(answer.message) < 700
    assert answer.json["spiff__logs"] == [f"step {number}" for number in range(280, 300)]
    assert 0 < float(answer.headers["X-Run-Duration"]) < 5


# --- what cannot be started


@pytest.mark.parametrize(
    ("connector", "why"),
    [
        ("missing", "No such file"),
        ("bare", "Exec format error"),
        ("plain", "Permission denied"),
        ("garbage", "Exec format error"),
        ("folder", "Permission denied"),
        ("wordy", "Argument list too long"),
        ("wordier", "Argument list too long"),
    ],
)
async def test_what_cannot_be_started_says_why_and_leaves_nothing(gateway: Server, connector: str, why: str) -> None:
    held = await started(gateway, "ready", f"beside-{connector}")
    before = gateway.descriptors()
    answer = await gateway.do(f"{connector}/Go")
    assert (answer.status, answer.code) == (502, "connector_start_failed")
    assert answer.message.startswith(f"{connector}/Go could not be started: ")
    assert why in answer.message
    assert gateway.descriptors() <= before + 2, "its cell waits for the next call"
    (run_folder,) = (gateway.site.state / "run").iterdir()
    assert len(list(run_folder.glob("[0-9]*/[0-9]*"))) == 1, "that of the call beside it"
    assert not held.done()
    held.cancel()
    await eventually(lambda: not gateway.connectors())


async def test_a_gateway_without_descriptors_says_so_and_recovers(gateway: Server) -> None:
    assert (await act(gateway, "print('{}')")).status == 200
    seen: list[int] = []

    def at_rest() -> bool:  # connections of the test before may be about to be closed
        seen.append(gateway.descriptors())
        return len(seen) > 5 and len(set(seen[-5:])) == 1

    await eventually(at_rest)
    soft, hard = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
    try:
        taken = set(map(int, os.listdir(f"/proc/{gateway.pid}/fd")))
        free = next(number for number in range(soft) if number not in taken)  # what is above counts for nothing
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (free + 1, hard))
        assert (await act(gateway, "print('{}')")).status == 200, "what it has a cell for"
        answer = await gateway.do("fresh/Go", {"do": "print('{}')"})
        assert (answer.status, answer.code) == (502, "connector_start_failed")
        assert "Too many open files" in answer.message
    finally:
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert (await act(gateway, "print('{}')")).status == 200
