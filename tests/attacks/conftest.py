"""One gateway a place, for all files of this folder; and after each test the look for what it has left."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.attacks.support import HERE, PLACES, Attacked, Enemy, Place, clear_away, left_of
from tests.conftest import leaving_nothing
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PATIENCE = 10.0  # seconds, as everywhere else: whoever is to reap may have to wait for the processor


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every place, level and mode that there is; `@pytest.mark.attack(...)` names fewer."""
    if "attacked" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("attack")
    asked = marker.kwargs if marker else {}
    cases, names = [], [name for name in ("connector", "level") if name in metafunc.fixturenames]
    for place in PLACES.values():
        if not asked.get("where", lambda _: True)(place):
            continue
        for level in place.levels if names else ("",):
            if level and level not in asked.get("levels", place.levels):
                continue
            for mode in asked.get("modes", ("spawn",)) if "connector" in names else ("",):
                if not asked.get("only", lambda *_: True)(place, level, mode):
                    continue
                words = [word for word in (level, mode) if word]
                own = {"connector": "-".join(words), "level": level}
                cases.append(pytest.param(place, *(own[name] for name in names), id="-".join((place.name, *words))))
    metafunc.parametrize(["attacked", *names], cases, indirect=["attacked"], scope="session")


@pytest.fixture(scope="session")
def arms() -> Iterator[Path]:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler on this machine")
    program = Path(f"/tmp/attacks-arms-{os.getpid()}")
    subprocess.run(["cc", "-O2", "-static", "-pthread", "-o", program, HERE / "arms.c"], check=True)
    yield program
    program.unlink()


@pytest.fixture(scope="package")
def _gateways(arms: Path) -> Iterator[dict[Place, Attacked]]:
    made: dict[Place, Attacked] = {}
    with leaving_nothing():
        yield made
        for one in made.values():
            one.close()


@pytest.fixture(scope="session")
def attacked(request: pytest.FixtureRequest) -> Place:
    return request.param


@pytest.fixture
async def enemy(attacked: Place, _gateways: dict[Place, Attacked], arms: Path) -> AsyncIterator[Enemy]:
    """A gateway in one place, with its hostile connectors."""
    one = _gateways.get(attacked)
    if one is None or one.process.poll() is not None:
        one = _gateways[attacked] = Attacked(attacked, arms)
    async with one.connected() as enemy:
        yield enemy
        clean = until(lambda: not left_of(one), PATIENCE)
        left = left_of(one)
        clear_away(one)
        assert clean, f"left behind: {left}"
        await enemy.serves_others()


@pytest.fixture(autouse=True)
def nothing_is_left() -> None:
    """In the place of the check after every test: gateways live longer here."""
