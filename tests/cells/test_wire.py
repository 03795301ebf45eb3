"""Both ends of the wire number things alike: cell.h, and what this side has of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.cells import wire
from gateway.sandbox import Step

HEADER = (Path(__file__).parents[2] / "runners/cell/cell.h").read_text()
STEPS = {
    "NO_NETWORK": Step.NETWORK, "HIDDEN": Step.MOUNTS, "HIDDEN_BY_LANDLOCK": Step.LANDLOCK, "RESTRICTED": Step.RESTRICT,
    "FILTERED": Step.FILTER, "OTHER_USER": Step.USER, "PROCESSES_BOUNDED": Step.PIDS,
    "NO_NETWORK_FILTERED": Step.NETWORK_FILTER, "SIGNALS_SCOPED": Step.SIGNALS,
}  # fmt: skip


def numbers(name: str) -> dict[str, int]:
    """What an enum of the header says."""
    body = re.sub(r"/\*.*?\*/", "", re.search(rf"enum {name} \{{(.*?)\}};", HEADER, re.DOTALL)[1], flags=re.DOTALL)
    found, last = {}, -1
    for part in filter(None, (one.strip() for one in body.split(","))):
        word, _, value = (one.strip() for one in part.partition("="))
        last = eval(value) if value else last + 1
        found[word] = last
    return found


@pytest.mark.parametrize(
    ("name", "ours"), [("kind", wire.Kind), ("flag", wire.Flag), ("why", wire.Why), ("said", wire.Said)]
)
def test_messages_are_numbered_alike(name: str, ours: type) -> None:
    theirs = numbers(name)
    assert theirs == {one.name: one.value for one in ours if one is not wire.Why.CELL_DIED}


def test_steps_of_a_sandbox_are_numbered_alike() -> None:
    theirs = numbers("wish")
    assert {
        STEPS.get(word, Step[word] if word in Step.__members__ else None): value for word, value in theirs.items()
    } == {step: step.value for step in Step}


@pytest.mark.parametrize(
    ("name", "ours"),
    [("run", wire.RUN), ("feed", wire.FEED)],
)
def test_what_we_say_is_as_long_as_they_read_it(name: str, ours: object) -> None:
    fields = re.search(rf"struct {name}_message \{{(.*?)\}};", HEADER, re.DOTALL)[1]
    fields = re.sub(r"/\*.*?\*/", "", fields, flags=re.DOTALL)
    size = wire.HEAD.size
    for width, names in re.findall(r"uint(32|64)_t ([^;]+);", fields):
        size += int(width) // 8 * len(names.split(","))
    assert ours.size == size
