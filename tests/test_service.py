"""What a service manager and a gateway tell each other, in systemd's words."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from gateway.errors import ConfigError
from gateway.service import Local, Service, Tcp, listening
from tests.support import PATIENCE, Site, cli, eventually, served
from tests.test_keeper import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ME = str(os.getpid())


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket that hears what is told, and its address."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(address)
        line.setblocking(False)
        yield line, address


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, Service()),
        ({"LISTEN_PID": ME, "LISTEN_FDS": "2"}, Service(fds=(3, 4))),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "2"}, Service()),
        ({"LISTEN_FDS": "2"}, Service()),
        ({"LISTEN_PID": ME, "LISTEN_FDS": "many"}, Service()),
        ({"NOTIFY_SOCKET": "@a", "WATCHDOG_USEC": "1500000"}, Service(notify="@a", watchdog=1.5)),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, Service()),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": ME}, Service(watchdog=1.5)),
    ],
)
def test_what_is_said_to_another_process_is_not_for_us(environment: dict[str, str], told: Service) -> None:
    assert Service.told(environment) == told


def test_what_is_told_arrives_at_a_path_and_at_an_abstract_address(manager: tuple[socket.socket, str]) -> None:
    line, address = manager
    Service(notify=address).tell("READY=1")
    assert line.recv(100) == b"READY=1"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind(f"\0gateway-test-{ME}")
        Service(notify=f"@gateway-test-{ME}").tell("READY=1")
        assert abstract.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all"])
def test_nobody_has_to_listen(address: str) -> None:
    Service(notify=address).tell("READY=1")


def test_a_manager_that_does_not_read_holds_nobody_up(manager: tuple[socket.socket, str]) -> None:
    for _ in range(2000):  # more than its queue takes
        Service(notify=manager[1]).tell("WATCHDOG=1")


@pytest.mark.parametrize(
    ("host", "families"),
    [
        ("127.0.0.1", {socket.AF_INET}),
        ("::1", {socket.AF_INET6}),
        (None, {socket.AF_INET, socket.AF_INET6}),
    ],
)
def test_every_address_of_a_host_is_listened_at(host: str | None, families: set[int]) -> None:
    with listening(Service(), [Tcp(host, 0)], 0o660) as found:
        assert {one.family for one in found} == families


def take(fd: int) -> None:
    with listening(Service(fds=(fd,)), [Tcp(None, 0)], 0o660):
        pass


def test_what_is_handed_down_has_to_listen() -> None:
    silent = socket.socket().detach()
    with pytest.raises(ConfigError, match=f"descriptor {silent}, which was handed down, is a socket that does not lis"):
        take(silent)
    read, write = os.pipe()
    with pytest.raises(ConfigError, match=f"descriptor {read}, which was handed down, is no socket"):
        take(read)
    for fd in (silent, read, write):
        os.close(fd)


async def test_a_manager_is_told_when_it_serves_that_it_lives_and_that_it_stops(
    site: Site, manager: tuple[socket.socket, str]
) -> None:
    line, address = manager
    site.configure()
    heard: list[bytes] = []

    def hear() -> list[bytes]:
        try:
            while True:
                heard.append(line.recv(100))
        except BlockingIOError:
            return heard

    told = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "300000"}
    async with served(site, env=told) as server:
        await eventually(lambda: hear().count(b"WATCHDOG=1") > 2)
        assert heard.count(b"READY=1") == 1
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
    assert hear()[-1] == b"STOPPING=1"


async def test_a_gateway_serves_at_a_socket_that_it_was_given(site: Site) -> None:
    site.configure("echo: {run: [cat], commands: {Go: {additional_parameters: true}}}")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.set_inheritable(listener.fileno(), True)
        port = listener.getsockname()[1]
        async with served(site, "--fd", str(listener.fileno()), pass_fds=(listener.fileno(),)) as server:
            assert server.port == port
            assert (await server.do("echo/Go")).status == 200


def test_a_descriptor_that_is_none_is_named(site: Site) -> None:
    site.configure()
    done = cli(site, "serve", "--fd", "99")
    assert done.returncode == 2
    assert "descriptor 99, which was handed down, is no socket: Bad file descriptor" in done.stderr


# --- Unix sockets


@pytest.fixture
def path(short_site: Site) -> Iterator[Path]:
    """Where a socket may be: a short name in a folder that is there."""
    yield short_site.folder / "gw.sock"
    (short_site.folder / "gw.sock").unlink(missing_ok=True)


def curl(path: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(["curl", "-s", "--unix-socket", str(path), *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("option", ["--restart", "--no-restart"])
async def test_curl_calls_through_a_unix_socket_whose_file_goes_with_the_gateway(
    short_site: Site, path: Path, option: str
) -> None:
    short_site.configure("echo: {run: [cat], commands: {Go: {additional_parameters: true}}}")
    async with served(short_site, option, "--listen", f"unix:{path}") as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        call = "http://localhost/v1/do/echo/Go", "-d", '{"n": 1}'
        status, answer = await asyncio.to_thread(curl, path, *call)
        assert (status, json.loads(answer)["command_response"]["body"]["params"]) == (0, {"n": 1})
        assert server.events("listening", path=str(path), host=None)
        assert not server.events("no_tls")
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
        assert not path.exists()


async def test_a_unix_socket_alone_will_do_and_needs_no_key(short_site: Site, path: Path) -> None:
    short_site.configure(gateway="listen: ['unix:gw.sock']\nsocket_mode: '0600'")
    with (short_site.folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve"], cwd=short_site.folder, stdout=log, stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        await eventually(lambda: curl(path, "http://localhost/liveness")[0] == 0)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0


async def test_what_a_dead_gateway_has_left_is_replaced(short_site: Site, path: Path) -> None:
    short_site.configure()
    async with served(short_site, "--listen", f"unix:{path}") as server:
        server.signal(signal.SIGKILL)
        await server.ended()
    assert path.is_socket()
    async with served(short_site, "--listen", f"unix:{path}"):
        assert (await asyncio.to_thread(curl, path, "http://localhost/liveness"))[0] == 0


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught, listening(Service(), [Local(str(path))], 0o660):
        pass
    return str(caught.value)


def test_who_listens_already_is_left_alone(path: Path) -> None:
    with listening(Service(), [Local(str(path))], 0o660) as [first]:
        assert refusal(path) == f"cannot listen on unix:{path}: somebody listens there already"
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
            first.accept()[0].close()
    assert not path.exists()


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("mine")
    assert refusal(path) == f"cannot listen on unix:{path}: there is something that is no socket"
    assert path.read_text() == "mine"


def test_a_path_that_cannot_be_is_told(path: Path) -> None:
    assert "No such file or directory" in refusal(path.parent / "none" / "gw.sock")
    assert "the path is longer than 107 bytes" in refusal(path.parent / ("x" * 107))


def test_a_socket_that_took_its_place_is_not_removed(path: Path) -> None:
    with listening(Service(), [Local(str(path))], 0o660):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.is_socket()
