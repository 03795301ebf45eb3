"""The floors below which the tests may not cover a package (`make coverage`)."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_SPEC = importlib.util.spec_from_file_location("floors", ROOT / "scripts" / "floors.py")
assert _SPEC is not None
assert _SPEC.loader is not None
floors = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(floors)


def test_every_package_has_a_floor() -> None:
    held = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["floors"]
    packages = {folder.parent.name for folder in (ROOT / "gateway").glob("*/__init__.py")} | {"gateway"}
    assert set(held) == packages


@pytest.mark.parametrize("percent", [90.0, 91.9])
def test_what_is_covered_as_its_floor_says_is_all_right(percent: float) -> None:
    told, wrong = floors.judged({"calls": percent}, {"calls": 90})
    assert (len(told), wrong) == (1, [])
    assert "can rise" not in told[0]


def test_a_package_below_its_floor_is_wrong() -> None:
    _, wrong = floors.judged({"calls": 89.9, "jobs": 95.0}, {"calls": 90, "jobs": 90})
    assert wrong == ["calls is below its floor: 89.9 % of its branches instead of 90"]


def test_a_floor_that_can_rise_is_told() -> None:
    told, wrong = floors.judged({"calls": 93.7}, {"calls": 90})
    assert wrong == []
    assert told[0].endswith("its floor, 90, can rise to 93")


def test_a_package_without_a_floor_and_a_floor_without_a_package_are_wrong() -> None:
    _, wrong = floors.judged({"calls": 93.7}, {"pool": 80})
    assert wrong == ["pool has a floor and is no package", "calls has no floor: give it 93"]
