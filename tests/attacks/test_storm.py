"""A storm of forks: sixteen links at once, each leaves the session, forks, and exits."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from tests.attacks.support import GRACE, MODES, Attacked, Enemy, Place, differs, twice, words
from tests.support import eventually, reaped

DEADLINE = 0.5  # seconds
OTHERS_WAIT = 3.0  # seconds that another call may take meanwhile, on a machine that does much else
GONE = 2.0  # seconds after a kill -9
STORM = "arms('storm')"
DEAF = """
    import signal
    for number in (signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
    arms('storm', 'deaf')
"""


@pytest.mark.attack(modes=MODES, only=differs)
async def test_a_storm_ends_with_its_call_and_others_are_served_meanwhile(enemy: Enemy, connector: str) -> None:
    await enemy.told(connector, "")  # its host or process is there
    begun = time.monotonic()
    storm = asyncio.create_task(enemy.run(connector, STORM, timeout=DEADLINE))
    waited = []
    while not storm.done():
        start = time.monotonic()
        answer = await enemy.server.do("neighbour/Echo", {"n": 1})
        waited.append(time.monotonic() - start)
        assert answer.status == 200, answer.raw
    took = time.monotonic() - begun
    answer = await storm
    assert answer.code == "connector_timeout" or "max_pids" in words(answer), answer.raw
    assert took < DEADLINE + GRACE + 1
    assert max(waited) < OTHERS_WAIT
    await eventually(lambda: not enemy.attacked.strays(), 1)


@pytest.mark.attack(modes=("spawn", "fork"), only=twice)
async def test_a_storm_that_hears_no_signal_ends_after_its_grace(enemy: Enemy, connector: str) -> None:
    begun = time.monotonic()
    answer = await enemy.run(connector, DEAF, timeout=DEADLINE)
    assert time.monotonic() - begun < DEADLINE + GRACE + 1
    assert answer.code == "connector_timeout" or "max_pids" in words(answer), answer.raw
    await eventually(lambda: not enemy.attacked.strays(), 1)


@pytest.mark.attack
async def test_a_gateway_killed_in_mid_storm_leaves_nothing(attacked: Place, arms: object) -> None:
    one = Attacked(attacked, arms)  # type: ignore[arg-type]
    try:
        async with one.connected() as enemy:
            connectors = [f"{level}-{mode}" for level in ("off", "standard") for mode in MODES]
            await asyncio.gather(*(enemy.told(name, "") for name in connectors))
            storms = [asyncio.create_task(enemy.run(name, STORM)) for name in connectors]
            await eventually(lambda: len(one.strays()) > 1)
            everything = one.mine()
            os.kill(one.pid, signal.SIGKILL)
            await eventually(lambda: not [pid for pid in one.strays() | everything if not reaped(pid)], GONE)
            await asyncio.gather(*storms, return_exceptions=True)
            assert not list((enemy.state / "run").iterdir())
    finally:
        one.close()
