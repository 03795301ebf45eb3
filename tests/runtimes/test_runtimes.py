"""Connectors of every runtime, installed as an operator does it, called through one gateway."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio
import uv

from tests.installing import FIXTURES, ROOT, installed, synthetic, wheel
from tests.one_gateway import nothing_is_left, nothing_is_left_of_the_file  # noqa: F401
from tests.support import Server, Site, cli, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NO_JAVA = [name for name in ("java", "javac", "mvn") if shutil.which(name) is None]
NO_NODE = [name for name in ("node", "npm") if shutil.which(name) is None]
needs_java = pytest.mark.skipif(bool(NO_JAVA), reason=f"not on this machine: {', '.join(NO_JAVA)}")
needs_node = pytest.mark.skipif(bool(NO_NODE), reason=f"not on this machine: {', '.join(NO_NODE)}")

PYTHON = """
old_pydantic: {runtime: python, module: ./model.py, requirements: ["pydantic<2"]}
new_pydantic: {runtime: python, module: ./model.py, requirements: ["pydantic>=2,<3"]}
synthetic: {runtime: python, requirements: [./package], config: {FAX_LINE: "7", FAX_ID: gate, FAX_SECRET: hush-hush, FAX_URL: "https://fax.example"}}
kept: {runtime: python, module: ./tool_user.py, venv: ./kept}
bare: {runtime: python, module: ./bare.py}
sh: {runtime: shell, module: ./tell.sh}
"""
JAVA = """
jar: {runtime: java, jar: ./echo.jar}
classes: {runtime: java, class: tiny.Tiny, classpath: [./classes]}
old_lang: {runtime: java, class: lang_3_4.Shorten, sources: [./lang_3_4], maven: ["org.apache.commons:commons-lang3:3.4"]}
new_lang: {runtime: java, class: lang_3_17.Shorten, sources: [./lang_3_17], maven: ["org.apache.commons:commons-lang3:3.17.0"]}
"""
MODEL = """
def Version() -> dict:
    import pydantic, sys

    class Order(pydantic.BaseModel):
        pages: int

    return {"version": pydantic.VERSION, "pages": Order(pages="2").pages, "python": sys.prefix}
"""
BARE = """
def Look() -> dict:
    import importlib.util, json, sys

    return {"libraries": [n for n in ("aiohttp", "msgspec", "pip") if importlib.util.find_spec(n)], "path": sys.path}
"""
ECHO_JAR = """
public class Echo {
  public static void main(String[] args) throws Exception {
    String request = new String(System.in.readAllBytes(), "UTF-8");
    if (request.contains("\\"op\\":\\"describe\\""))
      System.out.print("{\\"commands\\":[{\\"name\\":\\"Echo\\",\\"parameters\\":[{\\"id\\":\\"text\\",\\"type\\":\\"str\\"}]}]}");
    else
      System.out.print("{\\"length\\":" + request.length() + ",\\"java\\":true}");
  }
}
"""
TINY = """
package tiny;

public class Tiny implements connector.Connector {
  public String describe() { return "{\\"commands\\":[{\\"name\\":\\"Tell\\",\\"parameters\\":[]}]}"; }
  public String execute(String request) { return "{\\"told\\":\\"☃\\"}"; }
}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    site = Site(tmp_path_factory.mktemp("runtimes"))
    folder = site.folder
    wheel(folder / "wheels", "connector_toolbelt", "2.1", {"connector_toolbelt.py": "VERSION = '2.1'\n"})
    synthetic(folder / "package")
    (folder / "model.py").write_text(MODEL)
    (folder / "bare.py").write_text(BARE)
    (folder / "tool_user.py").write_text(
        "def Tell() -> str:\n    import connector_toolbelt\n    return connector_toolbelt.VERSION\n"
    )
    (folder / "tell.sh").write_text("# Says it again.\n# @param text str What to say\ncmd_Say() { param text; }\n")
    uv_bin = uv.find_uv_bin()
    subprocess.run([uv_bin, "venv", "--quiet", folder / "kept", "--python", sys.executable], check=True)
    subprocess.run(
        [
            uv_bin,
            "pip",
            "install",
            "--quiet",
            "--offline",
            "--python",
            folder / "kept/bin/python",
            *(folder / "wheels").iterdir(),
        ],
        check=True,
    )
    if not NO_JAVA:
        make_java(folder)
    site.configure(PYTHON + ("" if NO_JAVA else JAVA))
    installed(site, "--find-links", "wheels")
    async with served(site) as gateway:
        yield gateway


def make_java(folder: Path) -> None:
    for name in ("lang_3_4", "lang_3_17"):
        shutil.copytree(FIXTURES / "hosts" / "java" / name, folder / name)
    (folder / "Echo.java").write_text(ECHO_JAR)
    (folder / "Tiny.java").write_text(TINY)
    javac = ["javac", "-encoding", "UTF-8", "-sourcepath", ROOT / "runners/java/src", "-d", folder / "classes"]
    subprocess.run([*javac, folder / "Echo.java", folder / "Tiny.java"], check=True)
    jar = [
        "jar",
        "--create",
        "--file",
        folder / "echo.jar",
        "--main-class",
        "Echo",
        "-C",
        folder / "classes",
        "Echo.class",
    ]
    subprocess.run(jar, check=True)
    shutil.rmtree(folder / "classes" / "connector")  # the gateway's host has it


@pytest_asyncio.fixture
async def gateway(shared: Server) -> AsyncIterator[Server]:
    """The shared gateway over connections that end with the test."""
    async with aiohttp.ClientSession() as session:
        yield Server(shared.process, shared.site, shared._log, shared.port, session)


async def body(gateway: Server, target: str, **params: Any) -> Any:
    answer = await gateway.do(target, params)
    assert (answer.status, answer.code) == (200, None), answer.json
    return answer.body


# --- Python


async def test_requirements_that_contradict_each_other_are_served_side_by_side(gateway: Server) -> None:
    old, new = await body(gateway, "old_pydantic/Version"), await body(gateway, "new_pydantic/Version")
    assert (old["version"][:2], old["pages"]) == ("1.", 2)
    assert (new["version"][:2], new["pages"]) == ("2.", 2)
    assert old["python"] != new["python"]


async def test_an_unmodified_package_is_listed_as_its_classes_say(gateway: Server) -> None:
    listed = {one["id"]: one for one in (await gateway.get("/v1/commands")).json if one["id"].startswith("synthetic/")}
    assert {"synthetic/SendFax", "synthetic/JoinWords", "synthetic/StartJob", "synthetic/Deep"} <= set(listed)
    parameters = {one["id"]: (one["type"], one["required"]) for one in listed["synthetic/SendFax"]["parameters"]}
    assert parameters["to"] == ("str", True)
    assert parameters["pages"] == ("int", True)
    assert parameters["urgent"] == ("bool", False)
    assert parameters["note"] == ("str", False)
    assert [one["id"] for one in (await gateway.get("/v1/auths")).json] == ["synthetic/OAuth"]
    assert "auths/SimpleAuth is left out: it has no app_description" in (await gateway.status("synthetic"))["notices"]


async def test_a_result_of_version_1_is_the_http_answer(gateway: Server) -> None:
    answer = await gateway.do("synthetic/JoinWords", {"left": "a", "right": "☃"})
    assert (answer.status, answer.headers["Content-Type"].split(";")[0]) == (200, "application/json")
    assert answer.json == {"left": "a", "right": "☃"}


async def test_a_result_of_version_2_passes_through(gateway: Server) -> None:
    answer = await gateway.do("synthetic/SendFax", {"to": "+47", "pages": 2, "spiff__task_data": {"case": 17}})
    assert answer.status == 200
    assert answer.body == {"sent": "+47 2", "line": 7, "case": 17}
    assert "sent ☃" in answer.json["spiff__logs"]


async def test_what_the_package_raises_is_a_500_with_the_class_name(gateway: Server) -> None:
    answer = await gateway.do("synthetic/SendFax", {"to": "+47", "pages": 0})
    assert (answer.status, answer.code) == (500, "FaxError")
    assert "nothing to send" in answer.message


async def test_what_the_package_tells_is_a_200_with_its_code(gateway: Server) -> None:
    answer = await gateway.do("synthetic/Refuse")
    assert (answer.status, answer.code, answer.message) == (200, "FaxBusy", "try later")
    assert answer.json["command_response"]["http_status"] == 503


async def test_a_command_that_calls_back_itself_is_accepted(gateway: Server) -> None:
    url = "http://127.0.0.1:9/callback"
    answer = await gateway.do("synthetic/StartJob", {"line": 3, "spiff__callback_url": url})
    assert (answer.status, answer.json["error"]) == (202, None)
    assert answer.body == {"mode": "async", "callback_url": url, "line": "7"}
    assert (await body(gateway, "synthetic/StartJob"))["mode"] == "sync"


async def test_noise_on_stdout_is_log(gateway: Server) -> None:
    answer = await gateway.do("synthetic/Noisy")
    assert answer.body == {"stdin": "", "raw": "", "said": True}
    await eventually(lambda: gateway.events("log", connector="synthetic", command="Noisy", line="raw noise"))


async def test_a_module_that_cannot_be_imported_hides_itself_alone_and_is_told(gateway: Server) -> None:
    assert "synthetic/Broken" not in await gateway.commands()
    status = await gateway.status("synthetic")
    assert status["state"] == "ready"
    expected = "connector_synthetic.commands.broken is left out: ModuleNotFoundError: No module named 'no_such_sdk'"
    expected += " (add no_such_sdk, or the package that provides it, to requirements)"
    assert expected in status["notices"]
    findings = json.loads(cli(gateway.site, "check", "--json").stdout)["connectors"]
    (finding,) = (one for one in findings if one["name"] == "synthetic")
    assert finding["ok"]
    assert expected in finding["notices"]


async def test_a_venv_that_somebody_else_keeps_is_used_as_it_is(gateway: Server) -> None:
    assert await body(gateway, "kept/Tell") == "2.1"
    assert not (gateway.site.state / "runtimes" / "kept").exists()


async def test_a_module_without_requirements_sees_the_standard_library_alone(gateway: Server) -> None:
    found = await body(gateway, "bare/Look")
    assert found["libraries"] == []
    assert not [entry for entry in found["path"] if "site-packages" in entry]


def test_a_venv_that_is_not_there_is_named(site: Site) -> None:
    (site.folder / "tell.py").write_text("def Tell() -> int:\n    return 1\n")
    site.configure("tell: {runtime: python, module: ./tell.py, venv: ./nowhere}")
    (finding,) = json.loads(cli(site, "check", "--json").stdout)["connectors"]
    assert finding["problem"] == f"venv: {site.folder}/nowhere/bin/python does not exist"


# --- Java, Node, shell


@needs_java
async def test_a_jar_that_speaks_stdio_is_served_as_it_is(gateway: Server) -> None:
    assert (await body(gateway, "jar/Echo", text="☃"))["java"] is True


@needs_java
async def test_compiled_classes_are_served(gateway: Server) -> None:
    assert await body(gateway, "classes/Tell") == {"told": "☃"}


@needs_java
async def test_two_versions_of_one_java_library_are_served_side_by_side(gateway: Server) -> None:
    assert await body(gateway, "old_lang/Shorten") == {"version": "3.4", "text": "Tyran..."}
    assert await body(gateway, "new_lang/Shorten") == {"version": "3.17.0", "text": "Tyranno…"}


async def test_a_bash_function_is_a_command(gateway: Server) -> None:
    assert await body(gateway, "sh/Say", text="☃") == {"output": "☃"}


@needs_java
@needs_node
async def test_what_the_machine_lacks_is_told_and_used_once_it_is_there(site: Site, shared: Server) -> None:
    shutil.copy(shared.site.folder / "echo.jar", site.folder)
    (site.folder / "tell.mjs").write_text("export function Tell() { return { node: true }; }\n")
    site.configure("jar: {runtime: java, jar: ./echo.jar}\njs: {runtime: node, module: ./tell.mjs}")
    programs = site.folder / "bin"
    programs.mkdir()
    async with served(site, env={"PATH": str(programs)}) as gateway:
        for connector, program in (("jar", "java"), ("js", "node")):
            status = await gateway.status(connector)
            assert status["state"] == "quarantined"
            assert status["reason"].startswith(f"{program} not found")
        answer = await gateway.do("jar/Echo", {"text": "a"})
        assert (answer.status, answer.code) == (503, "connector_unavailable")
        assert "java not found: install it" in answer.message
        for program in ("java", "node"):
            found = shutil.which(program)
            assert found is not None
            (programs / program).symlink_to(os.path.realpath(found))
        await eventually(lambda: all_ready(gateway, "jar", "js"))
        assert (await body(gateway, "jar/Echo", text="a"))["java"] is True
        assert await body(gateway, "js/Tell") == {"node": True}


async def all_ready(gateway: Server, *connectors: str) -> bool:
    return all([(await gateway.status(one))["state"] == "ready" for one in connectors])
