"""The sample `s3` before moto's server."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.installing import installed
from tests.samples.conftest import configured, free_port
from tests.support import Server, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with one bucket, `orders`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = (tmp_path_factory.mktemp("moto") / "log").open("wb")
    with (
        log,
        subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        ) as server,
    ):
        try:
            _make_bucket(server, f"{url}/orders")
            yield url
        finally:
            server.terminate()


def _make_bucket(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT", data=b"")).close()
        except urllib.error.URLError:
            assert server.poll() is None, "moto did not start"
            assert time.monotonic() < deadline, "moto is not ready after a minute"
        else:
            return


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(samples: Path, endpoint: str) -> AsyncIterator[Server]:
    code = "runtime: python, package: connector_s3, venv: .gateway/runtimes/s3/current/venv"
    keys = "access_key_id: AKIATEST, secret_access_key: a-long-secret"
    site = configured(
        samples,
        "s3",
        f"""
        s3: {{config: {{endpoint_url: "{endpoint}", {keys}}}}}
        unset: {{{code}}}
        garbled: {{{code}, config: {{region: us-east-1, endpoint_url: "not a url", {keys}}}}}
        nowhere: {{{code}, config: {{region: us-east-1, endpoint_url: "http://127.0.0.1:{free_port()}", {keys}}}}}
        """,
    )
    installed(site, "s3")
    async with served(site) as gateway:
        yield gateway


async def done(gateway: Server, command: str, **params: Any) -> Any:
    answer = await gateway.do(f"s3/{command}", {"bucket": "orders", **params})
    assert (answer.status, answer.code) == (200, None), answer.json
    return answer.body


async def test_its_commands_are_listed(gateway: Server) -> None:
    assert sorted(one for one in await gateway.commands() if one.startswith("s3/")) == [
        "s3/GetObject",
        "s3/ListObjects",
        "s3/PutObject",
    ]


async def test_text_comes_back_as_it_was_written(gateway: Server) -> None:
    put = await done(gateway, "PutObject", key="a/☃.txt", content="ærlig", metadata={"order": "17"})
    assert put["size"] == 6
    got = await done(gateway, "GetObject", key="a/☃.txt")
    assert (got["content"], got["base64"], got["size"], got["etag"]) == ("ærlig", False, 6, put["etag"])
    assert (got["content_type"], got["metadata"]) == ("text/plain; charset=utf-8", {"order": "17"})


async def test_bytes_come_back_as_they_were_written(gateway: Server) -> None:
    content = base64.b64encode(bytes(range(256))).decode()
    await done(gateway, "PutObject", key="data.bin", content=content, base64=True, content_type="image/x-made-up")
    got = await done(gateway, "GetObject", key="data.bin", base64=True)
    assert (got["content"], got["size"], got["content_type"]) == (content, 256, "image/x-made-up")


async def test_a_list_goes_on_where_it_ended(gateway: Server) -> None:
    for number in range(3):
        await done(gateway, "PutObject", key=f"list/{number}", content=str(number))
    first = await done(gateway, "ListObjects", prefix="list/", limit=2)
    assert [one["key"] for one in first["objects"]] == ["list/0", "list/1"]
    assert first["objects"][0]["size"] == 1
    rest = await done(gateway, "ListObjects", prefix="list/", after=first["next"])
    assert [one["key"] for one in rest["objects"]] == ["list/2"]
    assert rest["next"] is None
    assert await done(gateway, "ListObjects", prefix="none/") == {"objects": [], "next": None}


@pytest.mark.parametrize(
    ("target", "params", "code", "later", "words"),
    [
        ("s3/GetObject", {"key": "none"}, "NoSuchKey", False, "does not exist"),
        ("s3/GetObject", {"key": "a", "bucket": "nowhere"}, "NoSuchBucket", False, "bucket does not exist"),
        ("s3/GetObject", {"key": "a", "bucket": "not a bucket"}, "ParamValidation", False, "Invalid bucket name"),
        ("s3/GetObject", {"key": "big", "max_bytes": 4}, "s3_object_too_large", False, "big has 5 bytes, more than 4"),
        ("s3/GetObject", {"key": "latin"}, "s3_invalid_content", False, "ask for it with base64"),
        ("s3/PutObject", {"key": "a", "content": "%", "base64": True}, "s3_invalid_content", False, "not base64"),
        ("unset/GetObject", {"key": "a"}, "s3_not_configured", False, "set config.access_key_id"),
        ("garbled/GetObject", {"key": "a"}, "s3_not_configured", False, "not a url"),
        ("nowhere/GetObject", {"key": "a"}, "s3_unreachable", True, "127.0.0.1"),
    ],
)  # fmt: skip
async def test_what_goes_wrong_is_told(
    gateway: Server, target: str, params: dict[str, Any], code: str, later: bool, words: str
) -> None:
    await done(gateway, "PutObject", key="big", content="12345")
    await done(gateway, "PutObject", key="latin", content=base64.b64encode(b"\xe6").decode(), base64=True)
    answer = await gateway.do(target, {"bucket": "orders", **params})
    assert (answer.status, answer.code) == (200, code), answer.json
    assert words in answer.message
    assert answer.json["command_response"].get("http_status") == (503 if later else None)
