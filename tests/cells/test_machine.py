"""What the program says of a machine is understood, and a machine of which it says nothing gives nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.cells import machine
from gateway.cells.program import NoCell
from gateway.sandbox import Step

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

EVERYTHING = """\
namespaces: yes
user namespace: yes
network: yes, by namespace
private tmp: yes
hiding: yes, by mounts
restricting: yes, by landlock
filter: yes, by seccomp
user: no, only root can
landlock: yes, version 7
"""
CONTAINER = """\
namespaces: no, Operation not permitted
user namespace: no, Operation not permitted
network: yes, by filter
private tmp: no, it needs namespaces
hiding: yes, by landlock
restricting: yes, by landlock
filter: yes, by seccomp
user: yes
landlock: yes, version 4
a step of tomorrow: yes
"""


def test_each_line_is_a_step() -> None:
    found = machine.read(EVERYTHING)
    assert found.steps == (
        Step.NAMESPACES | Step.USER_NAMESPACE | Step.NETWORK | Step.PRIVATE_TMP | Step.MOUNTS | Step.RESTRICT
        | Step.FILTER | Step.PIDS
    )  # fmt: skip
    assert found.told["user"] == "only root can"


def test_another_way_to_the_same_end_is_another_step() -> None:
    assert machine.read(CONTAINER).steps == (
        Step.NETWORK_FILTER | Step.LANDLOCK | Step.RESTRICT | Step.FILTER | Step.USER
    )


def test_nothing_is_there_when_nothing_can_be_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> str:
        raise NoCell("no compiler")

    monkeypatch.setattr(machine, "path", missing)
    found = machine.look()
    assert (found.steps, found.problem) == (0, "nothing is known of this machine: no compiler")
    for text, end in (("echo 'filter: yes'; exit 3", 3), ("exec sleep 60", None)):
        program = tmp_path / "cell"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        monkeypatch.setattr(machine, "path", lambda program=program: str(program))
        monkeypatch.setattr(machine, "SECONDS", 0.2 if end is None else 10.0)
        found = machine.look()
        assert found.steps == 0
        assert found.problem is not None


def test_the_real_program_is_understood() -> None:
    found = machine.look()
    assert found.problem is None
    assert found.told
