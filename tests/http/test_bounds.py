"""Whatever a caller sends, the event loop has its turns: the probes answer meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.support import Answer, Server, Site, called_by, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

WHOLE = (32 << 20) - 1000  # bytes of a value in the largest body
PATIENCE = 1.0  # seconds for a probe, on a machine that has much else to do

TREE = {"items": {"$ref": "#"}, "properties": {"a": {"$ref": "#"}}, "uniqueItems": True}
SCHEMAS: dict[str, Any] = {
    "Unique": {"uniqueItems": True},
    "Pattern": {"pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"},
    "Many": {"items": {"enum": list(range(1000))}},
    "AnyOf": {"anyOf": [{"items": {"type": "string"}}, {"maxItems": 1}, {"items": {"maxLength": 1}}]},
    "Twice": {"allOf": [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}}]},
    "Tree": TREE,
    "Length": {"minLength": 1, "maxLength": 5},
}
PARAMETERS: dict[str, Any] = {
    **{name: {"schema": schema} for name, schema in SCHEMAS.items()},
    "Secret": {"secret": True},
    "Enum": {"enum": [1, "x"]},
    "Integer": {"type": "int"},
    "Plain": {"required": False},
}


def filled(piece: str, size: int = WHOLE) -> str:
    return piece * (size // len(piece))


VALUES: dict[str, Callable[[], str]] = {
    "text": lambda: f'"{filled("a")}"',
    "short text": lambda: f'"{filled("a", 1 << 20)}!"',
    "words": lambda: f'["{filled(chr(92) + "n")}"]',
    "numbers": lambda: f"[{filled('1,')}1]",
    "different": lambda: "[" + ",".join(f'"{n}"' for n in range(12_000)) + "]",
    "lists": lambda: f"[{filled('[],')}[]]",
    "some lists": lambda: f"[{filled('[1],', 190_000)}[2]]",
    "objects": lambda: f"[{filled(json.dumps({'a': 1}) + ',')}1]",
    "deep": lambda: "[" * 900 + "]" * 900,
    "secrets": lambda: json.dumps([f"secret-{n}" for n in range(100_000)]),
    "few secrets": lambda: json.dumps([f"secret-{n}" for n in range(4000)]),
    "lines": lambda: json.dumps("\n".join(f"line {n}" for n in range(90_000))),
    "digits": lambda: filled("9"),
}

CONTEXT: dict[str, Callable[[], str]] = {
    "url": lambda: f'"http://a/{filled("../")}"',
    "host": lambda: f'"http://{filled("é", WHOLE // 2)}/"',
    "labels": lambda: f'"http://{filled("é.", WHOLE // 3)}/"',
    "query": lambda: f'"http://a/?{filled("a=b&")}"',
    "text": lambda: f'"{filled("a")}"',
    "digits": lambda: filled("9"),
}


def envelope(response: str, rest: str = '"error":null') -> str:
    return '{"command_response_version":2,"command_response":{"body":1' + response + "}," + rest + "}"


def members(count: int, name: str = '"#"') -> str:
    """Return so many members of an object; `#` in the name is the number."""
    return ",".join(f"{name.replace('#', str(number))}:1" for number in range(count))


def many() -> str:
    return members(500_000)


BODIES: dict[str, Callable[[], str]] = {
    "members": lambda: "{" + members(2_000_000) + "}",
    "the same member": lambda: "{" + members(4_000_000, '"a"') + "}",
    "a long name of a member": lambda: '{"' + filled("n") + '":1}',
    "long names": lambda: "{" + members(9_999, f'"{"n" * 3000}#"') + "}",
    "task data": lambda: '{"spiff__task_data":{"a":[' + filled("1,") + "1]}}",
    "task data in a text": lambda: '{"spiff__task_data":"{' + members(1_000_000, r"\"#\"") + '}"}',
}
ANY = {"additional_parameters": True}
SPACE, LETTERS = " " * 7_000_000, "y" * 7_000_000
OUTPUTS: dict[str, tuple[Callable[[], str], int]] = {
    "members": (lambda: "{" + many() + "}", 200),
    "members of an envelope": (lambda: envelope("", many()), 502),
    "members of a response": (lambda: envelope(f",{many()}"), 502),
    "members of an error": (lambda: envelope("", '"error":{"error_code":"x",' + many() + "}"), 502),
    "lines": (lambda: envelope("", '"spiff__logs":[' + "1," * 3_000_000 + "1]"), 200),
    "texts": (lambda: envelope("", '"spiff__logs":[' + '"",' * 2_000_000 + '""]'), 200),
    "message": (lambda: '{"error":{"error_code":"x","message":"' + LETTERS + '"}}', 200),
    "code": (lambda: '{"error":{"message":"x","error_code":"' + LETTERS + '"}}', 200),
    "code of an envelope": (lambda: envelope("", '"error":{"message":"x","error_code":"' + LETTERS + '"}'), 200),
    "status": (lambda: '{"response":"","mimetype":"a/b","status":"' + SPACE + '"}', 502),
    "status of an error": (lambda: '{"error":{"error_code":"x"},"http_status":"' + SPACE + '"}', 200),
    "mimetype": (lambda: '{"response":"","mimetype":"a/' + LETTERS + '"}', 200),
    "parameter of a mimetype": (lambda: '{"response":"","mimetype":"a/b;' + SPACE + '"}', 200),
    "documents": (lambda: "[]\n" * 2_000_000, 502),
    "noise": (lambda: "{}x\n" * 1_500_000 + "{}", 200),
    "lists": (lambda: "[" + "[]," * 2_500_000 + "1]", 200),
    "depth": (lambda: "[" * 4_000_000, 502),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    site = Site(tmp_path_factory.mktemp("bounds"))
    commands = {name: {"parameters": {"a": one}} for name, one in PARAMETERS.items()}
    # It says on stderr what a secret may be in.
    script = "head -c 3000 >&2; cat > /dev/null; echo 1"
    take = {"run": ["sh", "-c", script], "max_memory": "1GiB", "commands": {**commands, "Any": ANY}}
    show = {"run": ["sh", "-c", 'cat > /dev/null; exec cat "$OUTPUTS/$0"'], "env": {"OUTPUTS": str(site.folder)}}
    connectors = {"take": take}
    for number, (output, _) in enumerate(OUTPUTS.values()):
        (site.folder / f"output{number}").write_text(output())
        connectors[f"show{number}"] = {**show, "run": [*show["run"], f"output{number}"], "commands": {"It": {}}}
    site.configure("\n".join(f"{name}: {json.dumps(one)}" for name, one in connectors.items()))
    async with served(site) as gateway:
        yield gateway


@pytest_asyncio.fixture
async def gateway(running: Server) -> AsyncIterator[Server]:
    async with called_by(running):
        yield running
        assert not running.events("internal_error")


def longest_probe(port: int, over: threading.Event) -> float:
    """Ask, in a thread, how long the slowest probe takes until then."""
    longest = 0.0
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        while not over.is_set():
            begun = time.monotonic()
            connection.request("GET", "/liveness")
            assert connection.getresponse().read() == b'{"ok":true}'
            longest = max(longest, time.monotonic() - begun)
    return longest


async def assert_quick(gateway: Server, target: str, body: str, told: str = "") -> Answer:
    """Call, and see that the probes were answered meanwhile."""
    over = threading.Event()
    probing = asyncio.create_task(asyncio.to_thread(longest_probe, gateway.port, over))
    try:
        answer = await gateway.do(target, data=io.BytesIO(body.encode()))
    finally:
        over.set()
    waited = await probing
    print(f"{target} {told}: {waited:.3f} s, {answer.status}")
    assert waited < PATIENCE, told
    return answer


@pytest.mark.parametrize("command", PARAMETERS)
async def test_no_value_holds_the_probes_up(gateway: Server, command: str) -> None:
    for name, value in VALUES.items():
        answer = await assert_quick(gateway, f"take/{command}", f'{{"a": {value()}}}', name)
        assert answer.status in {200, 400}, (name, answer.raw[:500])
        assert answer.status == 200 or answer.code == "invalid_parameters"
        assert len(answer.raw) < 5000


@pytest.mark.parametrize("member", ["callback_url", "task_id", "process_instance_id", "process_model_identifier"])
@pytest.mark.parametrize("name", CONTEXT)
async def test_no_context_holds_the_probes_up(gateway: Server, member: str, name: str) -> None:
    answer = await assert_quick(gateway, "take/Any", f'{{"spiff__{member}": {CONTEXT[name]()}}}')
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert f"spiff__{member} is longer than 8,190 bytes" in answer.message


@pytest.mark.parametrize("name", BODIES)
async def test_no_body_holds_the_probes_up(gateway: Server, name: str) -> None:
    answer = await assert_quick(gateway, "take/Any", BODIES[name]())
    assert answer.status == (400 if "member" in name else 200)


@pytest.mark.parametrize("name", OUTPUTS)
async def test_no_output_holds_the_probes_up(gateway: Server, name: str) -> None:
    answer = await assert_quick(gateway, f"show{list(OUTPUTS).index(name)}/It", "{}")
    assert answer.status == OUTPUTS[name][1], answer.raw[:500]
    assert sum(map(len, gateway.log().splitlines())) < 1 << 20
    assert len(answer.headers.get("Content-Type", "")) < 2000


async def test_of_many_secrets_nothing_is_shown(gateway: Server) -> None:
    answer = await gateway.do("take/Secret", {"a": [f"secret-{n}" for n in range(3000)]}, headers={"X-Request-Id": "m"})
    assert answer.status == 200
    assert {event["line"] for event in gateway.events("log", request_id="m")} == {"[redacted]"}
    few = await gateway.do("take/Secret", {"a": ["secret-one", "secret-two"]}, headers={"X-Request-Id": "f"})
    assert few.status == 200
    [line] = [event["line"] for event in gateway.events("log", request_id="f")]
    assert '"params":{"a":["[redacted]", "[redacted]"]}' in line
