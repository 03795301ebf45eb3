"""`gateway install`: what it builds, when it builds nothing, and what happens when it cannot."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.installing import Gated, Installing, install, installed, interpreters, wheel
from tests.support import Server, Site, cli, eventually, served

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

TELL = """
import importlib.metadata

def Tell() -> dict:
    import tool
    return {"tool": tool.VERSION, "metadata": importlib.metadata.version("tool")}
"""

JOINS = """
public class Joins implements connector.Connector {
  public String describe() {
    return "{\\"commands\\": [{\\"name\\": \\"Join\\", \\"parameters\\": [{\\"id\\": \\"n\\", \\"type\\": \\"str\\"}]}]}";
  }
  public String execute(String request) {
    return "{\\"joined\\":\\"" + request.indexOf("protocol") + " and " + 3 + "\\"}";
  }
}
"""


def tool(folder: Path, version: str, *, requires: tuple[str, ...] = ()) -> Path:
    return wheel(folder, "tool", version, {"tool.py": f"VERSION = {version!r}\n"}, requires=requires)


def told(site: Site, connector: str = "tell") -> str:
    """Return the version of `tool` that a call finds."""
    done = cli(site, "call", "--quiet", f"{connector}/Tell")
    assert done.returncode == 0, done.stdout + done.stderr
    body: dict[str, str] = json.loads(done.stdout)["command_response"]["body"]
    assert body["tool"] == body["metadata"]
    return body["tool"]


def builds(site: Site, connector: str = "tell") -> list[str]:
    """Return the names of the builds, the one that serves first."""
    folder = site.state / "runtimes" / connector
    current = (folder / "current").readlink().name if (folder / "current").is_symlink() else ""
    return sorted(
        (one.name for one in folder.iterdir() if one.is_dir() and not one.is_symlink()), key=lambda one: one != current
    )


def problem(site: Site, connector: str = "tell") -> str | None:
    findings = json.loads(cli(site, "check", "--json").stdout)["connectors"]
    return next(one["problem"] for one in findings if one["name"] == connector)


@pytest.fixture
def tell(site: Site) -> Site:
    """A connector `tell` that requires `tool` from a folder of wheels, in version 1."""
    (site.folder / "tell.py").write_text(TELL)
    tool(site.folder / "wheels", "1.0")
    site.configure("tell: {runtime: python, module: ./tell.py, requirements: [tool]}")
    return site


OFFLINE = ("--offline", "--find-links", "wheels")


def test_what_is_not_installed_says_what_to_do(tell: Site) -> None:
    assert problem(tell) == "not installed: run gateway install tell"
    done = cli(tell, "call", "tell/Tell")
    assert done.returncode == 1
    assert "not installed: run gateway install tell" in done.stderr


def test_what_was_built_can_be_called_and_is_not_built_again(tell: Site) -> None:
    done = install(tell, *OFFLINE)
    assert (done.returncode, done.stdout.split()) == (0, ["built", "tell"])
    before = builds(tell)
    assert told(tell) == "1.0"
    done = install(tell, *OFFLINE)
    assert (done.returncode, done.stdout.split()) == (0, ["unchanged", "tell"])
    assert builds(tell) == before


def test_a_newer_version_in_the_index_changes_nothing_until_the_requirements_do(tell: Site) -> None:
    installed(tell, *OFFLINE)
    tool(tell.folder / "wheels", "2.0")
    assert install(tell, *OFFLINE).stdout.split() == ["unchanged", "tell"]
    assert told(tell) == "1.0"
    tell.configure("tell: {runtime: python, module: ./tell.py, requirements: [tool>1]}")
    assert install(tell, *OFFLINE).stdout.split() == ["built", "tell"]
    assert told(tell) == "2.0"


def test_a_failed_build_names_the_reason_and_disturbs_no_other(tell: Site) -> None:
    installed(tell, *OFFLINE)
    before = builds(tell)
    entry = "runtime: python, module: ./tell.py"
    tell.configure(
        f"""
        tell: {{{entry}, requirements: [tool==7]}}
        unknown: {{{entry}, requirements: [no-such-package-anywhere]}}
        garbled: {{{entry}, requirements: ["tool >>= 1"]}}
        nowhere: {{{entry}, requirements: [./nowhere]}}
        future: {{{entry}, python: "3.99"}}
        lacking: {{{entry}, python: ./bin/python}}
        odd: {{{entry}, requirement: [tool]}}
        fine: {{{entry}, requirements: [tool]}}
        """
    )
    done = install(tell, *OFFLINE)
    assert done.returncode == 1
    reasons = {
        "tell": "tool==7",
        "unknown": "no-such-package-anywhere",
        "garbled": "tool >>= 1",
        "nowhere": f"requirements: {tell.folder}/nowhere does not exist",
        "future": "No interpreter found for Python 3.99",
        "lacking": f"python: {tell.folder}/bin/python does not exist",
        "odd": "did you mean requirements?",
    }
    for name, reason in reasons.items():
        (text,) = re.findall(
            rf"^failed +{name} +(.*?)(?=^(?:failed|built)|\Z)", done.stdout, flags=re.MULTILINE | re.DOTALL
        )
        assert reason in text
    assert "built  fine" in done.stdout
    assert told(tell, "fine") == "1.0"
    assert told(tell) == "1.0", "the build before the failed one serves on"
    assert builds(tell) == before


def test_why_a_build_failed_is_told_until_it_is_made(tell: Site) -> None:
    entry = "runtime: python, module: ./tell.py"
    tell.configure(f"tell: {{{entry}, requirements: [tool==7]}}")
    printed = install(tell, *OFFLINE).stdout.removeprefix("failed").strip().removeprefix("tell").strip()
    assert "tool==7" in printed
    assert problem(tell) == f"not installed: gateway install tell failed: {printed}"
    assert "tool==7" in cli(tell, "call", "tell/Tell").stderr
    tell.configure(f"tell: {{{entry}, requirements: [tool]}}")
    installed(tell, *OFFLINE)
    assert problem(tell) is None
    tell.configure(f"tell: {{{entry}, requirements: [tool==8]}}")
    assert notice(tell) == "its entry has changed: run gateway install tell"
    install(tell, *OFFLINE)
    told = notice(tell)
    assert told.startswith("its entry has changed: gateway install tell failed: ")
    assert "tool==8" in told
    tell.configure(f"tell: {{{entry}, requirements: [tool]}}")
    assert json.loads(cli(tell, "check", "--json").stdout)["connectors"][0]["notices"] == []


async def test_a_running_gateway_tells_a_build_that_failed_and_serves_one_that_is_made(tell: Site) -> None:
    tell.configure("tell: {runtime: python, module: ./tell.py, requirements: [tool==7]}")
    async with served(tell) as gateway:
        assert (await gateway.status("tell"))["reason"] == "not installed: run gateway install tell"
        await asyncio.to_thread(install, tell, *OFFLINE)
        await eventually(lambda: [one for one in gateway.events("quarantined") if "tool==7" in one["reason"]])
        tool(tell.folder / "wheels", "7")
        await asyncio.to_thread(install, tell, *OFFLINE)
        await eventually(lambda: lists(gateway, ["tell/Tell"]))
        assert (await gateway.do("tell/Tell")).body["tool"] == "7"


async def lists(gateway: Server, commands: list[str]) -> bool:
    """Tell whether exactly these commands are listed."""
    return await gateway.commands() == commands


def notice(site: Site) -> str:
    """Return the one notice of the one connector, which is served."""
    (found,) = json.loads(cli(site, "check", "--json").stdout)["connectors"]
    assert found["ok"]
    (text,) = found["notices"]
    return str(text)


def test_an_unknown_name_is_a_failure(tell: Site) -> None:
    done = install(tell, "tall")
    assert (done.returncode, done.stdout.split(maxsplit=2)[:2]) == (1, ["failed", "tall"])
    assert "there is no such connector" in done.stdout


def test_offline_fails_clearly_until_everything_is_in_the_cache(site: Site) -> None:
    (site.folder / "tell.py").write_text("def Tell() -> str:\n    import six\n    return six.__version__\n")
    site.configure('tell: {runtime: python, module: ./tell.py, requirements: ["six==1.16.0"]}')
    cache = {"UV_CACHE_DIR": str(site.folder / "cache")}
    done = install(site, "--offline", env=cache)
    assert done.returncode == 1
    assert "six" in done.stdout
    assert "network was disabled" in done.stdout
    installed(site, env=cache)
    shutil.rmtree(site.state)
    installed(site, "--offline", env=cache)
    assert '"1.16.0"' in cli(site, "call", "--quiet", "tell/Tell").stdout


def test_a_changed_file_of_a_local_package_is_built_again(site: Site) -> None:
    package = local_package(site, "setuptools", 'requires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"')
    installed(site)
    assert install(site).stdout.split() == ["unchanged", "local"], "what a build leaves in the package is no change"
    assert problem(site, "local") is None
    (package / "connector_local.py").write_text("def Tell() -> int:\n    return 2\n")
    assert install(site, "--offline").stdout.split() == ["built", "local"]
    assert '"body":2' in cli(site, "call", "--quiet", "local/Tell").stdout


def local_package(site: Site, name: str, build_system: str) -> Path:
    package = site.folder / name
    package.mkdir()
    (package / "connector_local.py").write_text("def Tell() -> int:\n    return 1\n")
    (package / "pyproject.toml").write_text(
        f'[project]\nname = "connector-local"\nversion = "1"\n[build-system]\n{build_system}\n'
        '[tool.setuptools]\npy-modules = ["connector_local"]\n'
    )
    site.configure(f"local: {{runtime: python, requirements: [./{name}]}}")
    return package


def test_a_requirements_file_can_name_local_packages(tell: Site) -> None:
    (tell.folder / "requirements.txt").write_text("# what it needs\n\n./wheels/tool-1.0-py3-none-any.whl\n")
    tell.configure("tell: {runtime: python, module: ./tell.py, requirements: requirements.txt}")
    installed(tell, "--offline")
    assert told(tell) == "1.0"


async def test_of_two_installs_at_the_same_time_one_builds(site: Site) -> None:
    gated = gated_tool(site)
    with Installing(site) as first:
        await eventually(gated.begun.exists)
        second = install(site)
        gated.go_on()
        assert second.returncode == 1
        assert "another gateway install is building it" in second.stdout
        assert first.ended()[0] == 0
    assert told(site) == "1.0"
    assert len(builds(site)) == 1


def gated_tool(site: Site, version: str = "1.0") -> Gated:
    """Have the connector `tell` require a package whose build waits."""
    gated = Gated(site.folder / "gated", "tool")
    gated.version(version, {"tool.py": f"VERSION = {version!r}\n"})
    (site.folder / "tell.py").write_text(TELL)
    site.configure("tell: {runtime: python, module: ./tell.py, requirements: [./gated]}")
    return gated


async def test_a_running_gateway_serves_the_old_build_until_the_new_one_is_there(site: Site) -> None:
    gated = gated_tool(site)
    async with served(site) as gateway:
        assert (await gateway.do("tell/Tell")).code == "connector_unavailable"
        with Installing(site) as first:
            await eventually(gated.begun.exists)
            gated.go_on()
            assert first.ended()[0] == 0
        await eventually(lambda: has_version(gateway, "1.0"))

        gated.version("2.0", {"tool.py": "VERSION = '2.0'\n"})
        site.configure('tell: {runtime: python, module: ./tell.py, requirements: [./gated, "tool>1"]}')
        with Installing(site) as second:
            await eventually(gated.begun.exists)
            await eventually(lambda: has_notices(gateway, "its entry has changed: run gateway install tell"))
            assert await has_version(gateway, "1.0")
            gated.go_on()
            assert second.ended()[0] == 0
        await eventually(lambda: has_version(gateway, "2.0"))
        await eventually(lambda: has_notices(gateway))


async def has_version(gateway: Server, version: str) -> bool:
    answer = await gateway.do("tell/Tell")
    return answer.code is None and answer.body["tool"] == version


async def has_notices(gateway: Server, *notices: str) -> bool:
    return (await gateway.status("tell"))["notices"] == list(notices)


async def test_an_install_that_is_stopped_leaves_nothing(site: Site) -> None:
    gated = gated_tool(site)
    with Installing(site) as first:
        await eventually(gated.begun.exists)
        first.stop()
        assert first.ended()[0] == 130
    assert problem(site) == "not installed: run gateway install tell"
    assert builds(site) == []


# --- interpreters


VERSION = """
from __future__ import annotations

import sys

def Tell(text: str, more: list[str] | None = None) -> dict:
    import tool
    return {"python": list(sys.version_info[:2]), "tool": tool.VERSION, "text": text}

def Count(to: int):
    yield from range(to)

async def Wait(text: str) -> bytes:
    import asyncio
    await asyncio.sleep(0)
    return text.encode()

def Fail():
    raise LookupError("nothing there")
"""
MODES = ("spawn", "standby", "fork", "persistent")


async def test_every_interpreter_serves_in_every_mode(site: Site) -> None:
    found = {f"{major}.{minor}": ([major, minor], path) for (major, minor), path in interpreters().items()}
    (site.folder / "tell.py").write_text(VERSION)
    tool(site.folder / "wheels", "1.0")
    entry = "runtime: python, module: ./tell.py, requirements: [tool]"
    lines = [
        f"{mode}-{version}: {{{entry}, python: {path}, mode: {mode}, warm: 1}}"
        for version, (_, path) in found.items()
        for mode in MODES
    ]
    newest = list(found)[-1]
    site.configure("\n".join([*lines, f'by-version: {{{entry}, python: "{newest}"}}']))
    installed(site, *OFFLINE)
    async with served(site) as gateway:
        answer = await gateway.do("by-version/Tell", {"text": ""})
        assert answer.body["python"] == found[newest][0]
        for version, (numbers, _) in found.items():
            for mode in MODES:
                connector = f"{mode}-{version}"
                for _ in range(2):  # what was made ahead, and what comes after
                    answer = await gateway.do(f"{connector}/Tell", {"text": "☃"})
                    assert answer.body == {"python": numbers, "tool": "1.0", "text": "☃"}, answer.json
                assert (await gateway.do(f"{connector}/Count", {"to": 3})).body == [0, 1, 2]
                assert (await gateway.do(f"{connector}/Wait", {"text": "a"})).body == "YQ=="
                answer = await gateway.do(f"{connector}/Fail")
                assert (answer.code, answer.message) == ("LookupError", "nothing there")
        assert not gateway.events("connector_warning"), "each is served in its own mode"


# --- other runtimes


@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm here")
def test_node_packages_are_installed_beside_links_to_the_module(site: Site) -> None:
    folder = site.folder / "node"
    (folder / "answer").mkdir(parents=True)
    (folder / "answer" / "package.json").write_text('{"name": "answer", "version": "4.2.0", "main": "index.js"}')
    (folder / "answer" / "index.js").write_text("module.exports = 42;\n")
    (folder / "package.json").write_text(
        '{"name": "x", "version": "1.0.0", "dependencies": {"answer": "file:./answer"}}'
    )
    (folder / "tell.mjs").write_text("import answer from 'answer';\nexport function Tell() { return { answer }; }\n")
    site.configure("tell: {runtime: node, module: ./node/tell.mjs}")
    assert problem(site) == "not installed: run gateway install tell"
    installed(site, "--offline")
    assert '"body":{"answer":42}' in cli(site, "call", "--quiet", "tell/Tell").stdout
    assert not (folder / "node_modules").exists()
    assert install(site, "--offline").stdout.split() == ["unchanged", "tell"]


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_a_program_that_a_build_lacks_is_told_until_it_is_made(site: Site) -> None:
    (site.folder / "node").mkdir()
    (site.folder / "node" / "package.json").write_text('{"name": "x", "version": "1.0.0"}')
    (site.folder / "node" / "tell.mjs").write_text("export function Tell() { return 1; }\n")
    site.configure("tell: {runtime: node, module: ./node/tell.mjs}")
    (site.folder / "bin").mkdir()
    (site.folder / "bin" / "node").symlink_to(str(shutil.which("node")))
    path = {"PATH": str(site.folder / "bin")}
    assert "npm not found" in install(site, "--offline", env=path).stdout
    assert (
        problem(site) == "not installed: gateway install tell failed: npm not found: install it, or name it by its path"
    )


@pytest.mark.skipif(shutil.which("javac") is None, reason="no javac here")
def test_java_sources_join_texts_without_classes_made_at_run_time(site: Site) -> None:
    (site.folder / "src").mkdir()
    (site.folder / "src" / "Joins.java").write_text(JOINS)
    site.configure("joins: {runtime: java, class: Joins, sources: [src]}")
    installed(site)
    jars = site.state / "runtimes" / "joins" / "current"
    for jar in ("connector.jar", "connector-host.jar"):
        with zipfile.ZipFile(jars / jar) as archive:
            classes = {name: archive.read(name) for name in archive.namelist() if name.endswith(".class")}
        assert classes
        assert not [name for name, code in classes.items() if b"makeConcat" in code]
    assert '"body":{"joined":"2 and 3"}' in cli(site, "call", "--quiet", "joins/Join", "n=2").stdout


@pytest.mark.skipif(shutil.which("javac") is None, reason="no javac here")
def test_a_source_that_does_not_compile_names_file_and_line(site: Site) -> None:
    (site.folder / "src").mkdir()
    (site.folder / "src" / "Broken.java").write_text("public class Broken {\n  int x = ;\n}\n")
    site.configure("broken: {runtime: java, class: Broken, sources: [src]}")
    done: subprocess.CompletedProcess[str] = install(site)
    assert done.returncode == 1
    assert "Broken.java:2: error: illegal start of expression" in done.stdout
