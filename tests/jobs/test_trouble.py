"""Whether the store works."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.jobs.trouble import Trouble
from gateway.observe.events import Event, StoreChanged

if TYPE_CHECKING:
    import pytest


def test_each_change_is_told_once() -> None:
    told: list[Event] = []
    trouble = Trouble(told.append)
    trouble.worked()
    for reason in ("full", "still full"):
        trouble.failed(reason)
        assert trouble.reason == reason
    trouble.worked()
    trouble.worked()
    assert trouble.reason == ""
    assert told == [StoreChanged(ok=False, reason="full"), StoreChanged(ok=True)]


def test_what_nobody_has_met_again_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.jobs.trouble.LASTS", 0.0)
    trouble = Trouble(lambda _: None)
    trouble.failed("locked")
    assert trouble.reason == ""
