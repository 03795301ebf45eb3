"""Counting what runs, in one process and over several."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gateway.processes.slots import LocalSlots, SharedSlots, Table
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[SharedSlots, SharedSlots]]:
    """Two workers of one gateway with three processes in all."""
    workers = SharedSlots(tmp_path, 0, 2, 3), SharedSlots(tmp_path, 1, 2, 3)
    yield workers
    for one in workers:
        one._table.close()
        one._socket.close()


def test_a_slot_that_one_worker_holds_is_taken_for_the_other(pair: tuple[SharedSlots, SharedSlots]) -> None:
    first, second = pair
    assert first.take("fax", 1)
    assert not second.take("fax", 1)
    assert second.running("fax") == 1
    first.give("fax")
    assert second.take("fax", 1)


def test_the_cap_holds_over_all_connectors_and_workers(pair: tuple[SharedSlots, SharedSlots]) -> None:
    first, second = pair
    assert [first.take("a", 9), second.take("b", 9), first.take("c", 9)] == [True] * 3
    assert not second.take("d", 9)
    assert first.total() == second.total() == 3


def test_waiting_is_summed(pair: tuple[SharedSlots, SharedSlots]) -> None:
    first, second = pair
    first.wait("fax", 1)
    second.wait("fax", 1)
    assert first.waiting("fax") == 2
    second.wait("fax", -1)
    assert first.waiting("fax") == 1


def test_a_dead_workers_slots_are_free_once_it_is_cleared(
    tmp_path: Path, pair: tuple[SharedSlots, SharedSlots]
) -> None:
    first, second = pair
    assert first.take("fax", 1)
    table = Table(tmp_path / "slots", 2)
    table.clear(0)
    table.close()
    assert second.take("fax", 1)


async def test_giving_back_wakes_only_a_worker_in_which_somebody_waits(tmp_path: Path) -> None:
    first, second = SharedSlots(tmp_path, 0, 2, 3), SharedSlots(tmp_path, 1, 2, 3)
    woken: list[int] = []
    asked: list[str] = []
    first.open(lambda: woken.append(0), asked.append)
    second.open(lambda: woken.append(1), asked.append)
    assert first.take("fax", 1)
    first.give("fax")
    assert first.take("fax", 1)
    second.wait("fax", 1)
    first.give("fax")
    await eventually(lambda: woken)
    assert (woken, asked) == ([1], [])
    for one in (first, second):
        one.close()


async def test_one_worker_is_asked_for_what_it_keeps(tmp_path: Path) -> None:
    workers = [SharedSlots(tmp_path, number, 3, 3) for number in range(3)]
    asked: list[tuple[int, str]] = []
    for number, one in enumerate(workers):
        one.open(lambda: None, lambda name, number=number: asked.append((number, name)))
    for number in (1, 2):
        workers[number].keep("", 2)
        workers[number].keep("fax", number)
    assert [one.kept_elsewhere() for one in workers] == [4, 2, 2]
    assert [one.kept_elsewhere("fax") for one in workers] == [3, 2, 1]
    workers[0].ask()
    workers[1].ask("fax")
    workers[0].ask("nobody's")
    await eventually(lambda: len(asked) == 2)
    assert sorted(asked) == [(1, ""), (2, "fax")]
    for one in workers:
        one.close()


async def test_a_thousand_connectors_have_rows_of_their_own(pair: tuple[SharedSlots, SharedSlots]) -> None:
    first, second = pair
    for number in range(1000):
        assert first.take(f"c{number}", 1)
        assert not second.take(f"c{number}", 1)
        first.give(f"c{number}")
    await asyncio.sleep(0)


def test_local_slots_keep_both_bounds() -> None:
    slots = LocalSlots(2)
    assert slots.take("a", 1)
    assert not slots.take("a", 1)
    assert slots.take("b", 1)
    assert not slots.take("c", 1)
    slots.give("a")
    assert slots.take("c", 1)
