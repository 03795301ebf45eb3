"""What each mode does of its own: processes ahead, hosts, processes that stay; and when they go."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import Answer, Server, Site, cmdline, eventually, gone, reaped, served

COMMANDS = "commands: {Go: {additional_parameters: true}}"
ACT = """
import os, sys, time
{top}
def Do(code: str):
    names = {{"os": os, "sys": sys, "time": time, "result": None, "module": sys.modules[__name__]}}
    exec(code, names)
    return names["result"]
"""
PID = "result = os.getpid()"
PARENT = "result = os.getppid()"


def python(site: Site, keys: str = "", *, top: str = "", name: str = "act") -> str:
    """Write a Python connector and return its entry."""
    (site.folder / f"{name}.py").write_text(ACT.format(top=top))
    return f"{name}: {{runtime: python, module: ./{name}.py, {keys}}}"


@pytest.fixture
def site(site: Site) -> Site:
    """One whose connectors' process ids are those of the machine."""
    site.level = "off"
    return site


async def do(gateway: Server, code: str = PID, connector: str = "act", **options: Any) -> Any:
    answer = await gateway.do(f"{connector}/Do", {"code": code}, **options)
    assert answer.status == 200, answer.raw
    return answer.body


async def kept(gateway: Server, number: int) -> set[int]:
    """Wait until so many processes are kept, and nothing else is there; return them."""

    async def there() -> tuple[set[int]] | None:
        processes = gateway.connectors()
        told = (await gateway.status())["processes"]["kept"]
        # What has just died has no command line any more, and what has just been born has that of its parent.
        lines = [cmdline(pid) for pid in processes]
        settled = processes == gateway.connectors() and all(lines)
        return (processes,) if settled and len(processes) == number == told else None

    found: tuple[set[int]] = await eventually(there)
    return found[0]


async def begun(gateway: Server, request_id: str, code: str, connector: str = "act") -> asyncio.Task[Answer]:
    """Begin a call whose code comes after a line of log."""
    code = f"print('ready', file=sys.stderr, flush=True)\n{code}"
    call = asyncio.create_task(gateway.do(f"{connector}/Do", {"code": code}, headers={"X-Request-Id": request_id}))
    await eventually(lambda: gateway.events("log", request_id=request_id, line="ready") or call.done())
    assert not call.done(), call.result().raw
    return call


def warnings(gateway: Server) -> list[str]:
    return [one["message"] for one in gateway.events("connector_warning")]


def gate(site: Site) -> str:
    """Return code that waits until `open_gate`."""
    return f"while not os.path.exists({str(site.folder / 'gate')!r}): time.sleep(0.01)"


def open_gate(site: Site) -> None:
    (site.folder / "gate").touch()


# --- standby


async def test_processes_wait_ahead_and_are_replaced(site: Site) -> None:
    site.configure(python(site, "mode: standby, warm: 2"))
    async with served(site) as gateway:
        first = await kept(gateway, 2)
        pids = [await do(gateway), await do(gateway)]
        assert set(pids) == first
        second = await kept(gateway, 2)
        assert not second & first
        assert await do(gateway) in second


async def test_a_process_that_waits_has_imported_already(site: Site) -> None:
    top = "print('imported', file=sys.stderr, flush=True); module_pid = os.getpid()"
    site.configure(python(site, "mode: standby", top=top))
    async with served(site) as gateway:
        (process,) = await kept(gateway, 1)
        await eventually(lambda: _sleeps(process))
        answer = await gateway.do("act/Do", {"code": PID})
        assert answer.body == process
        lines = [one["line"] for one in gateway.events("log", request_id=answer.headers["X-Request-Id"])]
        assert lines == ["imported"], "what it said meanwhile is its own request's"


def _sleeps(process: int) -> bool:
    """Tell whether a process waits with /dev/null or a request to come on stdin, everything imported."""
    return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"S"


@pytest.mark.parametrize("text", ["echo '{\"early\": true}'; cat >/dev/null", "exit 3"], ids=["prints", "exits"])
async def test_what_does_not_wait_is_found_out_told_and_spawned(site: Site, text: str) -> None:
    site.script("hasty.sh", text)
    site.configure(f"hasty: {{run: [./hasty.sh], mode: standby, {COMMANDS}}}")
    async with served(site) as gateway:
        (message,) = await eventually(lambda: warnings(gateway))
        assert "does not wait for its request on stdin" in message
        (event,) = gateway.events("connector_warning")
        assert event["connector"] == "hasty"
        answers = [await gateway.do("hasty/Go") for _ in range(2)]
        if "early" in text:
            assert [answer.body for answer in answers] == [{"early": True}] * 2
        else:
            assert {answer.code for answer in answers} == {"connector_failed"}
        await kept(gateway, 0)
        assert len(warnings(gateway)) == 1
        status = await gateway.status("hasty")
        assert (status["mode"], status["notices"]) == ("spawn", [message])


async def test_what_cannot_be_started_is_told_by_the_call_alone(site: Site) -> None:
    site.script("plain.sh", "cat").chmod(0o644)
    site.configure(f"plain: {{run: [./plain.sh], mode: standby, {COMMANDS}}}")
    async with served(site) as gateway:
        for _ in range(3):
            answer = await gateway.do("plain/Go")
            assert (answer.code, "Permission denied" in answer.message) == ("connector_start_failed", True)
        assert not warnings(gateway)


async def test_a_changed_connector_has_new_processes_and_calls_in_flight_finish(site: Site) -> None:
    modes = ("standby", "fork", "persistent")
    site.configure("\n".join(python(site, f"mode: {mode}", name=mode) for mode in modes))
    async with served(site) as gateway:
        old = await kept(gateway, 3)
        calls = [await begun(gateway, f"before-{mode}", f"{gate(site)}\n{PID}", mode) for mode in modes]
        for mode in modes:
            python(site, top="NEW = 1", name=mode)
        for mode in modes:
            await eventually(lambda mode=mode: _is_new(gateway, mode))
        assert not [call for call in calls if call.done()]
        open_gate(site)
        assert {(await call).status for call in calls} == {200}
        assert not await kept(gateway, 4) & old


async def _is_new(gateway: Server, connector: str) -> bool:
    return bool(await do(gateway, "result = getattr(module, 'NEW', 0)", connector) == 1)


async def test_a_changed_default_is_a_change_too(site: Site) -> None:
    entry = python(site, "mode: persistent")
    site.configure(entry)
    async with served(site) as gateway:
        (old,) = await kept(gateway, 1)
        site.configure(entry, defaults="max_output: 1KiB")
        await eventually(lambda: gateway.connectors() - {old} and not gateway.connectors() & {old})
        answer = await gateway.do("act/Do", {"code": "result = 'x' * 2000"})
        assert answer.code == "connector_output_too_large"


async def test_what_did_not_change_keeps_its_processes(site: Site) -> None:
    site.python("lines.py", LINES)
    entry = f"lines: {{run: [./lines.py], mode: persistent, env: {{TOKEN: hunter-22}}, {COMMANDS}}}"
    site.configure(entry)
    async with served(site) as gateway:
        first = await kept(gateway, 1)
        site.configure(f"{entry}\n{python(site, 'mode: spawn')}")
        await eventually(lambda: [one for one in gateway.events("registry_loaded") if one["connectors"] == 2])
        assert (await gateway.do("lines/Go", {"do": "say(str(os.getpid()) + '\\n')"})).body in first


async def test_what_is_not_needed_goes_and_the_minimum_stays(site: Site) -> None:
    keys = "warm_idle: 500ms"
    entries = [
        python(site, f"mode: standby, warm: 3, warm_min: 1, {keys}", name="a"),
        python(site, f"mode: standby, warm: 2, {keys}", name="b"),
        python(site, f"mode: fork, {keys}", name="c"),
        python(site, f"mode: fork, warm_min: 1, {keys}", name="d"),
        python(site, f"mode: persistent, warm: 2, warm_min: 1, {keys}", name="e"),
    ]
    site.configure("\n".join(entries))
    async with served(site) as gateway:
        await kept(gateway, 3)
        for name in "abcde":
            await do(gateway, connector=name)
        await kept(gateway, 3)


@pytest.mark.parametrize("mode", ["standby", "persistent"])
async def test_the_minimum_is_there_again_after_a_death_in_idleness(site: Site, mode: str) -> None:
    site.configure(python(site, f"mode: {mode}, warm_min: 1, warm_idle: 100ms"))
    async with served(site) as gateway:
        await do(gateway)
        old = await kept(gateway, 1)
        os.kill(*old, signal.SIGKILL)
        await eventually(lambda: not gateway.connectors() & old)
        assert not await kept(gateway, 1) & old


async def test_the_minimum_is_replaced_when_it_is_worn(site: Site) -> None:
    site.configure(python(site, "mode: persistent, warm_min: 1, warm_idle: 100ms, recycle_age: 2s"))
    async with served(site) as gateway:
        await do(gateway)
        old = await kept(gateway, 1)
        await eventually(lambda: not gateway.connectors() & old)
        await kept(gateway, 1)


async def test_what_is_kept_counts_and_gives_way(site: Site) -> None:
    site.script("echo.sh", "cat")
    entries = [
        python(site, "mode: standby, warm: 2", name="a"),
        python(site, "mode: persistent, warm: 2", name="b"),
        f"echo: {{run: [./echo.sh], {COMMANDS}}}",
    ]
    site.configure("\n".join(entries), gateway="max_processes: 3", defaults="queue: 50")
    async with served(site) as gateway:
        await kept(gateway, 3)
        waiting = gate(site)
        calls = [await begun(gateway, f"held-{number}", waiting, "a") for number in range(3)]
        assert len(gateway.connectors()) == 3
        assert (await gateway.status())["processes"]["kept"] == 0
        other = asyncio.create_task(gateway.do("echo/Go"))
        open_gate(site)
        assert {(await call).status for call in calls} == {200}
        assert (await other).status == 200
        await kept(gateway, 3)


async def test_a_call_does_not_make_the_process_give_way_that_it_is_about_to_use(site: Site) -> None:
    modes = ("persistent", "standby", "fork")
    entries = [python(site, f"mode: {mode}", name=mode) for mode in modes]
    site.configure("\n".join(entries), gateway="max_processes: 3")
    async with served(site) as gateway:
        for _ in range(2):
            for mode in modes:
                there = await kept(gateway, 3)
                assert await do(gateway, PARENT if mode == "fork" else PID, mode) in there, mode


async def test_a_process_that_fills_the_cap_stays(site: Site) -> None:
    site.configure(python(site, "mode: persistent"), gateway="max_processes: 1")
    async with served(site) as gateway:
        there = await kept(gateway, 1)
        assert {await do(gateway) for _ in range(4)} == there


# --- fork

DATABASE = "os.path.dirname(__file__) + '/database'"
READS_DATABASE = f"""
import sqlite3
database = sqlite3.connect({DATABASE})
database.execute("CREATE TABLE IF NOT EXISTS numbers (number)")
database.close()
database = sqlite3.connect("file:" + {DATABASE} + "?mode=ro", uri=True)
"""


@pytest.mark.parametrize(
    ("top", "why"),
    [
        (
            "import threading; threading.Thread(target=time.sleep, args=(1000,), daemon=True, name='beat').start()",
            "thread beat",
        ),
        ("import socket; a, b = socket.socketpair()", "an open socket (descriptor"),
        ("import socket; a = socket.create_server(('127.0.0.1', 0))", "a socket that listens at ('127.0.0.1', "),
        (
            "import socket; a = socket.create_server(('127.0.0.1', 0)); b = socket.create_connection(a.getsockname())",
            "an open socket to ('127.0.0.1', ",
        ),
        (f"import sqlite3; database = sqlite3.connect({DATABASE})", "the file /"),
        (READS_DATABASE, "the open database /"),
        ("out = open(os.path.dirname(__file__) + '/out', 'w')", "/out, open for writing"),
        ("pipe = os.pipe()", "a pipe (descriptor "),
        ("import select; poll = select.epoll()", "an open eventpoll (descriptor "),
        ("memory = os.memfd_create('x')", "an open /memfd:x (deleted) (descriptor "),
        ("terminal = os.openpty()", "an open /dev/"),
        ("import mmap; memory = mmap.mmap(-1, 4096)", "shared memory (in act)"),
        ("import multiprocessing; lock = multiprocessing.Lock()", "a semaphore (in act)"),
        ("import multiprocessing; queue = multiprocessing.Queue()", "a pipe (descriptor "),
        ("import subprocess; helper = subprocess.Popen(['sleep', '1000'])", "the process sleep 1000 (made by act)"),
        ("os.system('setsid sleep 1000 >/dev/null 2>&1 &')", "the process sleep 1000"),
        (
            "import fcntl; lock = open(__file__); fcntl.flock(lock, fcntl.LOCK_SH)",
            "a lock on /",
        ),
        (
            "import fcntl; lock = open(__file__ + '.lock', 'a'); '--fork' in sys.argv and fcntl.lockf(lock, fcntl.LOCK_EX)",
            "a lock on /",
        ),
        ("import signal; signal.alarm(3600)", "a timer of setitimer or alarm"),
        (
            "import ctypes; ctypes.CDLL(None).timer_create(0, None, ctypes.byref(ctypes.c_void_p()))",
            "a timer of timer_create",
        ),
        (
            "import mmap; memory = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE); memory.madvise(mmap.MADV_DONTFORK)",
            "memory that a fork leaves out (in act)",
        ),
        ("status = open('/proc/self/status')", "/status, which tells of the host"),
        ("import beside", "(made by beside)"),
        ("def warmup(): globals().update(pipe=os.pipe())", "(made by act.warmup)"),
        (
            "os.register_at_fork(after_in_child=lambda: os._exit(3))",
            "a child, forked to try it out, that does not answer",
        ),
    ],
    ids=[
        *(
            "thread",
            "pair",
            "listener",
            "connection",
            "database",
            "read-only database",
            "file",
            "pipe",
            "poll",
            "memfd",
        ),
        *("terminal", "memory", "lock", "queue", "process", "detached"),
        *("flock", "lockf", "alarm", "timer", "left out", "proc"),
        *("elsewhere", "warmup", "dies"),
    ],
)
async def test_what_cannot_be_forked_safely_is_told_and_stands_by(site: Site, top: str, why: str) -> None:
    (site.folder / "beside.py").write_text("import os\npipe = os.pipe()\n")
    site.configure(python(site, "mode: fork", top=top))
    async with served(site) as gateway:
        (message,) = await eventually(lambda: warnings(gateway))
        assert "cannot be forked safely" in message
        assert why in message
        assert "or end it in warmup(); mode: standby leaves all as it is" in message
        await eventually(lambda: not [pid for pid in gateway.connectors() if b"--fork" in cmdline(pid)])
        (waiting,) = await kept(gateway, 1)
        assert await do(gateway) == waiting
        assert await do(gateway) != waiting
        assert len(warnings(gateway)) == 1
        status = await gateway.status("act")
        assert (status["mode"], status["notices"]) == ("standby", [message])


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("semget(0, 1, 0o600)", "semaphores"),
        ("msgget(0, 0o600)", "a message queue"),
        ("shmget(0, 9, 0o600)", "shared memory"),
    ],
)
async def test_what_is_of_system_v_is_told_and_stands_by(site: Site, call: str, what: str) -> None:
    site.level = "standard"  # where it goes with its namespace
    site.configure(python(site, "mode: fork", top=f"import ctypes; made = ctypes.CDLL(None).{call}"))
    async with served(site) as gateway:
        (message,) = await eventually(lambda: warnings(gateway))
        assert f"it has {what} of System V (made by act). Make it" in message
        assert await do(gateway, "result = module.made >= 0")


async def test_what_is_only_read_or_appended_to_may_be_shared(site: Site) -> None:
    log = "import logging; logging.basicConfig(filename=os.path.dirname(__file__) + '/log')"
    memory = "import sqlite3; database = sqlite3.connect(':memory:')"
    site.configure(python(site, "mode: fork", top=f"{log}\n{memory}\nfile = open(__file__)"))
    async with served(site) as gateway:
        assert await do(gateway, PARENT) == await do(gateway, PARENT)
        assert not warnings(gateway)


async def test_a_file_that_is_read_is_read_by_each_child_for_itself(site: Site) -> None:
    with zipfile.ZipFile(site.folder / "pack.zip", "w") as pack:
        for name in "ab":
            pack.writestr(name, name.encode() * 100_000)
    (site.folder / "lines").write_text("first\nsecond\n" * 10_000)
    top = f"""
import zipfile
pack = zipfile.ZipFile({str(site.folder / "pack.zip")!r})
lines = open({str(site.folder / "lines")!r}, buffering=1)
lines.readline()
bare = os.open({str(site.folder / "lines")!r}, os.O_RDONLY)
os.lseek(bare, 6, os.SEEK_SET)
folder = os.open("/", os.O_RDONLY)
chance = os.open("/dev/urandom", os.O_RDONLY)
"""
    code = """
found = [module.pack.read(name) == name.encode() * 100_000 for name in "ab" * 20]
result = [all(found), module.lines.readline(), os.read(module.bare, 6).decode(), os.get_inheritable(module.bare)]
"""
    site.configure(python(site, "mode: fork, concurrency: 4", top=top))
    async with served(site) as gateway:
        answers = await asyncio.gather(*(do(gateway, code) for _ in range(12)))
        assert answers == [[True, "second\n", "second", False]] * 12
        assert not warnings(gateway)
        assert (await gateway.status("act"))["mode"] == "fork"


@pytest.mark.parametrize("mode", ["fork", "standby", "spawn", "persistent"])
async def test_a_host_needs_nothing_that_a_connector_has_patched(site: Site, mode: str) -> None:
    top = """
import builtins, gc, json, select, socket, threading
def _broken(*arguments, **named): raise RuntimeError("patched")
os.fork = os.pipe = os.read = os.dup2 = os.listdir = os.waitpid = os.setsid = _broken
select.poll = select.select = socket.socket = time.sleep = json.loads = json.dumps = _broken
json.JSONEncoder.encode = json.JSONDecoder.decode = builtins.open = gc.collect = gc.freeze = _broken
sys.stdout = sys.stderr = json._default_encoder = json._default_decoder = None
"""
    site.configure(python(site, f"mode: {mode}", top=top))
    async with served(site) as gateway:
        assert [await do(gateway, "result = 1") for _ in range(3)] == [1, 1, 1]
        assert not warnings(gateway)
        assert (await gateway.status("act"))["mode"] == mode


CHANCES = """
import random, secrets, types
class BitGenerator:  # as numpy has it
    def __init__(self, seed=None):
        self.seed_seq = types.SimpleNamespace(entropy=secrets.randbits(128) if seed is None else seed)
        self.state = self.seed_seq.entropy
sys.modules["numpy.random"] = types.SimpleNamespace(BitGenerator=BitGenerator)
free, fixed, late = random.Random(), random.Random(7), random.Random()
late.seed(7)
free_bits, fixed_bits = BitGenerator(), BitGenerator(7)
"""


async def test_a_generator_that_nobody_has_given_a_seed_gives_each_child_other_numbers(site: Site) -> None:
    site.configure(python(site, "mode: fork, concurrency: 4", top=CHANCES))
    free = "module.random, module.free, module.free_bits"
    code = f"""
draw = lambda one: one.random() if hasattr(one, "random") else str(one.state)
result = [[*map(draw, ({free}))], [*map(draw, (module.fixed, module.late, module.fixed_bits))]]
"""
    async with served(site) as gateway:
        answers = await asyncio.gather(*(do(gateway, code) for _ in range(6)))
        assert {len({free[number] for free, _ in answers}) for number in range(3)} == {6}
        assert [fixed for _, fixed in answers] == [[0.32383276483316237, 0.32383276483316237, "7"]] * 6
        assert (await gateway.status("act"))["mode"] == "fork"


@pytest.mark.parametrize("mode", ["fork", "standby", "spawn", "persistent"])
async def test_a_handler_of_children_stays_the_connectors(site: Site, mode: str) -> None:
    top = "import signal, subprocess; heard = []; signal.signal(signal.SIGCHLD, lambda *_: heard.append(1))"
    site.configure(python(site, f"mode: {mode}", top=top))
    async with served(site) as gateway:
        code = "module.subprocess.run(['true']); result = len(module.heard)"
        assert await do(gateway, code) == 1
        assert (await gateway.status("act"))["mode"] == mode


@pytest.mark.parametrize("mode", ["fork", "standby", "spawn", "persistent"])
async def test_a_process_that_a_command_has_forked_and_that_comes_back_does_not_answer(site: Site, mode: str) -> None:
    site.configure(python(site, f"mode: {mode}"))
    code = "pid = os.fork(); result = os.waitpid(pid, 0)[1] if pid else 'not me'"
    async with served(site) as gateway:
        assert [await do(gateway, each) for each in (code, "result = 1", code)] == [0, 1, 0]


async def test_what_breaks_the_host_itself_is_told_and_stands_by(site: Site) -> None:
    top = "def broken(*arguments): raise RuntimeError('patched')\nos.unsetenv = broken"
    site.configure(python(site, "mode: fork", top=top))
    async with served(site) as gateway:
        (message,) = await eventually(lambda: warnings(gateway))
        assert "it has replaced a part of Python that its host needs (RuntimeError: patched)" in message
        assert await do(gateway, "result = 1") == 1


LOOP = """
import select, types
class Hub:  # as gevent has it
    loop, dead, poller = types.SimpleNamespace(activecnt=WATCHERS), False, select.epoll()
    def destroy(self, destroy_loop):
        self.poller.close()
hub, *others = [Hub() for _ in range(GREENLETS)]
sys.modules["gevent._hub_local"] = types.SimpleNamespace(get_hub_if_exists=lambda: hub)
sys.modules["greenlet"] = types.SimpleNamespace(greenlet=Hub, getcurrent=lambda: None)
"""


@pytest.mark.parametrize(("watchers", "greenlets", "mode"), [(0, 1, "fork"), (1, 1, "standby"), (0, 2, "standby")])
async def test_a_loop_of_gevent_is_given_up_where_nothing_waits_for_it(
    site: Site, watchers: int, greenlets: int, mode: str
) -> None:
    top = LOOP.replace("WATCHERS", str(watchers)).replace("GREENLETS", str(greenlets))
    site.configure(python(site, "mode: fork", top=top))
    async with served(site) as gateway:
        assert await do(gateway, "result = 1") == 1
        status = await gateway.status("act")
        assert (status["mode"], ["an open eventpoll" in each for each in status["notices"]]) == (
            mode,
            [True] * (mode == "standby"),
        )


@pytest.mark.parametrize(
    ("keys", "imported"), [("", "background_thread:false"), ("env: {JE_ARROW_MALLOC_CONF: a:b}", "a:b")]
)
async def test_the_allocator_of_pyarrow_starts_no_thread_in_a_host(site: Site, keys: str, imported: str) -> None:
    code = "os.environ.get('JE_ARROW_MALLOC_CONF')"
    site.configure(python(site, f"mode: fork, {keys}", top=f"imported = {code}"))
    async with served(site) as gateway:
        assert await do(gateway, f"result = [module.imported, {code}]") == [imported, imported if keys else None]


THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


@pytest.mark.parametrize(
    ("keys", "imported"),
    [
        ("", ["1", "1", "1", "1"]),
        ("env: {OMP_NUM_THREADS: 3}", [None, "3", None, "1"]),
        ("env: {MKL_NUM_THREADS: 2}", ["1", "1", "2", "1"]),
    ],
)
async def test_a_library_of_a_host_works_in_one_thread_unless_the_operator_says_otherwise(
    site: Site, keys: str, imported: list[str | None]
) -> None:
    names = f"[os.environ.get(name) for name in {THREADS}]"
    site.configure(python(site, f"mode: fork, {keys}", top=f"imported = {names}"))
    async with served(site) as gateway:
        left = [None if one == "1" else one for one in imported]
        assert await do(gateway, f"result = [module.imported, {names}]") == [imported, left]


@pytest.mark.parametrize("mode", ["fork", "standby", "spawn"])
async def test_what_a_call_leaves_to_threads_is_done_before_its_end(site: Site, mode: str) -> None:
    code = f"""
import concurrent.futures, threading
def late(name):
    print(name, "waits", file=sys.stderr, flush=True)
    {gate(site)}
    print(name, "done", file=sys.stderr, flush=True)
threading.Thread(target=late, args=("thread",)).start()
concurrent.futures.ThreadPoolExecutor(1).submit(late, "executor")
result = "given"
"""
    site.configure(python(site, f"mode: {mode}, linger: 1h, read: [{site.folder}]"))
    async with served(site) as gateway:
        asked = gateway.do("act/Do", {"code": code}, headers={"X-Request-Id": "late"})
        answer = asyncio.create_task(asked)
        await eventually(lambda: len(gateway.events("log", request_id="late")) == 2)
        assert not answer.done()
        open_gate(site)
        assert (await answer).body == "given"
        told = sorted(one["line"] for one in gateway.events("log", request_id="late"))
        assert told == ["executor done", "executor waits", "thread done", "thread waits"]
        assert not warnings(gateway)


@pytest.mark.parametrize("mode", ["fork", "standby", "spawn", "persistent"])
@pytest.mark.parametrize("level", ["off", "strict"])
async def test_the_search_path_of_an_entry_counts(site: Site, mode: str, level: str) -> None:
    library = site.folder / "library"
    library.mkdir()
    (library / "lent.py").write_text("word = 'lent'\n")
    site.configure(python(site, f"mode: {mode}, sandbox: {level}, env: {{PYTHONPATH: {library}}}", top="import lent"))
    async with served(site) as gateway:
        assert await do(gateway, "result = module.lent.word") == "lent"
        (library / "lent.py").write_text("word = 'changed'\n")
        await changed(gateway, "result = module.lent.word", "changed")


async def test_a_program_is_looked_up_where_its_entry_says(site: Site) -> None:
    tools = site.folder / "tools"
    tools.mkdir()
    site.script("tools/tool.sh", "cat >/dev/null\necho '\"found\"'\n")
    path = f"{tools}:/usr/bin:/bin"
    site.configure(f"tool: {{run: [tool.sh], env: {{PATH: {path!r}}}, commands: {{Go: {{}}}}}}")
    async with served(site) as gateway:
        assert (await gateway.do("tool/Go")).body == "found"


async def test_a_host_that_dies_idle_is_replaced(site: Site) -> None:
    site.configure(python(site, "mode: fork"))
    async with served(site) as gateway:
        (host,) = await kept(gateway, 1)
        assert await do(gateway, PARENT) == host
        old = await kept(gateway, 2)
        os.kill(host, signal.SIGKILL)
        await eventually(lambda: not gateway.connectors() & old)
        new = await kept(gateway, 2)
        other = await do(gateway, PARENT)
        assert other in new
        os.kill(other, signal.SIGKILL)
        assert await do(gateway)  # at once
        assert not warnings(gateway)


async def test_children_of_a_host_that_dies_finish(site: Site) -> None:
    site.configure(python(site, "mode: fork"))
    async with served(site) as gateway:
        (host,) = await kept(gateway, 1)
        waiting = gate(site)
        call = await begun(gateway, "orphan", f"{waiting}\nresult = 'done'")
        hanging = await begun(gateway, "hanging", "time.sleep(1000)")
        os.kill(host, signal.SIGKILL)
        await gone({host})
        assert await do(gateway, PARENT) != host
        open_gate(site)
        answer = await call
        assert (answer.status, answer.body) == (200, "done")
        hanging.cancel()
        await kept(gateway, 2)
        (event,) = gateway.events("run", request_id="orphan")
        assert (event["outcome"], event["status"]) == ("ok", 0)


async def test_the_process_of_the_next_request_is_forked_ahead(site: Site) -> None:
    site.configure(python(site, "mode: fork"))
    async with served(site) as gateway:
        (host,) = await kept(gateway, 1)
        first = await do(gateway)
        for _ in range(2):
            (waiting,) = await kept(gateway, 2) - {host}
            assert waiting != first
            assert await do(gateway, f"{PID}, os.getppid()") == [waiting, host]


async def test_a_process_that_was_forked_ahead_has_all_that_is_its_own(site: Site) -> None:
    site.configure(python(site, "mode: fork", top="import random, tempfile; random.seed(1)"))
    code = """
import random, tempfile
names = ["HOME", "TMPDIR"]
private = {os.getcwd(), tempfile.gettempdir(), *(os.environ[name] for name in names)}
result = [os.getpid(), os.getsid(0), *private, random.random(), os.environ.get("TRACEPARENT"), os.listdir(".")]
print("heard")
"""
    async with served(site) as gateway:
        (host,) = await kept(gateway, 1)
        seen = []
        for number in range(4):
            expected = await kept(gateway, 2) - {host} if number else set()
            trace = f"00-{number + 1:032x}-{1:016x}-01"
            headers = {"traceparent": trace} if number != 2 else {}
            answer = await gateway.do("act/Do", {"code": code}, headers=headers)
            pid, session, _folder, chance, traced, files = answer.body
            assert (session, files) == (pid, [])
            assert pid in (expected or {pid})
            assert traced == headers.get("traceparent")
            lines = [one["line"] for one in gateway.events("log", request_id=answer.headers["X-Request-Id"])]
            assert lines == ["heard"]
            seen += [pid, chance]
        assert len(set(seen)) == len(seen)


async def test_a_process_that_dies_before_its_request_is_nobodys(site: Site) -> None:
    site.configure(python(site, "mode: fork"))
    async with served(site) as gateway:
        host = await do(gateway, PARENT)
        (waiting,) = await kept(gateway, 2) - {host}
        os.kill(waiting, signal.SIGKILL)
        assert await kept(gateway, 1) == {host}
        assert await do(gateway, PARENT) == host
        assert waiting not in await kept(gateway, 2)


async def test_what_is_forked_ahead_counts_and_gives_way(site: Site) -> None:
    site.script("wait.sh", f"cat; while [ ! -e {site.folder / 'gate'} ]; do sleep 0.02; done")
    entries = [python(site, "mode: fork"), f"wait: {{run: [./wait.sh], {COMMANDS}}}"]
    site.configure("\n".join(entries), gateway="max_processes: 2")
    async with served(site) as gateway:
        host = await do(gateway, PARENT)
        await kept(gateway, 2)
        call = asyncio.create_task(gateway.do("wait/Go"))
        await eventually(lambda: len(gateway.connectors() - {host}) == 1 or call.done())
        await kept_beside(gateway, 1, {host})
        open_gate(site)
        assert (await call).status == 200
        assert host in await kept(gateway, 2)


async def test_hosts_with_children_in_work_count_too(site: Site) -> None:
    names = ("a", "b", "c")
    entries = [python(site, "mode: fork", name=name) for name in names]
    site.configure("\n".join(entries), gateway="max_processes: 8", defaults="queue: 50")
    async with served(site) as gateway:
        hosts = await kept(gateway, 3)
        first = [await begun(gateway, f"first-{name}", gate(site), name) for name in names]
        calls = [asyncio.create_task(gateway.do(f"{names[one % 3]}/Do", {"code": gate(site)})) for one in range(8)]

        async def full() -> bool:
            status = await gateway.status()
            assert status["processes"]["in_flight"] <= 5
            return sum(one["queued"] for one in status["connectors"].values()) == 6

        await eventually(full)
        await eventually(lambda: len(gateway.connectors()) == 8)
        assert hosts <= gateway.connectors()
        open_gate(site)
        assert {(await call).status for call in first + calls} == {200}
        assert hosts <= await kept(gateway, 6)


@pytest.mark.parametrize("cap", [1, 2])
async def test_the_smallest_caps_serve_every_mode(site: Site, cap: int) -> None:
    modes = ("spawn", "standby", "fork", "persistent")
    entries = [python(site, f"mode: {mode}", name=mode) for mode in modes]
    site.configure("\n".join(entries), gateway=f"max_processes: {cap}", defaults="queue: 50")
    async with served(site) as gateway:
        assert all(await asyncio.gather(*(do(gateway, PID, mode) for mode in modes * 3)))
        await kept(gateway, cap)


async def test_a_host_with_its_child_fills_a_cap_of_two(site: Site) -> None:
    entries = [python(site, f"mode: {mode}", name=mode) for mode in ("fork", "spawn")]
    site.configure("\n".join(entries), gateway="max_processes: 2")
    async with served(site) as gateway:
        host = await do(gateway, PARENT, "fork")
        held = await begun(gateway, "held", f"{gate(site)}\n{PARENT}", "fork")
        other = asyncio.create_task(do(gateway, PID, "spawn"))

        async def queued() -> bool:
            return bool((await gateway.status("spawn"))["queued"])

        await eventually(queued)
        assert (await gateway.status())["processes"] == {"in_flight": 1, "kept": 1, "max": 2}
        await eventually(lambda: len(gateway.connectors()) == 2)
        open_gate(site)
        assert (await held).body == host
        assert await other


async def kept_beside(gateway: Server, number: int, there: set[int]) -> None:
    """Wait until so many processes are kept, these among them, while others have requests."""

    async def told() -> bool:
        return (await gateway.status())["processes"]["kept"] == number and there <= gateway.connectors()

    await eventually(told)


async def test_without_processes_ahead_a_host_forks_on_request(site: Site) -> None:
    site.configure(python(site, "mode: fork, warm: 0"))
    async with served(site) as gateway:
        host = await do(gateway, PARENT)
        assert await do(gateway, PARENT) == host
        assert await kept(gateway, 1) == {host}


async def test_a_host_that_hangs_loses_its_children_and_its_life(site: Site) -> None:
    site.configure(python(site, "mode: fork"))
    async with served(site) as gateway:
        host = await do(gateway, PARENT)
        os.kill(host, signal.SIGSTOP)
        answer = await gateway.do("act/Do", {"code": PARENT}, headers={"X-Timeout": "1"})
        # Its process was forked ahead, and has given its result, although the host that reaps it cannot say so.
        assert (answer.status, answer.body) == (200, host)
        assert gateway.events("connector_warning", connector="act")[-1]["message"].startswith("gave its result")
        assert await do(gateway, PARENT) != host


async def test_what_ended_while_its_host_hung_is_told_as_it_ended(site: Site) -> None:
    site.configure(python(site, "mode: fork"))
    async with served(site) as gateway:
        host = await do(gateway, PARENT)
        calls = [
            await begun(gateway, "well", f"{gate(site)}\nresult = 'done'"),
            await begun(gateway, "badly", f"{gate(site)}\nos._exit(3)"),
        ]
        os.kill(host, signal.SIGSTOP)
        open_gate(site)
        well, badly = await asyncio.gather(*calls)
        assert (well.status, well.body) == (200, "done")
        assert (badly.status, badly.code) == (502, "connector_failed")
        assert "exit status 3" in badly.message


GROWS = """
import signal
ballast = []
def grow(number, frame): ballast.append(bytearray(os.urandom(1 << 20)) * 80)
signal.signal(10, grow)
"""


@pytest.mark.parametrize(
    ("keys", "calls"),
    [
        ("recycle_uses: 3", [PARENT] * 3),
        ("recycle_age: 1s", [PARENT]),
        ("recycle_rss: 64MiB", ["os.kill(os.getppid(), 10)"]),
    ],
    ids=["uses", "age", "rss"],
)
async def test_a_worn_host_is_replaced_without_a_gap(site: Site, keys: str, calls: list[str]) -> None:
    top = GROWS if "rss" in keys else ""
    site.configure(python(site, f"mode: fork, {keys}", top=top))
    async with served(site) as gateway:
        first = await do(gateway, PARENT)
        for code in calls:
            await do(gateway, code)

        async def replaced() -> bool:
            return await do(gateway, PARENT) != first

        await eventually(replaced)
        await eventually(lambda: not os.path.exists(f"/proc/{first}"))
        assert not warnings(gateway)


@pytest.mark.parametrize("mode", ["fork", "persistent"])
async def test_what_imports_take_recycles_nothing_and_is_told(site: Site, mode: str) -> None:
    top = "ballast = bytearray(os.urandom(1 << 20)) * 80"
    site.configure(python(site, f"mode: {mode}, recycle_rss: 64MiB, recycle_age: 5s", top=top))
    code = PARENT if mode == "fork" else PID
    async with served(site) as gateway:
        (first,) = await kept(gateway, 1)
        (message,) = await eventually(lambda: warnings(gateway))
        assert "more than 64MiB (recycle_rss) for its imports alone" in message
        assert await do(gateway, code) == first
        await changed(gateway, f"{code} == {first}", False)  # by age
        assert warnings(gateway) == [message]


@pytest.mark.parametrize("mode", ["fork", "standby", "persistent", "spawn"])
async def test_an_import_that_crashes_gives_a_clear_error(site: Site, mode: str) -> None:
    # (`describe` runs the code too: the crash comes later)
    flag = site.folder / "flag"
    top = (
        f"if os.path.exists({str(flag)!r}): print('cannot go on', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"
    )
    site.configure(python(site, f"mode: {mode}, warm: 0", top=top))
    async with served(site) as gateway:
        assert await do(gateway)
        flag.touch()
        idle = gateway.connectors()
        for pid in idle:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not gateway.connectors() & idle)
        await gateway.get("/v1/status")  # it has been told, too
        for _ in range(3):
            answer = await gateway.do("act/Do", {"code": PID})
            assert (answer.status, answer.code) == (502, "connector_crashed"), answer.raw
            assert "died of SIGKILL" in answer.message
            assert "cannot go on" in answer.json["spiff__logs"]
        flag.unlink()
        assert await do(gateway)


async def test_an_import_that_hangs_ends_at_the_deadline(site: Site) -> None:
    flag = site.folder / "flag"
    site.configure(python(site, "mode: fork, warm: 0", top=f"while os.path.exists({str(flag)!r}): time.sleep(0.05)"))
    async with served(site) as gateway:
        flag.touch()
        answer = await gateway.do("act/Do", {"code": PID}, headers={"X-Timeout": "0.7"})
        assert (answer.status, answer.code) == (504, "connector_timeout")
        assert "the process that imports the connector is not ready yet" in answer.message
        call = asyncio.create_task(gateway.do("act/Do", {"code": PID}))
        await eventually(lambda: gateway.events("run", outcome="connector_timeout"))
        flag.unlink()
        assert (await call).status == 200


async def test_a_drain_does_not_wait_for_an_import(site: Site) -> None:
    flag = site.folder / "flag"
    top = f"while os.path.exists({str(flag)!r}): time.sleep(0.05)"
    site.configure(python(site, "mode: fork, warm: 0", top=top), gateway="drain: 500ms")
    async with served(site) as gateway:
        flag.touch()
        call = asyncio.create_task(gateway.do("act/Do", {"code": PID}))
        await eventually(lambda: len(gateway.connectors()) == 1)
        gateway.signal(signal.SIGTERM)
        answer = await call
        assert (answer.status, answer.code) == (503, "gateway_draining")
        assert await gateway.ended() == 0


async def test_warmup_is_called_once_in_the_host_and_its_noise_is_no_requests(site: Site) -> None:
    top = "warmed = []\nprint('import noise')\ndef warmup():\n    warmed.append(os.getpid()); print('warm noise')\n"
    site.configure(python(site, "mode: fork", top=top))
    async with served(site) as gateway:
        (host,) = await kept(gateway, 1)
        answers = [await gateway.do("act/Do", {"code": "result = module.warmed; print('heard')"}) for _ in range(2)]
        assert [answer.body for answer in answers] == [[host]] * 2
        for answer in answers:
            lines = [one["line"] for one in gateway.events("log", request_id=answer.headers["X-Request-Id"])]
            assert lines == ["heard"]
        lines = [one["line"] for one in gateway.events("log", connector="act", command="", request_id="")]
        assert lines == ["import noise", "warm noise"]


async def test_a_warmup_that_fails_is_told_once(site: Site) -> None:
    site.configure(python(site, "mode: fork, recycle_uses: 1", top="def warmup(): raise ValueError('cold')"))
    async with served(site) as gateway:
        first = await do(gateway, PARENT)
        await changed(gateway, f"result = os.getppid() == {first}", False)
        (message,) = warnings(gateway)
        assert message == "did not warm up as a whole: act.warmup: ValueError: cold"
        status = await gateway.status("act")
        assert (status["mode"], status["notices"]) == ("fork", [message])


@pytest.mark.parametrize("mode", ["standby", "persistent"])
async def test_a_warmup_that_fails_is_logged(site: Site, mode: str) -> None:
    site.configure(python(site, f"mode: {mode}", top="def warmup(): raise ValueError('cold')"))
    async with served(site) as gateway:
        (process,) = await kept(gateway, 1)
        await eventually(lambda: _sleeps(process))
        assert await do(gateway) == process
        assert gateway.events("log", connector="act", line="act.warmup: ValueError: cold")


async def test_what_a_host_has_made_for_itself_is_not_removed_or_used_by_a_child(site: Site) -> None:
    top = "import tempfile\nshared = tempfile.TemporaryDirectory()\ntempfile.gettempdir()\n"
    site.configure(python(site, "mode: fork", top=top))
    async with served(site) as gateway:
        code = "import tempfile; result = [os.path.isdir(module.shared.name), tempfile.gettempdir() == os.getcwd()]"
        assert [await do(gateway, code) for _ in range(3)] == [[True, True]] * 3


async def changed(gateway: Server, code: str, value: Any, connector: str = "act") -> None:
    """Wait until code has another value, in whatever process."""

    async def seen() -> bool:
        answer = await gateway.do(f"{connector}/Do", {"code": code})
        return answer.status == 200 and answer.body == value

    await eventually(seen)


@pytest.mark.parametrize("name", ["helper", "helpers.inner.one"])
async def test_what_lies_beside_a_module_and_below_is_part_of_it(site: Site, name: str) -> None:
    helper = site.folder.joinpath(*name.split(".")).with_suffix(".py")
    helper.parent.mkdir(parents=True, exist_ok=True)
    helper.write_text("VERSION = 1\n")
    site.configure(python(site, "mode: fork", top=f"import {name}"))
    async with served(site) as gateway:
        code = f"result = module.{name}.VERSION"
        assert await do(gateway, code) == 1
        helper.write_text("VERSION = 22\n")
        await changed(gateway, code, 22)


@pytest.mark.parametrize("mode", ["standby", "fork", "persistent"])
async def test_what_an_environment_holds_is_part_of_its_connector(site: Site, mode: str) -> None:
    packages = environment(site.folder / "venv")
    package = site.folder / "src" / "connector_act"
    (package / "commands").mkdir(parents=True)
    for file in (package / "__init__.py", package / "commands" / "__init__.py", package / "helper.py"):
        file.write_text("VERSION = 1\n")
    (package / "commands" / "do.py").write_text(COMMAND)
    (packages / "act.pth").write_text(f"{site.folder / 'src'}\n")
    site.configure(f"act: {{runtime: python, package: connector_act, venv: ./venv, mode: {mode}}}")
    async with served(site) as gateway:
        code = "from connector_act import helper; result = helper.VERSION"
        assert await do(gateway, code) == 1
        (package / "helper.py").write_text("VERSION = 22\n")
        await changed(gateway, code, 22)
        (packages / "installed.py").write_text("")
        await changed(gateway, "import installed; result = 1", 1)
        old = await kept(gateway, 2 if mode == "fork" else 1)
        os.utime(site.folder / "venv" / "pyvenv.cfg")
        await eventually(lambda: not gateway.connectors() & old)
        (package / "commands" / "more.py").write_text(COMMAND.replace("class Do", "class More"))

        async def listed() -> bool:
            return "act/More" in await gateway.commands()

        await eventually(listed)


COMMAND = """
import os
class Do:
    def __init__(self, code: str):
        self.code = code
    def execute(self, config, task_data):
        names = {"os": os, "result": None}
        exec(self.code, names)
        return names["result"]
"""


def environment(folder: Path) -> Path:
    """Make a virtual environment, and return where its packages are."""
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    python = os.path.realpath(sys.executable)
    (folder / "bin" / "python").symlink_to(python)
    (folder / "pyvenv.cfg").write_text(f"home = {os.path.dirname(python)}\n")
    return packages


# --- persistent


async def test_there_are_never_more_processes_than_concurrency(site: Site) -> None:
    seen = site.folder / "seen"
    seen.mkdir()
    # Each says who it is, and how many of those that have said so are there; one that is just ending counts.
    count = f"""
        open(f"{seen}/{{os.getpid()}}", "w").close()
        time.sleep(0.05)
        result = [os.getpid(), sum(os.path.exists(f"/proc/{{pid}}") for pid in os.listdir("{seen}"))]
    """
    site.configure(python(site, "mode: persistent, concurrency: 2, warm: 2"))
    async with served(site) as gateway:
        first = await kept(gateway, 2)
        told = await asyncio.gather(*(do(gateway, textwrap.dedent(count)) for _ in range(10)))
        pids = {pid for pid, _ in told}
        assert max(number for _, number in told) == 2
        last = await kept(gateway, 2)
        # Another one is there only in the place of one that is gone: what it had left was not taken away in time.
        assert {pid for pid in first | pids if not reaped(pid)} <= last
        assert first <= pids


@pytest.mark.parametrize(
    "keys", ["recycle_uses: 2", "recycle_age: 1s", "recycle_rss: 64MiB"], ids=["uses", "age", "rss"]
)
async def test_a_worn_process_is_replaced(site: Site, keys: str) -> None:
    site.configure(python(site, f"mode: persistent, {keys}", top="ballast = []"))
    async with served(site) as gateway:
        first = await do(gateway)
        if "rss" in keys:
            await do(gateway, "module.ballast.append(bytearray(os.urandom(1 << 20)) * 80)")
        if "uses" in keys:
            assert await do(gateway) == first

        async def replaced() -> bool:
            return await do(gateway) != first

        await eventually(replaced)
        await eventually(lambda: not os.path.exists(f"/proc/{first}"))


async def test_a_crash_fails_one_request_only(site: Site) -> None:
    site.configure(python(site, "mode: persistent, concurrency: 2, warm: 2"))
    async with served(site) as gateway:
        await kept(gateway, 2)
        call = await begun(gateway, "beside", f"{gate(site)}\n{PID}")
        answer = await gateway.do(
            "act/Do", {"code": "print('ouch', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)"}
        )
        assert (answer.status, answer.code) == (502, "connector_crashed")
        assert answer.json["spiff__logs"][0] == "ouch"
        assert await do(gateway)
        open_gate(site)
        assert (await call).status == 200
        await kept(gateway, 2)


LINES = """
import json, os, sys
for line in sys.stdin:
    request = json.loads(line)
    exec(request["params"]["do"], {"os": os, "say": lambda text: os.write(3, text.encode())})
"""


async def lines(gateway: Server, code: str, connector: str = "lines") -> Any:
    answer = await gateway.do(f"{connector}/Go", {"do": code})
    assert answer.status == 200, answer.raw
    return answer.body


@pytest.mark.parametrize("cgroup", ["true", "false"])
@pytest.mark.parametrize("warm", [0, 1])
async def test_what_a_process_has_when_it_has_started_up_stays_and_what_a_request_starts_ends_both(
    site: Site, cgroup: str, warm: int
) -> None:
    tell = "say(json.dumps([os.getpid(), os.getppid(), helper.pid, other.pid, sorted(os.listdir('.'))]) + '\\n')"
    start = "subprocess.Popen(['sleep', '1000'], start_new_session={}, stdout=2)"
    boot = f"import subprocess\nhelper = {start.format(False)}\nopen('own', 'w').close()\nother = helper\n"
    names = '{"os": os, "helper": helper, "other": other, "json": json, "subprocess": subprocess,'
    site.python("lines.py", boot + LINES.replace('{"os": os,', names))
    site.script("wrap.sh", f"{site.folder}/lines.py\ntrue")
    site.configure(
        f"lines: {{run: [./wrap.sh], mode: persistent, warm: {warm}, {COMMANDS}}}", gateway=f"cgroup: {cgroup}"
    )
    async with served(site) as gateway:
        for session in (False, True):
            worker, wrapper, helper, _, files = await lines(gateway, tell)
            assert files == ["own"]
            assert await lines(gateway, f"open('more', 'w').close(); {tell}") == [
                *(worker, wrapper, helper, helper, ["more", "own"])
            ]
            assert await lines(gateway, tell) == [worker, wrapper, helper, helper, ["own"]]
            assert not _is_dead(helper)
            *same, left, files = await lines(gateway, f"other = {start.format(session)}; {tell}")
            assert same == [worker, wrapper, helper]
            assert left != helper
            await eventually(lambda left=left: _is_dead(left))
            assert (await lines(gateway, tell))[0] != worker
            await eventually(lambda helper=helper: _is_dead(helper))
        (message,) = warnings(gateway)
        assert message.startswith(
            "a process that a request had started was killed after the request, and its own process"
        )


async def test_a_process_that_needs_what_was_killed_is_replaced(short_site: Site) -> None:
    code = """
import multiprocessing
with multiprocessing.get_context("forkserver").Pool(1) as pool:
    result = [os.getpid(), pool.map(abs, [-1, 2])]
"""
    short_site.configure(python(short_site, "mode: persistent"))
    async with served(short_site) as gateway:
        told = [await do(gateway, code) for _ in range(3)]
        assert [answer for _, answer in told] == [[1, 2]] * 3
        assert len({pid for pid, _ in told}) == 3
        assert len(warnings(gateway)) == 1


FAILS = {
    "FileNotFoundError": "raise",
    "gone": "result = {'error': {'error_code': 'gone', 'message': str(problem)}, 'status': 'bad'}",
    "status 500": "result = {'response': str(problem), 'mimetype': 'text/plain', 'status': 500}",
}


@pytest.mark.parametrize("way", FAILS)
async def test_a_process_that_fails_twice_in_the_same_way_after_its_files_were_removed_is_replaced(
    site: Site, way: str
) -> None:
    code = f"""
import tempfile
try:
    if not hasattr(module, "folder"):
        module.folder = tempfile.mkdtemp()
    open(module.folder + "/file", "w").close()
    result = os.getpid()
except OSError as problem:
    {FAILS[way]}
"""
    site.configure(python(site, "mode: persistent"))

    async def fails(code: str) -> bool:
        answer = await gateway.do("act/Do", {"code": code})
        return answer.status == 500 or answer.code == "gone"

    async with served(site) as gateway:
        for _ in range(3):
            assert await fails("open('/nowhere')")
        first = await do(gateway)
        assert await do(gateway, code) == first
        for _ in range(2):
            assert not warnings(gateway)
            assert await fails(code)
        assert await do(gateway, code) != first
        (message,) = warnings(gateway)
        assert message.startswith(f"failed twice in the same way ({way}) after files")


async def test_a_process_may_start_up_with_many_helpers(site: Site) -> None:
    boot = "import subprocess\nhelpers = [subprocess.Popen(['sleep', '1000']) for _ in range(HELPERS)]\n"
    names = '{"os": os, "helpers": helpers, "subprocess": subprocess,'
    site.python("lines.py", boot.replace("HELPERS", "300") + LINES.replace('{"os": os,', names))
    site.configure(f"lines: {{run: [./lines.py], mode: persistent, {COMMANDS}}}")
    alive = "sum(each.poll() is None for each in helpers)"
    async with served(site) as gateway:
        for _ in range(2):
            assert await lines(gateway, f"say(str({alive}) + '\\n')") == 300
        more = f"helpers.append(subprocess.Popen(['sleep', '1000'])); say(str({alive}) + '\\n')"
        assert await lines(gateway, more) == 301
        assert await lines(gateway, f"say(str({alive}) + '\\n')") == 300


def _is_dead(process: int) -> bool:
    """Tell whether a process is gone, or waits for its parent to hear of its end."""
    try:
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("warm", [0, 1])
async def test_an_answer_may_begin_before_the_request_is_read_to_its_end(site: Site, warm: int) -> None:
    site.script("filter.sh", "exec cat >&3")
    site.configure(f"filter: {{run: [./filter.sh], mode: persistent, warm: {warm}, {COMMANDS}}}")
    async with served(site) as gateway:
        for number in range(3):
            answer = await gateway.do("filter/Go", {"number": number})
            assert (answer.status, answer.body["params"]) == (200, {"number": number}), answer.raw
        assert not warnings(gateway)


async def test_a_request_that_nobody_has_read_gets_another_process(site: Site) -> None:
    site.python("lines.py", LINES)
    site.configure(f"lines: {{run: [./lines.py], mode: persistent, {COMMANDS}}}")
    async with served(site) as gateway:
        leave = f"import time; say(str(os.getpid()) + '\\n')\n{gate(site)}\nos._exit(1)"
        first = await lines(gateway, leave)
        call = asyncio.create_task(lines(gateway, "say(str(os.getpid()) + '\\n')"))
        await eventually(lambda: _in_flight(gateway))
        open_gate(site)
        assert await call != first


async def _in_flight(gateway: Server) -> int:
    return int((await gateway.status())["processes"]["in_flight"])


async def test_a_request_that_was_read_is_not_repeated(site: Site) -> None:
    site.python("lines.py", LINES)
    site.configure(f"lines: {{run: [./lines.py], mode: persistent, {COMMANDS}}}")
    async with served(site) as gateway:
        await lines(gateway, "say('1\\n')")
        answer = await gateway.do(
            "lines/Go", {"do": f"open({str(site.folder / 'ran')!r}, 'a').write('x'); os._exit(3)"}
        )
        assert (answer.status, answer.code) == (502, "connector_failed")
        assert (site.folder / "ran").read_text() == "x"


async def test_last_words_without_a_line_break_are_an_answer(site: Site) -> None:
    site.python("lines.py", LINES)
    site.configure(f"lines: {{run: [./lines.py], mode: persistent, {COMMANDS}}}")
    async with served(site) as gateway:
        assert await lines(gateway, "say('{\"a\": 1}'); os._exit(0)") == {"a": 1}
        for code, error in (
            ("say('{\"a\": '); os._exit(0)", "connector_invalid_output"),
            ("os._exit(0)", "connector_invalid_output"),
            ("say('{\"a\": 1}'); os._exit(3)", "connector_failed"),
            ('say(\'{"error": {"error_code": "no_paper"}}\'); os._exit(3)', "no_paper"),
        ):
            assert (await gateway.do("lines/Go", {"do": code})).code == error


@pytest.mark.parametrize("first", ["os.close(3)", "say('1\\n')"], ids=["new", "used"])
async def test_a_process_that_cannot_answer_any_more_is_not_waited_for(site: Site, first: str) -> None:
    site.python("lines.py", LINES)
    site.configure(f"lines: {{run: [./lines.py], mode: persistent, timeout: 60s, {COMMANDS}}}")
    async with served(site) as gateway:
        await gateway.do("lines/Go", {"do": first})
        begun = asyncio.get_running_loop().time()
        answer = await gateway.do("lines/Go", {"do": "import time; os.close(3); time.sleep(1000)"})
        assert (answer.status, answer.code) == (502, "connector_invalid_output")
        assert "its output is empty" in answer.message
        assert asyncio.get_running_loop().time() - begun < 30
        assert await lines(gateway, "say('2\\n')") == 2


@pytest.mark.parametrize(
    ("do", "body"),
    [
        ('say(\'{"a": 1}\\n{"b": 2}\\n\')', {"a": 1}),
        ("say('{\"a\": 1}\\n'); say('{\"b\": 2}\\n')", {"a": 1}),
    ],
    ids=["at once", "in turn"],
)
async def test_two_lines_for_one_request_cost_the_process(site: Site, do: str, body: Any) -> None:
    site.python("lines.py", LINES)
    site.configure(f"lines: {{run: [./lines.py], mode: persistent, {COMMANDS}}}")
    async with served(site) as gateway:
        (first,) = await kept(gateway, 1)
        answer = await gateway.do("lines/Go", {"do": do})
        assert (answer.status, answer.body) == (200, body)
        (message,) = await eventually(lambda: warnings(gateway))
        assert "more than one line for a request" in message
        answer = await gateway.do("lines/Go", {"do": "say(str(os.getpid()) + '\\n')"})
        assert answer.status == 200
        assert answer.body != first


@pytest.mark.parametrize("text", ["\\n", "ready\\n", "{} {}\\n", '{"a": 1}x\\n', "NaN\\n", "\\udcff\\n"])
async def test_what_is_no_answer_costs_the_process(site: Site, text: str) -> None:
    site.python("lines.py", LINES.replace("text.encode()", "os.fsencode(text)"))
    site.configure(f"lines: {{run: [./lines.py], mode: persistent, {COMMANDS}}}")
    async with served(site) as gateway:
        (first,) = await kept(gateway, 1)
        late = f"import time; say({text!r}); time.sleep(0.05); say('{{\"late\": 1}}\\n')"
        answer = await gateway.do("lines/Go", {"do": late})
        assert (answer.status, answer.code) == (502, "connector_invalid_output")
        answer = await gateway.do("lines/Go", {"do": "say(str(os.getpid()) + '\\n')"})
        assert answer.status == 200
        assert isinstance(answer.body, int)
        assert answer.body != first


@pytest.mark.parametrize("warm", [0, 1])
async def test_output_out_of_turn_ends_the_process(site: Site, warm: int) -> None:
    site.python("eager.py", "import os\nos.write(3, b'{}\\n')\n" + LINES)
    site.configure(f"eager: {{run: [./eager.py], mode: persistent, warm: {warm}, {COMMANDS}}}")
    async with served(site) as gateway:
        if not warm:
            answer = await gateway.do("eager/Go", {"do": "say('1\\n')"})
            assert (answer.status, answer.code) == (502, "connector_invalid_output")
        (message, *_) = await eventually(lambda: warnings(gateway))
        assert "one without a request" in message


async def test_a_process_that_ends_after_its_answer_has_answered(site: Site) -> None:
    site.python("once.py", LINES)
    site.configure(f"once: {{run: [./once.py], mode: persistent, {COMMANDS}}}")
    async with served(site) as gateway:
        for _ in range(5):
            answer = await gateway.do("once/Go", {"do": "say('{\"a\": 1}\\n'); os._exit(0)"})
            assert (answer.status, answer.body) == (200, {"a": 1})
            pid = gateway.events("run", request_id=answer.headers["X-Request-Id"])[0]["pid"]
            await eventually(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))
            await gateway.get("/v1/status")  # it has been told, too


async def test_what_it_says_late_is_not_the_next_requests(site: Site) -> None:
    site.python("late.py", LINES)
    site.configure(f"late: {{run: [./late.py], mode: persistent, {COMMANDS}}}")
    async with served(site) as gateway:
        first = await gateway.do("late/Go", {"do": "say('1\\n'); os.write(2, b'late\\n')"})
        await eventually(lambda: gateway.events("log", line="late"))
        second = await gateway.do("late/Go", {"do": "say('2\\n')"})
        assert (first.body, second.body) == (1, 2)
        (event,) = gateway.events("log", line="late")
        assert event["request_id"] == first.headers["X-Request-Id"]
