"""What others than the gateway's user could change of what it runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.connectors import exposure
from gateway.connectors.definition import define
from gateway.connectors.exposure import exposed
from gateway.connectors.sources import read_sources
from gateway.settings import read_settings
from tests.support import Site, eventually, served

GO = "commands: {Go: {additional_parameters: true}}"
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others, which only root can")


def found(site: Site) -> dict[str, str]:
    """Return who can change what, by the path below the site's folder."""
    settings, _ = read_settings(site.file, environ={"PATH": os.environ["PATH"]})
    sources = read_sources(settings)
    defined = [define(entry, sources.defaults, settings) for entry in sources.entries]
    told = {}
    for problem in exposed(settings, sources, [one for one in defined if one is not None]):
        path, _, rest = problem.partition(" can be changed by ")
        told[os.path.relpath(path, site.folder)] = rest.partition(",")[0]
        assert problem.endswith(f" {path}")
    return told


@pytest.fixture
def here(site: Site) -> Site:
    """A site of which nobody else can change anything."""
    site.script("connectors.d/one.sh", "cat")
    site.script("connectors.d/two/run", "cat")
    (site.drop_ins / "two/connector.yaml").write_text(f"run: [./run]\n{GO}")
    site.script("bin/listed", "cat")
    site.configure(f"listed: {{run: [./bin/listed], {GO}}}")
    site.state.mkdir()
    assert found(site) == {}
    return site


PLACES = [
    "connectors.yaml", "connectors.d", "connectors.d/one.sh", "connectors.d/two", "connectors.d/two/connector.yaml",
    "connectors.d/two/run", "bin", "bin/listed", ".gateway", ".",
]  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_what_everybody_can_write_to_is_found(here: Site, name: str) -> None:
    place = here.folder / name
    place.chmod(place.stat().st_mode | 0o002)
    assert found(here) == {name: "everybody"}


@ROOT
@pytest.mark.parametrize("name", PLACES)
def test_what_is_another_s_is_found_by_root(here: Site, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(here.folder / name, 12345, 0)
    assert found(here) == {name: "user 12345"}
    monkeypatch.setattr(exposure.os, "geteuid", lambda: 7)
    assert found(here) == {}  # an operator's files, run by a service's user


@ROOT
def test_what_a_group_can_write_to_is_found_but_for_a_group_of_one(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (here.drop_ins, here.file):
        place.chmod(place.stat().st_mode | 0o020)
    assert found(here) == {}
    os.chown(here.drop_ins, 0, 12345)
    assert found(here) == {"connectors.d": "group 12345"}
    monkeypatch.setattr(exposure, "_members", lambda gid: {0} if gid == 12345 else set())
    assert found(here) == {}


def test_a_sticky_folder_above_is_no_fault_but_one_that_holds_drop_ins_is(here: Site) -> None:
    here.folder.chmod(0o1777)
    assert found(here) == {}
    here.drop_ins.chmod(0o1777)
    assert found(here) == {"connectors.d": "everybody"}


def test_links_are_followed(here: Site) -> None:
    there = here.folder / "there"
    here.script("there/real", "cat")
    (here.drop_ins / "linked").symlink_to(there / "real")
    there.chmod(0o777)
    assert found(here) == {"there": "everybody"}


@ROOT
def test_whom_a_connector_runs_as_may_change_its_program(here: Site) -> None:
    os.chown(here.folder / "bin/listed", 12345, 0)
    here.configure(f'listed: {{run: [./bin/listed], user: "12345", {GO}}}')
    assert found(here) == {}
    os.chown(here.drop_ins / "two/connector.yaml", 12345, 0)
    assert found(here) == {"connectors.d/two/connector.yaml": "user 12345"}


def test_of_many_some_are_told(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure, "MOST", 2)
    for name in ("a", "b", "c", "d"):
        here.script(f"connectors.d/{name}", "cat").chmod(0o777)
    settings, _ = read_settings(here.file, environ={"PATH": os.environ["PATH"]})
    sources = read_sources(settings)
    defined = [define(entry, sources.defaults, settings) for entry in sources.entries]
    told = exposed(settings, sources, [one for one in defined if one is not None])
    assert told[2:] == ("2 more files and folders can be changed by others",)


async def test_a_running_gateway_warns_once_of_each(here: Site) -> None:
    async with served(here) as gateway:
        assert gateway.events("exposed") == []
        here.drop_ins.chmod(0o777)
        await eventually(lambda: gateway.events("exposed"))
        (event,) = gateway.events("exposed")
        assert event["level"] == "warning"
        assert event["problem"].startswith(f"{here.drop_ins} can be changed by everybody")
        here.file.chmod(0o666)
        await eventually(lambda: len(gateway.events("exposed")) == 2)
        assert gateway.events("exposed")[1]["problem"].startswith(f"{Path(here.file)} can be changed by everybody")
