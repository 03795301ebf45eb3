"""`cache:` - a folder that stays for a connector, whatever its sandbox, and for no other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import TYPE_CHECKING

import pytest

from gateway.connectors.caches import Cache, Caches
from gateway.observe.events import Bus, ConnectorWarning, Event
from gateway.units import Size
from tests.support import Site, cli, eventually, served

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Server

COUNT = """#!/bin/sh
request=$(cat)
mkdir -p "$XDG_CACHE_HOME/deep" && echo once >> "$XDG_CACHE_HOME/deep/calls"
ls -A "$(dirname "$XDG_CACHE_HOME")" > seen 2>/dev/null
printf '{"calls": %s, "seen": "%s", "npm": "%s", "go": "%s"}' "$(grep -c . "$XDG_CACHE_HOME/deep/calls")" \\
    "$(tr '\\n' ' ' < seen)" "$npm_config_cache" "$GOCACHE"
"""


@pytest.mark.parametrize("level", ["off", "standard", "strict"])
async def test_it_stays_for_one_connector_and_is_hidden_from_others(site: Site, level: str) -> None:
    site.script("count", COUNT.removeprefix("#!/bin/sh\n"))
    entry = f"run: [./count], commands: {{Go: {{}}}}, sandbox: {level}"
    site.configure(
        f"""
        one: {{{entry}, cache: 10MiB}}
        two: {{{entry}, cache: 10MiB, env: {{GOCACHE: /else}}}}
        """
    )
    async with served(site) as gateway:
        bodies = [(await gateway.do("one/Go")).body for _ in range(2)]
        assert [body["calls"] for body in bodies] == [1, 2]
        folder = site.state / "cache" / "one"
        assert (bodies[1]["npm"], bodies[1]["go"]) == (f"{folder}/npm", f"{folder}/go-build")
        two = (await gateway.do("two/Go")).body
        assert (two["calls"], two["go"]) == (1, "/else")
        if level != "off":
            assert (bodies[1]["seen"].split(), two["seen"].split()) == (["one"], ["two"])
        await eventually(lambda: measured(gateway, "one"))
        finding = json.loads(cli(site, "check", "--json").stdout)["connectors"][0]
        assert finding["cache"]["folder"] == str(folder)
        assert 0 < finding["cache"]["held"] < finding["cache"]["size"] == 10 << 20
    assert f"cache {folder}, holds" in " ".join(cli(site, "check").stdout.split())
    if os.geteuid() == 0 and level == "strict":
        site.configure(f"one: {{{entry}, cache: 10MiB, user: root}}")  # what was another user's is not taken over
        async with served(site) as gateway:
            assert (await gateway.do("one/Go")).body["calls"] == 1
            await eventually(lambda: not (site.state / "cache" / "two").exists())


async def measured(gateway: Server, name: str) -> bool:
    """Tell whether somebody has looked at a connector's cache."""
    cache = (await gateway.status(name))["cache"]
    return bool(cache["size"] == 10 << 20 and cache["held"] is not None)


@pytest.fixture
def told_of_caches() -> tuple[Bus, list[Event]]:
    bus = Bus()
    told: list[Event] = []
    bus.listen(told.append, ConnectorWarning)
    return bus, told


async def test_one_that_is_too_large_is_emptied_and_stays_the_same_folder(
    tmp_path: Path, told_of_caches: tuple[Bus, list[Event]]
) -> None:
    bus, told = told_of_caches
    small, large = (Cache(folder=tmp_path / "cache" / name, size=Size(100_000)) for name in ("small", "large"))
    for cache, size in ((small, 40_000), (large, 200_000)):
        cache.prepare(None)
        (cache.folder / "a" / "b").mkdir(parents=True)
        (cache.folder / "a" / "b" / "file").write_bytes(b"x" * size)
        os.link(cache.folder / "a" / "b" / "file", cache.folder / "a" / "same")
        (cache.folder / "link").symlink_to("/usr")
    inode = large.folder.stat().st_ino
    (tmp_path / "cache" / "gone").mkdir()
    caches = Caches(tmp_path, bus)
    keeping = asyncio.create_task(caches.keep(lambda: {"small": small, "large": large}, lambda: ["small", "large"]))
    try:
        await eventually(lambda: len(caches.held) == 2)
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
    assert caches.held["large"] < 20_000 < caches.held["small"] < 60_000
    assert (os.listdir(large.folder), large.folder.stat().st_ino) == ([], inode)
    assert sorted(os.listdir(tmp_path / "cache")) == ["large", "small"]
    assert [(one.connector, one.message) for one in told if isinstance(one, ConnectorWarning)] == [
        ("large", "its cache held more than 97.66KiB (cache) and was emptied")
    ]


def test_a_container_is_told_to_mount_a_volume(site: Site) -> None:
    engine = site.script("bin/podman", "exit 1")
    site.configure("one: {runtime: container, image: a, cache: 1MiB}")
    search = f"{engine.parent}{os.pathsep}{os.environ['PATH']}"
    (finding,) = json.loads(cli(site, "check", "--json", env={"PATH": search}).stdout)["connectors"]
    assert "cache: a container sees nothing of it" in (finding["problem"] or "")
