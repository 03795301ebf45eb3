"""How often a client may call, and how much of it may be at work at once."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from gateway.calls.quotas import Quotas
from gateway.errors import ConfigError, RateLimited
from gateway.http.app import CONNECTIONS, GATEWAY, build
from gateway.http.connections import Runner
from gateway.identity import DEFAULT
from gateway.observe.events import Bus, CallsRefused
from gateway.sections import ClientLimits
from gateway.settings import read_settings
from gateway.units import Rate, Size
from gateway.yaml_document import load
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from gateway.gateway import Gateway
    from gateway.observe.events import Event
    from tests.support import Site


# aiohttp says so once, of keys that are texts.
pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")


class Bench:
    """Quotas with a clock that stands, and limits that can be changed."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.limits: dict[str, ClientLimits] = {}
        self.events: list[Event] = []
        self.quotas = Quotas(self.limits.get, self.events.append, lambda: self.now)
        self.begun: list[tuple[str, float]] = []

    def enter(self, client: str = "a", times: int = 1) -> None:
        for _ in range(times):
            self.begun.append((client, self.quotas.enter(client, self.limits.get(client))))

    def leave(self) -> None:
        client, since = self.begun.pop(0)
        self.quotas.leave(client, since)

    def refused(self, client: str = "a") -> RateLimited:
        with pytest.raises(RateLimited) as raised:
            self.enter(client)
        return raised.value

    def calls(self, client: str = "a") -> int:
        """Return how many calls pass now, one after the other."""
        for count in range(10_000):
            try:
                self.enter(client)
            except RateLimited:
                return count
            self.leave()
        raise AssertionError


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_client_without_limits_has_none(bench: Bench) -> None:
    bench.enter(times=1000)


def test_a_burst_passes_at_once_and_then_the_rate(bench: Bench) -> None:
    bench.limits["a"] = ClientLimits(rate=Rate(50), burst=100)
    assert bench.calls() == 100
    bench.now += 1
    assert bench.calls() == 50
    bench.now += 3600
    assert bench.calls() == 100


def test_without_a_burst_what_comes_in_a_second_passes_at_once_and_one_at_least(bench: Bench) -> None:
    for client, rate, burst in (("a", "50/s", 50), ("b", "90/min", 2), ("c", "100/h", 1)):
        bench.limits[client] = ClientLimits(rate=Rate.parse(rate))
        assert bench.calls(client) == burst


def test_who_is_too_fast_is_told_when_there_is_room_for_the_next(bench: Bench) -> None:
    bench.limits["a"] = ClientLimits(rate=Rate.parse("6/min"))
    bench.enter()
    problem = bench.refused()
    assert problem.retry_after == pytest.approx(10)
    assert problem.message == "this client sends more than 6/min (its limits.rate)"
    bench.now += 4
    assert bench.refused().retry_after == pytest.approx(6)  # to be refused costs nothing
    bench.now += 6.001
    bench.enter()


def test_one_clients_rate_and_concurrency_are_no_others(bench: Bench) -> None:
    bench.limits |= dict.fromkeys("ab", ClientLimits(rate=Rate(1), concurrency=1))
    bench.enter("a")
    bench.refused("a")
    bench.enter("b")


def test_so_many_are_at_work_at_once(bench: Bench) -> None:
    bench.limits["a"] = ClientLimits(concurrency=2)
    bench.enter(times=2)
    assert bench.refused().message == "2 calls of this client are at work (its limits.concurrency)"
    bench.leave()
    bench.enter()
    bench.refused()


def test_who_has_too_much_at_work_comes_again_when_one_should_be_over(bench: Bench) -> None:
    bench.limits["a"] = ClientLimits(concurrency=4)
    bench.enter(times=5 - 1)
    assert bench.refused().retry_after == 1
    for _ in range(60):
        bench.now += 40
        bench.leave()
        bench.enter()
    assert bench.refused().retry_after == pytest.approx(160 / 4, rel=0.1)
    for _ in range(60):
        bench.now += 4000
        bench.leave()
        bench.enter()
    assert bench.refused().retry_after == 60


def test_a_call_that_is_refused_for_what_is_at_work_does_not_count_for_the_rate(bench: Bench) -> None:
    bench.limits["a"] = ClientLimits(rate=Rate(1), burst=2, concurrency=1)
    bench.enter()
    for _ in range(5):
        bench.refused()
    bench.leave()
    bench.enter()


def test_new_limits_hold_for_what_has_been_counted(bench: Bench) -> None:
    bench.enter(times=3)  # there was no limit
    bench.limits["a"] = ClientLimits(concurrency=3)
    bench.refused()
    bench.limits["a"] = ClientLimits(concurrency=4, rate=Rate(10), burst=5)
    bench.enter()
    for _ in range(4):
        bench.leave()
    assert bench.calls() == 4
    bench.limits["a"] = ClientLimits(rate=Rate(1), burst=50)
    assert bench.calls() == 0  # more room is no gift
    bench.now += 7
    assert bench.calls() == 7
    bench.now += 1000
    bench.limits["a"] = ClientLimits(rate=Rate(1), burst=3)
    assert bench.calls() == 3


def test_what_is_refused_is_told_at_once_and_then_once_a_minute(bench: Bench) -> None:
    bench.limits |= {"a": ClientLimits(rate=Rate(1)), "b": ClientLimits(concurrency=1)}
    bench.enter()
    for _ in range(5):
        bench.refused()
    assert bench.events == [CallsRefused(client="a", limit="rate", refused=1)]
    bench.enter("b")
    bench.refused("b")
    assert bench.events[1:] == [CallsRefused(client="b", limit="concurrency", refused=1)]
    bench.leave()
    for _ in range(60):
        bench.now += 1
        bench.calls()
    assert bench.events[2:] == [CallsRefused(client="a", limit="rate", refused=4 + 60)]


# --- runs of jobs


def test_jobs_leave_one_to_calls_and_are_told_when_there_is_room(bench: Bench) -> None:
    room: list[str] = []
    bench.quotas.on_room = room.append
    bench.limits["a"] = ClientLimits(concurrency=3, rate=Rate(0.001))
    assert [bench.quotas.take("a") for _ in range(3)] == [True, True, False]
    bench.enter()
    bench.refused()
    bench.leave()
    assert room == ["a"]
    assert not bench.quotas.take("a")
    bench.quotas.give("a")
    assert room == ["a", "a"]
    assert bench.quotas.take("a")
    bench.quotas.give("a")
    assert room == ["a", "a"]  # nobody has asked meanwhile


def test_a_concurrency_of_one_is_for_jobs_too(bench: Bench) -> None:
    bench.limits["a"] = ClientLimits(concurrency=1)
    assert bench.quotas.take("a")
    assert not bench.quotas.take("a")
    bench.refused()


def test_a_run_that_goes_on_after_its_answer_counts_and_is_never_refused(bench: Bench) -> None:
    bench.limits["a"] = ClientLimits(concurrency=1)
    bench.enter()
    bench.quotas.add("a")
    bench.leave()
    bench.refused()
    bench.quotas.give("a")
    bench.enter()


# --- memory


def test_nothing_is_kept_of_clients_that_rest(bench: Bench) -> None:
    for number in range(10_000):
        client = f"c{number}"
        if number % 2:
            bench.limits[client] = ClientLimits(rate=Rate(1), burst=2)
        bench.enter(client)
        bench.leave()
        bench.now += 0.01
    assert len(bench.quotas._uses) < 500  # those whose buckets fill up again within the next second, and a few
    bench.now += 10
    for number in range(500):
        bench.enter(f"d{number}")
        bench.leave()
    assert len(bench.quotas._uses) <= 2


def test_who_is_at_work_is_not_forgotten(bench: Bench) -> None:
    bench.limits["a"] = ClientLimits(concurrency=1)
    bench.enter()
    for number in range(1000):
        bench.quotas.leave(f"c{number}", bench.quotas.enter(f"c{number}", None))
    bench.refused()


# --- what operators write


@pytest.mark.parametrize(
    ("text", "a_second", "shown"),
    [("50/s", 50, "50/s"), ("3000/min", 50, "50/s"), ("100/h", 100 / 3600, "100/h"), ("0.5/s", 0.5, "30/min"),
     (" 90/min ", 1.5, "90/min"), ("0.25/h", 0.25 / 3600, "6.944e-05/s")],
)  # fmt: skip
def test_a_rate_is_a_number_and_a_unit_of_time(text: str, a_second: float, shown: str) -> None:
    assert Rate.parse(text) == pytest.approx(a_second)
    assert str(Rate.parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["50", 50, "50/m", "50/sec", "50 / s", "-1/s", "/s", "1e3/s", "50/d", "", None, True, "\u0665/s", "5/s 5/s"]
)
def test_anything_else_is_no_rate(text: Any) -> None:
    with pytest.raises(ValueError, match="is not a rate: write 50/s, 3000/min or 100/h"):
        Rate.parse(text)


@pytest.mark.parametrize("text", ["0/s", "0.0/h"])
def test_a_rate_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="lets nothing through"):
        Rate.parse(text)


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"burst": 5}, "say rate, too"),
        ({"concurrency": 0}, ">= 1"),
        ({"rate": "50/s", "burst": 0}, ">= 1"),
        ({"rates": "50/s"}, "unknown key"),
        ({"rate": 50}, "is not a rate"),
    ],
)
def test_limits_that_cannot_be_understood_are_refused(tmp_path: Path, limits: dict[str, Any], problem: str) -> None:
    file = tmp_path / "acme.yaml"
    file.write_text(json.dumps({"limits": limits}))
    with pytest.raises(ConfigError, match=problem):
        load(file).child("limits").decode(ClientLimits)


# --- over HTTP


class Served:
    """A gateway in this process, whose one client has limits."""

    def __init__(self, gateway: Gateway, url: str, session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.url = url
        self.session = session

    def limit(self, **limits: Any) -> None:
        said = ClientLimits(**limits)
        self.gateway.quotas.limits_of = lambda client: said if client == DEFAULT else None

    async def do(
        self, connector: str = "quick", data: bytes | io.BytesIO = b"{}"
    ) -> tuple[int, Any, Mapping[str, str]]:
        async with self.session.post(f"{self.url}/v1/do/{connector}/Go", data=data) as answer:
            return answer.status, await answer.json(), answer.headers

    def at_work(self) -> int:
        return self.gateway.quotas.at_work(DEFAULT)


@pytest.fixture
async def served(site: Site) -> AsyncIterator[Served]:
    site.script("quick.sh", "echo '[1]'")
    site.script("slow.sh", f"while [ ! -e {site.folder}/gate ]; do sleep 0.01; done; echo 1")
    typeahead = "{Go: {typeahead: {category: words, prefix: q}, parameters: {q: {type: str, required: false}}}}"
    site.configure(
        f"quick: {{run: [./quick.sh], sandbox: off, commands: {typeahead}}}\n"
        "slow: {run: [./slow.sh], sandbox: off, commands: {Go: {}}}"
    )
    app = build(read_settings(site.file)[0], Bus())
    runner = Runner(app, app[CONNECTIONS])
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession() as session:
            yield Served(app[GATEWAY], url, session)
    finally:
        await runner.cleanup()


async def test_who_calls_too_fast_gets_429_and_when_to_come_again(served: Served) -> None:
    served.limit(rate=Rate.parse("2/h"))
    assert (await served.do())[0] == 200
    status, body, headers = await served.do()
    assert (status, body["error"]["error_code"], body["command_response_version"]) == (429, "rate_limited", 2)
    assert 1700 < int(headers["Retry-After"]) <= 1800
    assert (await served.do("nothing"))[0] == 429  # whatever it asks for


async def test_who_has_as_many_at_work_as_he_may_gets_429(served: Served, site: Site) -> None:
    served.limit(concurrency=2)
    calls = [asyncio.create_task(served.do("slow")) for _ in range(2)]
    await eventually(lambda: served.at_work() == 2)
    status, body, headers = await served.do()
    assert (status, body["error"]["error_code"], headers["Retry-After"]) == (429, "rate_limited", "1")
    (site.folder / "gate").touch()
    assert [(await call)[0] for call in calls] == [200, 200]
    assert (await served.do())[0] == 200
    assert served.at_work() == 0


async def test_who_hangs_up_has_one_less_at_work(served: Served) -> None:
    served.limit(concurrency=1)
    call = asyncio.create_task(served.do("slow"))
    await eventually(lambda: served.at_work() == 1)
    call.cancel()
    await eventually(lambda: served.at_work() == 0)
    assert (await served.do())[0] == 200


async def test_suggestions_count_too(served: Served) -> None:
    served.limit(rate=Rate.parse("2/h"))
    async with served.session.get(f"{served.url}/v1/typeahead/words?prefix=a") as answer:
        assert answer.status == 200
    async with served.session.get(f"{served.url}/v1/typeahead/words?prefix=a") as answer:
        assert (answer.status, (await answer.json())["error"]["error_code"]) == (429, "rate_limited")


async def test_a_body_is_not_waited_for_when_its_call_is_refused(served: Served) -> None:
    served.limit(rate=Rate.parse("1/h"))
    await served.do()
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(served.url).port)
    writer.write(b"POST /v1/do/quick/Go HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n{")
    assert (await reader.readline()).startswith(b"HTTP/1.1 429 ")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("largest", [Size(100), Size(100_000)])
async def test_a_body_may_be_as_large_as_the_clients_own_bound(served: Served, largest: Size) -> None:
    served.limit(max_request=largest)
    assert (await served.do(data=b"{}".ljust(largest)))[0] == 200
    status, body, _ = await served.do(data=b"{}".ljust(largest + 1))
    assert (status, body["error"]["error_code"]) == (413, "request_too_large")
    assert body["error"]["message"] == f"the body is larger than {largest} (this client's limits.max_request)"


async def test_a_clients_own_bound_does_not_go_beyond_the_gateways(served: Served) -> None:
    served.limit(max_request=Size(1 << 40))
    status, body, _ = await served.do(data=io.BytesIO(b"{}".ljust((32 << 20) + 1)))
    assert (status, body["error"]["message"]) == (413, "the body is larger than 32MiB (gateway.max_request)")
