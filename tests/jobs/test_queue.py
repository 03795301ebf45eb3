"""Who goes next."""

from __future__ import annotations

import asyncio

import pytest

from gateway.jobs.gate import Gate
from tests.support import eventually


class Line:
    """Jobs that go through a gate, in the order in which they got through."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.gate = Gate(lambda _name: self.limit)
        self.through: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def arrive(self, name: str, connector: str = "c", priority: int = 0) -> None:
        async def go() -> None:
            await self.gate.enter(connector, priority)
            self.through.append(name)

        self.tasks[name] = asyncio.create_task(go())
        await asyncio.sleep(0)

    async def end(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


@pytest.fixture
async def line():
    made = Line(1)
    yield made
    await made.end()


async def test_a_limit_holds_and_the_highest_priority_goes_first(line: Line) -> None:
    await line.arrive("a")
    for name, priority in (("b", 0), ("c", 7), ("d", 0)):
        await line.arrive(name, priority=priority)
    for expected in (["a"], ["a", "c"], ["a", "c", "b"], ["a", "c", "b", "d"]):
        await eventually(lambda expected=expected: line.through == expected)
        line.gate.leave("c")


async def test_a_limit_that_grows_counts_from_the_next_leave_on(line: Line) -> None:
    for name in "abcd":
        await line.arrive(name)
    await eventually(lambda: line.through == ["a"])
    line.limit = 3
    line.gate.leave("c")
    await eventually(lambda: line.through == ["a", "b", "c", "d"])


async def test_whoever_gives_up_takes_no_place(line: Line) -> None:
    for name in "abc":
        await line.arrive(name)
    line.tasks["b"].cancel()
    line.gate.leave("c")
    await eventually(lambda: line.through == ["a", "c"])


async def test_a_place_given_to_one_that_gives_up_at_the_same_moment_is_not_lost(line: Line) -> None:
    await line.arrive("a")
    await line.arrive("b")
    line.gate.leave("c")
    line.tasks["b"].cancel()
    await line.arrive("c")
    await eventually(lambda: "c" in line.through)


async def test_a_closed_gate_lets_nobody_through(line: Line) -> None:
    await line.arrive("a")
    await line.arrive("b")
    line.gate.close()
    line.gate.leave("c")
    await line.arrive("c")
    await asyncio.sleep(0)
    assert line.through == ["a"]
