"""What is read of connectors.yaml and the folder of drop-ins, by whoever the gateway runs as."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.cells.cells import Cells
from gateway.connectors import registry as registry_module
from gateway.connectors import sources
from gateway.connectors.definition import define
from gateway.connectors.describe import Describer
from gateway.connectors.registry import Registry
from gateway.connectors.sources import read_sources
from gateway.errors import Quarantine
from gateway.observe.events import Bus, Event, RegistryLoaded, ReloadFailed
from gateway.processes.spawn import SpawnPool
from gateway.settings import read_settings
from tests.support import Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import Iterator

GO = "commands: {Go: {additional_parameters: true}}"
NOBODY = 65534


@pytest.fixture
def open_site() -> Iterator[Site]:
    """A site that every user can reach."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield Site(folder)
    shutil.rmtree(folder)


def quarantined(site: Site) -> dict[str, str | None]:
    """Return what is wrong with each connector, for a gateway that is not root."""
    settings, _ = read_settings(site.file, environ={"PATH": os.environ["PATH"]})
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            found: dict[str, str | None] = {}
            read = read_sources(settings)
            for entry in read.entries:
                found[entry.name] = None
                try:
                    define(entry, read.defaults, settings)
                except Quarantine as problem:
                    found[entry.name] = str(problem)
            os.write(writing, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told: dict[str, str | None] = json.load(stream)
    os.waitpid(child, 0)
    return told


def test_what_the_gateway_s_user_cannot_read_is_quarantined_with_what_to_do(open_site: Site) -> None:
    site = open_site
    for name in ("shut", "listed", "unread"):
        site.script(f"connectors.d/{name}/run", "cat")
        (site.drop_ins / name / "connector.yaml").write_text(f"run: [./run]\n{GO}")
    (site.drop_ins / "shut").chmod(0o000)
    (site.drop_ins / "listed").chmod(0o444)
    (site.drop_ins / "unread/connector.yaml").chmod(0o000)
    site.script("connectors.d/secret.sh", "cat").chmod(0o000)
    site.script("connectors.d/executed.sh", "cat").chmod(0o111)
    site.script("connectors.d/README", "cat").chmod(0o000)
    site.script("closed/far.sh", "cat")
    (site.drop_ins / "far").symlink_to(site.folder / "closed/far.sh")
    (site.folder / "closed").chmod(0o000)
    site.configure(f"good: {{run: [cat], {GO}}}")
    at, user = site.drop_ins, NOBODY if os.geteuid() == 0 else os.geteuid()
    said = f"Permission denied for the gateway's user, {user}: chmod"
    try:
        assert quarantined(site) == {
            "good": None,
            "shut": f"{at}/shut: {said} a+rx {at}/shut, or chown {user} {at}/shut",
            "listed": f"{at}/listed/connector.yaml: {said} a+x {at}/listed, or keep it elsewhere",
            "unread": f"{at}/unread/connector.yaml: {said} a+r {at}/unread/connector.yaml, or chown {user}"
            f" {at}/unread/connector.yaml",
            "secret": f"{at}/secret.sh: {said} a+r {at}/secret.sh, or chown {user} {at}/secret.sh",
            "executed": f"{at}/executed.sh: {said} a+r {at}/executed.sh, or chown {user} {at}/executed.sh",
            "far": f"{at}/far: {said} a+x {site.folder}/closed, or keep it elsewhere",
        }
    finally:
        for folder in (site.drop_ins / "shut", site.drop_ins / "listed", site.folder / "closed"):
            folder.chmod(0o755)


def test_a_build_that_the_gateway_s_user_cannot_read_is_not_said_to_be_missing(open_site: Site) -> None:
    site = open_site
    builds = site.state / "runtimes/tell"
    builds.mkdir(parents=True)
    (site.folder / "tell.py").write_text("")
    site.configure("tell: {runtime: python, module: ./tell.py, requirements: []}")
    builds.chmod(0o000)
    user = NOBODY if os.geteuid() == 0 else os.geteuid()
    try:
        told = quarantined(site)["tell"] or ""
        assert told.startswith(f"{builds}/")
        cure = f"chmod a+x {builds}, or keep it elsewhere"
        assert told.endswith(f": Permission denied for the gateway's user, {user}: {cure}")
    finally:
        builds.chmod(0o755)


def test_a_path_that_the_gateway_s_user_cannot_look_at_hurts_who_names_it(open_site: Site) -> None:
    site, closed = open_site, open_site.folder / "closed"
    closed.mkdir(mode=0o000)
    (site.folder / "link").symlink_to("closed")
    site.configure(
        f"""
        good: {{run: [cat], {GO}}}
        run: {{run: [./closed/x], {GO}}}
        link: {{run: [./link/x], {GO}}}
        module: {{runtime: python, module: ./closed/x.py}}
        venv: {{runtime: python, package: x, venv: ./closed/x}}
        read: {{run: [cat], read: [./closed/x], {GO}}}
        """
    )
    found = quarantined(site)
    assert [name for name, problem in found.items() if problem is None] == ["good", "link", "run"]  # calls tell it
    said = (
        f"Permission denied for the gateway's user, {NOBODY if os.geteuid() == 0 else os.geteuid()}: chmod a+x {closed}"
    )
    assert found["module"] == f"{closed}/x.py: {said}, or keep it elsewhere"
    assert found["venv"] == f"{closed}/x/bin/python: {said}, or keep it elsewhere"
    assert found["read"] == f"{closed}/x: {said}, or keep it elsewhere"


async def test_a_running_gateway_tells_what_it_cannot_start_and_serves_it_when_it_is_mended(tmp_path: Path) -> None:
    site = Site(tmp_path)
    crlf, bare = site.drop_ins / "crlf.sh", site.folder / "bare.sh"
    crlf.write_bytes(b'#!/bin/sh\r\necho \'{"commands": [{"name": "Go"}]}\'\n')
    bare.write_text("cat")
    for file in (crlf, bare):
        file.chmod(0o755)
    (site.drop_ins / "named").mkdir()
    (site.drop_ins / "named/connector.yml").write_text(f"run: [cat]\n{GO}")
    site.configure(f"bare: {{run: [./bare.sh], {GO}}}")
    async with served(site) as gateway:
        told = {one["connector"]: one["reason"] for one in gateway.events("quarantined")}
        assert told == {
            "crlf": f"the #! line of crlf.sh ends with a carriage return, as on Windows: sed -i 's/\\r$//' {crlf}",
            "named": f"{site.drop_ins}/named/connector.yml: rename it to connector.yaml",
        }
        refused = await gateway.do("bare/Go")
        assert (refused.status, refused.code) == (502, "connector_start_failed")
        assert f"Exec format error: {bare} has no #! line: begin it with one" in refused.message
        crlf.write_bytes(crlf.read_bytes().replace(b"\r", b""))
        (site.drop_ins / "named/connector.yml").rename(site.drop_ins / "named/connector.yaml")

        async def mended() -> bool:
            return await gateway.commands() == ["bare/Go", "crlf/Go", "named/Go"]

        await eventually(mended)


async def test_a_folder_that_is_gone_for_the_moment_of_a_look_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path)
    for name in ("one", "two"):
        site.script(f"connectors.d/{name}", """echo '{"commands": [{"name": "Go"}]}'""")
    site.configure()
    settings, _ = read_settings(site.file)
    events: list[Event] = []
    bus = Bus()
    bus.listen(events.append)
    cells = Cells(site.state)
    cells.open()
    monkeypatch.setattr(registry_module, "POLL", 0.01)
    registry = Registry(settings, Describer(SpawnPool(cells), site.state), bus)
    await registry.open()
    before = registry.snapshot
    gone = [True]
    listing = sources._folder_entries
    monkeypatch.setattr(sources, "_folder_entries", lambda given: None if gone else listing(given))
    await registry.reload()
    assert (registry.problem, registry.snapshot) == (f"{site.drop_ins}: the folder is gone", before)
    site.configure(f"new: {{run: [cat], {GO}}}")
    await eventually(lambda: [one for one in events if isinstance(one, ReloadFailed)])
    gone.clear()
    await eventually(lambda: registry.problem is None)
    assert set(registry.snapshot.statuses) == {"one", "two", "new"}
    assert not [one for one in events if isinstance(one, RegistryLoaded) and one.removed]
    assert len([one for one in events if isinstance(one, ReloadFailed)]) == 1
    await registry.close()
    await cells.close()
