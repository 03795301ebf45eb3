"""Without a key only this machine may call, and no page of another site that somebody on it looks at."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.support import Answer, Server, Site, called_by, cli, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ECHO = "echo: {run: [cat], commands: {Go: {additional_parameters: true}}}"
EVIL = "http://evil.example"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A gateway without a key."""
    site = Site(tmp_path_factory.mktemp("strangers"))
    site.configure(
        ECHO,
        gateway="""
        hosts: [gateway.local]
        public_url: https://spiff.example/connectors
        cors_origins: ["http://app.example"]
        """,
    )
    async with served(site) as gateway:
        yield gateway


@pytest_asyncio.fixture
async def gateway(running: Server) -> AsyncIterator[Server]:
    async with called_by(running):
        yield running


def assert_forbidden(answer: Answer) -> None:
    assert (answer.status, answer.code) == (403, "forbidden")
    assert "X-Request-Id" in answer.headers


# --- pages of other sites


@pytest.mark.parametrize(
    "marks",
    [
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": "http://localhost:8001"},
        {"Origin": "https://localhost"},
        {"Origin": "http://app.example.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "anything"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {"Origin": EVIL, "Content-Type": "text/plain"},
        {"Origin": EVIL, "Content-Type": "application/x-www-form-urlencoded"},
        {"Host": "evil.example:7004"},
        {"Host": "evil.example", "Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example"},
        {"Host": "10.0.0.1:7004"},
        {"Host": "what is this"},
    ],
    ids=str,
)
async def test_what_a_page_of_another_site_sends_is_refused_and_runs_nothing(
    gateway: Server, marks: dict[str, str]
) -> None:
    headers = {**marks, "X-Request-Id": "from-a-page"}
    assert_forbidden(await gateway.do("echo/Go", data=b"{}", headers=headers))
    for path in ("/v1/do/echo/Go", "/v1/commands", "/v1/jobs", "/v1/status", "/metrics", "/v1/typeahead/x", "/nope"):
        assert_forbidden(await gateway.get(path, headers=headers))
    assert (await gateway.request("HEAD", "/v1/do/echo/Go", headers=headers)).status == 403
    assert not gateway.events("run", request_id="from-a-page")


@pytest.mark.parametrize(
    "marks",
    [
        {},
        {"Content-Type": "application/x-www-form-urlencoded"},  # curl -d
        {"Content-Type": "text/plain"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://app.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://spiff.example"},
        {"Host": "localhost:7004"},
        {"Host": "localhost:7004", "Origin": "http://localhost:7004"},
        {"Host": "LocalHost"},
        {"Host": "connectors.localhost:80"},
        {"Host": "[::1]:7004"},
        {"Host": "127.0.1.1"},
        {"Host": "gateway.local:7004"},
        {"Host": "spiff.example"},
    ],
    ids=str,
)
async def test_what_comes_from_here_is_served(gateway: Server, marks: dict[str, str]) -> None:
    answer = await gateway.do("echo/Go", data=b"{}", headers=marks)
    assert (answer.status, answer.code) == (200, None)
    assert (await gateway.get("/v1/commands", headers=marks)).status == 200


async def test_a_host_that_is_left_out_is_no_browser(gateway: Server) -> None:
    with contextlib.closing(socket.create_connection(("127.0.0.1", gateway.port))) as caller:
        caller.sendall(b"GET /v1/commands HTTP/1.0\r\n\r\n")
        answer = await eventually(lambda: caller.recv(1000))
    assert answer.startswith(b"HTTP/1.0 200 ")


async def test_probes_and_sign_ins_are_for_everybody(gateway: Server) -> None:
    away = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Host": "10.0.0.1", "Origin": EVIL}
    for path in ("/", "/liveness", "/v1/liveness", "/v1/readiness"):
        assert (await gateway.get(path, headers=away)).status == 200
    assert (await gateway.get("/v1/auth/echo/Go?redirect_url=http://x", headers=away)).status == 404
    assert (await gateway.get("/v1/auth/echo/Go/callback?code=1&state=2", headers=away)).status == 404


async def test_with_a_key_the_key_alone_says_who_may_call(site: Site) -> None:
    site.configure(ECHO, gateway="api_key: k3y")
    async with served(site) as gateway:
        for marks in ({"Origin": EVIL}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "connector-gateway:7004"}):
            assert (await gateway.get("/v1/commands", headers=marks)).status == 401
            key = {"Authorization": "Bearer k3y"}
            assert (await gateway.get("/v1/commands", headers={**marks, **key})).status == 200


async def test_an_open_gateway_has_any_name_and_refuses_other_sites_all_the_same(site: Site) -> None:
    site.configure(ECHO, gateway="open: true")
    async with served(site, "--listen", "0.0.0.0:0") as gateway:
        assert (await gateway.get("/v1/commands", headers={"Host": "connector-gateway:7004"})).status == 200
        own = {"Host": "a.example", "Origin": "https://a.example"}
        assert (await gateway.get("/v1/commands", headers=own)).status == 200
        for marks in ({"Origin": EVIL}, {"Sec-Fetch-Site": "cross-site"}):
            assert_forbidden(await gateway.get("/v1/commands", headers=marks))
        [warning] = gateway.events("no_api_key", level="warning")
        assert warning["hint"].startswith("whoever reaches it can call everything")


# --- other machines


@pytest.mark.parametrize("address", ["0.0.0.0:0", ":0", "[::]:0"])
@pytest.mark.parametrize("option", ["--restart", "--no-restart"])
def test_without_a_key_no_other_machine_is_served(site: Site, address: str, option: str) -> None:
    site.configure(ECHO)
    done = cli(site, "serve", option, "--listen", address)
    assert done.returncode == 2
    assert done.stderr.startswith("error: other machines reach ")
    assert done.stderr.count("\n") == 1
    assert "CONNECTOR_PROXY_API_KEY" in done.stderr
    assert "gateway.open: true" in done.stderr
    assert not site.state.exists()


@pytest.mark.parametrize("option", ["--restart", "--no-restart"])
def test_nor_at_a_socket_that_was_handed_down(site: Site, option: str) -> None:
    site.configure(ECHO)
    with socket.create_server(("0.0.0.0", 0)) as listening:
        done = cli(site, "serve", option, "--fd", str(listening.fileno()), pass_fds=(listening.fileno(),))
    assert done.returncode == 2
    assert done.stderr.startswith("error: other machines reach 0.0.0.0, and there is no key")


@pytest.mark.parametrize("given", [{"gateway": "open: true"}, {"env": {"CONNECTOR_PROXY_API_KEY": "k3y"}}], ids=str)
@pytest.mark.parametrize("option", ["--restart", "--no-restart"])
async def test_with_a_key_or_when_it_is_said_it_is(site: Site, given: dict[str, Any], option: str) -> None:
    site.configure(ECHO, gateway=given.get("gateway", ""))
    async with served(site, option, "--listen", "0.0.0.0:0", env=given.get("env")) as gateway:
        assert (await gateway.get("/v1/commands", headers={"Authorization": "Bearer k3y"})).status == 200


async def test_a_socket_of_this_machine_alone_needs_no_key(site: Site) -> None:
    site.configure(ECHO)
    path = str(site.folder / "socket")
    with contextlib.ExitStack() as stack:
        inner = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(path)
        local.listen()
        fds = inner.fileno(), local.fileno()
        async with served(site, *(word for fd in fds for word in ("--fd", str(fd))), pass_fds=fds) as gateway:
            assert await gateway.commands() == ["echo/Go"]
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as caller:
                caller.connect(path)
                caller.sendall(b"GET /v1/commands HTTP/1.0\r\nHost: localhost\r\n\r\n")
                assert (await eventually(lambda: caller.recv(1000))).startswith(b"HTTP/1.0 200 ")


@pytest.mark.parametrize(
    ("gateway", "said"),
    [
        ("", "whoever is on this machine"),
        ("{listen: ':7004', open: true}", "whoever reaches the address"),
        ("{listen: ':7004', api_key: k3y}", "who has the key"),
        ("{listen: ':7004'}", "none, `gateway serve` would not start like this: other machines reach 0.0.0.0"),
    ],
)
def test_check_says_who_may_call(site: Site, gateway: str, said: str) -> None:
    site.configure(ECHO, gateway=gateway)
    shown = cli(site, "check")
    assert (shown.returncode, f"callers       {said}" in shown.stdout) == (0, True)
    assert json.loads(cli(site, "check", "--json").stdout)["callers"].startswith(said)


def test_a_host_that_nobody_knows_is_one_clear_line(site: Site) -> None:
    site.configure(ECHO)
    done = cli(site, "serve", "--listen", "256.256.256.256:0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot listen on 256.256.256.256:0: ")
