"""A name that stands for no file is told, and never waited for."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import msgspec
import pytest

from gateway.cells.removing import remove
from gateway.connectors import sources
from gateway.connectors.examples import read_examples
from gateway.connectors.sources import read_sources
from gateway.errors import ConfigError
from gateway.files import check_file, open_file, read_file, read_text, walk
from gateway.jobs.contract import StoreAway
from gateway.jobs.sqlite import Sqlite
from gateway.oauth.seal import Seal
from gateway.runtimes.base import MARKER, made_at, tree_facts
from gateway.settings import read_settings
from tests.support import Site, cli

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, Path]:
    """Return names that stand for no file, by what is told of them."""
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("nothing")
    return {
        "is a named pipe, not a file": tmp_path / "fifo",
        "is a socket, not a file": tmp_path / "socket",
        "is a folder, not a file": tmp_path / "folder",
        "is a device, not a file": tmp_path / "device",
        "Too many levels of symbolic links": tmp_path / "loop",
        "No such file or directory": tmp_path / "nowhere",
    }


def test_what_is_no_file_is_told_by_every_way_to_read(odd: dict[str, Path]) -> None:
    for problem, name in odd.items():
        for way in (check_file, open_file, read_file, read_text):
            with pytest.raises(OSError, match=problem) as caught:
                way(name)
            assert (caught.value.strerror, caught.value.filename) == (problem, str(name))


def test_a_file_is_read_through_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a\r\nb")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link") == b"a\r\nb"
    assert read_text(tmp_path / "link") == "a\nb"


def test_a_tree_of_any_depth_is_walked(tmp_path: Path) -> None:
    at = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=at))
    os.close(at)
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "out").touch()
    (tmp_path / "link").symlink_to("d")
    os.mkfifo(tmp_path / "fifo")
    found = sorted(walk(tmp_path, lambda name: name == "left"))
    assert [len(file) - len(str(tmp_path)) for file in found] == [2405, 5]
    assert len(tree_facts(tmp_path)) == 2
    assert remove(tmp_path / "d")  # pytest's own way of removing old folders would not get to its end


@pytest.mark.parametrize(
    "problem", ["is a named pipe, not a file", "is a socket, not a file", "is a device, not a file"]
)
def test_the_readers_of_operators_files_tell_it(site: Site, odd: dict[str, Path], problem: str) -> None:
    os.rename(odd[problem], site.file)
    with pytest.raises(ConfigError, match=problem) as caught:
        read_settings(site.file, environ={})
    assert str(caught.value) == f"{site.file}: {problem}"
    with pytest.raises(ConfigError, match=problem):
        read_examples(site.file)
    with pytest.raises(OSError, match=problem):
        Seal(None, site.file.rename(site.folder / "oauth.key").parent).close(b"x")
    (site.folder / "oauth.key").rename(site.folder / MARKER)
    assert made_at(site.folder) is None


async def test_the_file_of_jobs_is_one(odd: dict[str, Path]) -> None:
    with pytest.raises(StoreAway, match="is a named pipe, not a file"):
        await Sqlite(odd["is a named pipe, not a file"]).open()


def test_drop_ins_that_are_nothing_to_read_are_told_with_their_place(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.configure("good: {run: [cat], commands: {Go: {}}}")
    os.mkfifo(site.drop_ins / "pipe")  # no connector, like a README
    (site.drop_ins / "folder").mkdir()
    os.mkfifo(site.drop_ins / "folder" / "connector.yaml")
    (site.drop_ins / "shared").mkdir()
    (site.drop_ins / "shared" / "file").touch()
    checked = cli(site, "check", "--json")
    assert checked.returncode == 1
    told = {one["name"]: one["problem"] for one in msgspec.json.decode(checked.stdout)["connectors"]}
    assert told == {
        "good": None,
        "folder": f"{site.drop_ins}/folder/connector.yaml: is a named pipe, not a file",
    }

    def listdir(path: Path) -> list[str]:  # root may read everything
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sources.os, "listdir", listdir)
    entries = {one.name: one.problem for one in read_sources(read_settings(site.file, environ={})[0]).entries}
    shared, user = site.drop_ins / "shared", os.geteuid()
    cure = f"for the gateway's user, {user}: chmod a+rx {shared}, or chown {user} {shared}"
    assert entries["shared"] == f"{shared}: Permission denied {cure}"
