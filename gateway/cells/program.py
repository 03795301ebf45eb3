"""Finds the cell's program, and builds it where it is not there yet, or is older than its sources.

A wheel carries it. In a checkout it stands beside its sources (runners/cell), made by `make setup` or at first use;
where nothing can be written there, it stands in the user's cache. `python -m gateway.cells.program` builds it and
prints its path.

The build of the wheel uses this file too (hatch_build.py): it needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gateway.locks import locked
from gateway.runners import RUNNERS

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME = RUNNERS / "cell"
MARK = "cell.sources"  # beside the program: the hash of what it was made from, since a checkout gives files new times
CACHE = "connector-gateway"
COMPILERS = ("cc", "gcc", "clang")
SECONDS = 600.0  # ziglang compiles its C library first, once
TOLD = 600  # characters of what a compiler has to say
REMEDY = "run make setup, or apt install gcc libc6-dev, or pip install ziglang"


class NoCell(Exception):
    """The cell's program is not there and cannot be built. The message says what is missing and what to do."""


class Compiler(NamedTuple):
    """How a compiler is called; `folder` is where it lies when it is on no PATH."""

    words: str
    folder: str | None = None


@functools.cache
def path() -> str:
    """Return the path of the program, which is built when it has to be: a second, half a minute with ziglang.

    Raises:
        NoCell: there is none, and none can be built.
    """
    if not (HOME / "build").exists():  # a wheel
        if not (HOME / "cell").exists():
            raise NoCell(f"{HOME}/cell is missing, which the wheel carries: install the gateway again")
        return str(HOME / "cell")
    made_from = _sources()
    problems = []
    for folder in (HOME, cache() / made_from[:16]):
        try:
            return str(_current(folder, made_from))
        except OSError as problem:
            problems.append(str(problem))
    raise NoCell(f"the cell's program has to be built, and can be kept nowhere ({'; '.join(problems)}): run make setup")


def compilers(target: str | None = None) -> list[Compiler]:
    """Return what there is to compile with, the best first; `target` is a platform, such as aarch64-linux-musl."""
    machine = (target or platform.machine()).partition("-")[0]
    names = COMPILERS if target is None else (f"{machine}-linux-musl-gcc", f"{machine}-linux-gnu-gcc")
    found = [Compiler(name) for name in names if shutil.which(name)]
    zig = f"zig cc -target {target or f'{machine}-linux-musl'}"
    if shutil.which("zig"):
        found.append(Compiler(zig))
    package = importlib.util.find_spec("ziglang")
    if package is not None and package.origin is not None:
        found.append(Compiler(zig, os.path.dirname(package.origin)))
    return found


def build(program: Path, target: str | None = None) -> None:
    """Build the program with the first compiler that can.

    Raises:
        NoCell: none can; the message has what they said.
    """
    problems = []
    for compiler in compilers(target):
        problem = _compile(program, compiler)
        if problem is None:
            return
        problems.append(f"{compiler.words}: {problem}")
    found = "no C compiler was found" if not problems else f"no C compiler here can build it ({'; '.join(problems)})"
    raise NoCell(f"the cell's program ({HOME}) is not built, and {found}: {REMEDY}")


def _sources() -> str:
    """Return the hash of all that the program is made from, and of what it is made for."""
    files = sorted(file for file in HOME.iterdir() if file.suffix in {".c", ".h"} or file.name == "build")
    parts = [platform.machine(), *(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def cache() -> Path:
    """Return the folder where a program is kept that cannot be kept beside its sources."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / CACHE


def _current(folder: Path, made_from: str) -> Path:
    """Return the folder's program, built when it is not there or was made from something else."""
    program, mark = folder / "cell", folder / MARK

    def fits() -> bool:
        with contextlib.suppress(OSError):
            return mark.read_text() == made_from and os.access(program, os.X_OK)
        return False

    if folder != HOME:
        _make_private(folder)
    if fits():
        return program
    with _alone(folder) as draft:
        if not fits():  # otherwise another gateway has built it meanwhile
            build(draft / "cell")
            (draft / MARK).write_text(made_from)
            (draft / "cell").rename(program)  # first: a mark without its program would be believed
            (draft / MARK).rename(mark)
    return program


def _make_private(folder: Path) -> None:
    # What is run from here is what this user has put here.
    for one in (folder.parent, folder):
        one.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = one.stat(follow_symlinks=False)
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
            raise PermissionError(f"{one} can be written by others")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """Give an empty folder for drafts inside of this one, while nobody else has it."""
    draft = folder / ".cell.draft"
    with locked(folder / ".cell.lock"):
        try:
            _clear(draft)  # of a build that was killed
            draft.mkdir(mode=0o700)
            yield draft
        finally:
            _clear(draft)


def _clear(draft: Path) -> None:
    """Remove a folder of files alone; others are removed by the program that is built here (removing.py)."""
    with contextlib.suppress(OSError):
        for file in draft.iterdir():
            file.unlink()
        draft.rmdir()


def _compile(program: Path, compiler: Compiler) -> str | None:
    """Build the program; return the end of what the compiler said when it could not."""
    places = [compiler.folder, os.environ.get("PATH") or os.defpath]
    env = {**os.environ, "CC": compiler.words, "PATH": os.pathsep.join(place for place in places if place)}
    with contextlib.ExitStack() as stack:
        if not os.access(os.path.expanduser("~"), os.W_OK):  # where zig would keep the C library that it compiles
            env["ZIG_GLOBAL_CACHE_DIR"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="zig."))
        try:
            done = subprocess.run(
                ["/bin/sh", HOME / "build", program], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, timeout=SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"not done after {SECONDS:g} s"
    return None if done.returncode == 0 else done.stdout.decode(errors="replace").strip()[-TOLD:] or "failed"


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{path()}\n")
    except NoCell as problem:
        sys.exit(f"cell: {problem}")
