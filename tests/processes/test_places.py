"""How many processes are alive at once, who waits, and who is served next."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from gateway.errors import ConnectorBusy, GatewayDraining
from gateway.identity import DEFAULT
from gateway.processes.places import Lane, Places
from gateway.sections import Limits
from tests.processes.slots import slot
from tests.support import Answer, Server, Site, called_by, eventually, gone, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ANY = "commands: {Go: {additional_parameters: true}}"

# Leaves its pid in alive/, counts whose process exists (one that is just ending included), notes in started/ who it
# is, waits for the gate, and answers what it counted.
COUNTING = """
site=$1 who=$2
mkdir -p $site/alive $site/gates
number=$(cat | sed 's/.*"n":\\([0-9]*\\).*/\\1/')
echo > $site/alive/$$
count=0
for pid in $(ls $site/alive); do [ -d /proc/$pid ] && count=$((count + 1)); done
echo $who$number >> $site/started
while [ ! -e $site/gates/$who ]; do sleep 0.01; done
echo $count
"""


class Crew:
    """Connectors that run COUNTING, before one gateway."""

    def __init__(self, site: Site, gateway: Server) -> None:
        self.site = site
        self.gateway = gateway

    def call(self, who: str, number: int, **options: Any) -> asyncio.Task[Answer]:
        return asyncio.create_task(self.gateway.do(f"{who}/Go", {"n": number}, **options))

    async def load(self, who: str) -> tuple[int, int]:
        status = await self.gateway.status(who)
        return status["in_flight"], status["queued"]

    async def until(self, who: str, *, running: int, queued: int) -> None:
        async def reached() -> bool:
            return await self.load(who) == (running, queued)

        await eventually(reached)

    async def until_started(self, who: str, count: int) -> None:
        await eventually(lambda: len([one for one in self.started() if one.startswith(who)]) == count)

    def started(self) -> list[str]:
        file = self.site.folder / "started"
        return file.read_text().split() if file.exists() else []

    def open(self, *who: str) -> None:
        for one in who:
            (self.site.folder / "gates").mkdir(exist_ok=True)
            (self.site.folder / "gates" / one).touch()


def crew_site(site: Site, connectors: dict[str, str], gateway: str = "") -> Site:
    site.level = "off"
    site.script("counting.sh", COUNTING)
    lines = [
        f"{who}: {{run: [./counting.sh, '{site.folder}', {who}], {limits}, {ANY}}}"
        for who, limits in connectors.items()
    ]
    site.configure("\n".join(lines), gateway=gateway)
    return site


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One gateway for every test whose connectors have a lane of their own."""
    site = Site(tmp_path_factory.mktemp("places"))
    crew_site(
        site,
        {
            "exact": "concurrency: 3",
            "fifo": "concurrency: 1",
            "full": "concurrency: 1, queue: 1",
            "impatient": "concurrency: 1, queue_timeout: 100ms",
            "brief": "concurrency: 1",
            "slow": "concurrency: 1, queue: 1",
            "fast": "concurrency: 1",
            "hangup": "concurrency: 1",
            "regret": "concurrency: 1",
        },
    )
    async with served(site) as gateway:
        yield gateway


@pytest_asyncio.fixture
async def crew(running: Server) -> AsyncIterator[Crew]:
    async with called_by(running):
        yield Crew(running.site, running)


# --- over HTTP


async def test_never_more_than_concurrency_are_alive_at_once(crew: Crew) -> None:
    calls = [crew.call("exact", n) for n in range(12)]
    await crew.until("exact", running=3, queued=9)
    await crew.until_started("exact", 3)
    crew.open("exact")
    counts = [(await call).body for call in calls]
    assert max(counts) == 3
    assert await crew.load("exact") == (0, 0)


async def test_who_waits_is_served_in_order(crew: Crew) -> None:
    calls = [crew.call("fifo", 0)]
    await crew.until_started("fifo", 1)
    for n in range(1, 7):
        calls.append(crew.call("fifo", n))
        await crew.until("fifo", running=1, queued=n)
    crew.open("fifo")
    await asyncio.gather(*calls)
    assert [one for one in crew.started() if one.startswith("fifo")] == [f"fifo{n}" for n in range(7)]


async def test_a_full_queue_answers_busy_at_once(crew: Crew) -> None:
    first = crew.call("full", 0)
    await crew.until_started("full", 1)
    second = crew.call("full", 1)
    await crew.until("full", running=1, queued=1)
    refused = await crew.gateway.do("full/Go")
    assert (refused.status, refused.code) == (429, "connector_busy")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.message.startswith("full/Go: ")
    assert not first.done()
    crew.open("full")
    assert [(await first).status, (await second).status] == [200, 200]
    assert crew.gateway.events("run", connector="full", outcome="connector_busy", pid=0)


async def test_a_wait_that_runs_out_answers_busy(crew: Crew) -> None:
    first = crew.call("impatient", 0)
    await crew.until_started("impatient", 1)
    refused = await crew.gateway.do("impatient/Go", {"n": 1})
    assert (refused.status, refused.code) == (429, "connector_busy")
    assert "no slot came free within 0.1 s" in refused.message
    assert "Retry-After" in refused.headers
    assert await crew.load("impatient") == (1, 0)
    crew.open("impatient")
    assert (await first).status == 200
    assert "impatient1" not in crew.started()


async def test_a_deadline_that_passes_in_the_queue_answers_busy_since_nothing_was_run(crew: Crew) -> None:
    first = crew.call("brief", 0)
    await crew.until_started("brief", 1)
    refused = await crew.gateway.do("brief/Go", {"n": 1}, headers={"X-Timeout": "0.1"})
    assert (refused.status, refused.code) == (429, "connector_busy")
    crew.open("brief")
    assert (await first).status == 200
    assert "brief1" not in crew.started()


async def test_a_slow_connector_with_a_full_queue_does_not_delay_another(crew: Crew) -> None:
    crew.open("fast")
    slow = [crew.call("slow", n) for n in range(2)]
    await crew.until("slow", running=1, queued=1)
    for n in range(5):
        assert (await crew.call("fast", n)).status == 200
    assert not any(call.done() for call in slow)
    crew.open("slow")
    await asyncio.gather(*slow)


async def test_a_caller_that_hangs_up_while_its_process_runs_gives_its_slot_back(crew: Crew) -> None:
    call = crew.call("hangup", 0)
    await crew.until_started("hangup", 1)
    processes = crew.gateway.connectors()
    assert processes
    waiting = crew.call("hangup", 1)
    await crew.until("hangup", running=1, queued=1)
    call.cancel()
    await gone(processes)
    crew.open("hangup")
    assert (await waiting).status == 200
    assert await crew.load("hangup") == (0, 0)
    assert crew.gateway.events("run", connector="hangup", outcome="cancelled")


async def test_a_caller_that_hangs_up_in_the_queue_gives_its_place_back(crew: Crew) -> None:
    first = crew.call("regret", 0)
    await crew.until_started("regret", 1)
    waiting = crew.call("regret", 1)
    await crew.until("regret", running=1, queued=1)
    waiting.cancel()
    await crew.until("regret", running=1, queued=0)
    crew.open("regret")
    assert (await first).status == 200
    assert (await crew.call("regret", 2)).status == 200
    assert "regret1" not in crew.started()


async def test_the_cap_over_all_connectors_is_exact_and_they_take_turns(site: Site) -> None:
    crew_site(site, dict.fromkeys(["a", "b", "c", "holder"], "concurrency: 2"), gateway="max_processes: 2")
    async with served(site) as gateway:
        crew = Crew(site, gateway)
        holder = crew.call("holder", 0)
        await crew.until_started("holder", 1)
        calls = [crew.call("a", 0)]
        await crew.until_started("a", 1)
        for who, count in (("a", 4), ("b", 2), ("c", 1)):
            for n in range(1, count + 1):
                calls.append(crew.call(who, n))
                await crew.until(who, running=int(who == "a"), queued=n)
        crew.open("a", "b", "c")
        counts = [(await call).body for call in calls]
        assert counts == [2] * len(calls)
        assert crew.started() == ["holder0", "a0", "a1", "b1", "c1", "a2", "b2", "a3", "a4"]
        assert not holder.done()
        crew.open("holder")
        await holder


# --- the places themselves


class Held:
    """A slot that is taken and given back by hand, so that races can be put into one turn of the loop."""

    def __init__(self, places: Places, name: str, limits: Limits, patience: float = 60) -> None:
        self._slot = slot(places, name, limits, patience=patience)

    async def take(self) -> Held:
        await self._slot.__aenter__()
        return self

    def give_back(self) -> None:
        with pytest.raises(StopIteration):
            self._slot.__aexit__(None, None, None).send(None)


@pytest.fixture
def places() -> Places:
    return Places(4)


ONE = Limits(concurrency=1, queue=5)


async def waiting_for(places: Places, name: str, limits: Limits = ONE, patience: float = 60) -> asyncio.Task[Held]:
    """Start to wait for a slot, and return when the wait has begun."""
    queued = places.lane(name).queued
    task = asyncio.create_task(Held(places, name, limits, patience).take())
    await eventually(lambda: places.lane(name).queued == queued + 1)
    return task


async def test_a_waiter_cancelled_in_the_turn_it_is_granted_passes_the_slot_on(places: Places) -> None:
    holder = await Held(places, "fax", ONE).take()
    unlucky = await waiting_for(places, "fax")
    next_one = await waiting_for(places, "fax")
    holder.give_back()
    assert places.lane("fax").running == 1
    unlucky.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unlucky
    (await next_one).give_back()
    assert (places.lane("fax").running, places.lane("fax").queued, places.running) == (0, 0, 0)


async def test_a_waiter_cancelled_before_it_is_granted_is_passed_over(places: Places) -> None:
    holder = await Held(places, "fax", ONE).take()
    unlucky = await waiting_for(places, "fax")
    next_one = await waiting_for(places, "fax")
    unlucky.cancel()
    holder.give_back()
    (await next_one).give_back()
    with pytest.raises(asyncio.CancelledError):
        await unlucky
    assert (places.lane("fax").running, places.lane("fax").queued, places.running) == (0, 0, 0)


async def test_a_waiter_granted_in_the_turn_its_patience_ends_keeps_the_slot(places: Places) -> None:
    loop = asyncio.get_running_loop()
    holder = await Held(places, "fax", ONE).take()
    lucky = await waiting_for(places, "fax", patience=0.2)
    loop.call_soon(holder.give_back)
    over = loop.time() + 0.25
    while loop.time() < over:  # both are due when the loop turns again, the grant first
        pass
    (await lucky).give_back()
    assert (places.lane("fax").running, places.lane("fax").queued, places.running) == (0, 0, 0)


async def test_a_cap_that_frees_serves_the_next_connector_when_the_first_waiter_is_cancelled() -> None:
    places = Places(1)
    holder = await Held(places, "a", ONE).take()
    unlucky = await waiting_for(places, "b")
    next_one = await waiting_for(places, "c")
    holder.give_back()
    unlucky.cancel()
    (await next_one).give_back()
    with pytest.raises(asyncio.CancelledError):
        await unlucky
    assert places.running == 0


async def test_a_queue_of_zero_places_is_never_waited_in(places: Places) -> None:
    limits = Limits(concurrency=1, queue=0)
    holder = await Held(places, "fax", limits).take()
    with pytest.raises(ConnectorBusy, match="all 1 slots are taken and 0 calls wait"):
        await Held(places, "fax", limits).take()
    holder.give_back()
    (await Held(places, "fax", limits).take()).give_back()


async def test_who_is_refused_for_the_cap_over_all_is_told_that_it_was_the_cap() -> None:
    places = Places(1)
    holder = await Held(places, "fax", ONE).take()
    with pytest.raises(ConnectorBusy, match=r"all 1 processes of the gateway \(max_processes\) are taken"):
        await Held(places, "mail", Limits(queue=0)).take()
    holder.give_back()


async def test_a_raised_concurrency_counts_for_those_who_wait_already(places: Places) -> None:
    holder = await Held(places, "fax", ONE).take()
    waiting = await waiting_for(places, "fax")
    newcomer = await Held(places, "fax", Limits(concurrency=3)).take()
    for held in (holder, await waiting, newcomer):
        held.give_back()
    assert places.running == 0


async def test_slots_survive_any_mix_of_cancellations_time_outs_and_errors() -> None:
    dice = random.Random(7)
    places = Places(5)
    alive: dict[str, int] = dict.fromkeys("abc", 0)

    async def work(name: str, patience: float) -> None:
        async with slot(places, name, Limits(concurrency=3, queue=100), patience=patience):
            alive[name] += 1
            try:
                assert alive[name] <= 3
                assert sum(alive.values()) <= 5
                await asyncio.sleep(dice.random() / 500)
                if dice.random() < 0.2:
                    raise ValueError
            finally:
                alive[name] -= 1

    async def hang_up(task: asyncio.Task[None]) -> None:
        await asyncio.sleep(dice.random() / 50)
        task.cancel()

    tasks = [asyncio.create_task(work(dice.choice("abc"), dice.choice([0.005, 60]))) for _ in range(250)]
    await asyncio.gather(*[hang_up(task) for task in tasks if dice.random() < 0.4])
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(end) for end in ends} == {type(None), ValueError, ConnectorBusy, asyncio.CancelledError}
    assert places.running == 0
    for name in alive:
        assert (places.lane(name).running, places.lane(name).queued) == (0, 0)


async def test_the_hint_when_to_come_back_stays_between_a_second_and_a_minute() -> None:
    lane = Lane("a")
    lane.typical = 0.001
    assert lane.retry_after(DEFAULT) == 1
    lane.typical = 600
    assert lane.retry_after(DEFAULT) == 60
    lane.typical = 4
    lane.concurrency = 2
    assert lane.retry_after(DEFAULT) == 2


async def test_who_has_been_served_is_not_refused_afterwards(places: Places) -> None:
    holder = await Held(places, "fax", ONE).take()
    served = await waiting_for(places, "fax")
    left = await waiting_for(places, "fax")
    lane = places.lane("fax")
    lane.waiting[DEFAULT][0].set_result(None)  # granted by hand, and still in the queue
    places.refuse(GatewayDraining)
    with pytest.raises(GatewayDraining):
        await left
    await served
    lane.running, places.running = 1, 1
    holder.give_back()
    assert places.running == 0
