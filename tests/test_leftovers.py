"""What a gateway that died has left is taken away by the next one, once nothing of it lives."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from gateway import leftovers
from gateway.cells.removing import remove
from gateway.gateway import Gateway
from gateway.locks import lock
from gateway.observe.events import Bus, Event, FolderLeft
from gateway.settings import read_settings

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


def deep(folder: Path, levels: int) -> None:
    """Make a folder in a folder in a folder, deeper than a path may be long, and leave a file at the bottom."""
    folder.mkdir(parents=True)
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=at))
    os.close(at)


async def test_what_is_left_may_be_of_any_depth_and_kind(run: Path, claimed: list[int], tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("somebody else's")
    deep(run / "dead" / "1", 3000)
    (run / "dead" / "2").mkdir()
    for width in range(20):
        deep(run / "dead" / "2" / str(width), width)
    (run / "dead" / "2" / "link").symlink_to(tmp_path / "kept")
    os.mkfifo(run / "dead" / "2" / "fifo")
    (run / "dead" / "2" / "closed" / "in").mkdir(parents=True)
    (run / "dead" / "2" / "closed").chmod(0)
    (run / "dead").chmod(0)
    os.mkfifo(run / "fifo")
    (run / "link").symlink_to(tmp_path / "kept")
    told: list[Path] = []
    claimed.append(await asyncio.wait_for(leftovers.claim(run / "own", told.append), 30))
    assert sorted(os.listdir(run)) == ["fifo", "link", "own"]  # those are no gateway's
    assert (tmp_path / "kept" / "file").read_text() == "somebody else's"
    assert told == []


async def test_what_cannot_be_removed_is_told_once_and_stops_no_start(
    run: Path, claimed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bad", "good"):
        (run / name / "1").mkdir(parents=True)
    monkeypatch.setattr(leftovers, "remove", lambda old, _seconds: old.name == "good" and remove(old))
    told: list[Path] = []
    claimed.append(await leftovers.claim(run / "own", told.append))
    assert sorted(os.listdir(run)) == ["bad", "own"]
    assert told == [run / "bad"]
    assert lock_is_free(run / "bad")


async def test_a_removal_ends_with_its_time(run: Path) -> None:
    (run / "1").mkdir(parents=True)
    assert not remove(run, 0)
    assert (run / "1").exists()
    assert remove(run)
    assert not run.exists()
    assert remove(run)


async def test_a_gateway_ends_although_a_run_left_a_deep_folder(tmp_path: Path) -> None:
    (tmp_path / "connectors.yaml").write_text("connectors: {}\n")
    bus = Bus()
    told: list[Event] = []
    bus.listen(told.append, FolderLeft)
    gateway = Gateway(read_settings(tmp_path / "connectors.yaml", environ={})[0], bus)
    await gateway.open(watch=False)
    deep(gateway.run_folder / "1", 1500)
    await gateway.close()
    assert os.listdir(gateway.run_folder.parent) == []
    assert told == []


def lock_is_free(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        return lock(handle, wait=False)
    finally:
        os.close(handle)
