"""Who is served next where several clients wait: nobody's flood holds up another."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import TYPE_CHECKING

from gateway.errors import ConnectorBusy
from gateway.processes.places import Lane, Places
from gateway.sections import Limits
from tests.processes.slots import slot
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


class Floor:
    """Calls of clients, each of which holds its slot until it is ended by hand. `begun` has their clients in order."""

    def __init__(self, most: int = 64) -> None:
        self.places = Places(most)
        self.begun: list[str] = []
        self.refused: list[tuple[str, ConnectorBusy]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._gates: dict[tuple[str, str], list[asyncio.Event]] = {}

    async def call(self, client: str, lane: str = "fax", *, limits: Limits, times: int = 1) -> None:
        for _ in range(times):
            self.tasks.append(asyncio.create_task(self._call(client, lane, limits)))
            await asyncio.sleep(0)

    async def _call(self, client: str, lane: str, limits: Limits) -> None:
        gate = asyncio.Event()
        try:
            async with slot(self.places, lane, limits, patience=60, client=client):
                self.begun.append(client)
                self._gates.setdefault((client, lane), []).append(gate)
                await gate.wait()
        except ConnectorBusy as problem:
            self.refused.append((client, problem))

    async def end(self, client: str, lane: str = "fax") -> None:
        """End the first run of a client, and wait until whoever is next has begun."""
        ended = sum(task.done() for task in self.tasks)
        self._gates[client, lane].pop(0).set()
        await eventually(lambda: sum(task.done() for task in self.tasks) > ended)
        for _ in range(4):
            await asyncio.sleep(0)

    async def end_all(self) -> None:
        """End everything, and see that nothing is left."""
        while not all(task.done() for task in self.tasks):
            for gates in self._gates.values():
                while gates:
                    gates.pop().set()
            await asyncio.sleep(0)
        assert_empty(self.places)

    def runs(self) -> Counter[str]:
        return Counter(self.places._runs)

    def waits(self, lane: str = "fax") -> dict[str, int]:
        return {client: len(waiting) for client, waiting in self.places.lane(lane).waiting.items()}


def assert_empty(places: Places) -> None:
    assert (places.running, places._runs, places._turns) == (0, {}, {})
    for lane in places._lanes.values():
        assert (lane.running, lane.queued, lane.runs, lane.waiting) == (0, 0, {}, {})


FOUR = Limits(concurrency=4, queue=100)


async def test_who_has_fewer_runs_in_a_lane_goes_first() -> None:
    floor = Floor()
    await floor.call("flood", limits=FOUR, times=20)
    await floor.call("other", limits=FOUR, times=3)
    for _ in range(3):
        await floor.end("flood")
    assert floor.begun == ["flood"] * 4 + ["other", "other", "flood"]  # two each: it is the flood's turn again
    await floor.end("other")
    assert floor.begun[-1] == "other"
    await floor.end_all()


async def test_who_has_as_many_as_others_waits_for_his_turn_and_a_clients_own_calls_keep_their_order() -> None:
    floor = Floor()
    one = Limits(concurrency=1, queue=100)
    await floor.call("holder", limits=one)
    for client, times in (("a", 3), ("b", 2), ("c", 1)):
        await floor.call(client, limits=one, times=times)
    await floor.end("holder")
    for client in ("a", "b", "c", "a", "b"):
        assert floor.begun[-1] == client
        await floor.end(client)
    assert floor.begun == ["holder", "a", "b", "c", "a", "b", "a"]
    await floor.end_all()


async def test_a_client_that_calls_many_connectors_has_no_larger_share_of_all_places() -> None:
    floor = Floor(most=4)
    for number in range(50):
        await floor.call("many", f"lane{number}", limits=FOUR, times=4)
    await floor.call("one", limits=FOUR, times=10)
    assert floor.runs() == {"many": 4}
    for _ in range(2):
        await floor.end("many", "lane0")
    assert floor.runs() == {"many": 2, "one": 2}
    await floor.end("one")
    assert floor.runs() == {"many": 2, "one": 2}
    await floor.end("many", "lane0")
    assert floor.runs() == {"many": 2, "one": 2}
    await floor.end_all()


async def test_the_last_slot_of_a_connector_goes_to_who_has_fewest_there_however_much_he_has_elsewhere() -> None:
    floor = Floor(most=9)
    await floor.call("few", limits=FOUR, times=20)
    await floor.call("rich", "elsewhere", limits=Limits(concurrency=8, queue=100), times=20)
    assert floor.runs() == {"few": 4, "rich": 5}
    await floor.call("rich", limits=FOUR)
    for _ in range(3):
        await floor.end("few")
        if not floor.waits().get("rich"):
            break
    assert floor.places.lane("fax").runs == {"few": 3, "rich": 1}
    await floor.end_all()


async def test_connectors_take_turns_for_one_client() -> None:
    floor = Floor(most=1)
    await floor.call("a", "x", limits=FOUR, times=3)
    await floor.call("a", "y", limits=FOUR, times=2)
    for lane in ("x", "x", "y", "x", "y"):
        assert floor.places.lane(lane).runs == {"a": 1}
        await floor.end("a", lane)
    await floor.end_all()


# --- a full queue


async def test_a_full_queue_makes_room_for_who_has_less_by_sending_the_latest_of_who_has_most_away() -> None:
    floor = Floor()
    limits = Limits(concurrency=1, queue=4)
    await floor.call("flood", limits=limits, times=5)
    first_four = floor.tasks[:4]
    await floor.call("other", limits=limits)
    await eventually(lambda: floor.refused)
    assert floor.waits() == {"flood": 3, "other": 1}
    assert not any(task.done() for task in first_four)
    client, problem = floor.refused.pop()
    assert client == "flood"
    assert problem.message == "all 1 slots are taken and the queue is full"
    assert problem.retry_after is not None
    await floor.end_all()


async def test_who_has_as_much_as_who_has_most_is_refused_himself() -> None:
    floor = Floor()
    limits = Limits(concurrency=1, queue=4)
    await floor.call("flood", limits=limits, times=5)
    await floor.call("other", limits=limits, times=9)
    await eventually(lambda: len(floor.refused) == 9)
    assert floor.waits() == {"flood": 2, "other": 2}  # and the flood's run
    await floor.call("flood", limits=limits, times=9)
    await eventually(lambda: len(floor.refused) == 18)
    assert floor.waits() == {"flood": 2, "other": 2}
    assert {problem.message for client, problem in floor.refused} == {"all 1 slots are taken and the queue is full"}
    assert Counter(client for client, _ in floor.refused) == {"flood": 2 + 9, "other": 7}
    await floor.end_all()


async def test_a_queue_of_one_is_not_passed_to_and_fro() -> None:
    floor = Floor()
    limits = Limits(concurrency=1, queue=1)
    await floor.call("flood", limits=limits, times=2)
    for client in ("other", "flood", "third", "flood"):
        await floor.call(client, limits=limits)
    assert [client for client, _ in floor.refused] == ["flood", "flood", "third", "flood"]
    assert floor.waits() == {"other": 1}
    await floor.end_all()


async def test_who_is_alone_is_told_how_many_of_his_calls_wait_and_others_are_not() -> None:
    floor = Floor()
    limits = Limits(concurrency=1, queue=2)
    await floor.call("a", limits=limits, times=4)
    await eventually(lambda: floor.refused)
    assert floor.refused[0][1].message == "all 1 slots are taken and 2 calls wait (the queue holds 2)"
    await floor.call("b", limits=limits, times=2)
    await eventually(lambda: len(floor.refused) == 3)
    assert [problem.message for _, problem in floor.refused[1:]] == ["all 1 slots are taken and the queue is full"] * 2
    await floor.end_all()


async def test_when_to_come_back_follows_from_ones_own_calls() -> None:
    floor = Floor()
    one = Limits(concurrency=1, queue=100)
    lane = floor.places.lane("fax")
    lane.typical = 4
    await floor.call("flood", limits=one, times=10)
    assert (lane.retry_after("flood"), lane.retry_after("other")) == (40, 8)
    await floor.call("other", limits=one)
    assert (lane.retry_after("flood"), lane.retry_after("other")) == (60, 16)
    await floor.end_all()
    assert Lane("a").retry_after("anybody") == 1


# --- races, and what it costs


async def test_nobody_is_lost_in_any_mix_of_clients_cancellations_time_outs_and_full_queues() -> None:
    dice = random.Random(7)
    places = Places(5)
    most: Counter[str] = Counter()

    async def work(client: str, lane: str, patience: float) -> None:
        async with slot(places, lane, Limits(concurrency=3, queue=6), patience=patience, client=client):
            most[lane] = max(most[lane], places.lane(lane).running)
            assert places.running <= 5
            assert sum(places._runs.values()) == places.running
            await asyncio.sleep(dice.random() / 500)

    async def hang_up(task: asyncio.Task[None]) -> None:
        await asyncio.sleep(dice.choice([0, 0, dice.random() / 100]))
        task.cancel()

    tasks, hanging_up = [], []
    for _ in range(400):
        client = dice.choice(["flood"] * 8 + ["a", "b"])
        tasks.append(asyncio.create_task(work(client, dice.choice("xyz"), dice.choice([0.005, 60]))))
        if dice.random() < 0.3:
            hanging_up.append(asyncio.create_task(hang_up(tasks[-1])))
        if dice.random() < 0.3:
            await asyncio.sleep(0)
    await asyncio.gather(*hanging_up)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(end) for end in ends} == {type(None), ConnectorBusy, asyncio.CancelledError}
    assert max(most.values()) <= 3
    assert_empty(places)


async def test_who_is_sent_away_and_cancelled_in_the_same_turn_leaves_nothing() -> None:
    floor = Floor()
    limits = Limits(concurrency=1, queue=2)
    await floor.call("flood", limits=limits, times=3)
    last = floor.tasks[-1]
    newcomer = asyncio.create_task(floor._call("other", "fax", limits))
    floor.tasks.append(newcomer)
    asyncio.get_running_loop().call_soon(last.cancel)  # after it was sent away, before it knows
    with contextlib.suppress(asyncio.CancelledError):
        await last
    assert floor.waits() == {"flood": 1, "other": 1}
    await floor.end_all()


async def test_a_run_that_ends_asks_no_other_connector_while_there_is_room_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    floor = Floor(most=1000)
    one = Limits(concurrency=1, queue=100)
    for number in range(100):
        await floor.call("a", f"lane{number}", limits=one, times=2)
        await floor.call("b", f"lane{number}", limits=one)
    asked: list[str] = []
    original: Callable[[Places, Lane], str] = Places._next_client

    def next_client(places: Places, lane: Lane) -> str:
        asked.append(lane.name)
        return original(places, lane)

    monkeypatch.setattr(Places, "_next_client", next_client)
    await floor.end("a", "lane7")
    assert asked == ["lane7"]
    await floor.end_all()
