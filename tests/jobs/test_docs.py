"""docs/jobs.md names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.jobs.contract import CANCELLED, FAILED, INTERRUPTED, JobState, JobsUnavailable
from gateway.jobs.settings import CallbacksSection, JobsSection, OAuth2

TEXT = (Path(__file__).parent.parent.parent / "docs/jobs.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \| (.*?) \|", TEXT, flags=re.MULTILINE)


def test_every_state_and_every_setting_is_explained_and_nothing_else() -> None:
    known = {*CallbacksSection.__struct_fields__, *JobsSection.__struct_fields__, *(state.value for state in JobState)}
    assert {name for name, _ in ROWS} == known


@pytest.mark.parametrize("name", [*OAuth2.__struct_fields__, CANCELLED, FAILED, INTERRUPTED, JobsUnavailable.code])
def test_other_names_are_there(name: str) -> None:
    assert f"`{name}`" in TEXT


@pytest.mark.parametrize("section", [CallbacksSection, JobsSection])
def test_defaults_are_those_of_the_code(section: type) -> None:
    told = dict(ROWS)
    for name, default in zip(section.__struct_fields__, section.__struct_defaults__, strict=True):
        if isinstance(default, int) or str(default).endswith("s"):
            assert told[name] in {str(default), "1d", "7d"}, name
