"""What a gateway that died has left is taken away by the next one, once nothing of it lives."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from gateway import leftovers
from gateway.locks import lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Held:
    """A folder that somebody has, as a gateway and its cells do."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.handle = os.open(folder, os.O_RDONLY)
        assert lock(self.handle, shared=True)

    def die(self) -> None:
        os.close(self.handle)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def claimed() -> Iterator[list[int]]:
    handles: list[int] = []
    yield handles
    for handle in handles:
        os.close(handle)


async def test_the_folder_of_a_dead_gateway_goes_and_that_of_a_living_one_stays(run: Path, claimed: list[int]) -> None:
    (run / "dead" / "1" / "deep").mkdir(parents=True)
    (run / "dead" / "file").write_text("left")
    living = Held(run / "living")
    claimed.append(await leftovers.claim(run / "own"))
    assert sorted(os.listdir(run)) == ["living", "own"]
    assert not lock_is_free(run / "own")
    living.die()


async def test_a_gateway_waits_for_the_cells_of_the_one_before_it(run: Path, claimed: list[int]) -> None:
    cells = [Held(run / "dead" / name) for name in ("1", "2")]
    claiming = asyncio.create_task(leftovers.claim(run / "own"))
    for cell in cells:
        done, _ = await asyncio.wait([claiming], timeout=3 * leftovers.LOOK)
        assert not done
        assert sorted(os.listdir(run)) == ["dead"]
        cell.die()
    claimed.append(await claiming)
    assert os.listdir(run) == ["own"]


async def test_a_cell_that_does_not_end_is_not_waited_for_for_ever(
    run: Path, claimed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "PATIENCE", 0.1)
    cell = Held(run / "dead" / "1")
    claimed.append(await leftovers.claim(run / "own"))
    assert sorted(os.listdir(run)) == ["dead", "own"]
    cell.die()


async def test_two_that_start_at_once_leave_each_other_alone(run: Path, claimed: list[int]) -> None:
    claimed += await asyncio.gather(*(leftovers.claim(run / name) for name in "abc"))
    assert sorted(os.listdir(run)) == ["a", "b", "c"]


def lock_is_free(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        return lock(handle, wait=False)
    finally:
        os.close(handle)
