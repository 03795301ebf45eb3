"""`runtime: java`: a jar that speaks stdio, or a class run by the host in `runners/java`."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import msgspec

from gateway.cells.removing import remove
from gateway.errors import Quarantine
from gateway.files import read_file
from gateway.runners import RUNNERS
from gateway.runtimes.base import (
    Build,
    CommandLine,
    Home,
    Tools,
    built,
    digest,
    find_program,
    must_exist,
    tree_facts,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gateway.settings import Mode

SOURCES = RUNNERS / "java" / "src"
RELEASE = "11"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
FLAGS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    # Its file lies in /tmp, outside of the private folder, and outlives a kill; removing it takes milliseconds.
    "-XX:-UsePerfData",
    # The JVM warns on stdout, where results go.
    "-Xlog:disable",
    "-Xlog:all=warning:stderr",
)


class JavaOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`jar`, or `class` with what it needs."""

    jar: str | None = None
    """A jar whose main class speaks stdio."""
    class_: str | None = msgspec.field(default=None, name="class")
    """A class that implements `connector.Connector`."""
    classpath: list[str] = []
    """Jars and folders of classes."""
    maven: list[str] = []
    """Coordinates, group:artifact:version; `gateway install` fetches them and what they need."""
    sources: list[str] = []
    """Folders of Java sources; `gateway install` compiles them."""
    jvm: list[str] = []
    """Options for the JVM."""
    sample: str | None = None
    """A file with a request; the class-data archive is made by running it."""


class Java:
    """Starts `java`."""

    options = JavaOptions
    mode: Mode = "standby"

    def command_line(self, options: JavaOptions, place: Home) -> CommandLine:
        """Put the class path together."""
        java = find_program("java", place.path)
        self._check(options, place)
        if options.jar is not None:
            jar = must_exist(place.resolve(options.jar, "jar"), "jar")
            line = (str(java), *FLAGS, *options.jvm, "-jar", str(jar))
            return CommandLine(argv=line, files=(java, jar), code=(jar,))
        folder, notice = built(place, self._build(options, place))
        archive = folder / "connector.jsa"
        shared = (f"-XX:SharedArchiveFile={archive}",) if archive.exists() else ()
        more = _paths(options.classpath, "classpath", place)
        classpath = _classpath(folder, more)
        host = (str(java), *FLAGS, *shared, *options.jvm, "-cp", classpath, "connector.Host")
        return CommandLine(
            argv=(*host, "--fd3", str(options.class_)),
            resident={"persistent": (*host, "--lines", str(options.class_))},
            files=(java, place.builds / "current" / "connector-host.jar"),
            code=(place.builds, *more),
            result_on_fd3=True,
            result_in_line=True,
            notice=notice,
        )

    def build(self, options: JavaOptions, place: Home) -> Build | None:
        """The host, the libraries, the compiled sources and the class-data archive."""
        self._check(options, place)
        return None if options.jar is not None else self._build(options, place)

    @staticmethod
    def _build(options: JavaOptions, place: Home) -> Build:
        java = find_program("java", place.path)
        sources = _paths(options.sources, "sources", place)
        classpath = _paths(options.classpath, "classpath", place)
        sample = must_exist(place.resolve(options.sample, "sample"), "sample") if options.sample else None
        facts = [tree_facts(path) for path in (SOURCES, *sources, *classpath, *([sample] if sample else []))]
        inputs = digest([java, options, facts])
        return Build(
            inputs=lambda: inputs,
            make=functools.partial(
                _make, options=options, place=place, sources=sources, classpath=classpath, sample=sample
            ),
        )

    @staticmethod
    def _check(options: JavaOptions, place: Home) -> None:
        if (options.jar is None) == (options.class_ is None):
            raise place.node.error("say either jar or class", ("class",))
        if options.jar is not None and (options.classpath or options.maven or options.sources):
            raise place.node.error("a jar has its own class path: classpath, maven and sources go with class", ("jar",))
        for index, coordinates in enumerate(options.maven):
            if len(coordinates.split(":")) not in {3, 4}:
                raise place.node.error(f"{coordinates!r} is not group:artifact:version", ("maven", index))


async def _make(
    folder: Path, tools: Tools, *, options: JavaOptions, place: Home, sources: list[Path], classpath: list[Path],
    sample: Path | None,
) -> None:  # fmt: skip
    host = folder / "connector-host.jar"
    await _compile([SOURCES], [], host, tools, place)
    if options.maven:
        await _fetch(folder, options.maven, tools, place)
    if sources:
        libraries = [host, *sorted((folder / "lib").glob("*.jar")), *classpath]
        await _compile(sources, libraries, folder / "connector.jar", tools, place)
    if any(path.is_dir() for path in classpath):
        return  # a class-data archive is made of jars alone
    request = read_file(sample) if sample else b'{"protocol":1,"op":"describe"}'
    java = str(find_program("java", place.path))
    archive = f"-XX:ArchiveClassesAtExit={folder / 'connector.jsa'}"
    run = ("-cp", _classpath(folder, classpath), "connector.Host", str(options.class_))
    await tools.run(java, archive, *FLAGS, *options.jvm, *run, stdin=request)


async def _fetch(folder: Path, coordinates: list[str], tools: Tools, place: Home) -> None:
    mvn = find_program("mvn", place.path)
    pom = folder / "pom.xml"
    pom.write_text(_pom(coordinates))
    await tools.run(
        str(mvn), "-q", "-B", *(["-o"] if tools.offline else []), "-Dstyle.color=never", "-f", str(pom), COPY,
        "-DincludeScope=runtime", "-Dmdep.prependGroupId=true", f"-DoutputDirectory={folder / 'lib'}",
    )  # fmt: skip


async def _compile(sources: list[Path], libraries: Iterable[Path], jar: Path, tools: Tools, place: Home) -> None:
    try:
        javac, archiver = find_program("javac", place.path), find_program("jar", place.path)
    except Quarantine as missing:
        raise Quarantine(f"{missing} (a JDK is needed to install, a JRE to run)") from missing
    classes = jar.with_suffix("")
    classes.mkdir()
    files = []
    for source in sources:
        for file in sorted(source.rglob("*")):
            if file.suffix == ".java":
                files.append(str(file))
            elif file.is_file():  # a resource
                target = classes / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    path = os.pathsep.join(map(str, libraries))
    await tools.run(
        str(javac),
        "--release",
        RELEASE,
        "-encoding",
        "UTF-8",
        # Else the first `+` of two texts makes classes at run time: 10 ms, in each process anew.
        "-XDstringConcat=inline",
        *(["-cp", path] if path else []),
        "-d",
        str(classes),
        *files,
    )
    await tools.run(str(archiver), "--create", "--file", str(jar), "-C", str(classes), ".")
    await asyncio.to_thread(remove, classes)


def _classpath(folder: Path, more: list[Path]) -> str:
    """Write the jars out in a fixed order: a class-data archive remembers it."""
    own = [folder / "connector.jar"] if (folder / "connector.jar").exists() else []
    jars = [*own, folder / "connector-host.jar", *sorted((folder / "lib").glob("*.jar")), *more]
    return os.pathsep.join(map(str, jars))


def _paths(texts: list[str], key: str, place: Home) -> list[Path]:
    return [must_exist(place.resolve(text, key, index), key) for index, text in enumerate(texts)]


def _pom(coordinates: list[str]) -> str:
    """Return a project that has nothing but dependencies."""
    dependencies = []
    for one in coordinates:
        group, artifact, version, *classifier = one.split(":")
        extra = f"<classifier>{escape(classifier[0])}</classifier>" if classifier else ""
        dependencies.append(
            f"<dependency><groupId>{escape(group)}</groupId><artifactId>{escape(artifact)}</artifactId>"
            f"<version>{escape(version)}</version>{extra}</dependency>"
        )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>gateway</groupId><artifactId>connector</artifactId><version>0</version>"
        f"<dependencies>{''.join(dependencies)}</dependencies></project>"
    )
