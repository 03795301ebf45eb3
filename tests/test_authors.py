"""docs/authors.md works as it stands: its files are written, its commands run, their output compared.

A block says what it is behind its language: `file=PATH` is written, `run` is run, and `output` holds lines that have to
come up in this order in what the runs since the last such block printed (... stands for anything). A section has a folder
of its own, in which "Start" has been done; `<!-- needs: go -->` skips it where that is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.runtimes import RUNTIMES
from tests.cli.test_new import reachable

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/authors.md").read_text()
BLOCK = re.compile(r"^```(\w+)(?: (run|output|file=(\S+)))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOSTS = {"pypi": "pypi.org", "maven": "repo.maven.apache.org"}


class Block(NamedTuple):
    language: str
    role: str
    path: str
    text: str


def sections() -> dict[str, str]:
    """Return the text below each heading."""
    parts = re.split(r"^## (.+)\n", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(text)]


def missing(need: str) -> str | None:
    """Return why a section cannot be run here."""
    if need in HOSTS:
        return None if reachable(HOSTS[need]) else f"there is no way to {HOSTS[need]} from here"
    if shutil.which(need) is None:
        return f"there is no {need} here"
    if need == "docker" and subprocess.run(["docker", "info"], capture_output=True, timeout=20).returncode:
        return "there is no Docker daemon here"
    return None


def do(blocks: list[Block], folder: Path) -> None:
    """Do what the blocks say."""
    printed = ""
    for block in blocks:
        if block.role.startswith("file="):
            path = folder / block.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.role == "run":
            printed += run(block.text, folder)
        elif block.role == "output":
            compare(block.text, printed)
            printed = ""
    assert not printed.strip() or blocks[-1].role != "run", "what this prints is not compared with anything"


def run(script: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{folder / '.bin'}:{os.environ['PATH']}", "GATEWAY": str(ROOT)}
    done = subprocess.run(
        ["sh", "-euc", script],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}"
    return done.stdout


def compare(expected: str, printed: str) -> None:
    """Find each line, wherever it is within one: stdout and stderr of a command have no order."""
    for line in expected.strip().splitlines():
        pattern = r".*?".join(re.escape(part.strip()) for part in line.split("..."))
        assert re.search(pattern, printed), f"{line!r} was expected in:\n{printed}"


def program(folder: Path) -> None:
    """Put `gateway` where `run` finds it."""
    file = folder / ".bin/gateway"
    file.parent.mkdir()
    file.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -P -m gateway "$@"\n')
    file.chmod(0o755)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    program(tmp_path)
    do(blocks(sections()["Start"]), tmp_path)
    return tmp_path


@pytest.mark.parametrize("title", [title for title, text in sections().items() if blocks(text) and title != "Start"])
def test_a_section_works_as_it_stands(title: str, folder: Path) -> None:
    text = sections()[title]
    needs = re.search(r"<!-- needs: (.+) -->", text)
    for need in needs[1].split() if needs else ():
        why = missing(need)
        if why is not None:
            pytest.skip(why)
    do(blocks(text), folder)


def test_every_runtime_has_a_section_that_is_run() -> None:
    text = "\n".join(block.text for part in sections().values() for block in blocks(part) if block.role)
    asked_for = RUNTIMES.keys() - {"exec"}
    assert {name for name in asked_for if f"runtime: {name}" in text} == asked_for


def test_an_unmarked_block_shows_a_part_of_a_file_only() -> None:
    loose = [block for part in sections().values() for block in blocks(part) if not block.role]
    assert {block.language for block in loose} <= {"yaml"}
    assert TEXT.count("```") == 2 * len(BLOCK.findall(TEXT))
