"""States only move as their table says; and every table is whole."""

from __future__ import annotations

import enum
import importlib
import pkgutil

import pytest

import gateway
from gateway.states import move


class Light(enum.Enum):
    RED = "red"
    GREEN = "green"


def test_a_move_that_is_not_in_the_table_is_refused() -> None:
    moves = {Light.RED: {Light.GREEN}, Light.GREEN: frozenset[Light]()}
    assert move(Light.RED, Light.GREEN, moves) is Light.GREEN
    with pytest.raises(RuntimeError, match="Light cannot go from green to red"):
        move(Light.GREEN, Light.RED, moves)


def test_every_table_of_moves_names_every_state_and_each_can_be_reached() -> None:
    names = [one.name for one in pkgutil.walk_packages(gateway.__path__, "gateway.") if "__main__" not in one.name]
    tables = [vars(importlib.import_module(name)).get("MOVES") for name in names]
    found = [table for table in tables if table is not None]
    assert found
    for table in found:
        kind = type(next(iter(table)))
        assert set(table) == set(kind), kind
        first = next(iter(kind))
        assert {to for moves in table.values() for to in moves} | {first} == set(kind), kind
