"""What each level of the sandbox gives on this machine, for `gateway check --sandbox`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.cli.common import escaped, out
from gateway.sandbox import (
    HIDING,
    NO_NETWORK,
    OFF,
    STANDARD,
    STRICT,
    TEMPORARY,
    Sandbox,
    Step,
    asked,
    lacking,
    missing,
    refused,
    switch,
)

if TYPE_CHECKING:
    from gateway.cells.machine import Machine

_LABELS = {
    Step.NAMESPACES: "processes and System V IPC of its own",
    HIDING: "settings hidden, code read-only",
    Step.PRIVATE_TMP: f"{', '.join(TEMPORARY)} of its own",
    Step.FILTER: "filter of system calls",
    Step.PIDS: "max_pids held by the kernel",
    Step.RESTRICT: "reads and writes what is listed alone",
    NO_NETWORK: "network: none",
    Step.USER: "a user of its own (user:)",
}
_HOW = {
    Step.NAMESPACES: "namespaces",
    HIDING: "hiding",
    Step.PRIVATE_TMP: "private tmp",
    Step.FILTER: "filter",
    Step.RESTRICT: "restricting",
    NO_NETWORK: "network",
    Step.USER: "user",
}
"""What the cell's program calls it."""
_BARE = Sandbox(level=STANDARD, hide=("/",), private_tmp=True)


def findings(machine: Machine) -> dict[str, Any]:
    """Return a line a step, and what becomes of each level."""
    root = os.geteuid() == 0
    samples = {
        OFF: Sandbox(),
        STANDARD: _BARE,
        STRICT: msgspec.structs.replace(_BARE, level=STRICT, network="none", user=(1, 1) if root else None),
    }
    return {
        "problem": machine.problem,
        "steps": [
            {
                "step": label,
                "here": bool(machine.steps & steps),
                "how": machine.told.get(_HOW.get(steps, "")) or None,
                **{level: _used(steps, sample) for level, sample in samples.items()},
                "switch": None if machine.steps & steps else switch(steps),
            }
            for steps, label in _LABELS.items()
        ],
        "levels": {
            level: {"refused": refused(sample, machine.steps), "missing": missing(sample, machine.steps | Step.PIDS)}
            for level, sample in samples.items()
        },
    }


def summary(machine: Machine) -> str:
    """Say in a line how it is with the default."""
    lacks = [label for steps, label in _LABELS.items() if lacking(_BARE, machine.steps | Step.PIDS) & steps]
    if machine.problem is not None:
        return machine.problem
    told = f"standard goes without: {'; '.join(lacks)}" if lacks else "standard is complete here"
    strict = findings(machine)["levels"][STRICT]["refused"]
    return f"{told}; strict {'is refused' if strict else 'can be had'} (gateway check --sandbox says more)"


def show(found: dict[str, Any]) -> None:
    """Print the table, and what switches on what is not there."""
    if found["problem"]:
        out.print(f"[red]{escaped(found['problem'])}[/]\n")
    width = max(map(len, _LABELS.values()))
    out.print(f"[bold]{'':{width}}  here  {OFF:8} {STANDARD:8} {STRICT}[/]")
    switches: dict[str, list[str]] = {}
    for one in found["steps"]:
        mark = "[green]yes [/]" if one["here"] else "[red]no  [/]"
        how = f"  [dim]{escaped(one['how'])}[/]" if one["here"] and one["how"] else ""
        out.print(f"{one['step']:{width}}  {mark}  {one[OFF]:8} {one[STANDARD]:8} {one[STRICT]}{how}")
        if one["switch"]:
            switches.setdefault(one["switch"], []).append(one["step"])
    out.print()
    for level, what in found["levels"].items():
        if what["refused"]:
            told = "[red]cannot be had here: a connector that says so is quarantined[/]"
        else:
            told = "[yellow]goes without some of it here[/]" if what["missing"] else "[green]is complete here[/]"
        out.print(f"[bold]{level}[/] {told}")
    if switches:
        out.print("\nWhat switches it on:")
    for text, steps in switches.items():
        out.print(f"  {escaped('; '.join(steps))}\n    [cyan]{escaped(text)}[/]")


def _used(steps: Step, sample: Sandbox) -> str:
    """Say whether a level makes use of steps: always, when a key asks for it, or not."""
    if asked(sample) & steps:
        return "yes"
    if steps == Step.USER or (steps == NO_NETWORK and sample.level != OFF):
        return "by key"
    return "-"
