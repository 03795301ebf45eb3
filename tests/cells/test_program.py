"""The cell's program is found, and built when it has to be: once, whole, and by the compiler that is there."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.cells import program
from tests.cell.driver import Cell
from tests.cells.programs import is_static

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "runners" / "cell"
NOBODY = 65534
ZIG = f"zig cc -target {os.uname().machine}-linux-musl"
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler on this machine")


class Machine:
    """Compilers that say that they were asked, and sources that they make nothing of."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "runners" / "cell"
        self.bin = folder / "bin"
        self.cache = folder / "cache"
        self.log = folder / "log"
        ignore = shutil.ignore_patterns("cell", "cell.sources", ".cell.*")
        shutil.copytree(SOURCES, self.home, ignore=ignore)
        self.bin.mkdir()
        for tool in ("sh", "dirname", "realpath", "env", "cp", "sleep", "rm"):
            (self.bin / tool).symlink_to(str(shutil.which(tool)))

    def compiler(self, name: str, script: str = "", folder: Path | None = None) -> None:
        """Have one that copies `true` to where it is told to, or does what is given."""
        place = folder or self.bin
        place.mkdir(parents=True, exist_ok=True)
        made = 'while [ "$1" != -o ]; do shift; done; cp /bin/true "$2"'
        (place / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{self.log}\n{script or made}\n')
        (place / name).chmod(0o755)

    def asked(self) -> list[str]:
        """The first words of each call of a compiler."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.partition(" -std")[0] for line in lines]

    def path(self) -> str:
        """Find the program as a new process would."""
        program.path.cache_clear()
        return program.path()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path)
    monkeypatch.setattr(program, "HOME", made.home)
    monkeypatch.setenv("PATH", str(made.bin))
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.cache))
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda _: None)
    yield made
    program.path.cache_clear()


def test_it_is_built_once_and_again_when_its_sources_change(machine: Machine) -> None:
    machine.compiler("cc")
    assert machine.path() == str(machine.home / "cell") == machine.path()
    assert machine.asked() == ["cc"]
    for file in machine.home.glob("*.[ch]"):  # as a checkout does
        os.utime(file)
    machine.path()
    assert machine.asked() == ["cc"]
    (machine.home / "main.c").write_text("int main(void) { return 0; }\n")
    machine.path()
    assert machine.asked() == ["cc", "cc"]


def test_a_program_without_the_hash_of_its_sources_is_not_believed(machine: Machine) -> None:
    machine.compiler("cc")
    shutil.copy("/bin/false", machine.home / "cell")
    assert Path(machine.path()).read_bytes() == Path("/bin/true").read_bytes()
    (machine.home / "cell").unlink()
    assert Path(machine.path()).exists()


def test_nothing_but_the_program_and_its_hash_stays(machine: Machine) -> None:
    before = set(os.listdir(machine.home))
    machine.compiler("cc")
    (machine.home / ".cell.draft").mkdir()
    (machine.home / ".cell.draft" / "cell").write_text("half of it")  # its build was killed
    machine.path()
    assert set(os.listdir(machine.home)) - before == {"cell", "cell.sources", ".cell.lock"}


def test_compilers_are_tried_in_turn(machine: Machine) -> None:
    machine.compiler("cc", "echo no stdio.h; exit 1")
    machine.compiler("gcc", "exit 1")
    machine.compiler("zig")
    machine.path()
    assert machine.asked() == ["cc", "gcc", ZIG]


def test_without_a_compiler_that_of_pypi_is_used(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "with blanks" / "ziglang"
    machine.compiler("zig", folder=folder)
    found = importlib.machinery.ModuleSpec("ziglang", None, origin=str(folder / "__init__.py"))
    monkeypatch.setattr(program.importlib.util, "find_spec", {"ziglang": found}.get)
    machine.path()
    assert machine.asked() == [ZIG]


def test_without_any_compiler_the_message_says_what_to_do(machine: Machine) -> None:
    with pytest.raises(program.NoCell) as problem:
        machine.path()
    assert str(problem.value) == (
        f"the cell's program ({machine.home}) is not built, and no C compiler was found: "
        "run make setup, or apt install gcc libc6-dev, or pip install ziglang"
    )
    assert not (machine.home / "cell").exists()


def test_what_compilers_say_when_they_cannot_is_told(machine: Machine) -> None:
    machine.compiler("cc", "echo stdio.h: No such file or directory >&2; exit 1")
    machine.compiler("clang", "exit 1")
    with pytest.raises(program.NoCell, match=r"cc: stdio\.h: No such file or directory; clang: failed.*libc6-dev"):
        machine.path()


def test_a_program_that_is_older_than_its_sources_is_not_run(machine: Machine) -> None:
    machine.compiler("cc")
    machine.path()
    (machine.home / "cell.h").write_text("")
    machine.compiler("cc", "exit 1")
    with pytest.raises(program.NoCell):
        machine.path()


def test_a_compiler_that_does_not_end_is_not_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "SECONDS", 0.1)
    machine.compiler("cc", "exec sleep 1000")
    with pytest.raises(program.NoCell, match=r"cc: not done after 0\.1 s"):
        machine.path()


def test_two_at_once_build_it_once(machine: Machine) -> None:
    gate = machine.home / "gate"
    os.mkfifo(gate)
    machine.compiler("cc", f'read -r go <{gate}; while [ "$1" != -o ]; do shift; done; cp /bin/true "$2"')
    made_from, found = program._sources(), []
    threads = [
        threading.Thread(target=lambda: found.append(program._current(machine.home, made_from))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    gate.write_text("go\n")
    for thread in threads:
        thread.join(60)
    assert found == [machine.home / "cell"] * 4
    assert machine.asked() == ["cc"]


def as_nobody(machine: Machine, code: str) -> str:
    """Run Python as a user who may write nothing of ours but the cache."""
    start = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path; from gateway.cells import program\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        f"program.HOME = Path({str(machine.home)!r})\n{code}"
    )
    env = {"PATH": str(machine.bin), "XDG_CACHE_HOME": str(machine.cache), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-I", "-S", "-c", start], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def foreign(machine: Machine, tmp_path: Path) -> Machine:
    """A checkout of somebody else's."""
    if os.getuid() != 0:
        pytest.skip("not root")
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o011)
    machine.compiler("cc")
    machine.log.touch()
    machine.log.chmod(0o666)
    machine.cache.mkdir()
    os.chown(machine.cache, NOBODY, NOBODY)
    return machine


def test_where_nothing_can_be_written_it_stands_in_the_cache(foreign: Machine) -> None:
    tell = "print(program.path())"
    found = Path(as_nobody(foreign, tell))
    assert found.is_relative_to(foreign.cache / "connector-gateway")
    assert found.stat().st_uid == NOBODY
    assert as_nobody(foreign, tell) == str(found)
    assert foreign.asked() == ["cc"]
    foreign.path()  # its owner's
    assert as_nobody(foreign, tell) == str(foreign.home / "cell")


def test_what_others_could_have_put_into_the_cache_is_not_run(foreign: Machine) -> None:
    tell = "try:\n print(program.path())\nexcept program.NoCell as problem:\n print(problem)"
    folder = foreign.cache / "connector-gateway"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    folder.chmod(0o777)
    assert "can be written by others" in as_nobody(foreign, tell)
    folder.chmod(0o755)
    os.chown(folder, 0, 0)
    assert "can be kept nowhere" in as_nobody(foreign, tell)


def test_a_wheel_carries_it_and_builds_nothing(machine: Machine) -> None:
    machine.compiler("cc")
    for file in machine.home.iterdir():
        file.unlink()
    with pytest.raises(program.NoCell, match="install the gateway again"):
        machine.path()
    shutil.copy("/bin/true", machine.home / "cell")
    assert machine.path() == str(machine.home / "cell")
    assert machine.asked() == []


@needs_cc
def test_the_program_of_this_checkout_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cells.program"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told = done.stdout.strip()
    assert told == program.path()
    assert is_static(Path(told))
    with Cell(Path(told), tmp_path) as cell:
        assert cell.run("/bin/cat", payload=b"hello").result == b"hello"
