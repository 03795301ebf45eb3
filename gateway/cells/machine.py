"""What this machine gives to sandboxes, as the cell's program has tried it."""

from __future__ import annotations

import re
import subprocess

import msgspec

from gateway.cells.program import NoCell, path
from gateway.sandbox import Step

SECONDS = 30.0  # it takes some milliseconds
TRIES = 3  # a gateway that sweeps up after a cell may take it for something that the cell has left

_LINE = re.compile(r"([a-z ]+): (yes|no)(?:, (.*))?")
_STEPS = {
    "namespaces": Step.NAMESPACES,
    "user namespace": Step.USER_NAMESPACE | Step.PIDS,
    "network": Step.NETWORK,
    "private tmp": Step.PRIVATE_TMP,
    "hiding": Step.MOUNTS,
    "restricting": Step.RESTRICT,
    "filter": Step.FILTER,
    "user": Step.USER,
}
_OTHERWISE = {("network", "by filter"): Step.NETWORK_FILTER, ("hiding", "by landlock"): Step.LANDLOCK}


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The steps that can be had here."""

    steps: Step
    told: dict[str, str] = {}
    """How, or why not, by the program's names."""
    problem: str | None = None
    """Why nothing is known of it."""


def look() -> Machine:
    """Have the program try everything; what cannot be tried counts as not there."""
    found = _look()
    for _ in range(TRIES - 1):
        if found.problem is None:
            break
        found = _look()
    return found


def _look() -> Machine:
    try:
        done = subprocess.run(
            [path(), "--self-test"], env={}, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS,
            check=True,
        )  # fmt: skip
    except (NoCell, OSError, subprocess.SubprocessError) as problem:
        return Machine(steps=Step(0), problem=f"nothing is known of this machine: {problem}")
    found = read(done.stdout.decode(errors="replace"))
    if found.told.keys() < _STEPS.keys():
        return Machine(steps=Step(0), problem="nothing is known of this machine: the cell's self-test did not end")
    return found


def read(text: str) -> Machine:
    """Understand what the program has said: a line a step, `name: yes` or `name: no`, and how or why."""
    steps, told = Step(0), {}
    for found in _LINE.finditer(text):
        name, answer, how = found[1], found[2], found[3] or ""
        told[name] = how
        if answer == "yes":
            steps |= _OTHERWISE.get((name, how), _STEPS.get(name, Step(0)))
    return Machine(steps=steps, told=told)
