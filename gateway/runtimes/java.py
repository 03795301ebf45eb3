"""`runtime: java`: a jar that speaks stdio, or a class run by the host in `runners/java`."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import shutil
import uuid
import zipfile
from typing import TYPE_CHECKING, Annotated
from xml.sax.saxutils import escape

import msgspec

from gateway.cells.removing import remove
from gateway.errors import Quarantine
from gateway.files import read_file, read_text
from gateway.runners import RUNNERS
from gateway.runtimes.base import (
    Build,
    CommandLine,
    Home,
    Tools,
    built,
    digest,
    find_program,
    heap,
    installation,
    must_exist,
    tree_facts,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gateway.sections import Mode

SOURCES = RUNNERS / "java" / "src"
OLDEST = 11
"""The level that the host is compiled at, and so the oldest Java that can run it."""
POM = "pom.xml"
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
QUICK = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData")
"""Options for the JVM of a tool that runs for a second or two: half of that."""
BESIDE = 96 << 20  # bytes that a JVM needs beside its heap: classes, compiled code, threads, the JVM itself
VARIABLES = ("JDK_JAVA_OPTIONS", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS")
"""Where a JVM finds more options."""
HEAP_FULL = "java.lang.OutOfMemoryError"
_HEAP = re.compile(r"-X(?:mx|ms)|-XX:(?:Max|Initial)(?:Heap|RAM)")
"""What says how large the heap may be."""
_VERSION = re.compile(r'^JAVA_VERSION="(?:1\.)?(\d+)', re.MULTILINE)
# A JVM knows neither TMPDIR nor HOME. What the operator says of these two comes later, and counts.
_PRIVATE = ("/bin/sh", "-c", 'exec "$0" -Djava.io.tmpdir="$TMPDIR" -Duser.home="$HOME" "$@"')


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
    java: str | None = None
    """The home of a Java, or its executable; the machine's when absent."""
    release: Annotated[int, msgspec.Meta(ge=8)] | None = None
    """The level that sources are compiled at; that of the Java that runs them when absent."""
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
        java = installation(options.java, "java", place)
        self._check(options, place)
        bound = _bound(options, place)
        private = (*_PRIVATE, str(java))
        if options.jar is not None:
            jar = must_exist(place.resolve(options.jar, "jar"), "jar")
            line = (*private, *FLAGS, *bound, *options.jvm, "-jar", str(jar))
            return CommandLine(argv=line, files=(java, jar), code=(jar,), needs=(java,), heap_full=HEAP_FULL)
        folder, notice = built(place, self._build(options, place))
        archive = folder / "connector.jsa"
        shared = (f"-XX:SharedArchiveFile={archive}",) if archive.exists() else ()
        more = _paths(options.classpath, "classpath", place)
        classpath = _classpath(folder, more)
        host = (*private, *FLAGS, *shared, *bound, *options.jvm, "-cp", classpath, "connector.Host")
        return CommandLine(
            argv=(*host, "--fd3", str(options.class_)),
            resident={"persistent": (*host, "--lines", str(options.class_))},
            files=(java, place.builds / "current" / "connector-host.jar"),
            code=(place.builds, *more),
            needs=(java,),
            result_on_fd3=True,
            result_in_line=True,
            heap_full=HEAP_FULL,
            notice=notice,
        )

    def build(self, options: JavaOptions, place: Home) -> Build | None:
        """The host, the libraries, the compiled sources and the class-data archive."""
        self._check(options, place)
        return None if options.jar is not None else self._build(options, place)

    @staticmethod
    def _build(options: JavaOptions, place: Home) -> Build:
        java = installation(options.java, "java", place)
        level = _level(java)
        if level is not None and max(OLDEST, options.release or 0) > level:
            wanted = f"release {options.release}" if options.release else "the host of Java connectors"
            raise Quarantine(f"{java} is Java {level}, and {wanted} needs a newer one: say `java:`, where one is")
        sources = _paths(options.sources, "sources", place)
        classpath = _paths(options.classpath, "classpath", place)
        sample = must_exist(place.resolve(options.sample, "sample"), "sample") if options.sample else None
        facts = [tree_facts(path) for path in (SOURCES, *sources, *classpath, *([sample] if sample else []))]
        inputs = digest([java, level, options, facts])
        return Build(
            inputs=lambda: inputs,
            make=functools.partial(
                _make, options=options, place=place, java=java, sources=sources, classpath=classpath, sample=sample
            ),
        )

    @staticmethod
    def _check(options: JavaOptions, place: Home) -> None:
        if (options.jar is None) == (options.class_ is None):
            raise place.node.error("say either jar or class", ("class",))
        if options.jar is not None and (options.classpath or options.maven or options.sources):
            raise place.node.error("a jar has its own class path: classpath, maven and sources go with class", ("jar",))
        if options.release is not None and not options.sources:
            raise place.node.error("nothing is compiled: it goes with sources", ("release",))
        for index, coordinates in enumerate(options.maven):
            if len(coordinates.split(":")) not in {3, 4}:
                raise place.node.error(f"{coordinates!r} is not group:artifact:version", ("maven", index))


async def _make(
    folder: Path, tools: Tools, *, options: JavaOptions, place: Home, java: Path, sources: list[Path],
    classpath: list[Path], sample: Path | None,
) -> None:  # fmt: skip
    compiler = _Javac(tools, place, java)
    host = folder / "connector-host.jar"
    # Each build has it, since a class-data archive remembers where its jars lie.
    shutil.copyfile(await tools.shared(compiler.host_name(), compiler.host), host)
    if options.maven:
        mvn = find_program("mvn", place.path)
        (folder / POM).write_text(_pom(options.maven))
        await tools.together(str(mvn), folder, functools.partial(_fetch, tools, mvn))
    if sources:
        libraries = [host, *sorted((folder / "lib").glob("*.jar")), *classpath]
        await compiler.compile(sources, libraries, folder / "connector.jar", options.release)
    # A class-data archive is made of jars alone.
    jars = all(path.is_file() for path in classpath)
    archive = [f"-XX:ArchiveClassesAtExit={folder / 'connector.jsa'}"] if jars else []
    run = ("-cp", _classpath(folder, classpath), "connector.Host", str(options.class_))
    await tools.try_out(
        *_PRIVATE, str(java), *archive, *FLAGS, *_bound(options, place), *options.jvm, *run,
        stdin=read_file(sample) if sample else None,
    )  # fmt: skip


async def _fetch(tools: Tools, mvn: Path, folders: list[Path]) -> None:
    """Fetch what the projects in folders of builds depend on, each for itself: most of a run is Maven's start."""
    first = folders[0]
    together = first / "together.xml"
    together.write_text(_project("together", "<packaging>pom</packaging>" + _modules(folders, first)))
    options = first / ".mvn" / "jvm.config"  # which lets MAVEN_OPTS be the operator's
    options.parent.mkdir(exist_ok=True)
    options.write_text(" ".join(QUICK))
    await tools.run(
        str(mvn), "-q", "-B", *(["-o"] if tools.offline else []), "-Dstyle.color=never", "-f", str(together), COPY,
        "-DincludeScope=runtime", "-Dmdep.prependGroupId=true",
    )  # fmt: skip


def _modules(folders: list[Path], first: Path) -> str:
    modules = "".join(f"<module>{escape(os.path.relpath(one / POM, first))}</module>" for one in folders)
    return f"<modules>{modules}</modules>"


class _Javac:
    """Compiles for one Java, with the compiler that came with it, or else with the machine's."""

    def __init__(self, tools: Tools, place: Home, java: Path) -> None:
        """Find the compiler.

        Raises:
            Quarantine: there is none.
        """
        self._tools = tools
        own = java.resolve().with_name("javac")
        try:
            self._program = own if own.exists() else find_program("javac", place.path)
        except Quarantine as missing:
            raise Quarantine(f"{missing} (a JDK is needed to install, a JRE to run)") from missing
        self._level = None if own.exists() else _level(java)

    def host_name(self) -> str:
        """Return the name that the host's jar is shared under: it is what was compiled, and by what."""
        return f"connector-host-{digest([self._program, _level(self._program), tree_facts(SOURCES)])[:16]}.jar"

    async def host(self, jar: Path) -> None:
        """Compile the host."""
        await self.compile([SOURCES], [], jar, OLDEST)

    async def compile(self, sources: list[Path], libraries: Iterable[Path], jar: Path, release: int | None) -> None:
        """Compile folders of sources into a jar, which also holds what else lies in them."""
        release = release or self._level
        classes = jar.with_suffix("")
        classes.mkdir()
        try:
            files = await asyncio.to_thread(_laid_out, sources, classes)
            path = os.pathsep.join(map(str, libraries))
            await self._tools.run(
                str(self._program),
                *(f"-J{option}" for option in QUICK),
                *(["--release", str(release)] if release else []),
                "-encoding",
                "UTF-8",
                # Else the first `+` of two texts makes classes at run time: 10 ms, in each process anew.
                "-XDstringConcat=inline",
                *(["-cp", path] if path else []),
                "-d",
                str(classes),
                *files,
            )
            await asyncio.to_thread(_pack, classes, jar)
        finally:
            await asyncio.to_thread(remove, classes)


def _laid_out(sources: list[Path], classes: Path) -> list[str]:
    """Return the files to compile; what is none, a resource, is put where their classes will be."""
    files = []
    for source in sources:
        for file in sorted(source.rglob("*")):
            if file.suffix == ".java":
                files.append(str(file))
            elif file.is_file():
                target = classes / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    return files


def _pack(classes: Path, jar: Path) -> None:
    with zipfile.ZipFile(jar, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        if not (classes / "META-INF" / "MANIFEST.MF").exists():
            archive.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\r\n\r\n")
        for path in sorted(classes.rglob("*")):
            archive.write(path, path.relative_to(classes))


def _level(program: Path) -> int | None:
    """Return the feature release of the Java that a program belongs to, as its home says; None where it does not."""
    try:
        found = _VERSION.search(read_text(program.resolve().parent.parent / "release", "replace"))
    except OSError:
        return None
    return int(found[1]) if found else None


def _bound(options: JavaOptions, place: Home) -> tuple[str, ...]:
    """Return the options that tell the JVM of `max_memory`; none where the operator has said what its heap may take."""
    said = " ".join([*options.jvm, *map(place.variable, VARIABLES)])
    if not place.memory or _HEAP.search(said):
        return ()
    return (f"-Xmx{heap(place.memory, beside=BESIDE) >> 10}k",)


def _classpath(folder: Path, more: list[Path]) -> str:
    """Write the jars out in a fixed order: a class-data archive remembers it."""
    own = [folder / "connector.jar"] if (folder / "connector.jar").exists() else []
    jars = [*own, folder / "connector-host.jar", *sorted((folder / "lib").glob("*.jar")), *more]
    return os.pathsep.join(map(str, jars))


def _paths(texts: list[str], key: str, place: Home) -> list[Path]:
    return [must_exist(place.resolve(text, key, index), key) for index, text in enumerate(texts)]


def _pom(coordinates: list[str]) -> str:
    """Return a project that has nothing but dependencies, which are to be copied to `lib` beside it."""
    dependencies = []
    for one in coordinates:
        group, artifact, version, *classifier = one.split(":")
        extra = f"<classifier>{escape(classifier[0])}</classifier>" if classifier else ""
        dependencies.append(
            f"<dependency><groupId>{escape(group)}</groupId><artifactId>{escape(artifact)}</artifactId>"
            f"<version>{escape(version)}</version>{extra}</dependency>"
        )
    where = "<properties><outputDirectory>${project.basedir}/lib</outputDirectory></properties>"
    return _project(
        f"connector-{uuid.uuid4().hex[:12]}", f"{where}<dependencies>{''.join(dependencies)}</dependencies>"
    )


def _project(artifact: str, content: str) -> str:
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        f"<groupId>gateway</groupId><artifactId>{artifact}</artifactId><version>0</version>{content}</project>"
    )
