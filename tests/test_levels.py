"""What a connector reaches at each level, however its processes are obtained, over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gateway.connectors.confinement import own_user
from tests.support import Server, Site, eventually, served

LEVELS = ("off", "standard", "strict")
MODES = ("spawn", "standby", "fork", "persistent")
SECRET = "nobody-elses-secret"
LEFT = "/tmp/left-by-a-test-of-levels"
REFUSED = {"OSError", "PermissionError", "FileNotFoundError"}

LOOK = """
import os, socket

def tried(what):
    try:
        return what()
    except Exception as problem:
        return type(problem).__name__

def read(path):
    with open(path) as file:
        return file.read()

def leave(path):
    with open(path, "x") as file:
        file.write("left")
    return "left"

def listening(port):
    with socket.create_connection(("127.0.0.1", port)):
        return "connected"

def look(site: str, gateway: int, port: int) -> dict:
    return {
        "settings": tried(lambda: read(site + "/connectors.yaml")),
        "other": tried(lambda: read(site + "/connectors.d/other/connector.yaml")),
        "remembered": tried(lambda: os.listdir(site + "/.gateway/describe")),
        "sibling": tried(lambda: read(site + "/sibling.txt")),
        "code": tried(lambda: open(__file__, "a").close()),
        "planted": tried(lambda: leave(site + "/connectors.d/planted.sh")),
        "beside": tried(lambda: leave(site + "/left-by-" + str(os.getpid()) + os.urandom(4).hex())),
        "home": tried(lambda: leave(os.environ["HOME"] + "/left")),
        "tmp": tried(lambda: leave("/tmp/left-by-a-test-of-levels")),
        "signal": tried(lambda: os.kill(gateway, 0)),
        "environ": tried(lambda: read(f"/proc/{gateway}/environ")),
        "network": tried(lambda: listening(port)),
        "user": os.getuid(),
    }
"""


def configured(site: Site, level: str) -> None:
    """Have a connector for each mode at this level, and others that have a secret."""
    (site.folder / "look").mkdir()
    (site.folder / "look/look.py").write_text(LOOK)
    (site.folder / "sibling.txt").write_text("beside connectors.yaml")
    (site.drop_ins / "other").mkdir()
    (site.drop_ins / "other/connector.yaml").write_text(
        f"run: [cat]\nconfig: {{token: {SECRET}}}\ncommands: {{Go: {{}}}}\n"
    )
    site.configure(
        "\n".join(f"{mode}: {{runtime: python, module: look/look.py, mode: {mode}}}" for mode in MODES)
        + f"\nsecretive: {{run: [cat], config: {{token: {SECRET}}}, commands: {{Go: {{}}}}}}",
        defaults=f"sandbox: {level}",
    )


async def looked(gateway: Server, mode: str) -> dict[str, Any]:
    """Return what the second of two calls has found."""
    status = await gateway.status(mode)
    lacks = [text for text in (status["sandbox"] or {"missing": ()})["missing"] if "max_pids" not in text]
    if status["state"] != "ready" or lacks:
        pytest.skip(status["reason"] or "; ".join(lacks))
    params = {"site": str(gateway.site.folder), "gateway": gateway.pid, "port": gateway.port}
    first, second = [(await gateway.do(f"{mode}/look", params)).body for _ in range(2)]
    assert first["home"] == second["home"] == "left"
    if status["sandbox"]["level"] != "off":
        assert first["tmp"] == second["tmp"] == "left"  # the second time there was nothing of the first
        assert not os.path.exists(LEFT)
    assert isinstance(second, dict)
    return second


async def test_off_is_as_it_was(site: Site) -> None:
    configured(site, "off")
    async with served(site) as gateway:
        for mode in MODES:
            found = await looked(gateway, mode)
            assert SECRET in found["settings"]
            assert SECRET in found["other"]
            assert found["sibling"] == "beside connectors.yaml"
            assert found["code"] is None
            assert found["signal"] is None
            assert found["network"] == "connected"
            assert found["user"] == os.getuid()
    Path(LEFT).unlink()  # whose /tmp is the machine's


async def test_standard_keeps_a_connector_from_others_and_leaves_it_the_rest(site: Site) -> None:
    configured(site, "standard")
    async with served(site) as gateway:
        for mode in MODES:
            found = await looked(gateway, mode)
            assert SECRET not in repr(found)
            assert found["settings"] in {"", "PermissionError"}
            assert found["other"] == found["remembered"] == "FileNotFoundError"
            assert found["code"] in REFUSED
            assert found["planted"] in REFUSED
            assert not (site.drop_ins / "planted.sh").exists()
            assert found["signal"] == "ProcessLookupError"
            assert "PATH" not in found["environ"]  # at most another process of that number, in there
            assert found["sibling"] == "beside connectors.yaml"
            assert found["beside"] == "left"
            assert found["network"] == "connected"
            assert found["user"] == os.getuid()


async def test_strict_gives_a_connector_its_own_alone(site: Site) -> None:
    configured(site, "strict")
    async with served(site) as gateway:
        for mode in MODES:
            found = await looked(gateway, mode)
            assert SECRET not in repr(found)
            for what in ("settings", "other", "remembered", "sibling", "code", "planted", "beside"):
                assert found[what] in REFUSED, what
            assert found["signal"] == "ProcessLookupError"
            assert found["network"] != "connected"
            assert found["user"] == (own_user(mode, 1 << 30, 1 << 28) if os.getuid() == 0 else os.getuid())


@pytest.mark.parametrize("level", LEVELS)
async def test_a_script_may_name_its_pipes(site: Site, level: str) -> None:
    site.script("one/run", "cat </dev/stdin >/dev/null; echo said >/dev/stderr; echo '\"told\"' >/dev/stdout")
    site.configure(f"one: {{run: [./one/run], sandbox: {level}, commands: {{Go: {{additional_parameters: true}}}}}}")
    async with served(site) as gateway:
        if (await gateway.status("one"))["state"] != "ready":
            pytest.skip("this level cannot be had here")
        for params in ({}, {"much": "x" * 200_000}):
            assert (await gateway.do("one/Go", params)).body == "told"
        assert gateway.events("log", stream="stderr", line="said")


async def test_settings_that_an_editor_has_replaced_are_hidden_soon(site: Site) -> None:
    """Another file of the name takes the kernel's cover off: cells, and processes that are kept, are made anew."""
    configured(site, "standard")
    async with served(site) as gateway:
        for mode in MODES:
            await looked(gateway, mode)
        before = len(gateway.events("registry_loaded"))
        (site.folder / "new").write_text(f"{site.file.read_text()}\n# {SECRET} again\n")
        (site.folder / "new").rename(site.file)
        await eventually(lambda: len(gateway.events("registry_loaded")) > before)
        for mode in MODES:
            assert SECRET not in repr(await looked(gateway, mode))
        assert gateway.events("registry_loaded")[-1]["changed"] == []  # nobody was asked anything again
