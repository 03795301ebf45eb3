"""What a service manager and a gateway tell each other, in systemd's words."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from gateway.errors import ConfigError
from gateway.service import Service, sockets
from tests.support import Site, cli, eventually, served

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
    found = sockets(Service(), host, 0)
    try:
        assert {one.family for one in found} == families
    finally:
        for one in found:
            one.close()


def test_what_is_handed_down_has_to_listen() -> None:
    silent = socket.socket().detach()
    with pytest.raises(ConfigError, match=f"descriptor {silent}, which was handed down, is a socket that does not lis"):
        sockets(Service(fds=(silent,)), None, 0)
    read, write = os.pipe()
    with pytest.raises(ConfigError, match=f"descriptor {read}, which was handed down, is no socket"):
        sockets(Service(fds=(read,)), None, 0)
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
