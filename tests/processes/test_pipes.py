"""What goes through a connector's pipes, in both directions, and what the answer is."""

from __future__ import annotations

import asyncio
import io
import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support import Answer, Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

COMMANDS = "commands: {Go: {additional_parameters: true}}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One gateway for the file. `act` does what its caller says, the others do one thing each."""
    site = Site(tmp_path_factory.mktemp("pipes"))
    site.python("act.py", "import json, os, sys, time\nrequest = json.load(sys.stdin)\nexec(request['params']['do'])")
    site.script("deaf.sh", """echo '{"read": false}'""")
    site.script("closing.sh", """exec <&-\necho '{"read": false}'""")
    site.script("stuck.sh", "sleep 1000")
    site.script("loud.sh", "head -c 1000000 /dev/zero | tr '\\0' x >&2\ncat")
    site.script("both.sh", "cat > body\nhead -c 1000000 /dev/zero | tr '\\0' x | tee /dev/stderr > result\necho '{}'")
    site.script("noisy.sh", "yes a line of log >&2")
    site.script("stubborn.sh", "trap '' TERM\nyes a line of log >&2")
    site.script("endless.sh", "yes '[1, 2, 3]'")
    site.script("fd3.sh", """echo to stdout\necho to stderr >&2\necho '{"a": 1}' >&3""")
    site.script("fd3-none.sh", """echo '{"a": 1}'""")
    site.script("fd3-held.sh", """echo '{"a": 1}' >&3\nexec 3>&-\nsleep 1000 &""")
    site.configure(
        f"""
        act: {{run: [./act.py], {COMMANDS}}}
        small: {{run: [./act.py], max_output: 64KiB, max_log: 4KiB, {COMMANDS}}}
        deaf: {{run: [./deaf.sh], {COMMANDS}}}
        closing: {{run: [./closing.sh], {COMMANDS}}}
        stuck: {{run: [./stuck.sh], timeout: 300ms, {COMMANDS}}}
        loud: {{run: [./loud.sh], {COMMANDS}}}
        both: {{run: [./both.sh], {COMMANDS}}}
        noisy: {{run: [./noisy.sh], timeout: 500ms, max_log: 1KiB, {COMMANDS}}}
        stubborn: {{run: [./stubborn.sh], timeout: 500ms, max_log: 1GiB, {COMMANDS}}}
        endless: {{run: [./endless.sh], max_output: 64KiB, {COMMANDS}}}
        fd3: {{run: [./fd3.sh], result: fd3, {COMMANDS}}}
        fd3-none: {{run: [./fd3-none.sh], result: fd3, {COMMANDS}}}
        fd3-held: {{run: [./fd3-held.sh], result: fd3, {COMMANDS}}}
        """
    )
    async with served(site) as gateway:
        yield gateway


@pytest.fixture
async def gateway(shared: Server) -> AsyncIterator[Server]:
    """The shared gateway over connections that end with the test."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Server(shared.process, shared.site, shared._log, shared.port, session)


async def act(gateway: Server, do: str, connector: str = "act") -> Answer:
    return await gateway.do(f"{connector}/Go", {"do": do})


def big(size: int) -> io.BytesIO:
    """A request of this many bytes."""
    return io.BytesIO(b'{"text": "' + b"y" * (size - 12) + b'"}')


def lines(gateway: Server, answer: Answer, stream: str = "stderr") -> list[str]:
    """The log lines of one call."""
    return [one["line"] for one in gateway.events("log", request_id=answer.headers["X-Request-Id"], stream=stream)]


def run(gateway: Server, answer: Answer) -> dict[str, Any]:
    (event,) = gateway.events("run", request_id=answer.headers["X-Request-Id"])
    return event


# --- stdin


async def test_one_megabyte_on_stderr_before_stdin_is_read_is_no_deadlock(gateway: Server) -> None:
    answer = await gateway.do("loud/Go", {"text": "y" * 1_000_000})
    assert answer.status == 200
    assert len(answer.body["params"]["text"]) == 1_000_000
    assert run(gateway, answer)["log_bytes"] == 1_000_000


@pytest.mark.parametrize("connector", ["deaf", "closing"])
async def test_ten_megabytes_to_a_connector_that_never_reads_them_are_no_error(gateway: Server, connector: str) -> None:
    answer = await gateway.do(f"{connector}/Go", data=big(10_000_000))
    assert (answer.status, answer.body) == (200, {"read": False})
    assert run(gateway, answer)["request_bytes"] > 9_999_900


async def test_ten_megabytes_to_a_connector_that_hangs_do_not_hold_the_deadline(gateway: Server) -> None:
    await gateway.do("stuck/Go")  # its cell stays
    before = gateway.descriptors()
    answer = await gateway.do("stuck/Go", data=big(10_000_000))
    assert (answer.status, answer.code) == (504, "connector_timeout")
    await eventually(lambda: gateway.descriptors() <= before + 1)  # this call's connection


async def test_all_three_pipes_at_once_are_no_deadlock(gateway: Server) -> None:
    answer = await gateway.do("both/Go", data=big(3_000_000))
    assert (answer.status, answer.body) == (200, {})


async def test_payloads_over_128_kib_go_in_and_out(gateway: Server) -> None:
    text = "☃\0\n" * 50_000
    do = "json.dump([request['params']['text'], max(map(len, [*sys.argv, *os.environ.values()]))], sys.stdout)"
    answer = await gateway.do("act/Go", {"do": do, "text": text})
    assert answer.status == 200
    back, longest = answer.body
    assert back == text
    assert longest < 4096


async def test_stdin_ends_after_the_request(gateway: Server) -> None:
    answer = await act(gateway, "json.dump([sys.stdin.read(), os.read(0, 1).decode()], sys.stdout)")
    assert answer.body == ["", ""]


# --- stdout


@pytest.mark.parametrize(
    ("do", "body"),
    [
        ("print(json.dumps({'a': 1}, indent=2))", {"a": 1}),
        ("print('warming up'); print('{\"a\": 1}')", {"a": 1}),
        ("print('warming up'); print('{\"a\": 1}\\n\\n')", {"a": 1}),
        ("print('\\ufeff{\"a\": 1}')", {"a": 1}),
        ("print('\\ufeffwarming up\\n{\"a\": 1}')", {"a": 1}),
        ("[(print(c, end='', flush=True)) for c in '{\"a\": 1}']", {"a": 1}),
        ("print('\"☃\"')", "☃"),
        ("print('null')", None),
    ],
)
async def test_a_result_is_found(gateway: Server, do: str, body: Any) -> None:
    answer = await act(gateway, do)
    assert (answer.status, answer.body, answer.code) == (200, body, None)
    assert answer.headers["Content-Type"] == "application/json"
    warnings = gateway.events("connector_warning", request_id=answer.headers["X-Request-Id"])
    assert len(warnings) == ("warming" in do)


@pytest.mark.parametrize(
    ("do", "why"),
    [
        ("pass", "its output is empty"),
        ("print()", "its output is empty"),
        ("print('{}'); print('bye')", "not one JSON document"),
        ("print('{}'); print('{}')", "more than one JSON document"),
        ("print('{}', end=''); print('{}')", "not one JSON document"),
        ("print(json.dumps({'a': float('nan')}))", "not one JSON document"),
        ("print(json.dumps([float('inf')]))", "not one JSON document"),
        ('os.write(1, b\'{"a": "\\xff"}\')', "not UTF-8"),
        ("print('{\"a\": 1')", "not one JSON document"),
        ("print('[' * 100000 + ']' * 100000)", "nested too deeply"),
        ('print(\'{"response": "x", "mimetype": "a/b", "status": 7}\')', "not an HTTP status"),
        ("print('{\"command_response_version\": 2}')", "command_response"),
    ],
)
async def test_an_invalid_result_says_why(gateway: Server, do: str, why: str) -> None:
    answer = await act(gateway, f"print('the cause', file=sys.stderr); {do}")
    assert (answer.status, answer.code) == (502, "connector_invalid_output")
    assert answer.message.startswith("act/Go gave no valid result: ")
    assert why in answer.message
    assert answer.message.endswith("; stderr: the cause")
    assert answer.json["command_response"] == {"body": {}, "mimetype": "application/json"}


async def test_a_valid_result_and_then_a_bad_exit_status_is_a_failure(gateway: Server) -> None:
    answer = await act(gateway, "print('{\"a\": 1}'); print('no\\npaper', file=sys.stderr); sys.exit(3)")
    assert (answer.status, answer.code) == (502, "connector_failed")
    assert answer.message.startswith("act/Go failed with exit status 3 (after ")
    assert answer.message.endswith(" s); stderr: no\npaper")
    assert answer.json["spiff__logs"] == ["no", "paper"]
    assert run(gateway, answer)["status"] == 3


async def test_an_envelope_passes_through_as_the_bytes_it_was(gateway: Server) -> None:
    document = '{"command_response_version":2, "command_response":{"body":1.10,"mimetype":"text/x"}, "error":null, "spiff__logs":["a"], "auth": 1}'
    answer = await act(gateway, f"print('''{document}''')")
    assert answer.raw == document.encode()


async def test_a_legacy_result_sets_status_and_type(gateway: Server) -> None:
    answer = await act(gateway, """print('{"response": "<p>☃", "status": "418", "mimetype": "text/html"}')""")
    assert (answer.status, answer.headers["Content-Type"], answer.raw) == (
        418,
        "text/html; charset=utf-8",
        "<p>☃".encode(),
    )


@pytest.mark.parametrize("status", [0, 1, 255])
async def test_a_told_error_counts_with_any_exit_status(gateway: Server, status: int) -> None:
    told = {"error": {"error_code": "NoPaper", "message": "tray 2"}, "http_status": 503}
    answer = await act(gateway, f"print('noise'); print('''{json.dumps(told)}'''); sys.exit({status})")
    assert (answer.status, answer.code, answer.message) == (200, "NoPaper", "tray 2")
    assert answer.json["command_response"] == {"body": {}, "mimetype": "application/json", "http_status": 503}
    event = run(gateway, answer)
    assert (event["outcome"], event["error_code"], event["status"]) == ("error", "NoPaper", status)


@pytest.mark.parametrize("envelope", [False, True])
async def test_a_raised_error_is_a_500(gateway: Server, envelope: bool) -> None:
    told: dict[str, Any] = {"error": {"error_code": "KeyError", "message": "'x'", "raised": True}}
    if envelope:
        told |= {"command_response_version": 2, "command_response": {"body": {}}}
    answer = await act(gateway, f'print("""{json.dumps(told)}"""); sys.exit(1)')
    assert (answer.status, answer.code) == (500, "KeyError")
    assert run(gateway, answer)["outcome"] == "raised"


async def test_a_result_of_exactly_the_bound_is_fine_and_one_more_byte_is_not(gateway: Server) -> None:
    size = 64 << 10
    answer = await act(gateway, f"sys.stdout.write('\"' + 'x' * ({size} - 2) + '\"')", "small")
    assert (answer.status, len(answer.body)) == (200, size - 2)
    answer = await act(
        gateway, f"sys.stdout.write('\"' + 'x' * ({size} - 1) + '\"'); sys.stdout.flush(); time.sleep(1000)", "small"
    )
    assert (answer.status, answer.code) == (502, "connector_output_too_large")
    assert "64KiB (max_output)" in answer.message


async def test_an_endless_result_is_stopped_at_its_bound(gateway: Server) -> None:
    answer = await gateway.do("endless/Go")
    assert (answer.status, answer.code) == (502, "connector_output_too_large")
    assert run(gateway, answer)["result_bytes"] < 1 << 20
    assert not gateway.connectors()


# --- descriptor 3


async def test_descriptor_3_is_the_result_and_stdout_is_log(gateway: Server) -> None:
    answer = await gateway.do("fd3/Go")
    assert (answer.status, answer.body) == (200, {"a": 1})
    assert lines(gateway, answer, "stdout") == ["to stdout"]
    assert lines(gateway, answer, "stderr") == ["to stderr"]


async def test_nothing_on_descriptor_3_is_no_result(gateway: Server) -> None:
    answer = await gateway.do("fd3-none/Go")
    assert (answer.status, answer.code) == (502, "connector_invalid_output")
    assert lines(gateway, answer, "stdout") == ['{"a": 1}']


async def test_a_call_with_descriptor_3_ends_with_its_process_too(gateway: Server) -> None:
    answer = await gateway.do("fd3-held/Go")
    assert (answer.status, answer.body) == (200, {"a": 1})
    assert run(gateway, answer)["wall"] < 10


async def test_calls_with_and_without_descriptor_3_do_not_mix(gateway: Server) -> None:
    answers = await asyncio.gather(*(gateway.do(f"{name}/Go") for name in ("fd3", "deaf", "fd3-none", "fd3", "deaf")))
    assert [answer.status for answer in answers] == [200, 200, 502, 200, 200]
    listing = "print(json.dumps([fd for fd in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + fd)]))"
    assert sorted((await act(gateway, listing)).body) == ["0", "1", "2"]


# --- stderr


async def test_a_line_of_70_kilobytes_is_logged_in_pieces(gateway: Server) -> None:
    answer = await act(gateway, "sys.stderr.write('x' * 70000); print('{}')")
    assert answer.status == 200
    assert "".join(lines(gateway, answer)) == "x" * 70_000


async def test_a_log_is_cut_at_its_bound_but_its_end_reaches_the_caller(gateway: Server) -> None:
    answer = await act(gateway, "[print('line', n, file=sys.stderr) for n in range(5000)]; sys.exit(1)", "small")
    assert (answer.status, answer.code) == (502, "connector_failed")
    logged = lines(gateway, answer)
    assert sum(len(line) + 1 for line in logged[:-1]) <= (4 << 10) + 1
    assert "bound of 4096 bytes" in logged[-1]
    assert answer.message.endswith("line 4999")
    assert answer.json["spiff__logs"] == [f"line {number}" for number in range(4980, 5000)]
    assert run(gateway, answer)["log_bytes"] == sum(len(f"line {number}\n") for number in range(5000))


async def test_stderr_that_is_no_text_is_logged_as_text(gateway: Server) -> None:
    answer = await act(gateway, "os.write(2, b'bad \\xff byte\\x1b[31m\\n'); print('{}')")
    assert lines(gateway, answer) == ["bad \ufffd byte\x1b[31m"]


@pytest.mark.parametrize("connector", ["noisy", "stubborn"])
async def test_heavy_logging_keeps_neither_the_deadline_nor_other_calls(gateway: Server, connector: str) -> None:
    begun = time.monotonic()
    call = asyncio.create_task(gateway.do(f"{connector}/Go"))
    while not call.done():
        answer = await gateway.do("deaf/Go")
        assert answer.status == 200
    answer = await call
    assert (answer.status, answer.code) == (504, "connector_timeout")
    assert time.monotonic() - begun < 8
    assert not gateway.connectors()
