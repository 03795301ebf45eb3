"""A process for each request, where the machine has none to give."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from gateway.processes.completed import StartFailed
from gateway.processes.run import Child
from gateway.processes.spawn import SpawnPool
from tests.processes.kept import Machine, launch

if TYPE_CHECKING:
    from gateway.cells.cell import Cell


class Unfit:
    """A cell that cannot take a request, and its place among the others."""

    memo = None

    def __init__(self) -> None:
        self.given_back: list[object] = []

    def take(self, *_: object) -> Cell:
        return self  # type: ignore[return-value]

    def give_back(self, cell: object, *, keep: int) -> None:
        self.given_back.append((cell, keep))

    def begin(self, *_: object, **__: object) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")


async def test_without_a_cell_nothing_is_started_and_the_reason_told() -> None:
    with pytest.raises(StartFailed, match=r"no cell: .*Too many open files"):
        Machine().spawn.obtain(launch(), lambda *_: None)


async def test_a_cell_whose_process_cannot_be_started_ahead_is_given_back() -> None:
    cells = Unfit()
    with pytest.raises(StartFailed, match="Cannot allocate memory"):
        SpawnPool(cells).ahead(launch(), lambda *_: None)  # type: ignore[arg-type]
    assert cells.given_back == [(cells, 8 + 1)]


async def test_what_is_obtained_has_taken_its_cell_already() -> None:
    cells = Unfit()
    child = SpawnPool(cells).obtain(launch(), lambda *_: None)  # type: ignore[arg-type]
    assert isinstance(child, Child)
    child.let_go()
    assert cells.given_back == [(cells, 8 + 1)]
