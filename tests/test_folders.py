"""Private folders that are made ahead and removed behind."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
from gateway.warden.folders import AHEAD, LOW, SPARE, Folders

from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Folders]:
    made = Folders(str(tmp_path))
    yield made
    made.close()


def spare(tmp_path: Path) -> list[str]:
    return os.listdir(tmp_path / SPARE)


def test_every_folder_is_fresh_private_and_has_a_name_of_its_own(folders: Folders) -> None:
    names = set()
    for _ in range(3 * AHEAD):
        folder = folders.take()
        assert not os.listdir(folder)
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        names.add(folder)
        folders.drop(folder)
    assert len(names) == 3 * AHEAD


def test_a_dropped_folder_is_gone_at_once(folders: Folders) -> None:
    folder = folders.take()
    os.mkdir(f"{folder}/a")
    folders.drop(folder)
    assert not os.path.exists(folder)


async def test_what_was_left_in_a_folder_is_removed_and_never_seen_again(folders: Folders, tmp_path: Path) -> None:
    for _ in range(5):
        folder = folders.take()
        os.makedirs(f"{folder}/a/b")
        with open(f"{folder}/a/b/c", "w") as file:
            file.write("x")
        os.chmod(f"{folder}/a", 0)
        folders.drop(folder)
    await eventually(lambda: len(spare(tmp_path)) >= LOW and not any("c" in names for _, _, names in os.walk(tmp_path)))


async def test_a_folder_whose_mode_was_changed_is_not_used_again(folders: Folders, tmp_path: Path) -> None:
    folder = folders.take()
    os.chmod(folder, 0o755)
    folders.drop(folder)
    await eventually(
        lambda: len(spare(tmp_path)) >= LOW and not any(name.startswith("dropped") for name in spare(tmp_path))
    )
    modes = {stat.S_IMODE(os.stat(tmp_path / SPARE / name).st_mode) for name in spare(tmp_path)}
    assert modes == {0o700}


def test_dropping_what_is_gone_is_no_error(folders: Folders) -> None:
    folder = folders.take()
    os.rmdir(folder)
    folders.drop(folder)


async def test_a_folder_is_emptied_but_for_what_stays(folders: Folders, tmp_path: Path) -> None:
    folder = folders.take()
    for name in ("own", "left"):
        os.mkdir(f"{folder}/{name}")
        with open(f"{folder}/{name}/file", "w") as file:
            file.write("x")
    os.symlink("own", f"{folder}/link")
    os.chmod(f"{folder}/left", 0)
    os.chmod(folder, 0o755)
    assert folders.clear(folder, {"own"})
    assert (os.listdir(folder), os.listdir(f"{folder}/own")) == (["own"], ["file"])
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    await eventually(lambda: sum("file" in names for _, _, names in os.walk(tmp_path)) == 1)


def test_a_folder_that_is_gone_cannot_be_emptied(folders: Folders) -> None:
    folder = folders.take()
    os.rmdir(folder)
    assert not folders.clear(folder, ())
