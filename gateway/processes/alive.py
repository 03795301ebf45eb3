"""Which processes serve a connector now, and what each has taken: for people, when they ask."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from gateway.cells.effort import name_within, tree

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.cells.effort import ProcessFacts

MOST = 2000  # processes of one connector that are looked at


class Leader(NamedTuple):
    """What is known of a process without looking: that of a run, or one that stays."""

    pid: int
    """As it is in its cell; 0: nobody was told."""
    does: str
    calls: int | None
    """How many it has had; None: one at most."""


class Occupied(NamedTuple):
    """A cell that something lives in: its process, and the leaders in it, the one that all others come of first."""

    pid: int
    leaders: tuple[Leader, ...]


class AliveProcess(NamedTuple):
    """A process that serves a connector, with all that it has started and that has no leader of its own."""

    pid: int
    does: str
    calls: int | None
    age: float
    """Seconds."""
    processes: int
    resident: int
    """Bytes."""
    taken: float
    """Seconds of processors."""


def alive(cells: Iterable[Occupied], most: int = MOST) -> list[AliveProcess]:
    """Look at the processes of cells; what ends meanwhile is left out. Reads /proc: to be called in a thread."""
    found: list[AliveProcess] = []
    for cell in cells:
        facts = list(itertools.islice(tree(cell.pid), most))
        most -= len(facts)
        found += _in_cell(cell, facts)
    return found


def _in_cell(cell: Occupied, facts: list[ProcessFacts]) -> list[AliveProcess]:
    """Give each process of a cell to its nearest leader; to the first one where there is none above it."""
    own = {cell.pid} | {one.pid for one in facts if one.parent == cell.pid and _is_first(one.pid)}
    known = {one.pid: one for one in facts if one.pid not in own}
    leaders = _found(cell.leaders, list(known.values()), own)
    theirs: dict[int, list[ProcessFacts]] = {pid: [] for pid in leaders}
    whose: dict[int, int] = {}
    for pid, one in known.items() if leaders else ():  # each comes after its parent
        whose[pid] = pid if pid in leaders else whose.get(one.parent, next(iter(leaders)))
        theirs[whose[pid]].append(one)
    return [
        AliveProcess(
            pid=pid,
            does=leader.does,
            calls=leader.calls,
            age=known[pid].age,
            processes=len(theirs[pid]),
            resident=sum(one.resident for one in theirs[pid]),
            taken=sum(one.taken for one in theirs[pid]),
        )
        for pid, leader in leaders.items()
    ]


def _found(leaders: tuple[Leader, ...], facts: list[ProcessFacts], own: set[int]) -> dict[int, Leader]:
    """Return the leaders by their process ids: of a lone one that nobody was told, the eldest that its cell started."""
    if len(leaders) == 1 and not leaders[0].pid:
        started = [one for one in facts if one.parent in own]
        return {min(started, key=lambda one: one.begun).pid: leaders[0]} if started else {}
    within = {name_within(one.pid): one.pid for one in facts}
    return {within[one.pid]: one for one in leaders if one.pid and one.pid in within}


def _is_first(pid: int) -> bool:
    """Tell whether a process is the first one of a namespace, which is its cell's own."""
    return name_within(pid) == 1
