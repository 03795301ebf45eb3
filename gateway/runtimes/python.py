"""`runtime: python`: a Spiff connector package or a module of functions, in a venv of its own."""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uv

from gateway.errors import Quarantine
from gateway.files import read_text
from gateway.runners import RUNNERS
from gateway.runtimes.base import (
    Build,
    CommandLine,
    Home,
    Tools,
    built,
    digest,
    must_exist,
    sources,
    tree_facts,
)
from gateway.runtimes.installed import added, traces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.settings import Mode

HOST = RUNNERS / "python" / "host.py"
LOCK = "requirements.lock"

_INPUTS = "# inputs: "


class PythonOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`package` or `module`, and where its libraries are: `requirements` or `venv`; without both, nowhere."""

    package: str | None = None
    """The import name; `connector_<name>` when there is no `module` either."""
    module: str | None = None
    """A file of typed functions."""
    requirements: list[str] | str | None = None
    """Requirement strings, local paths or wheels (those begin with ./ ../ or /), or the name of a requirements file."""
    python: str | None = None
    """A version, or the path of an interpreter; the gateway's own when absent."""
    venv: str | None = None
    """A virtual environment that somebody else keeps."""


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
        flags = ["-s", "-B"]  # PYTHONPATH and its like are the entry's own
        if options.venv is not None:
            venv = place.resolve(options.venv, "venv")
            python = venv / "bin" / "python"
            if not python.exists():
                raise Quarantine(f"venv: {python} does not exist")
        elif build is not None:
            folder, notice = built(place, build)
            venv = folder / "venv"
            python = venv / "bin" / "python"
            files.append(place.builds / "current" / "venv" / "pyvenv.cfg")
        else:
            python = Path(_bare_interpreter())
            flags.append("-S")  # no libraries were asked for, so none of the machine's are lent
        if options.module is not None:
            module = must_exist(place.resolve(options.module, "module"), "module")
            code.append(module)
            files += [module, *sources(module.parent, ".py", left_out=place.state_dir)]
            target = ("--module", str(module))
        else:
            target = ("--package", options.package or f"connector_{place.name}")
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
            code=tuple(code),
            needs=(HOST.parent, *paths, *(added(venv) if venv is not None else ())),
            notice=notice,
        )

    def build(self, options: PythonOptions, place: Home) -> Build | None:
        """A venv, when there are requirements or another interpreter is wanted."""
        self._check(options, place)
        if options.venv is not None or (options.requirements is None and options.python is None):
            return None
        requirements = list(_requirements(options, place))
        python = _interpreter(options, place)
        lock = place.builds / LOCK
        local = list(_local(requirements))
        wanted = digest([python, requirements, [tree_facts(path, left_out=_is_built) for path in local]])
        return Build(
            inputs=lambda: digest([wanted, read_text(lock) if lock.exists() else ""]),
            make=functools.partial(
                _make, requirements=requirements, local=local, python=python, lock=lock, wanted=wanted
            ),
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


async def _make(
    folder: Path, tools: Tools, *, requirements: list[str], local: list[Path], python: str, lock: Path, wanted: str
) -> None:
    """Lock, make the venv, install. Sources: docs.astral.sh/uv/pip."""
    uv_bin = uv.find_uv_bin()
    common = ["--quiet", *(["--offline"] if tools.offline else [])]
    # uv keeps what it has built of a folder until its pyproject.toml changes, whatever else has changed in it. These
    # two, unlike --refresh, make it look again offline too.
    names = [_name(path) for path in local if path.is_dir()]
    look = [_option("upgrade", name) for name in names]
    build = [_option("reinstall", name) for name in names]
    venv = folder / "venv"
    await tools.run(uv_bin, "venv", *common, "--python", python, str(venv))
    interpreter = str(venv / "bin" / "python")
    if requirements:
        if not (lock.exists() and read_text(lock).startswith(f"{_INPUTS}{wanted}\n")):
            source, draft = folder / "requirements.in", folder / LOCK
            source.write_text("".join(f"{line}\n" for line in requirements))
            await tools.run(
                uv_bin, "pip", "compile", *common, *look, *tools.index, "--python", interpreter, "--no-header",
                "--output-file", str(draft), str(source),
            )  # fmt: skip
            draft.write_text(f"{_INPUTS}{wanted}\n{draft.read_text()}")
            draft.replace(lock)
        await tools.run(
            uv_bin, "pip", "install", *common, *build, *tools.index, "--python", interpreter, "--compile-bytecode",
            "--requirement", str(lock),
        )  # fmt: skip


def _requirements(options: PythonOptions, place: Home) -> Iterator[str]:
    if isinstance(options.requirements, str):
        file = must_exist(place.resolve(options.requirements, "requirements"), "requirements")
        for line in read_text(file).splitlines():
            text = line.strip()
            yield str(file.parent / text) if _is_path(text) else line
        return
    for index, text in enumerate(options.requirements or ()):
        if _is_path(text):
            yield str(must_exist(place.resolve(text, "requirements", index), "requirements"))
        else:
            yield text


def _local(requirements: list[str]) -> Iterator[Path]:
    return (Path(line) for line in requirements if line.startswith("/"))


def _is_built(name: str) -> bool:
    """Tell what building a package may leave in its own folder, and what is no part of it."""
    return name.startswith(".") or name in {"__pycache__", "build", "dist"} or name.endswith(".egg-info")


def _name(package: Path) -> str | None:
    """Return the name of a folder's package, None when only building it would tell."""
    try:
        project = tomllib.loads(read_text(package / "pyproject.toml"))
    except (OSError, ValueError):
        return None
    name = project.get("project", {}).get("name") or project.get("tool", {}).get("poetry", {}).get("name")
    return name if isinstance(name, str) else None


def _option(verb: str, name: str | None) -> str:
    return f"--{verb}" if name is None else f"--{verb}-package={name}"


def _is_path(text: str) -> bool:
    return text.startswith(("./", "../", "/"))


def _interpreter(options: PythonOptions, place: Home) -> str:
    if options.python is None:
        return _bare_interpreter()
    if "/" in options.python:
        return str(must_exist(place.resolve(options.python, "python"), "python"))
    # A program of that name, if there is one; or else uv knows more places, and may fetch it.
    found = shutil.which(f"python{options.python}", path=place.path)
    if found is None:
        return options.python
    return _behind_shim(Path(found), options.python) or options.python


def _behind_shim(program: Path, version: str) -> str | None:
    """Return the program; for a version manager's shim the newest interpreter behind it, None when there is none."""
    if program.parent.name != "shims":
        return str(program)
    versions = program.parent.parent / "versions"  # pyenv's
    found = [(_numbers(path), path) for path in versions.glob(f"{version}.*/bin/python{version}")]
    return str(max(found)[1]) if found else None


def _numbers(python: Path) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", python.parent.parent.name)]


def _bare_interpreter() -> str:
    return getattr(sys, "_base_executable", sys.executable)
