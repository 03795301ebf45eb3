"""`runtime: python`: a Spiff connector package or a module of functions, in a venv of its own."""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import uv

from gateway.errors import Quarantine
from gateway.files import read_text
from gateway.identity import called
from gateway.runners import RUNNERS
from gateway.runtimes import projects, requirements
from gateway.runtimes.base import (
    LOCK,
    Build,
    BuildFailed,
    CommandLine,
    Home,
    Tools,
    built,
    digest,
    must_exist,
    sources,
    tree_facts,
)
from gateway.runtimes.bytecode import compile_modules
from gateway.runtimes.installed import added, traces, version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.sections import Mode

HOST = RUNNERS / "python" / "host.py"
FLAGS = ("-s", "-B")  # PYTHONPATH and its like are the entry's own
OLDEST = (3, 8)
"""The oldest Python that `runners/python` runs on."""

_INPUTS = "# inputs: "
_VERSION = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?(?P<version>==.*)")
_URL = re.compile(r"[A-Za-z0-9][\w.-]*(\[[^\]]*\])?\s*@\s*\S+://")


class PythonOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`package` or `module`, and where its libraries are: `requirements` or `venv`; without both, nowhere."""

    package: str | None = None
    """The import name; `connector_<name>` when there is no `module` either."""
    module: str | None = None
    """A file of typed functions."""
    requirements: list[str] | str | None = None
    """Lines as a requirements file has them, or the name of such a file. Paths begin at the folder of the file."""
    python: str | None = None
    """A version, or the path of an interpreter; the gateway's own when absent."""
    venv: str | None = None
    """A virtual environment that somebody else keeps."""
    wheels_only: bool = False
    """Nothing is built of sources, so that no code of a package runs when it is installed."""
    offline: bool = False
    """Nothing is fetched, whatever `gateway install` says."""


class Python:
    """Starts `runners/python/host.py` with the connector's interpreter."""

    options = PythonOptions
    mode: Mode = "fork"

    def command_line(self, options: PythonOptions, place: Home) -> CommandLine:
        """Choose the interpreter: the venv that was built, the one that was named, or a bare one."""
        self._check(options, place)
        build = self.build(options, place)
        files: list[Path] = [HOST]
        code: list[Path] = []
        venv = notice = None
        flags = list(FLAGS)
        if options.venv is not None:
            venv = place.resolve(options.venv, "venv")
            python = venv / "bin" / "python"
            if not python.exists():
                raise Quarantine(f"venv: {python} does not exist")
            if (old := _too_old(venv)) is not None:
                raise Quarantine(f"venv: {old}")
        elif build is not None:
            folder, notice = built(place, build)
            venv = folder / "venv"
            python = venv / "bin" / "python"
            files.append(place.builds / "current" / "venv" / "pyvenv.cfg")
        else:
            python = Path(_bare_interpreter())
            flags.append("-S")  # no libraries were asked for, so none of the machine's are lent
        target = _target(options, place)
        if options.module is not None:
            module = must_exist(Path(target[1]), "module")
            code.append(module)
            files += [module, *sources(module.parent, ".py", left_out=place.state_dir)]
        paths = _search_path(place)
        files += itertools.chain(*(sources(folder, ".py", left_out=place.state_dir) for folder in paths))
        if venv is not None:
            code.append(place.builds if options.venv is None else venv)
            files += traces(venv, package=None if options.module is not None else target[1])
        line = (str(python), *flags, str(HOST))
        return CommandLine(
            argv=(*line, *target),
            result_in_line=True,
            resident={"fork": (*line, "--fork", *target), "persistent": (*line, "--lines", *target)},
            files=(python, *files),
            made_of=build.files if build is not None else (),
            code=tuple(code),
            needs=(HOST.parent, *paths, *(added(venv) if venv is not None else ())),
            notice=notice,
        )

    def build(self, options: PythonOptions, place: Home) -> Build | None:
        """A venv, when there are requirements or another interpreter is wanted."""
        self._check(options, place)
        if options.venv is not None or (options.requirements is None and options.python is None):
            return None
        source = _requirements(options, place)
        python = _interpreter(options, place)
        lock = place.builds / LOCK
        facts = [tree_facts(path, left_out=_is_built) for path in source.inputs()]
        folder = str(source.folder) if source.named.packages else None
        wanted = digest([python, source.lines, facts, folder, options.wheels_only])
        return Build(
            inputs=lambda: digest([wanted, read_text(lock) if lock.exists() else ""]),
            make=functools.partial(
                _make, source=source, python=python, lock=lock, wanted=wanted, options=options, place=place
            ),
            broken=_broken,
            secrets=source.secrets(),
            files=tuple(source.files(place.state_dir)),
            variables=source.named.variables,
        )

    @staticmethod
    def _check(options: PythonOptions, place: Home) -> None:
        if options.package is not None and options.module is not None:
            raise place.node.error("package and module exclude each other", ("module",))
        if options.venv is not None and (options.requirements is not None or options.python is not None):
            raise place.node.error("a venv that somebody else keeps has its own python and packages", ("venv",))


def _search_path(place: Home) -> list[Path]:
    """Return the folders of the `PYTHONPATH` that the entry declares."""
    declared = place.node.data.get("env")
    said = declared.get("PYTHONPATH") if isinstance(declared, dict) else None
    return [Path(each) for each in str(said or "").split(os.pathsep) if os.path.isabs(each) and os.path.isdir(each)]


class _Requirements(NamedTuple):
    """Requirements where they stand: what the tool reads, and the folder at which it begins paths."""

    folder: Path
    file: Path | None
    """None: the lines are handed over as a file of that folder."""
    lines: tuple[str, ...]
    named: requirements.Named
    settings: Path | None
    """The tool's own."""

    @property
    def text(self) -> bytes:
        return "".join(f"{line}\n" for line in self.lines).encode()

    def inputs(self) -> list[Path]:
        """Return the files and folders that a build is made of, the tool's own settings included."""
        return [*self.named.files, *self.named.packages, *([self.settings] if self.settings else [])]

    def files(self, left_out: Path) -> Iterator[Path]:
        """Yield those files, and folders in which a new one shows."""
        for path in self.inputs():
            yield path
            if path.is_dir():
                yield from sources(path, "", left_out=left_out)

    def secrets(self) -> tuple[str, ...]:
        """Return what must not be shown of what the tool says."""
        settings = requirements.secrets_of(read_text(self.settings, "replace")) if self.settings else ()
        return (*self.named.secrets, *settings)


async def _make(
    folder: Path, tools: Tools, *, source: _Requirements, python: str, lock: Path, wanted: str, options: PythonOptions,
    place: Home,
) -> None:  # fmt: skip
    """Make the venv, lock, install, and try out what was built.

    Where no code of a package may run when it is installed, the connector, which imports it, is not tried out.
    """
    for links in source.named.links:
        must_exist(links, "--find-links")
    for name in sorted(source.named.variables - tools.variables):
        cure = f"set it, and say --env {name}"
        raise BuildFailed(f"requirements need the variable {name}, which builds do not get: {cure}")
    uv_bin = uv.find_uv_bin()
    common = ["--offline"] if tools.offline or options.offline else []
    wheels_only = tools.wheels_only or options.wheels_only
    venv = folder / "venv"
    try:
        await tools.run(uv_bin, "venv", "--quiet", *common, "--python", python, str(venv))
    except BuildFailed as problem:
        raise BuildFailed(f"{problem}\n{_known(place.path)}") from problem
    if (old := _too_old(venv)) is not None:
        raise BuildFailed(f"{old}. {_known(place.path)}")
    if source.file is not None or source.lines:
        more = [*common, *(["--no-build"] if wheels_only else [])]
        await _install(folder, tools, source=source, common=more, lock=lock, wanted=wanted)
    target = _target(options, place)
    if not wheels_only and (options.module is None or Path(target[1]).exists()):
        await tools.try_out(str(venv / "bin" / "python"), *FLAGS, str(HOST), *target)


async def _install(
    folder: Path, tools: Tools, *, source: _Requirements, common: list[str], lock: Path, wanted: str
) -> None:
    """Lock and install. Sources: docs.astral.sh/uv/pip."""
    uv_bin, venv = uv.find_uv_bin(), folder / "venv"
    # uv keeps what it has built of a folder until its pyproject.toml changes, whatever else has changed in it. These
    # two, unlike --refresh, make it look again offline too.
    names = [projects.read(package).name for package in source.named.packages if package.is_dir()]
    look = [_option("upgrade", name) for name in names]
    build = [_option("reinstall", name) for name in names]
    # For uv the operator's default index would come before the one that stands there.
    index = _without(tools.index, "--index-url") if source.named.indexed else tools.index
    env = dict.fromkeys(("UV_DEFAULT_INDEX", "UV_INDEX_URL"), "") if source.named.indexed else {}
    interpreter = str(venv / "bin" / "python")
    where = ["--directory", str(source.folder), *common, *index, *source.named.options, "--python", interpreter]
    what = "-" if source.file is None else str(source.file)
    if source.named.hashed:  # which is a lock already
        lock.unlink(missing_ok=True)
        pinned = ["--require-hashes"]
    else:
        if tools.upgrade or not (lock.exists() and read_text(lock).startswith(f"{_INPUTS}{wanted}\n")):
            draft = folder / LOCK
            await tools.run(
                uv_bin, "pip", "compile", "--quiet", *where, *look, "--no-header", "--no-strip-extras",
                "--output-file", str(draft), what, stdin=source.text, env=env,
            )  # fmt: skip
            draft.write_text(f"{_INPUTS}{wanted}\n{draft.read_text()}")
            draft.replace(lock)
        pinned = _pinned(read_text(lock), folder)
    await tools.run(
        uv_bin, "pip", "install", *where, *build, *pinned, "--requirement", what, stdin=source.text, env=env,
    )  # fmt: skip
    await compile_modules(venv, tools)


def _pinned(lock: str, folder: Path) -> list[str]:
    """Return the options that have installed what was locked.

    What is installed is what is asked for, with the indexes and options that stand there. So a version is a constraint:
    an override would come from any index. A URL has to take another one's place, a commit that of a branch.
    """
    versions, urls = folder / "versions.txt", folder / "urls.txt"
    found = [_VERSION.match(line) for line in lock.splitlines()]
    versions.write_text("".join(f"{one['name']}{one['version']}\n" for one in found if one))
    urls.write_text("".join(f"{line}\n" for line in lock.splitlines() if _URL.match(line)))
    return ["--constraints", str(versions), "--overrides", str(urls)]


def _without(options: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Return options, each of which has a value, without those of one name."""
    pairs = zip(options[::2], options[1::2], strict=True)
    return tuple(word for pair in pairs if pair[0] != name for word in pair)


def _requirements(options: PythonOptions, place: Home) -> _Requirements:
    folder = place.resolve(".", requirements.KEY)
    said = options.requirements
    if isinstance(said, str):
        file = place.resolve(said, requirements.KEY)
        if file.is_file() and not said.endswith(requirements.ARCHIVES):
            named, settings = requirements.of_file(file), projects.settings(file.parent)
            lines = requirements.lines_for_uv(file)
            if lines is not None:
                return _Requirements(file.parent, None, lines, named, settings)
            return _Requirements(file.parent, file, (), named, settings)
        if not (requirements.is_requirement(said) or file.exists()):
            raise Quarantine(f"{requirements.KEY}: {file} does not exist; requirements themselves are a list: [...]")
        said = [said]
    lines = tuple(said or ())
    return _Requirements(folder, None, lines, requirements.of_texts(lines, folder), projects.settings(folder))


def _broken(folder: Path) -> str | None:
    python = folder / "venv" / "bin" / "python"
    return None if python.exists() else f"its Python is gone, {python.resolve()}"


def _target(options: PythonOptions, place: Home) -> tuple[str, str]:
    """Return what the host is told of the connector's code."""
    if options.module is not None:
        return "--module", str(place.resolve(options.module, "module"))
    return "--package", options.package or _package(called(place.name))


def _package(connector: str) -> str:
    """Return the import name of a connector's package: a name of Python has no dash."""
    return f"connector_{re.sub(r'[^0-9A-Za-z_]', '_', connector)}"


def _is_built(name: str) -> bool:
    """Tell what building a package may leave in its own folder, and what is no part of it."""
    return name.startswith(".") or name in {"__pycache__", "build", "dist"} or name.endswith(".egg-info")


def _option(verb: str, name: str | None) -> str:
    return f"--{verb}" if name is None else f"--{verb}-package={name}"


def _interpreter(options: PythonOptions, place: Home) -> str:
    if options.python is None:
        return _bare_interpreter()
    if "/" in options.python:
        return str(must_exist(place.resolve(options.python, "python"), "python"))
    # A program of that name, if there is one; or else uv knows more places, and may fetch it.
    said = options.python.removeprefix("python")
    found = shutil.which(f"python{_short(said)}", path=place.path)
    if found is None:
        return options.python
    return _behind_shim(Path(found), said) or options.python


def _short(version: str) -> str:
    """Return what a program's name has of a version."""
    return ".".join(version.split(".")[:2])


def _behind_shim(program: Path, version: str) -> str | None:
    """Return the program; for a version manager's shim the newest interpreter behind it, None when there is none."""
    exact = version.count(".") > 1
    if program.parent.name != "shims":
        return None if exact else str(program)
    versions = program.parent.parent / "versions"  # pyenv's
    pattern = f"{version if exact else f'{version}.*'}/bin/python{_short(version)}"
    found = [(_numbers(path), path) for path in versions.glob(pattern)]
    return str(max(found)[1]) if found else None


def _numbers(python: Path) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", python.parent.parent.name)]


def _known(path: str) -> str:
    """Say which interpreters there are: programs on PATH, and what a version manager has behind its own."""
    found: dict[int, str] = {}
    for folder in map(Path, path.split(os.pathsep)):
        for program in folder.glob("python3.*"):
            minor = program.name.partition(".")[2]
            if minor.isdecimal() and int(minor) >= OLDEST[1]:
                there = _behind_shim(program, f"3.{minor}")
                if there is not None:
                    found.setdefault(int(minor), there)
    listed = ", ".join(f"3.{minor} ({found[minor]})" for minor in sorted(found))
    return f"Here are: {listed}" if listed else "There is none here that would do."


def _too_old(venv: Path) -> str | None:
    found = version(venv)
    if not found or found >= OLDEST:
        return None
    return f"Python {_dotted(found)} is too old: {_dotted(OLDEST)} or later is needed"


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _bare_interpreter() -> str:
    return getattr(sys, "_base_executable", sys.executable)
