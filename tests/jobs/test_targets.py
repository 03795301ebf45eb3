"""Where callbacks may go."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from gateway.jobs.resolver import GuardedResolver
from gateway.jobs.targets import Refused, Targets
from tests.jobs.support import answering
from tests.support import PATIENCE, eventually
from tests.waiting import until

ANYWHERE = Targets.parse(None)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:7000/x",
        "http://127.0.0.1/x",
        "http://192.168.1.5/x",
        "https://backend.example.com/x",
        "http://[::1]:80/x",
        "http://10.0.0.1/x",
    ],
)
def test_by_default_localhost_the_lan_and_the_world_are_allowed(url: str) -> None:
    ANYWHERE.check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/x",
        "http://[::ffff:169.254.169.254]/x",
        "http://[64:ff9b::a9fe:a9fe]/x",
        "http://[2002:a9fe:a9fe::]/x",
        "http://[fd00:ec2::254]/x",
        "http://100.100.100.200/x",
        "http://0.0.0.0/x",
        "http://224.0.0.1/x",
        "file:///etc/passwd",
        "gopher://localhost/x",
        "http:///x",
        "http://user:password@localhost/x",
        "http://localhost:99999/x",
        "not a url",
        "",
    ],
)
def test_metadata_addresses_and_what_is_no_url_are_refused(url: str) -> None:
    with pytest.raises(Refused) as raised:
        ANYWHERE.check_url(url)
    assert "password" not in str(raised.value)


def test_only_what_is_listed_is_allowed() -> None:
    targets = Targets.parse(["backend", "*.example.com", "10.1.0.0/16", "::1"])
    for url in (
        "http://backend/x",
        "http://BACKEND./x",
        "http://a.b.example.com/x",
        "http://10.1.2.3/",
        "http://[::1]/",
    ):
        targets.check_url(url)
    for url in ("http://127.0.0.1/x", "http://10.2.0.1/x"):
        with pytest.raises(Refused, match=r"callbacks\.allow"):
            targets.check_url(url)
    with pytest.raises(Refused, match=r"callbacks\.allow"):
        Targets.parse(["backend"]).check_url("http://example.com/x")


def test_a_metadata_address_can_be_allowed_by_number() -> None:
    Targets.parse(["169.254.169.254"]).check_url("http://169.254.169.254/")


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/", "http://0xa9fea9fe/",
        "http://169.254.169.254./", "http://1.2.3.4.5/", "http://backend.0x1/", "http://[::169.254.169.254]/",
        "http://[64:ff9b:1::a9fe:a9fe]/", "http://\u2460\u2465\u2468.254.\u2460\u2465\u2468\uff0e254/",
        "http://\uff10x7f.\uff11/",
    ],
)  # fmt: skip
def test_a_number_is_an_address_in_its_usual_form_or_nothing(url: str) -> None:
    for targets in (ANYWHERE, Targets.parse(["127.0.0.0/8", "backend"])):
        with pytest.raises(Refused):
            targets.check_url(url)


def test_what_is_allowed_may_be_written_in_any_script() -> None:
    targets = Targets.parse(["B\u00dcCHER.example.", "*.Stra\u00dfe.example", "\uff11\uff12\uff17\u30020.0.1"])
    for url in ("http://xn--bcher-kva.example/", "http://b\u00fccher\u3002example/", "http://a.stra\u00dfe.example/"):
        assert targets.check_url(url)
    assert targets.check_url("http://127.0.0.1/")
    with pytest.raises(Refused, match=r"callbacks\.allow"):
        targets.check_url("http://127.0.0.2/")


@pytest.mark.parametrize("entry", ["", "http://backend", "backend:80", "*.", "a@b", "2130706433", "*.127.0.0.1"])
def test_an_entry_that_is_no_host_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="host"):
        Targets.parse([entry])


async def test_a_name_is_judged_by_what_it_resolves_to_each_time() -> None:
    resolver = GuardedResolver(ANYWHERE, answering("93.184.216.34", "169.254.169.254"))
    assert [one["host"] for one in await resolver.resolve("rebinding.example", 80)] == ["93.184.216.34"]
    with pytest.raises(Refused, match="metadata"):
        await resolver.resolve("rebinding.example", 80)


async def test_a_name_that_is_allowed_may_be_anywhere() -> None:
    resolver = GuardedResolver(Targets.parse(["metadata.internal"]), answering("169.254.169.254"))
    assert await resolver.resolve("metadata.internal", 80)


async def test_a_name_may_be_allowed_by_the_network_it_is_in() -> None:
    targets = Targets.parse(["10.0.0.0/8"])
    targets.check_url("http://backend.lan/x")
    assert await GuardedResolver(targets, answering("10.0.0.7")).resolve("backend.lan", 80)
    with pytest.raises(Refused):
        await GuardedResolver(targets, answering("8.8.8.8")).resolve("backend.lan", 80)


@pytest.mark.parametrize(
    "url",
    ["http://169\u3002254\u3002169\u3002254/latest", "http://1\uff169.254.169.254/", "http://[fe80::1%25eth0]/x",
     "http://[::1%25.example.com]/x", "http://[", "http://h:80\\@evil/x"],
)  # fmt: skip
def test_a_host_is_judged_in_the_form_in_which_it_is_connected_to(url: str) -> None:
    with pytest.raises(Refused):
        ANYWHERE.check_url(url)
    with pytest.raises(Refused):
        Targets.parse(["*.example.com", "10.0.0.0/8"]).check_url(url)


def test_digits_of_other_scripts_lead_to_no_other_place() -> None:
    with pytest.raises(Refused):
        Targets.parse(["10.0.0.0/8"]).check_url("http://\u246027.0.0.1:9302/x")
    assert ANYWHERE.check_url("http://\uff4cocalhost/x").raw_host == "localhost"


def test_names_that_nobody_resolves_keep_neither_the_loop_s_threads_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over, asked = threading.Event(), []

    def silent(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        over.wait(PATIENCE)
        raise socket.gaierror(socket.EAI_AGAIN, "too late")

    async def main() -> None:
        resolver = GuardedResolver(ANYWHERE)
        lookups = [asyncio.create_task(resolver.resolve(f"h{number}.example", 80)) for number in range(50)]
        await eventually(lambda: len(asked) == len(lookups))
        assert await asyncio.to_thread(len, "free") == 4
        for lookup in lookups:
            lookup.cancel()

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    asyncio.run(main())  # it would wait for its threads
    assert not over.is_set()
    over.set()
    assert until(lambda: not [one for one in threading.enumerate() if one.name == "lookup"], PATIENCE)


async def test_a_name_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    with pytest.raises(socket.gaierror):
        await GuardedResolver(ANYWHERE).resolve("nowhere.example", 80)
