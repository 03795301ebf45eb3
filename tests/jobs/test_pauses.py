"""How long the engine sleeps."""

from __future__ import annotations

import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
from dbos import _sys_db
from sqlalchemy.exc import OperationalError

from gateway.jobs import pauses
from tests.support import PATIENCE

if TYPE_CHECKING:
    import pytest


def test_no_pause_is_long_and_the_short_ones_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("threading.Event.wait", lambda _self, seconds: slept.append(seconds))
    monkeypatch.setattr(_sys_db, "time", pauses.Clock())
    left = list(range(12))

    @_sys_db.db_retry()
    def write() -> str:
        if left:
            left.pop()
            raise OperationalError("insert", {}, psycopg.OperationalError("refused"), connection_invalidated=True)
        return "written"

    assert write() == "written"
    assert len(slept) == 12
    assert 0.5 <= slept[0] <= 1.5
    assert max(slept) <= pauses.LONGEST * 1.3


class Store:
    """As much of DBOS's as its retries look at."""

    _is_sqlite = False

    def __init__(self) -> None:
        self.failed = threading.Event()

    @_sys_db.db_retry()
    def write(self) -> None:
        self.failed.set()
        raise OperationalError("insert", {}, psycopg.OperationalError("refused"), connection_invalidated=True)


def test_a_thread_that_waits_for_a_store_ends_with_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = pauses.Clock()
    monkeypatch.setattr(_sys_db, "time", clock)
    store: Any = Store()
    clock.database = store
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(store.write)
        assert store.failed.wait(PATIENCE)
        clock.end()
        assert isinstance(writing.exception(PATIENCE), OperationalError)


def test_its_clock_is_right() -> None:
    assert abs(pauses.Clock().time() - time.time()) < 5


def test_dbos_sleeps_through_the_name_that_is_replaced() -> None:
    """Not public: a release of DBOS may change it, and this test is how we notice."""
    assert "time.sleep(actual_backoff)" in inspect.getsource(_sys_db.db_retry)
