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

import aiohttp
import pytest
import pytest_asyncio

from tests.support import Server, Site, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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


VALUES = {
    "text": f'"{filled("a")}"',
    "short text": f'"{filled("a", 1 << 20)}!"',
    "words": f'["{filled(chr(92) + "n")}"]',
    "numbers": f"[{filled('1,')}1]",
    "different": "[" + ",".join(f'"{n}"' for n in range(12_000)) + "]",
    "lists": f"[{filled('[],')}[]]",
    "some lists": f"[{filled('[1],', 190_000)}[2]]",
    "objects": f"[{filled(json.dumps({'a': 1}) + ',')}1]",
    "deep": "[" * 900 + "]" * 900,
    "secrets": json.dumps([f"secret-{n}" for n in range(100_000)]),
    "few secrets": json.dumps([f"secret-{n}" for n in range(4000)]),
    "lines": json.dumps("\n".join(f"line {n}" for n in range(90_000))),
    "digits": filled("9"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    site = Site(tmp_path_factory.mktemp("bounds"))
    commands = {name: {"parameters": {"a": one}} for name, one in PARAMETERS.items()}
    # It says on stderr what a secret may be in.
    script = "head -c 3000 >&2; cat > /dev/null; echo 1"
    site.configure(f"take: {json.dumps({'run': ['sh', '-c', script], 'max_memory': '1GiB', 'commands': commands})}")
    async with served(site) as gateway:
        yield gateway


@pytest_asyncio.fixture
async def gateway(running: Server) -> AsyncIterator[Server]:
    async with aiohttp.ClientSession() as session:
        running.session = session
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


@pytest.mark.parametrize("command", PARAMETERS)
async def test_no_value_holds_the_probes_up(gateway: Server, command: str) -> None:
    for name, value in VALUES.items():
        body = f'{{"a": {value}}}'.encode()
        over = threading.Event()
        probing = asyncio.create_task(asyncio.to_thread(longest_probe, gateway.port, over))
        try:
            answer = await gateway.do(f"take/{command}", data=io.BytesIO(body))
        finally:
            over.set()
        waited = await probing
        assert answer.status in {200, 400}, (name, answer.raw[:500])
        assert answer.status == 200 or answer.code == "invalid_parameters"
        assert len(answer.raw) < 5000
        print(f"{command} {name}: {waited:.3f} s, {answer.status}")
        assert waited < PATIENCE, name


async def test_of_many_secrets_nothing_is_shown(gateway: Server) -> None:
    answer = await gateway.do("take/Secret", {"a": [f"secret-{n}" for n in range(3000)]}, headers={"X-Request-Id": "m"})
    assert answer.status == 200
    assert {event["line"] for event in gateway.events("log", request_id="m")} == {"[redacted]"}
    few = await gateway.do("take/Secret", {"a": ["secret-one", "secret-two"]}, headers={"X-Request-Id": "f"})
    assert few.status == 200
    [line] = [event["line"] for event in gateway.events("log", request_id="f")]
    assert '"params":{"a":["[redacted]", "[redacted]"]}' in line
