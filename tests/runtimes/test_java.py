"""`runtime: java`: which Java, at which level, with how much of `max_memory`, and where it leaves files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.runtimes.base import heap
from tests.installing import install, installed
from tests.support import cli, served

if TYPE_CHECKING:
    from tests.support import Site

JAVAC = shutil.which("javac")
pytestmark = pytest.mark.skipif(JAVAC is None, reason="no javac here")
MIB = 1 << 20

FACTS = """
public class Facts implements connector.Connector {
  record Pair(String name, long value) {}
  private int number;
  public String describe() {
    return \"\"\"
        {"commands": [{"name": "Tell", "parameters": []}, {"name": "Churn", "parameters": []},
                      {"name": "Fill", "parameters": []}, {"name": "Wrap", "parameters": []},
                      {"name": "Number", "parameters": []}]}\"\"\";
  }
  public String execute(String request) throws Exception {
    if (request.contains("Churn")) return churn(60);
    if (request.contains("Fill")) return churn(10000);
    if (request.contains("Number")) return String.valueOf(++number);
    if (request.contains("Wrap")) {
      try {
        return churn(10000);
      } catch (OutOfMemoryError full) {
        throw new IllegalStateException("no result", full);
      }
    }
    Pair heap = new Pair("heap", Runtime.getRuntime().maxMemory());
    java.io.File made = java.io.File.createTempFile("made", null);
    return String.format("{\\"%s\\": %d, \\"level\\": %d, \\"made\\": \\"%s\\", \\"home\\": \\"%s\\", \\"HOME\\": \\"%s\\"}",
        heap.name(), heap.value(), Runtime.version().feature(), made.getParent(), System.getProperty("user.home"),
        System.getenv("HOME"));
  }
  private static String churn(int live) {
    byte[][] kept = new byte[live][];
    for (int i = 0; i < 1000; i++) kept[i % live] = new byte[1 << 20];
    return "{\\"live\\": " + live + "}";
  }
}
"""
ALONE = """
public class Alone {
  public static void main(String[] args) throws Exception {
    System.in.readAllBytes();
    System.out.printf("{\\"heap\\": %d, \\"made\\": \\"%s\\", \\"home\\": \\"%s\\", \\"HOME\\": \\"%s\\"}",
        Runtime.getRuntime().maxMemory(), java.io.File.createTempFile("made", null).getParent(),
        System.getProperty("user.home"), System.getenv("HOME"));
  }
}
"""


def homes() -> list[tuple[int, Path]]:
    """Return (level, home) of the JDKs here, that of PATH first."""
    assert JAVAC is not None
    own = Path(JAVAC).resolve().parent.parent
    found = {home.resolve() for home in Path("/usr/lib/jvm").glob("*") if (home / "bin" / "javac").exists()}
    levels = []
    for home in [own, *sorted(found - {own})]:
        told = subprocess.run([home / "bin" / "javac", "-version"], capture_output=True, text=True, check=True)
        levels.append((int(told.stdout.split()[1].split(".")[0]), home))
    return levels


def called(site: Site, command: str) -> Any:
    done = cli(site, "call", "--quiet", command)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)["command_response"]["body"]


def problems(site: Site) -> dict[str, str]:
    findings = json.loads(cli(site, "check", "--json").stdout)["connectors"]
    return {one["name"]: one["problem"] for one in findings}


@pytest.fixture
def facts(site: Site) -> Site:
    (site.folder / "src").mkdir()
    (site.folder / "src" / "Facts.java").write_text(FACTS)
    return site


@pytest.mark.parametrize(
    ("memory", "share"), [(1024, 768), (400, 300), (300, 204), (256, 160), (128, 32), (100, 25), (40, 10)]
)
def test_a_heap_leaves_what_is_needed_beside_it(memory: int, share: int) -> None:
    assert heap(memory * MIB, beside=96 * MIB) == share * MIB


async def test_a_jvm_knows_its_bound_and_its_folder(facts: Site) -> None:
    (facts.folder / "Alone.java").write_text(ALONE)
    classes = facts.folder / "classes"
    subprocess.run(["javac", "-d", classes, facts.folder / "Alone.java"], check=True)
    jar = ["jar", "--create", "--file", facts.folder / "alone.jar", "--main-class", "Alone", "-C", classes, "."]
    subprocess.run(jar, check=True)
    entry = "runtime: java, class: Facts, sources: [src], max_memory: 300MiB"
    facts.configure(
        f"""
        facts: {{{entry}}}
        stays: {{{entry}, mode: persistent}}
        own: {{{entry}, jvm: [-Xmx50m]}}
        told: {{{entry}, env: {{JAVA_TOOL_OPTIONS: -Xmx52m}}}}
        alone: {{runtime: java, jar: ./alone.jar, max_memory: 300MiB, commands: {{Tell: {{}}}}}}
        """
    )
    installed(facts)
    shared = [file.name for file in (facts.state / "runtimes" / ".shared").iterdir()]
    assert len(shared) == 1, "the host is compiled once"
    async with served(facts) as gateway:
        for connector, mib in (("facts", 204), ("stays", 204), ("own", 50), ("told", 52), ("alone", 204)):
            told = (await gateway.do(f"{connector}/Tell")).body
            assert mib * 0.9 <= told["heap"] / MIB <= mib, connector  # the collector keeps a part of it empty
            assert told["made"].startswith(str(facts.state)), connector
            assert told["home"] == told["HOME"] == told["made"], connector
        for connector in ("facts", "stays"):
            assert (await gateway.do(f"{connector}/Churn")).body == {"live": 60}
        full = await gateway.do("facts/Fill")
        assert (full.status, full.code) == (502, "connector_out_of_memory"), full.raw
        assert "300MiB" in full.message
        for connector in ("stays", "own"):
            full = await gateway.do(f"{connector}/Fill")
            assert (full.status, full.code) == (502, "connector_out_of_memory"), full.raw
            assert "filled its heap" in full.message
            assert "Java heap space" in full.message
        before, after = [(await gateway.do("stays/Number")).body for _ in range(2)]
        assert (before, after) == (1, 2), "another process serves, and stays"
        wrapped = await gateway.do("stays/Wrap")
        assert (wrapped.status, wrapped.code) == (502, "connector_out_of_memory"), wrapped.raw
        assert (await gateway.do("stays/Number")).body == 1


def test_sources_are_compiled_at_the_level_of_what_runs_them_or_at_the_one_that_is_said(facts: Site) -> None:
    levels = homes()
    level, home = levels[0]
    entry = "runtime: java, class: Facts, sources: [src]"
    others = [f"jdk{number}: {{{entry}, java: {path}}}" for number, (_, path) in enumerate(levels)]
    named = [
        f"program: {{{entry}, java: {home}/bin/java}}",
        f"old: {{{entry}, release: 11}}",
        f"future: {{{entry}, release: {level + 1}}}",
        f"nowhere: {{{entry}, java: ./nowhere}}",
        f"unknown: {{{entry}, java: no-such-java}}",
        f"text: {{{entry}, java: ./src/Facts.java}}",
        f"nothing: {{runtime: java, class: Facts, classpath: [src], release: {level}}}",
    ]
    facts.configure("\n".join([*others, *named]))
    done = install(facts)
    assert done.returncode == 1
    for number, (its, _) in enumerate(levels):
        assert called(facts, f"jdk{number}/Tell")["level"] == its
    assert called(facts, "program/Tell")["level"] == level
    found = problems(facts)
    assert "not supported in -source 11" in found["old"]
    assert f"is Java {level}, and release {level + 1} needs a newer one" in found["future"]
    assert found["nowhere"] == f"java: {facts.folder}/nowhere does not exist"
    assert "java: no-such-java not found" in found["unknown"]
    assert "Facts.java is not executable" in found["text"]
    assert "nothing is compiled: it goes with sources" in found["nothing"]


def test_what_cannot_be_loaded_is_not_built_and_what_misses_something_here_is_told(site: Site) -> None:
    describe = 'public String describe() { return "{\\"commands\\": []}"; }'
    whole = f"implements connector.Connector {{ {describe} public String execute(String r) {{ return r; }}"
    classes = {
        "native": (f'{whole} static {{ System.loadLibrary("missing"); }} }}', "no missing in java.library.path"),
        "made": (f"{whole} public Made(int x) {{ }} }}", "NoSuchMethodException"),
        "other": ("{ }", "does not implement connector.Connector"),
        "key": (f'{whole} {{ if (System.getenv("KEY") == null) throw new IllegalStateException("no KEY"); }} }}', ""),
    }
    for name, (text, _) in classes.items():
        (site.folder / name).mkdir()
        (site.folder / name / f"{name.title()}.java").write_text(f"public class {name.title()} {text}")
    entries = [f"{name}: {{runtime: java, class: {name.title()}, sources: [{name}]}}" for name in classes]
    given = "given: {runtime: java, class: Key, sources: [key], classpath: [key], env: {KEY: x}}"
    site.configure("\n".join([*entries, given, "gone: {runtime: java, class: Gone, sources: [key]}"]))
    done = install(site)
    assert done.returncode == 1
    assert "it was built, and does not work here: IllegalStateException: no KEY" in done.stdout
    found = problems(site)
    for name in ("native", "made", "other"):
        assert f"gateway install {name} failed: it cannot be loaded: " in found[name]
        assert classes[name][1] in found[name]
    assert "it cannot be loaded: java.lang.ClassNotFoundException: Gone" in found["gone"]
    assert found["given"] is None


MVN = """#!/usr/bin/env python3
import os, pathlib, re, sys
from xml.etree import ElementTree
runs = pathlib.Path(__file__).with_name('runs')
with runs.open('a') as log:
    print(os.getpid(), file=log)
project = pathlib.Path(sys.argv[sys.argv.index('-f') + 1])
for module in re.findall('<module>(.*?)</module>', project.read_text()):
    pom = project.parent / module
    names = re.findall('<dependency>.*?<artifactId>(.*?)<', pom.read_text())
    if 'missing' in names:
        sys.exit('could not find missing')
    (pom.parent / 'lib').mkdir(exist_ok=True)
    for name in names:
        (pom.parent / 'lib' / f'{name}.jar').write_bytes(pathlib.Path(__file__).with_name('empty.jar').read_bytes())
"""


def test_maven_runs_once_for_what_waits_and_each_has_its_own_failure(site: Site) -> None:
    programs = site.folder / "bin"
    programs.mkdir()
    (programs / "mvn").write_text(MVN)
    (programs / "mvn").chmod(0o755)
    with zipfile.ZipFile(programs / "empty.jar", "w") as jar:
        jar.writestr("nothing", "")
    (site.folder / "src").mkdir()
    (site.folder / "src" / "Facts.java").write_text(FACTS)
    names = [f"c{number}" for number in range(4)]
    site.configure(
        "\n".join(f"{name}: {{runtime: java, class: Facts, sources: [src], maven: ['a:{name}:1']}}" for name in names)
    )
    env = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    installed(site, env=env)
    assert len((programs / "runs").read_text().split()) < len(names)
    for name in names:
        assert [one.name for one in (site.state / "runtimes" / name / "current" / "lib").iterdir()] == [f"{name}.jar"]
    text = site.file.read_text()
    site.file.write_text(text.replace("a:c3:1", "a:missing:1").replace("a:c", "a:d"))
    done = install(site, env=env)
    assert done.returncode == 1
    assert "failed  c3  mvn failed (exit status 1):\ncould not find missing" in done.stdout
    assert sum(line.startswith("built") for line in done.stdout.splitlines()) == len(names) - 1
