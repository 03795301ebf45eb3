"""What is kept for requests to come: taken, given back, retired, and counted all the while."""

from __future__ import annotations

import asyncio

import pytest

from gateway.processes.places import Places
from gateway.processes.stock import Stock


class One:
    """A kept process that ends when the test says so."""

    def __init__(self) -> None:
        self.ready = True
        self.gone: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.may_end = asyncio.Event()
        self.ends = 0

    async def end(self) -> None:
        self.ends += 1
        await self.may_end.wait()


class Shelf:
    """A stock, and what it told."""

    def __init__(self) -> None:
        self.places = Places(8)
        self.unfit: list[One] = []
        self.stock: Stock[One] = Stock(self.places, self.unfit.append)  # type: ignore[type-var]

    def filled(self, count: int) -> list[One]:
        ones = [One() for _ in range(count)]
        for one in ones:
            self.stock.watch(one)
            self.stock.give_back(one)
        return ones


@pytest.fixture
async def shelf() -> Shelf:
    return Shelf()


async def closed(shelf: Shelf, *ones: One) -> None:
    for one in ones:
        one.may_end.set()
    await shelf.stock.close()
    assert (shelf.places.kept, len(shelf.stock), shelf.stock.leaving) == (0, 0, 0)


async def test_the_first_or_the_latest_is_taken_and_no_longer_counted(shelf: Shelf) -> None:
    first, second, third = shelf.filled(3)
    assert shelf.places.free() == 5
    assert shelf.stock.take() is first
    assert shelf.stock.take(latest=True) is third
    assert (shelf.places.kept, len(shelf.stock)) == (1, 1)
    shelf.stock.give_back(first)
    assert shelf.places.kept == 2
    await closed(shelf, first, second)


async def test_one_that_is_not_ready_is_retired_instead_of_taken(shelf: Shelf) -> None:
    first, second = shelf.filled(2)
    first.ready = False
    assert shelf.stock.take() is second
    assert shelf.unfit == [first]
    assert shelf.stock.take() is None
    await closed(shelf, first)
    assert (first.ends, second.ends) == (1, 0)


async def test_one_that_ends_by_itself_leaves_at_once(shelf: Shelf) -> None:
    (one,) = shelf.filled(1)
    one.ready = False
    one.gone.set_result(None)
    await asyncio.sleep(0)
    assert (shelf.unfit, len(shelf.stock)) == ([one], 0)
    await closed(shelf, one)


async def test_one_that_has_been_taken_may_end_as_it_likes(shelf: Shelf) -> None:
    (one,) = shelf.filled(1)
    shelf.stock.take()
    one.ready = False
    one.gone.set_result(None)
    await asyncio.sleep(0)
    assert (shelf.unfit, one.ends) == ([], 0)
    await closed(shelf)


async def test_a_look_retires_what_is_not_ready(shelf: Shelf) -> None:
    first, second = shelf.filled(2)
    second.ready = False
    shelf.stock.look()
    assert (shelf.unfit, list(shelf.stock)) == ([second], [first])
    await closed(shelf, first, second)


async def test_who_is_on_the_way_counts_and_can_be_given_up(shelf: Shelf) -> None:
    shelf.stock.expect()
    shelf.stock.expect()
    assert (shelf.places.kept, len(shelf.stock)) == (2, 2)
    assert shelf.stock.retire()
    one, unwanted = One(), One()
    shelf.stock.arrived(unwanted)
    assert (len(shelf.stock), unwanted in shelf.stock) == (1, False)
    shelf.stock.arrived(one)
    assert list(shelf.stock) == [one]
    await closed(shelf, one, unwanted)
    assert unwanted.ends == 1


async def test_who_does_not_come_is_counted_no_more(shelf: Shelf) -> None:
    shelf.stock.expect()
    shelf.stock.arrived(None)
    assert (shelf.places.kept, len(shelf.stock)) == (0, 0)


async def test_who_arrives_unfit_is_told(shelf: Shelf) -> None:
    shelf.stock.expect()
    one = One()
    one.ready = False
    shelf.stock.arrived(one)
    assert shelf.unfit == [one]
    await closed(shelf, one)


async def test_nothing_can_be_retired_where_nothing_is(shelf: Shelf) -> None:
    assert not shelf.stock.retire()
    assert shelf.places.kept == 0


async def test_a_place_is_free_while_one_still_ends_and_somebody_can_wait_for_that(shelf: Shelf) -> None:
    first, second = shelf.filled(2)
    shelf.stock.retire(second)
    assert (shelf.places.kept, shelf.stock.leaving) == (1, 1)
    waiting = asyncio.create_task(shelf.stock.one_less(60))
    second.may_end.set()
    await waiting
    assert shelf.stock.leaving == 0
    await closed(shelf, first)
