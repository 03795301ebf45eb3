"""The last outcomes of each connector."""

from __future__ import annotations

import datetime

from gateway.observe.events import RegistryLoaded, RunFinished
from gateway.observe.outcomes import KEPT, Recent

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


def loaded(*changed: str, removed: tuple[str, ...] = ()) -> RegistryLoaded:
    return RegistryLoaded(connectors=1, commands=1, quarantined=0, changed=changed, removed=removed, took=0.1)


def run(connector: str, number: int) -> RunFinished:
    return RunFinished(connector=connector, command="Go", request_id=str(number), outcome="ok", wall=0.5)


def test_the_newest_comes_first_and_only_so_many_are_kept() -> None:
    recent = Recent(lambda: NOW)
    recent(loaded("fax"))
    for number in range(KEPT + 2):
        recent(run("fax", number))
    kept = recent.of("fax")
    assert [one.request_id for one in kept] == [str(number) for number in range(KEPT + 1, 1, -1)]
    assert (kept[0].at, kept[0].command, kept[0].outcome, kept[0].wall) == (NOW, "Go", "ok", 0.5)


def test_connectors_that_are_not_there_have_none() -> None:
    recent = Recent(lambda: NOW)
    recent(run("fax", 1))
    recent(loaded("fax"))
    recent(run("fax", 2))
    recent(loaded(removed=("fax",)))
    assert recent.of("fax") == []
