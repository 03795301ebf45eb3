"""A caller's mistake is a 400, and a connector's a 502: a 500 of ours is a bug."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.support import Answer, Server, Site, called_by, cli, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DECLARED: dict[str, Any] = {
    "Number": {"schema": {"type": "number"}},
    "Multiple": {"schema": {"multipleOf": 0.1}},
    "Enum": {"enum": [1, 2]},
    "Secret": {"secret": True},
    "Integer": {"type": "int", "enum": [1, 2]},
    "Hidden": {"type": "int", "secret": True},
    "Plain": {"required": False},
    "Whole": {"type": "int"},
}
VALUES = """
import sys

def Nan() -> dict:
    return {"x": float("nan")}

def Surrogate() -> str:
    return "\\udcff"

def Leave() -> None:
    sys.exit(0)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    site = Site(tmp_path_factory.mktemp("mistakes"))
    commands = {name: {"parameters": {"a": one}} for name, one in DECLARED.items()}
    echo = {"run": ["cat"], "commands": {**commands, "Any": {"additional_parameters": True}}}
    site.configure(f"echo: {json.dumps(echo)}", gateway="max_request: 200KB")
    async with served(site) as gateway:
        yield gateway


@pytest_asyncio.fixture
async def gateway(running: Server) -> AsyncIterator[Server]:
    async with called_by(running, auto_decompress=False):
        yield running
        assert not running.events("internal_error")


def assert_told(answer: Answer, code: str = "invalid_request", status: int = 400) -> None:
    assert (answer.status, answer.code) == (status, code)
    assert set(answer.json) == {"command_response", "command_response_version", "error", "spiff__logs"}
    assert 0 < len(answer.message) < 3000


async def raw(gateway: Server, request: bytes) -> Answer:
    """Send what no client would."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(request)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return Answer(int(head.split()[1]), {}, body)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 5000, "1e99999999999999999999"])
@pytest.mark.parametrize("command", [name for name in DECLARED if name not in {"Plain", "Whole"}])
async def test_a_number_that_is_out_of_range(gateway: Server, command: str, number: str) -> None:
    for value in (number, f'[{{"b": {number}}}]'):
        answer = await gateway.do(f"echo/{command}", data=f'{{"a": {value}}}')
        assert_told(answer, "invalid_parameters")
        assert answer.message.startswith(f"echo/{command}: a ")


async def test_an_integer_has_so_many_digits_as_languages_read(gateway: Server) -> None:
    for number in ("9" * 4300, "-" + "9" * 4299):
        answer = await gateway.do("echo/Whole", data=f'{{"a": {number}}}')
        assert f'"a":{number}'.encode() in answer.raw
    for number in ("9" * 4301, "9" * 100_000, "1." + "0" * 5000):
        assert_told(await gateway.do("echo/Whole", data=f'{{"a": {number}}}'), "invalid_parameters")


async def test_a_number_that_nobody_looks_at_passes_as_it_was_written(gateway: Server) -> None:
    for number in ("1e400", "9" * 5000):
        answer = await gateway.do("echo/Plain", data=f'{{"a": {number}}}')
        assert answer.status == 200
        assert f'"a":{number}'.encode() in answer.raw


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b"none"),
        ("gzip", gzip.compress(b'{"a": 1}', mtime=0) + b"more"),
        ("deflate", b"none"),
        ("deflate", zlib.compress(b'{"a": 1}')[:5]),
        ("br", b"none"),
        ("zstd", b"none"),
        ("gzip", gzip.compress(b"[1]", mtime=0)),
    ],
)
async def test_a_body_that_is_not_what_its_encoding_says(gateway: Server, encoding: str, body: bytes) -> None:
    assert_told(await gateway.do("echo/Any", data=body, headers={"Content-Encoding": encoding}))


async def test_an_encoded_body_is_understood(gateway: Server) -> None:
    for encoding, body in (("gzip", gzip.compress(b'{"a": 1}')), ("deflate", zlib.compress(b'{"a": 1}'))):
        answer = await gateway.do("echo/Any", data=body, headers={"Content-Encoding": encoding})
        assert answer.body["params"] == {"a": 1}


@pytest.mark.parametrize(
    "query",
    [
        "limit=" + "9" * 5000,
        "offset=" + "9" * 5000,
        "offset=" + "9" * 20,
        "connector=%00",
        "task=x%00y",
        "process_instance=%00",
        "client=%00",
        "state=%00",
    ],
)
async def test_a_list_of_jobs_that_cannot_be_asked_for(gateway: Server, query: str) -> None:
    assert_told(await gateway.get(f"/v1/jobs?{query}"))
    assert (await gateway.get("/v1/jobs")).status == 200


@pytest.mark.parametrize("age", ["9" * 15 + "d", "37000d", "9" * 5000 + "d", "%00"])
async def test_jobs_that_are_older_than_anything(gateway: Server, age: str) -> None:
    assert_told(await gateway.request("POST", f"/v1/jobs/purge?older_than={age}"))


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/cancel"), ("POST", "/retry")])
async def test_the_id_of_no_job(gateway: Server, method: str, path: str) -> None:
    assert_told(await gateway.request(method, f"/v1/jobs/x%00y{path}"))
    for name in ("%25ff", "%F0%9F%98%80", "x" * 1000):
        assert_told(await gateway.request(method, f"/v1/jobs/{name}{path}"), "job_not_found", 404)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "\\ud800"}', '{"a": ["\\ud800"]}', '{"\\ud800": 1}', '{"spiff__task_id": "\\ud800"}',
        '{"spiff__task_data": "{\\"a\\": \\"\\\\ud800\\"}"}', '{"spiff__process_instance_id": 1e400}',
    ],
)  # fmt: skip
async def test_text_that_is_none(gateway: Server, text: str) -> None:
    assert_told(await gateway.do("echo/Any", data=text))


async def test_a_task_with_a_character_that_nothing_can_be_looked_for_by(gateway: Server) -> None:
    for headers in ({}, {"Prefer": "respond-async"}):
        assert_told(await gateway.do("echo/Any", {"spiff__task_id": "a\0b"}, headers=headers))


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /" + b"secret" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"secret" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-More: secret\r\n" * 2_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nno secret\r\n\r\n",
        b"G@T /secret HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[secret/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/do/echo/Any HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/do/echo/Any HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nsecret\r\n\r\n",
    ],
    ids=["url", "header", "headers", "no header", "method", "host", "length", "chunk"],
)
async def test_what_is_no_request_is_told_so_in_the_envelope(gateway: Server, request_: bytes) -> None:
    answer = await raw(gateway, request_)
    assert_told(answer)
    assert answer.message.startswith("the request cannot be read: ")
    assert "secret" not in answer.message
    assert "secret" not in gateway.log()


async def test_thousands_of_unknown_parameters_make_a_short_message(gateway: Server) -> None:
    answer = await gateway.do("echo/Plain", {f"{n}{'x' * 10 * (n < 20)}": 1 for n in range(9000)})
    assert_told(answer, "invalid_parameters")
    assert "0xxxxxxxxxx is unknown; " in answer.message
    assert "; 8,980 more (parameters: a)" in answer.message
    assert_told(await gateway.do("echo/Plain", {"y" * 8000: 1}), "invalid_parameters")
    assert_told(await gateway.do("echo/Plain", {"y" * 100_000: 1}))
    assert max(map(len, gateway.log().splitlines())) < 10_000


async def test_probes_answer_head(gateway: Server) -> None:
    for path in ("/", "/liveness", "/v1/liveness", "/v1/readiness"):
        answer = await gateway.request("HEAD", path)
        assert (answer.status, answer.raw) == (200, b"")


async def test_a_result_that_has_no_form_is_a_502_whoever_has_found_it(site: Site) -> None:
    (site.folder / "values.py").write_text(VALUES)
    (site.folder / "values.mjs").write_text("export const Nan = () => ({x: NaN});\n")
    (site.folder / "values.sh").write_text("cmd_Nan() { echo '{\"x\": NaN}'; }\n")
    modes = ("spawn", "standby", "fork", "persistent")
    site.configure(
        "\n".join(f"{mode}: {{runtime: python, module: ./values.py, mode: {mode}}}" for mode in modes)
        + "\nnode: {runtime: node, module: ./values.mjs}\nshell: {runtime: shell, module: ./values.sh}"
    )
    assert cli(site, "install").returncode == 0
    targets = [f"{mode}/{name}" for mode in modes for name in ("Nan", "Surrogate", "Leave")]
    async with served(site) as gateway:
        for target in [*targets, "node/Nan", "shell/Nan"]:
            answer = await gateway.do(target)
            assert (target, answer.status, answer.code) == (target, 502, "connector_invalid_output")
            assert answer.message.startswith(f"{target} gave no valid result: ")


@pytest.mark.parametrize("expect", [b"x", b"100-continue, x", b"\xed\xa0\x80", b"[" * 300 + b"\xa3"])
@pytest.mark.parametrize("path", ["/liveness", "/v1/do/echo/Any", "/nowhere"])
async def test_an_expectation_that_nobody_knows(gateway: Server, path: str, expect: bytes) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\nExpect: " % path.encode()
    answer = await raw(gateway, head + expect + b"\r\n\r\n{}")
    assert_told(answer, "expectation_failed", 417)
    assert "Traceback" not in gateway.log()


async def test_a_client_may_wait_for_the_word_to_go_on(gateway: Server) -> None:
    head = b"POST /v1/do/echo/Any HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head + b"Expect: 100-Continue\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"{}")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
    writer.close()
    unasked = await raw(gateway, head + b"Expect: 100-Continue\r\n\r\n{}")
    assert unasked.status == 200  # the body is there already
