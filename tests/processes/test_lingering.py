"""A result that was written counts: what becomes of a process that has given it, and does not end."""

from __future__ import annotations

import asyncio
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.installing import installed
from tests.one_gateway import nothing_is_left, nothing_is_left_of_the_file  # noqa: F401
from tests.support import Answer, Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PYTHON = """
import atexit, json, multiprocessing, os, sys, threading, time

def Exits(gate: str):
    def wait():
        print("ends", flush=True)
        while not os.path.exists(gate):
            time.sleep(0.01)
    atexit.register(wait)
    return {"charged": True}

def Thread():
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return {"charged": True}

def Holds():
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,)).start()
    return {"charged": True}

def Tells():
    atexit.register(time.sleep, 1000)
    return {"error": {"error_code": "declined", "message": "no"}}

def Raises():
    atexit.register(time.sleep, 1000)
    raise ValueError("no")

def Invalid():
    atexit.register(time.sleep, 1000)
    return float("nan")

def Fails():
    atexit.register(os._exit, 3)
    return {"charged": True}
"""
NODE = """
export function Hook() { process.on('exit', () => { for (;;); }); return {charged: true}; }
export function Timer() { setInterval(() => {}, 1000); return {charged: true}; }
"""
JAVA = """
package lingers;

public class Lingers implements connector.Connector {
    public String describe() {
        return "{\\"commands\\": [{\\"name\\": \\"Hook\\", \\"parameters\\": []}, {\\"name\\": \\"Thread\\", \\"parameters\\": []}]}";
    }

    public String execute(String request) {
        Thread sleeps = new Thread(() -> {
            try {
                Thread.sleep(1000000);
            } catch (InterruptedException never) {
                return;
            }
        });
        if (request.contains("\\"Hook\\"")) {
            Runtime.getRuntime().addShutdownHook(sleeps);
        } else {
            sleeps.start();
        }
        return "{\\"charged\\":\\ntrue}";
    }
}
"""
SHELL = """
# Leaves something running that holds its stdout
cmd_Holds() { sleep 1000 & echo '{"charged": true}'; }
"""
SCRIPTS = {
    "closes": "echo '{\"charged\": true}'; exec >&-; sleep 1000",
    "deaf": "trap '' TERM; echo '{\"charged\": true}'; exec >&-; setsid sleep 1000; sleep 1000; sleep 1000",
    "leaves": "echo '{\"charged\": true}'; setsid sleep 1000 & exec >&-",
    "pretty": "printf '{\\n\"charged\":\\ntrue\\n}\\n'; exec >&-; sleep 1000",
    "large": "printf '\"'; head -c 3000000 /dev/zero | tr '\\0' x; printf '\"'; exec >&-; sleep 1000",
    "silent": "exec >&-; sleep 1000",
    "half": "printf '{\"charged\":'; exec >&-; sleep 1000",
    "two": "echo '{}'; echo '{}'; exec >&-; sleep 1000",
    "fails": "echo '{\"charged\": true}'; exec >&-; exit 3",
    "open": "echo '{\"charged\": true}'; sleep 1000",
    "held": "sleep 1000 & echo '{\"charged\": true}'; wait",
    "text": "printf '\"charged\"'; sleep 1000",
    "digits": "printf 12; sleep 1000",
    "number": "echo 12; sleep 1000",
    "part": "printf '{\"charged\":'; sleep 1000",
    "noisy": "echo charging; echo '{\"charged\": true}'; sleep 1000",
    "more": "trap 'echo \"{}\"; exit 0' TERM; echo '{\"charged\": true}'; sleep 1000 & wait",
    "late": "trap 'echo \"{}\"; exit 0' TERM; sleep 1000 & wait",
}
PATIENT = ("leaves", "fails")  # they end by themselves, however long that takes a busy machine
UNTIL_THE_DEADLINE = ("open", "held", "text", "digits", "number", "part", "noisy", "more", "late")
LINGER = "gave its result, and did not end within 200ms (linger): it was stopped"
NEITHER = "wrote its result, and neither closed its channel nor ended until its deadline of 3s: it was stopped"
PYTHON_MODES = ("spawn", "standby", "fork")
MODES = ("spawn", "standby")


def lay_out(site: Site) -> None:
    for name, text in (("act.py", PYTHON), ("act.mjs", NODE), ("act.sh", SHELL), ("java/lingers/Lingers.java", JAVA)):
        file = site.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    hosts = {"python": ("module: ./act.py", PYTHON_MODES), "shell": ("module: ./act.sh", MODES)}
    if shutil.which("node"):
        hosts["node"] = "module: ./act.mjs", MODES
    if shutil.which("javac"):
        hosts["java"] = "class: lingers.Lingers, sources: [./java]", MODES
    lines = []
    for runtime, (keys, modes) in hosts.items():
        for mode in modes:
            lines.append(f"{runtime}-{mode}: {{runtime: {runtime}, {keys}, mode: {mode}}}")
            patient = "linger: 1h, sandbox: off"  # it sees /tmp
            lines.append(f"patient-{runtime}-{mode}: {{runtime: {runtime}, {keys}, mode: {mode}, {patient}}}")
    for mode in MODES:
        for name, script in SCRIPTS.items():
            site.script(f"{name}.sh", f"cat >/dev/null\n{script}\n")
            keys = f"run: [./{name}.sh], mode: {mode}, commands: {{Go: {{}}}}"
            late = ", timeout: 3s" if name in UNTIL_THE_DEADLINE else ", linger: 1h" if name in PATIENT else ""
            lines.append(f"{name}-{mode}: {{{keys}{late}}}")
    site.script("three.sh", "cat >/dev/null\necho '{\"charged\": true}' >&3; exec 3>&-; sleep 1000\n")
    lines.append("three-spawn: {run: [./three.sh], result: fd3, commands: {Go: {}}}")
    site.configure("\n".join(lines), defaults="linger: 200ms\ntimeout: 60s")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    site = Site(tmp_path_factory.mktemp("lingering"))
    lay_out(site)
    if shutil.which("javac"):
        installed(site, *(f"{patient}java-{mode}" for mode in MODES for patient in ("", "patient-")))
    async with served(site) as server:
        yield server


pytestmark = pytest.mark.asyncio(loop_scope="module")


def warnings(gateway: Server, answer: Answer) -> list[str]:
    events = gateway.events("connector_warning", request_id=answer.headers["X-Request-Id"])
    return [one["message"] for one in events]


async def nothing_runs(gateway: Server, connector: str) -> None:
    """Wait until nothing is left of a connector's calls: what waits for its next one has not begun it."""
    status = await gateway.status(connector)
    assert status["in_flight"] == 0
    await eventually(lambda: not [one for one in gateway.connectors() if sleeps(one)])


def sleeps(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().startswith(b"sleep\x001000")
    except OSError:
        return False


async def counts(gateway: Server, target: str, body: Any = None, *, warning: str | None = LINGER) -> None:
    answer = await gateway.do(target)
    assert (answer.status, answer.body) == (200, {"charged": True} if body is None else body), answer.raw[:500]
    assert warnings(gateway, answer) == ([] if warning is None else [warning])
    await nothing_runs(gateway, target.partition("/")[0])


@pytest.mark.parametrize("mode", PYTHON_MODES)
@pytest.mark.parametrize("command", ["Thread", "Holds"])
async def test_a_result_of_a_python_connector_counts_although_its_process_does_not_end(
    gateway: Server, mode: str, command: str
) -> None:
    await counts(gateway, f"python-{mode}/{command}")


@pytest.mark.parametrize("mode", PYTHON_MODES)
async def test_what_it_tells_means_what_it_means(gateway: Server, mode: str) -> None:
    told = await gateway.do(f"python-{mode}/Tells")
    assert (told.status, told.code, warnings(gateway, told)) == (200, "declined", [LINGER])
    raised = await gateway.do(f"python-{mode}/Raises")
    assert (raised.status, raised.code, warnings(gateway, raised)) == (500, "ValueError", [LINGER])
    invalid = await gateway.do(f"python-{mode}/Invalid")
    assert (invalid.status, invalid.code) == (502, "connector_invalid_output")
    failed = await gateway.do(f"patient-python-{mode}/Fails")
    assert (failed.status, failed.code) == (502, "connector_failed")


@pytest.mark.parametrize("mode", PYTHON_MODES)
async def test_what_ends_in_time_is_waited_for_and_nobody_is_warned(gateway: Server, tmp_path: Any, mode: str) -> None:
    gate = tmp_path / "gate"
    gate.parent.chmod(0o755)
    call = asyncio.create_task(gateway.do(f"patient-python-{mode}/Exits", {"gate": str(gate)}))
    await eventually(lambda: gateway.events("log", connector=f"patient-python-{mode}", line="ends"))
    assert not call.done()
    gate.touch()
    answer = await call
    assert (answer.status, answer.body, warnings(gateway, answer)) == (200, {"charged": True}, [])


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
@pytest.mark.parametrize("mode", MODES)
async def test_a_result_of_a_node_connector_counts_although_its_process_does_not_end(
    gateway: Server, mode: str
) -> None:
    await counts(gateway, f"node-{mode}/Hook")
    await counts(gateway, f"patient-node-{mode}/Timer", warning=None)


@pytest.mark.skipif(shutil.which("javac") is None, reason="there is no Java")
@pytest.mark.parametrize("mode", MODES)
async def test_a_result_of_a_java_connector_counts_although_its_process_does_not_end(
    gateway: Server, mode: str
) -> None:
    await counts(gateway, f"java-{mode}/Hook")
    await counts(gateway, f"patient-java-{mode}/Thread", warning=None)


@pytest.mark.parametrize("mode", MODES)
async def test_a_bash_command_ends_with_bash_whatever_it_leaves(gateway: Server, mode: str) -> None:
    await counts(gateway, f"patient-shell-{mode}/Holds", warning=None)


@pytest.mark.parametrize("mode", MODES)
async def test_a_program_that_has_closed_its_channel_has_given_its_result(gateway: Server, mode: str) -> None:
    for name in ("closes", "pretty", "deaf"):
        await counts(gateway, f"{name}-{mode}/Go")
    await counts(gateway, f"leaves-{mode}/Go", warning=None)
    await counts(gateway, f"large-{mode}/Go", "x" * 3_000_000)
    await counts(gateway, "three-spawn/Go")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["silent", "half", "two"])
async def test_a_program_that_has_closed_its_channel_without_a_result_gives_none(
    gateway: Server, mode: str, name: str
) -> None:
    answer = await gateway.do(f"{name}-{mode}/Go")
    assert (answer.status, answer.code) == (502, "connector_invalid_output")
    assert "gave no valid result, and did not end: its output is" in answer.message
    await nothing_runs(gateway, f"{name}-{mode}")


@pytest.mark.parametrize("mode", MODES)
async def test_a_bad_status_is_a_failure_also_after_a_result(gateway: Server, mode: str) -> None:
    answer = await gateway.do(f"fails-{mode}/Go")
    assert (answer.status, answer.code) == (502, "connector_failed")


@pytest.mark.parametrize("mode", MODES)
async def test_one_document_that_nothing_followed_counts_at_the_deadline(gateway: Server, mode: str) -> None:
    """Its channel is open, so that until then there could have been more."""
    bodies = {"open": None, "held": None, "text": "charged", "number": 12}
    await asyncio.gather(
        *(counts(gateway, f"{name}-{mode}/Go", body, warning=NEITHER) for name, body in bodies.items()),
    )


@pytest.mark.parametrize("mode", MODES)
async def test_what_may_be_a_part_or_came_too_late_is_no_result(gateway: Server, mode: str) -> None:
    names = {"digits": "2 bytes", "part": "11 bytes", "noisy": "27 bytes", "more": "21 bytes", "late": "3 bytes"}
    answers = await asyncio.gather(*(gateway.do(f"{name}-{mode}/Go") for name in names))
    for (name, part), answer in zip(names.items(), answers, strict=True):
        assert (answer.status, answer.code) == (504, "connector_timeout"), name
        assert f"was stopped, with {part} of a result that was not whole" in answer.message
    await nothing_runs(gateway, f"late-{mode}")


async def test_a_result_counts_although_the_gateway_shuts_down(site: Site) -> None:
    (site.folder / "act.py").write_text(PYTHON)
    site.script("closes.sh", f"cat >/dev/null\necho closing >&2\n{SCRIPTS['closes']}\n")
    site.configure("closes: {run: [./closes.sh], linger: 1h, commands: {Go: {}}}", gateway="drain: 100ms")
    async with served(site) as gateway:
        call = asyncio.create_task(gateway.do("closes/Go"))
        await eventually(lambda: gateway.events("log", connector="closes", line="closing"))
        gateway.signal(signal.SIGTERM)
        answer = await call
        assert (answer.status, answer.body) == (200, {"charged": True})
        message = "gave its result, and did not end until the gateway shut down: it was stopped"
        assert warnings(gateway, answer) == [message]
        await gateway.ended()


async def test_a_description_counts_although_its_process_does_not_end(site: Site) -> None:
    site.script("told.sh", 'cat >/dev/null\necho \'{"commands": [{"name": "Go"}]}\'; exec >&-; sleep 1000\n')
    site.configure("told: {run: [./told.sh], linger: 50ms}")
    async with served(site) as gateway:
        await eventually(lambda: gateway.events("listening"))
        state = await eventually(lambda: ready(gateway))
        assert state["state"] == "ready"


async def ready(gateway: Server) -> Any:
    state = await gateway.status("told")
    return state if state["state"] in {"ready", "quarantined"} else None
