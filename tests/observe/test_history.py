"""The last quarter of an hour: what its points say, of everybody's calls and of one client's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from gateway.observe.events import RegistryLoaded, RunFinished
from gateway.observe.history import NOTHING, POINTS, STEP, Busy, History
from tests.observe.test_metrics import idle

if TYPE_CHECKING:
    from gateway.observe.metrics import Metrics


class Scene:
    """Metrics with a history of them, a clock that is set by hand, and what is busy."""

    def __init__(self) -> None:
        self.metrics: Metrics = idle()
        self.now = 1000.0
        self.busy: list[Busy] = []
        self.history = History(self.metrics, lambda: self.busy, lambda: self.now)

    def ran(self, connector: str, outcome: str = "ok", *, client: str | None = None, took: float = 0.2) -> None:
        self.metrics(
            RunFinished(
                connector=connector, command="Go", request_id="r", outcome=outcome, client=client, pid=7, total=took
            )
        )

    async def passed(self, steps: float = 1.0) -> None:
        """Look, and let so many steps go by."""
        await self.history.look()
        self.now += steps * STEP


async def test_each_point_tells_of_its_own_seconds() -> None:
    scene = Scene()
    for outcome in ("ok", "ok", "error", "raised", "connector_crashed"):
        scene.ran("fax", outcome)
    await scene.passed()
    scene.ran("fax", took=3.0)
    await scene.passed()
    await scene.passed()
    first, second, third = scene.history.of("fax", None)
    assert (first.calls, first.failed) == (pytest.approx(5 / STEP), pytest.approx(2 / STEP))
    assert 0.15 < (first.p50 or 0) < (first.p95 or 0) <= 0.25
    assert (second.calls, second.failed) == (pytest.approx(1 / STEP), 0)
    assert 2.5 < (second.p50 or 0) <= 4.0
    assert third == NOTHING
    assert scene.history.of("mail", None) == [NOTHING] * 3


async def test_what_has_just_begun_is_told_at_once() -> None:
    scene = Scene()
    assert scene.history.of(None, None) == [NOTHING]
    scene.ran("fax")
    await scene.history.look()
    assert [one.calls for one in scene.history.of(None, None)] == [1.0]
    scene.now += 4
    assert [one.calls for one in scene.history.of(None, None)] == [0.25]


async def test_looks_at_once_count_nothing_twice() -> None:
    scene = Scene()
    for number in range(300):
        scene.ran(f"c{number}")
    await asyncio.gather(*(scene.history.look() for _ in range(5)))
    await scene.passed()
    assert scene.history.of(None, None)[0].calls == pytest.approx(300 / STEP)


async def test_a_client_sees_its_own_calls_alone() -> None:
    scene = Scene()
    for client, times in (("acme", 3), ("beta", 5)):
        for _ in range(times):
            scene.ran("fax", client=client)
    scene.busy = [Busy("fax", "acme", 2, 0), Busy("fax", "beta", 4, 6), Busy("mail", "beta", 1, 0)]
    await scene.passed()

    def told(connector: str | None, client: str | None) -> tuple[int, int, int]:
        [point] = scene.history.of(connector, client)
        return round(point.calls * STEP), point.in_flight, point.queued

    assert told(None, None) == (8, 7, 6)
    assert told(None, "acme") == (3, 2, 0)
    assert told("fax", "beta") == (5, 4, 6)
    assert told("mail", "acme") == (0, 0, 0)


async def test_the_most_of_a_point_is_what_stays_of_it() -> None:
    scene = Scene()
    for running in (1, 7, 3):
        scene.busy = [Busy("fax", None, running, 0)]
        await scene.history.look()
    scene.busy = []
    await scene.passed()
    assert [one.in_flight for one in scene.history.of("fax", None)] == [7]


async def test_a_connector_that_went_and_came_again_is_counted_from_nothing() -> None:
    scene = Scene()
    for _ in range(4):
        scene.ran("fax")
    await scene.passed()
    scene.metrics(RegistryLoaded(connectors=0, commands=0, quarantined=0, changed=(), removed=("fax",), took=0.1))
    scene.ran("fax")
    await scene.passed()
    assert [round(one.calls * STEP) for one in scene.history.of("fax", None)] == [4, 1]


async def test_what_is_older_than_a_quarter_of_an_hour_is_forgotten() -> None:
    scene = Scene()
    scene.ran("fax")
    await scene.passed(POINTS)
    assert [one.calls > 0 for one in scene.history.of("fax", None)] == [True] + [False] * (POINTS - 1)
    scene.now += STEP
    assert scene.history.of("fax", None) == [NOTHING] * POINTS
