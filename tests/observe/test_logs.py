"""The log: one line a run, what connectors write attributed to them, no line ever split."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio
import structlog

from gateway.observe import logs
from gateway.observe.events import ConnectorLine, RegistryLoaded, RunFinished, StoreChanged
from gateway.observe.redact import Redactor
from tests.support import Server, Site, called_by, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

NAMES = {"connector": "fax", "command": "Go", "request_id": "r"}
ANY = "commands: {Go: {additional_parameters: true}}"


def lines(gateway: Server) -> list[dict[str, object]]:
    """Return every line of the log; each of them has to be one JSON object."""
    return [json.loads(line) for line in gateway.log().splitlines()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One gateway for the tests that only read its log."""
    site = Site(tmp_path_factory.mktemp("logs"))
    site.script("broken.sh", "printf 'first\\nsecond\\n\\tthird \\033[31m\\n' >&2; exit 3")
    site.script(
        "chatty.sh",
        'sed \'s/.*"mark":"\\([a-z]*\\)".*/one \\1\\ntwo \\1/\' >&2; printf unfinished >&2; echo 1',
    )
    site.script("fd3.sh", "echo chatter; echo 7 >&3")
    site.configure(
        f"""
        echo: {{run: [cat], {ANY}}}
        broken: {{run: [./broken.sh], {ANY}}}
        chatty: {{run: [./chatty.sh], {ANY}}}
        crashed: {{run: [sh, -c, "kill -SEGV $$"], {ANY}}}
        fd3: {{run: [./fd3.sh], result: fd3, {ANY}}}
        gone: {{run: [no-such-program], {ANY}}}
        """
    )
    async with served(site) as gateway:
        yield gateway


@pytest_asyncio.fixture
async def gateway(running: Server) -> AsyncIterator[Server]:
    async with called_by(running):
        yield running


async def test_every_run_is_one_line_whatever_its_end(gateway: Server) -> None:
    outcomes = {
        "echo/Go": "ok",
        "broken/Go": "connector_failed",
        "crashed/Go": "connector_crashed",
        "gone/Go": "connector_unavailable",
        "nobody/Go": "command_not_found",
    }
    for target, outcome in outcomes.items():
        answer = await gateway.do(target, headers={"X-Request-Id": outcome})
        assert answer.headers["X-Request-Id"] == outcome
    runs = [line for line in lines(gateway) if line["event"] == "run" and line["request_id"] in outcomes.values()]
    assert [run["request_id"] for run in runs] == [run["outcome"] for run in runs]
    assert len(runs) == 5
    levels = [run["level"] for run in runs]
    assert levels == ["info", "warning", "warning", "warning", "warning"]
    ok, broken, crashed, gone, _ = runs
    assert (ok["connector"], ok["command"], ok["status"]) == ("echo", "Go", 0)
    assert isinstance(ok["pid"], int)
    assert ok["pid"] > 0
    assert {
        "queue_wait",
        "wall",
        "cpu_user",
        "cpu_system",
        "peak_rss",
        "request_bytes",
        "result_bytes",
        "log_bytes",
    } <= ok.keys()
    assert "error_code" not in ok
    assert re.match(
        r"broken/Go failed with exit status 3 \(after \d+\.\d\d s\); stderr: first\nsecond\n\tthird",
        str(broken["message"]),
    )
    assert crashed["signal"] == "SIGSEGV"
    assert gone["pid"] == 0


async def test_lines_of_stderr_are_attributed_to_their_run(gateway: Server) -> None:
    for mark in ("north", "south"):
        await gateway.do("chatty/Go", {"mark": mark}, headers={"X-Request-Id": mark})
    for mark in ("north", "south"):
        of_run = gateway.events("log", request_id=mark)
        assert [line["line"] for line in of_run] == [f"one {mark}", f"two {mark}", "unfinished"]
        assert {(line["connector"], line["command"], line["stream"]) for line in of_run} == {("chatty", "Go", "stderr")}


async def test_stdout_is_log_when_the_result_goes_to_descriptor_3(gateway: Server) -> None:
    assert (await gateway.do("fd3/Go")).body == 7
    assert gateway.events("log", connector="fd3", stream="stdout", line="chatter")


async def test_a_failure_of_the_gateway_itself_is_one_line_with_its_traceback(site: Site) -> None:
    site.configure(f"echo: {{run: [cat], {ANY}}}")
    breaking = site.folder / "breaking"
    breaking.mkdir()
    (breaking / "sitecustomize.py").write_text(
        "from gateway.http.handlers import Handlers\n"
        "async def auths(self, request):\n    raise RuntimeError('two\\nlines')\n"
        "Handlers.auths = auths\n"
    )
    root = Path(__file__).parent.parent.parent
    async with served(site, env={"PYTHONPATH": f"{breaking}:{root}"}) as gateway:
        answer = await gateway.get("/v1/auths")
        assert (answer.status, answer.code) == (500, "internal_error")
        request_id = answer.headers["X-Request-Id"]
        assert request_id in answer.message
        assert "two" not in answer.message
        [line] = [line for line in lines(gateway) if line["event"] == "internal_error"]
        assert line["request_id"] == request_id
        assert "RuntimeError: two\nlines" in str(line["exception"])
        assert (await gateway.do("echo/Go")).status == 200


async def test_the_form_for_people_never_splits_a_line_either(site: Site) -> None:
    site.script("broken.sh", "printf 'first\\nsecond\\033[31m\\n' >&2; exit 3")
    site.configure(f"broken: {{run: [./broken.sh], {ANY}}}")
    log = site.folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--listen", "127.0.0.1:0"],
            stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, cwd=site.folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
        )  # fmt: skip
    try:
        port = (await eventually(lambda: re.search(r"listening .*port=(\d+)", log.read_text())))[1]
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://127.0.0.1:{port}/v1/do/broken/Go", json={}) as response,
        ):
            assert response.status == 502
    finally:
        process.terminate()
        assert process.wait(20) == 0
    text = log.read_text()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\S+ \[\w+ *\] ", line) for line in text.splitlines())
    assert "\x1b" not in text
    [run] = [line for line in text.splitlines() if re.search(r"\] run ", line)]
    assert "first" in run
    assert "second" in run


# --- lines


class Log:
    """A file that is the log."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> list[dict[str, Any]]:
        logs.close()
        return [json.loads(line) for line in self._path.read_text().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    path = tmp_path / "log"
    with path.open("ab") as file:
        logs.configure("json", file.fileno())
        yield Log(path)
        logs.configure("json")


def run(outcome: str = "ok", **facts: Any) -> RunFinished:
    return RunFinished(**NAMES, outcome=outcome, **facts)


def line(text: str) -> ConnectorLine:
    return ConnectorLine(**NAMES, stream="stderr", line=text)


def test_lines_come_in_their_order_whoever_writes_them(log: Log) -> None:
    logs.EventLog("json")(line("words"))
    structlog.get_logger().warning("no_api_key", hint="none")
    logging.getLogger("library").warning("words")
    logs.EventLog("json")(run())
    assert [one["event"] for one in log.lines()] == ["log", "no_api_key", "words", "run"]


def test_lines_of_several_threads_are_each_whole(log: Log) -> None:
    def write(name: str) -> None:
        events = logs.EventLog("json")
        for number in range(300):
            events(line(f"{name} {number}"))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    written = [one["line"].split() for one in log.lines()]
    for name in "abc":
        assert [int(number) for who, number in written if who == name] == list(range(300))


def test_what_is_no_unicode_is_written_escaped(log: Log) -> None:
    logs.EventLog("json")(run(client="\udcff"))
    structlog.get_logger().warning("no_api_key", hint="\udcff")
    assert [one.get("client", one.get("hint")) for one in log.lines()] == [r"\udcff", r"\udcff"]


def test_what_waits_goes_out_at_the_end_of_the_process() -> None:
    program = """
import asyncio, os
from gateway.observe import logs
from gateway.observe.events import ConnectorLine
async def main():
    logs.configure("json")
    logs.EventLog("json")(ConnectorLine(connector="fax", command="Go", request_id="r", stream="stderr", line="last"))
    raise SystemExit(3)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stderr)["event"]) == (3, "log")


def test_the_line_of_a_run_has_the_events_fields_and_then_what_every_line_has(log: Log) -> None:
    facts: dict[str, Any] = {
        "error_code": "A1", "message": "m", "client": "c", "pid": 7, "status": 3, "signal": "SIGSEGV",
        "queue_wait": 0.12345, "wall": 1.00006, "total": 1.12351, "cpu_user": 0.1, "cpu_system": 0.0, "peak_rss": 1,
        "request_bytes": 2, "result_bytes": 3, "log_bytes": 4,
    }  # fmt: skip
    logs.EventLog("json")(run("connector_failed", **facts))
    (line,) = log.lines()
    rounded = {**facts, "queue_wait": 0.1235, "wall": 1.0001, "total": 1.1235}
    expected = {**NAMES, "outcome": "connector_failed", **rounded, "event": "run", "level": "warning"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", line.pop("timestamp"))
    assert list(line.items()) == list(expected.items())
    assert set(line) - {"event", "level"} == {field.name for field in msgspec.structs.fields(RunFinished)}


def test_what_a_run_has_no_value_of_is_left_out(log: Log) -> None:
    logs.EventLog("json")(run())
    assert log.lines()[0].keys().isdisjoint({"error_code", "message", "client", "status", "signal"})


def test_other_events_have_the_same_form(log: Log) -> None:
    names = tuple(f"c{number}" for number in range(12))
    logs.EventLog("json")(RegistryLoaded(connectors=1, commands=2, quarantined=0, changed=names, removed=(), took=0.5))
    (line,) = log.lines()
    keys = ["connectors", "commands", "quarantined", "changed", "removed", "took", "event", "level", "timestamp"]
    assert list(line) == keys
    assert line["changed"][9:] == ["c9", "... 2 more"]


def test_what_tells_of_no_connector_is_written_without_the_gateways_secrets(tmp_path: Path) -> None:
    path = tmp_path / "log"
    key = "the gateway's key"
    redact = Redactor([key])
    forms: tuple[logs.Format, ...] = ("json", "human")
    with path.open("ab") as file:
        for form in forms:
            logs.configure(form, file.fileno(), redact)
            try:
                int(key)
            except ValueError as problem:
                structlog.get_logger().error("internal_error", exc_info=problem)
                logging.getLogger("library").exception("words: %r", key)
            logs.EventLog(form, redact)(StoreChanged(ok=False, reason=key))
            logs.close()
        logs.configure("json")
    text = path.read_text()
    assert "gateway's key" not in text
    assert text.count("[redacted]") == 8
    assert text.count("Traceback") == 4


def test_a_secret_that_is_called_like_a_fact_breaks_no_line(log: Log) -> None:
    logs.EventLog("json", Redactor(["reason", "event", "info", "store"]))(
        StoreChanged(ok=False, reason="no reason at all")
    )
    (told,) = log.lines()
    del told["timestamp"]
    assert told == {"ok": False, "reason": "no [redacted] at all", "event": "store_changed", "level": "info"}
