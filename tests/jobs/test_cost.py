"""What is done for a job costs the same, however many have ended: counted in steps and pages, not in time."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import psycopg

from gateway.jobs.contract import Attempt, Job, JobState, Outcome, Query, Verdict
from gateway.jobs.postgres import Postgres, _translated
from gateway.jobs.sqlite import Sqlite
from gateway.jobs.store import Store
from gateway.protocol.request import Caller

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.jobs.database import Database, Effect, Step

FEW, MANY = 300, 6000
MORE_STEPS = 1.5  # times as many, since an index of many is deeper
MORE_PAGES = 12
ENDED = """
INSERT INTO jobs (id, state, owner, held, connector, process_instance, task_id, client, accepted, finished, ended,
    size, job, params, task_data, outcome)
SELECT 'old' || n, 'delivered', 'one', 0, 'fake', '7', 't', 'me', n, n, n, 1, '{}', '{}', '{}', ''
FROM (WITH RECURSIVE numbers(n) AS (SELECT CAST(:least AS integer) UNION ALL SELECT n + 1 FROM numbers WHERE n < :most)
    SELECT n FROM numbers) AS numbers
"""
OUTCOME = Outcome(status=200, body="{}")
TRIED = Attempt(at=1.0, took=0.1, verdict=Verdict.AGAIN)


class Noting:
    """A database that notes what it is asked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.steps: dict[str, Step] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def run(self, *steps: Step, patience: float, reads: bool = False) -> list[Effect]:
        self.steps |= {f"{statement} {values}": (statement, values) for statement, values in steps}
        return await self._database.run(*steps, patience=patience, reads=reads)


def made(name: str) -> Job:
    context = Caller(request_id="r", client="me", task_id="t", process_instance_id=7, callback_url="http://x/")
    return Job(connector="fake", command="Do", context=context, id=name, cluster_concurrency=2)


async def live(store: Store) -> None:
    """Do with one job whatever is done with jobs, and leave another open."""
    one, two = made("one"), made("two")
    assert await store.add(one, JobState.WAITING, accepted=1e6)
    assert not await store.add(two, JobState.WAITING, accepted=1e6)
    assert await store.join(two) == await store.find_open(two, 5) == "one"
    assert await store.busy("fake") == 0
    assert await store.begin(one, 0, None, 5)
    assert await store.take_back("one", 1)
    assert await store.begin(one, 1, 2, 5)
    assert await store.owns("one")
    assert await store.record("one", OUTCOME, JobState.DELIVERING)
    assert await store.tried("one", [TRIED], JobState.DEAD, "")
    assert await store.deliver_again(one) is not None
    assert await store.cancel("one") == "gateway"
    assert await store.cancelled() == ["one"]
    assert await store.told("one", [], ends=True)
    assert await store.read("one") is not None
    assert await store.add(two, JobState.RUNNING, accepted=1e6)
    assert await store.held() == {"two"}
    assert await store.count_orphans() == 0
    assert await store.orphans(10) == []
    assert await store.take(["one"]) == []
    for query in (
        Query(), Query(state=JobState.DELIVERED), Query(state=JobState.WAITING), Query(state=JobState.DEAD),
        Query(connector="fake"), Query(connector="none"), Query(process_instance="7"), Query(task="t"),
        Query(client="nobody"),
    ):  # fmt: skip
        await store.listed(query, 10, 0)
    assert await store.count_ended(1e9, None, 10) == 0
    assert await store.purge(1e9) == 0
    await store.keep_time()


def steps_of_sqlite(file: Path, steps: dict[str, Step]) -> dict[str, int]:
    """Return how many steps of its machine each statement takes."""
    counts: dict[str, int] = {}
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for name, step in steps.items():
            count = [0]
            connection.execute("BEGIN")
            connection.set_progress_handler(lambda count=count: count.__setitem__(0, count[0] + 1), 1)
            connection.execute(*step).fetchall()
            connection.set_progress_handler(None, 0)
            connection.execute("ROLLBACK")
            counts[name] = count[0]
    return counts


def pages_of_postgres(url: str, steps: dict[str, Step]) -> dict[str, int]:
    """Return how many pages each statement looks at, for a planner that knows the table."""
    pages: dict[str, int] = {}
    with psycopg.connect(url, autocommit=True, options="-c search_path=gateway_jobs") as connection:
        connection.execute("VACUUM ANALYZE jobs")
        for name, (statement, values) in steps.items():
            with connection.transaction(force_rollback=True):
                explained = b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + _translated(statement)
                [[[found]]] = connection.execute(explained, values)
            pages[name] = found["Plan"]["Shared Hit Blocks"] + found["Plan"]["Shared Read Blocks"]
    return pages


async def test_nothing_costs_more_when_more_have_ended(tmp_path: Path, database: str | None) -> None:
    file = tmp_path / "jobs.sqlite"
    noting = Noting(Sqlite(file) if database is None else Postgres(database))
    await noting.open()
    try:
        store = Store(noting, "gateway")
        await store.migrate()
        await store.enter()
        await store.start_clock()
        noting.steps.clear()
        await live(store)
        steps, costs = dict(noting.steps), []
        for least, most in ((1, FEW), (FEW + 1, MANY)):
            await noting.run((ENDED, {"least": least, "most": most}), patience=60)
            costs.append(steps_of_sqlite(file, steps) if database is None else pages_of_postgres(database, steps))
    finally:
        await noting.close()
    few, many = costs
    limit: Callable[[int], float] = (lambda n: n * MORE_STEPS) if database is None else (lambda n: n + MORE_PAGES)
    assert len(steps) > 25
    assert {name: (few[name], many[name]) for name in steps if many[name] > limit(few[name])} == {}
