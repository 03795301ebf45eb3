"""Where jobs are kept: the tables, and every statement.

What is legal is held here. Each change of a job says whose it must be and which states it may come from, so that a
gateway which lost a job, to a cancellation or to a gateway that took it over, changes nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gateway.jobs.clock import Clock, WrittenTime
from gateway.jobs.contract import ENDS, MOVES, OPEN, Attempt, Job, JobState, Outcome, Query, StoreAway
from gateway.jobs.records import ROW, SUMMARY, Row, task_of, text_of, values_of
from gateway.jobs.sealed import Sealing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from gateway.jobs.database import Database, Effect, Step

PATIENCE = 5.0  # seconds
BATCH = 500  # rows that are removed in one transaction
MIGRATE = 60.0  # seconds
WITHDRAWN = "it was never accepted: the caller was told that the store did not answer in time"


def _states(states: Iterable[JobState]) -> str:
    return "(" + ", ".join(f"'{state.value}'" for state in states) + ")"


def _before(*states: JobState) -> str:
    """Return the states from which one of these can be reached, as SQL."""
    return _states(one for one in JobState if MOVES[one] & set(states))


# `held`: a gateway has still to do something for it. `slot`: a process of it may be alive. `task` is there while it is
# open: a task has one open job.
# `epoch`: a beginning that was given up, and is committed all the same, belongs to an earlier one.
# The large columns come last: whoever reads the others does not read them.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        f"""
        CREATE TABLE jobs (
            id text PRIMARY KEY,
            state text NOT NULL CHECK (state IN {_states(JobState)}),
            owner text NOT NULL,
            held smallint NOT NULL CHECK (held IN (0, 1)),
            slot smallint NOT NULL DEFAULT 0 CHECK (slot IN (0, 1)),
            task text UNIQUE,
            joined integer NOT NULL DEFAULT 0,
            connector text NOT NULL,
            process_instance text,
            task_id text,
            client text,
            accepted double precision NOT NULL,
            finished double precision,
            interrupted integer NOT NULL DEFAULT 0,
            epoch integer NOT NULL DEFAULT 0,
            reason text NOT NULL DEFAULT '',
            size bigint NOT NULL,
            job text NOT NULL,
            attempts text NOT NULL DEFAULT '[]',
            outcome text,
            params text NOT NULL,
            task_data text NOT NULL,
            CHECK ((state IN {_states(OPEN)}) = (finished IS NULL)),
            CHECK (finished IS NOT NULL OR held = 1),
            CHECK (finished IS NULL OR task IS NULL)
        )
        """,
        "CREATE TABLE gateways (id text PRIMARY KEY, seen double precision NOT NULL)",
        "CREATE INDEX jobs_held ON jobs (owner, accepted) WHERE held = 1",
        "CREATE INDEX jobs_slots ON jobs (connector) WHERE slot = 1",
        "CREATE INDEX jobs_listed ON jobs (accepted)",
        "CREATE INDEX jobs_ended ON jobs (finished) WHERE held = 0",
    ),
    # `ended` is `finished` by the store's own time, see `clock.py`.
    (
        """
        CREATE TABLE clock (
            seconds double precision NOT NULL,
            wall double precision,
            boot text NOT NULL DEFAULT '',
            uptime double precision NOT NULL DEFAULT 0
        )
        """,
        "INSERT INTO clock (seconds) SELECT COALESCE(max(finished), 0) FROM jobs",
        "ALTER TABLE jobs ADD COLUMN ended double precision",
        "UPDATE jobs SET ended = finished",
        "DROP INDEX jobs_ended",
        "CREATE INDEX jobs_ended ON jobs (ended) WHERE held = 0",
    ),
    # Whatever is looked for is found without a look at jobs that ended: there are thousands, and the rows are large.
    (
        "DROP INDEX jobs_listed",
        "CREATE INDEX jobs_listed ON jobs (accepted, id)",
        "CREATE INDEX jobs_to_do ON jobs (accepted, id) WHERE held = 1",
        "CREATE INDEX jobs_by_end ON jobs (state, accepted, id) WHERE finished IS NOT NULL",
        "CREATE INDEX jobs_by_connector ON jobs (connector, accepted, id)",
        "CREATE INDEX jobs_by_instance ON jobs (process_instance, accepted, id) WHERE process_instance IS NOT NULL",
        "CREATE INDEX jobs_by_task ON jobs (task_id, accepted, id) WHERE task_id IS NOT NULL",
        "CREATE INDEX jobs_by_client ON jobs (client, accepted, id) WHERE client IS NOT NULL",
    ),
)

_VERSIONS = "CREATE TABLE versions (version integer PRIMARY KEY)"
_VERSION = "SELECT max(version) FROM versions"
_MIGRATED = "INSERT INTO versions (version) VALUES (:version)"

_COLUMNS = "id, connector, process_instance, task_id, client, size, job, params, task_data"
_VALUES = ", ".join(f":{name}" for name in _COLUMNS.split(", "))
# A task that has another open job by now is left to that one.
_TASK = "CASE WHEN EXISTS (SELECT 1 FROM jobs WHERE task = CAST(:task AS text)) THEN NULL ELSE CAST(:task AS text) END"

ADD = f"""
INSERT INTO jobs ({_COLUMNS}, task, state, owner, held, slot, accepted)
VALUES ({_VALUES}, :task, :state, :owner, 1, :slot, :accepted) ON CONFLICT (task) DO NOTHING
"""
IMPORT = f"""
INSERT INTO jobs ({_COLUMNS}, task, state, owner, held, accepted, finished, interrupted, reason, attempts, outcome)
SELECT {_VALUES}, {_TASK}, :state, :owner, :held, :accepted, :finished, :interrupted, :reason, :attempts, :outcome
"""
FIND_OPEN = "SELECT id FROM jobs WHERE task = :task"
JOIN = "UPDATE jobs SET joined = joined + 1 WHERE task = :task RETURNING id"

_MINE = "WHERE id = :id AND owner = :owner"
# The name is taken first, so that what is still on its way finds it taken.
TAKE_NAME = f"""
INSERT INTO jobs ({_COLUMNS}, state, owner, held, accepted, finished, ended, reason)
VALUES ({_VALUES}, 'dead', :owner, 0, :finished, :finished, :ended, :reason) ON CONFLICT (id) DO NOTHING
"""
WITHDRAW = f"""
UPDATE jobs SET state = 'dead', held = 0, slot = 0, task = NULL, finished = :finished, ended = :ended,
    reason = :reason
{_MINE} AND joined = 0 AND state IN {_states([JobState.WAITING, JobState.RUNNING])}
"""
MINE = f"SELECT {ROW} FROM jobs {_MINE} AND held = 1"
BEGIN = (
    f"UPDATE jobs SET state = 'running', slot = 1 {_MINE} AND epoch = :epoch AND state IN {_before(JobState.RUNNING)}"
)
_BUSY = "SELECT count(*) FROM jobs WHERE connector = :connector AND slot = 1"
BEGIN_WITHIN = f"{BEGIN} AND ({_BUSY}) < :limit"
TAKE_BACK = f"""
UPDATE jobs SET state = 'waiting', slot = 0, epoch = :epoch
{_MINE} AND epoch <= :epoch AND state IN {_states([JobState.WAITING, JobState.RUNNING])}
"""
# What is repeated, since nobody knows whether it was done, finds it done.
RECORD = f"""
UPDATE jobs SET state = :state, outcome = :outcome, slot = 0, finished = :finished, ended = :ended, held = :held,
    task = CASE WHEN :held = 0 THEN NULL ELSE task END
{_MINE} AND state IN {_states([JobState.WAITING, JobState.RUNNING, JobState.DELIVERING, JobState.KEPT])}
"""
TRIED = f"""
UPDATE jobs SET state = :state, attempts = :attempts, reason = :reason, finished = :finished, ended = :ended,
    held = :held,
    task = CASE WHEN :held = 0 THEN NULL ELSE task END
{_MINE} AND state IN ('delivering', :state)
"""
TOLD = f"UPDATE jobs SET attempts = :attempts, held = :held, slot = 0 {_MINE} AND state = 'cancelled'"
CANCEL = f"""
UPDATE jobs SET state = 'cancelled', finished = :finished, ended = :ended, task = NULL
WHERE id = :id AND state IN {_before(JobState.CANCELLED)} RETURNING owner
"""
DELIVER_AGAIN = f"""
UPDATE jobs SET state = 'delivering', owner = :owner, held = 1, finished = NULL, ended = NULL, reason = '',
    attempts = '[]', task = {_TASK}
WHERE id = :id AND held = 0 AND state IN {_states(set(ENDS) - {JobState.KEPT})} AND outcome IS NOT NULL RETURNING {ROW}
"""

READ = f"SELECT {ROW} FROM jobs WHERE id = :id"
LIST = f"SELECT {SUMMARY} FROM jobs {{where}} ORDER BY accepted DESC, id DESC LIMIT :limit OFFSET :offset"
COUNT_ENDED = """
SELECT count(*) FROM (SELECT id FROM jobs WHERE held = 0 AND ended < :before {where} LIMIT :most) AS found
"""
PURGE = f"""
DELETE FROM jobs WHERE id IN (
    SELECT id FROM jobs WHERE held = 0 AND ended < :before {{where}} ORDER BY ended LIMIT {BATCH})
"""
PURGE_BEYOND = f"""
DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE held = 0 ORDER BY ended DESC LIMIT {BATCH} OFFSET :count)
"""

# Who else is on record goes on with it.
CLOCK = """
SELECT seconds, CASE WHEN EXISTS (SELECT 1 FROM gateways WHERE id <> :owner) THEN NULL ELSE wall END, boot, uptime,
    {now}
FROM clock
"""
KEEP_TIME = """
UPDATE clock SET seconds = CASE WHEN seconds < :seconds THEN :seconds ELSE seconds END,
    wall = {now}, boot = :boot, uptime = :uptime
RETURNING seconds
"""
# What a gateway of an earlier version has written knows of no such time.
AGE = "UPDATE jobs SET ended = :seconds WHERE held = 0 AND ended IS NULL"

ENTER = "INSERT INTO gateways (id, seen) VALUES (:owner, {now})"
BEAT = "UPDATE gateways SET seen = {now} WHERE id = :owner"
LEAVE = "DELETE FROM gateways WHERE id = :owner"
OTHERS = "SELECT id, seen FROM gateways WHERE id <> :owner"
BURY = "DELETE FROM gateways WHERE id = :other AND seen = :seen"
BURY_OTHERS = "DELETE FROM gateways WHERE id <> :owner"
_ORPHAN = "held = 1 AND owner NOT IN (SELECT id FROM gateways)"
COUNT_ORPHANS = f"SELECT count(*) FROM jobs WHERE {_ORPHAN}"
ORPHANS = f"SELECT id, owner, size FROM jobs WHERE {_ORPHAN} ORDER BY accepted, id LIMIT :limit"
TAKE = f"""
UPDATE jobs SET owner = :owner, slot = 0, interrupted = interrupted + CASE WHEN state = 'running' THEN 1 ELSE 0 END,
    state = CASE WHEN state = 'running' THEN 'waiting' ELSE state END
WHERE id = :id AND {_ORPHAN} RETURNING {ROW}
"""
COUNT_DEAD = "SELECT client, count(*) FROM jobs WHERE state = 'dead' AND finished IS NOT NULL GROUP BY client"
HELD = "SELECT id FROM jobs WHERE owner = :owner AND held = 1"
CANCELLED = "SELECT id FROM jobs WHERE owner = :owner AND held = 1 AND state = 'cancelled'"

_FILTERS = {
    "state": "state = :state",
    "connector": "connector = :connector",
    "process_instance": "process_instance = :process_instance",
    "task": "task_id = :task",
    "client": "client = :client",
}


class Store:
    """The jobs in a database, as one gateway, `owner`, sees them. Each method raises StoreAway."""

    def __init__(
        self, database: Database, owner: str, patience: float = PATIENCE, sealing: Sealing | None = None
    ) -> None:
        self.owner = owner
        self.sealing = sealing or Sealing()
        self.database = database
        self.patience = patience
        self.clock = Clock()

    async def migrate(self) -> None:
        """Make the tables, or what is missing of them."""
        wait: list[Step] = [(step, {}) for step in self.database.setup]
        if wait:
            await self.database.run(*wait, patience=self.patience)
        known = 0
        if "versions" in await self.tables():
            [[known]] = (await self._read(_VERSION)).rows
        if known > len(MIGRATIONS):
            raise StoreAway("the jobs' store was written by a later version of the gateway")
        steps = list(wait)
        if known == 0:
            steps.append((_VERSIONS, {}))
        for version in range(known + 1, len(MIGRATIONS) + 1):
            steps += [*((step, {}) for step in MIGRATIONS[version - 1]), (_MIGRATED, {"version": version})]
        if known < len(MIGRATIONS):
            await self.database.run(*steps, patience=MIGRATE)  # fails when another gateway is faster

    async def tables(self) -> set[str]:
        """Return the names of the tables that are there."""
        return {row[0] for row in (await self._read(self.database.tables)).rows}

    # --- a job's way

    async def add(self, job: Job, state: JobState, *, accepted: float) -> bool:
        """Add a job; False when its task has an open one."""
        slot = 1 if state is JobState.RUNNING else 0
        values = {**await self.sealing.values(values_of(job)), "state": state.value, "slot": slot, "accepted": accepted}
        return (await self._change(ADD, values)).changed == 1

    async def find_open(self, job: Job, patience: float) -> str | None:
        """Return the open job of the same task."""
        found = await self.database.run((FIND_OPEN, {"task": task_of(job)}), patience=patience, reads=True)
        return found[0].rows[0][0] if found[0].rows else None

    async def join(self, job: Job) -> str | None:
        """Join the open job of the same task: it is not withdrawn any more."""
        rows = (await self._change(JOIN, {"task": task_of(job)})).rows
        return rows[0][0] if rows else None

    async def withdraw(self, job: Job) -> bool:
        """Take back what nobody was told to be accepted, wherever it is on its way; False when somebody was."""
        values = {
            **await self.sealing.values(values_of(job)),
            "owner": self.owner,
            "reason": WITHDRAWN,
            **self._times(),
        }
        await self.database.run((TAKE_NAME, values), (WITHDRAW, values), patience=self.patience)
        return not await self.owns(job.id)

    async def begin(self, job: Job, epoch: int, limit: int | None, patience: float) -> bool:
        """Record that a run begins; with `limit`, only if fewer of its connector run over all gateways."""
        values: dict[str, Any] = {"id": job.id, "owner": self.owner, "epoch": epoch}
        if limit is None:
            [done] = await self.database.run((BEGIN, values), patience=patience)
        else:
            turn = self.database.turn, {"name": job.connector}
            values |= {"connector": job.connector, "limit": limit}
            [_, done] = await self.database.run(turn, (BEGIN_WITHIN, values), patience=patience)
        return done.changed == 1

    async def busy(self, connector: str) -> int:
        """Return how many runs of a connector go on over all gateways."""
        return int((await self._read(_BUSY, {"connector": connector})).rows[0][0])

    async def mine(self, job: str) -> Row | None:
        """Return the row of a job if it is in this gateway's hands."""
        return await self._first(await self._read(MINE, {"id": job}))

    async def owns(self, job: str) -> bool:
        """Tell whether a job is in this gateway's hands."""
        return await self.mine(job) is not None

    async def take_back(self, job: str, epoch: int) -> bool:
        """Record that no run began before this epoch."""
        return await self._done(TAKE_BACK, {"id": job, "epoch": epoch})

    async def record(self, job: str, outcome: Outcome, state: JobState) -> bool:
        """Record what a job came to. False, here and below: it is not ours any more."""
        times = self._times(ends=state not in OPEN)
        values = {"id": job, "state": state.value, "outcome": text_of(outcome), **times}
        return await self._done(RECORD, await self.sealing.values(values))

    async def tried(self, job: str, attempts: Collection[Attempt], state: JobState, reason: str) -> bool:
        """Record the tries to deliver it, and where that has led."""
        values = {
            "id": job, "state": state.value, "attempts": text_of(attempts), "reason": reason.replace("\0", "\ufffd"),
            **self._times(ends=state not in OPEN),
        }  # fmt: skip
        return await self._done(TRIED, values)

    async def told(self, job: str, attempts: Collection[Attempt], *, ends: bool) -> bool:
        """Record that its run is dead, and the tries to tell that it was cancelled; `ends`: nothing is left to do."""
        return await self._done(TOLD, {"id": job, "attempts": text_of(attempts), "held": 0 if ends else 1})

    async def cancel(self, job: str) -> str | None:
        """Cancel a job that is open; return whose it is, who has to end it."""
        rows = (await self._change(CANCEL, {"id": job, **self._times()})).rows
        return rows[0][0] if rows else None

    async def deliver_again(self, job: Job) -> Row | None:
        """Open a job that has ended, with its outcome; None when there is nothing to deliver, or it is open."""
        return await self._first(await self._change(DELIVER_AGAIN, {"id": job.id, "task": task_of(job)}))

    # --- looking, and removing

    async def read(self, job: str) -> Row | None:
        """Return a job's row."""
        return await self._first(await self._read(READ, {"id": job}))

    async def listed(self, query: Query, limit: int, offset: int) -> list[Row]:
        """Return summaries, the latest first."""
        where, values = _where(query)
        statement = LIST.format(where=f"WHERE {where}" if where else "")
        return [Row(*row) for row in (await self._read(statement, {**values, "limit": limit, "offset": offset})).rows]

    async def count_ended(self, older_than: float, state: JobState | None, most: int) -> int:
        """Return how many `purge` would remove, at most so many."""
        where, values = self._ended(older_than, state)
        found = await self._read(COUNT_ENDED.format(where=where), {**values, "most": most})
        return int(found.rows[0][0])

    async def purge(self, older_than: float, state: JobState | None = None) -> int:
        """Remove what ended more than so many seconds ago, by the store's own time; return how many."""
        where, values = self._ended(older_than, state)
        return await self._purge(PURGE.format(where=where), values)

    async def purge_beyond(self, count: int) -> int:
        """Remove all but the last ones that ended."""
        return await self._purge(PURGE_BEYOND, {"count": count})

    # --- the store's own time

    async def start_clock(self) -> None:
        """Go on with it."""
        [[*kept, wall]] = (await self._read(CLOCK.format(now=self.database.now))).rows
        self.clock.go_on(WrittenTime(*kept), wall)
        await self.keep_time()

    async def keep_time(self) -> None:
        """Write down how late it is. Of several gateways the one that has counted furthest is right."""
        seconds = self.clock.now
        values = {"seconds": seconds, "boot": self.clock.boot, "uptime": time.monotonic()}
        # Each alone: a gateway that is frozen in the middle of a transaction would hold the row.
        kept = await self._change(KEEP_TIME.format(now=self.database.now), values)
        self.clock.catch_up(kept.rows[0][0])
        await self._change(AGE, {"seconds": seconds})

    def _times(self, *, ends: bool = True) -> dict[str, Any]:
        """Return the columns that say when a job has ended, and that nothing is left to do for it."""
        if not ends:
            return {"finished": None, "ended": None, "held": 1}
        return {"finished": time.time(), "ended": self.clock.now, "held": 0}

    # --- whose they are

    async def enter(self) -> None:
        """Put this gateway on record. With a file every other one is dead."""
        steps: list[Step] = [(ENTER.format(now=self.database.now), {"owner": self.owner})]
        if not self.database.shared:
            steps.insert(0, (BURY_OTHERS, {"owner": self.owner}))
        await self.database.run(*steps, patience=self.patience)

    async def beat(self) -> bool:
        """Say that this gateway lives; False when it was declared dead."""
        return await self._done(BEAT.format(now=self.database.now))

    async def others(self) -> dict[str, float]:
        """Return the other gateways on record, and what each has written with its last beat: never the same twice."""
        return dict((await self._read(OTHERS)).rows)

    async def bury(self, other: str, seen: float) -> None:
        """Declare a gateway dead, unless it has beaten since then."""
        await self._change(BURY, {"other": other, "seen": seen})

    async def leave(self) -> None:
        """Take this gateway off the record: what it leaves is there for the others."""
        await self._change(LEAVE)

    async def held(self) -> set[str]:
        """Return the jobs for which this gateway has still to do something."""
        return {row[0] for row in (await self._read(HELD)).rows}

    async def cancelled(self) -> list[str]:
        """Return those of this gateway's jobs that somebody has cancelled."""
        return [row[0] for row in (await self._read(CANCELLED)).rows]

    async def count_orphans(self) -> int:
        """Return how many jobs of dead gateways are left."""
        return int((await self._read(COUNT_ORPHANS)).rows[0][0])

    async def count_dead(self) -> dict[str | None, int]:
        """Return how many dead letters there are, over all gateways, by client."""
        return {row[0]: int(row[1]) for row in (await self._read(COUNT_DEAD)).rows}

    async def orphans(self, limit: int) -> list[tuple[str, str, int]]:
        """Return the oldest jobs of dead gateways: (id, owner, size)."""
        return [(row[0], row[1], row[2]) for row in (await self._read(ORPHANS, {"limit": limit})).rows]

    async def take(self, jobs: Collection[str]) -> list[Row]:
        """Take jobs of dead gateways over; return those that nobody else has taken meanwhile."""
        steps = [(TAKE, {"id": job, "owner": self.owner}) for job in jobs]
        done = await self.database.run(*steps, patience=self.patience)
        return [await self.sealing.opened(Row(*row)) for one in done for row in one.rows]

    # --- private

    async def _first(self, effect: Effect) -> Row | None:
        return await self.sealing.opened(Row(*effect.rows[0])) if effect.rows else None

    def _ended(self, older_than: float, state: JobState | None) -> tuple[str, dict[str, Any]]:
        """Return a condition beside that of age, and the values of both."""
        where, values = _where(Query(state=state))
        return f"AND {where}" if where else "", {**values, "before": self.clock.now - older_than}

    async def _purge(self, statement: str, values: dict[str, Any]) -> int:
        removed = 0
        while True:
            count = (await self._change(statement, values)).changed
            removed += count
            if count < BATCH:
                return removed

    async def _done(self, statement: str, values: dict[str, Any] | None = None) -> bool:
        return (await self._change(statement, values)).changed == 1

    async def _change(self, statement: str, values: dict[str, Any] | None = None) -> Effect:
        [result] = await self.database.run((statement, {**(values or {}), "owner": self.owner}), patience=self.patience)
        return result

    async def _read(self, statement: str, values: dict[str, Any] | None = None) -> Effect:
        step = statement, {**(values or {}), "owner": self.owner}
        [result] = await self.database.run(step, patience=self.patience, reads=True)
        return result


def _where(query: Query) -> tuple[str, dict[str, Any]]:
    wanted = {name: getattr(query, name) for name in _FILTERS if getattr(query, name) is not None}
    conditions = [_FILTERS[name] for name in wanted]
    if query.state is not None:
        wanted["state"] = query.state.value
        conditions.append("held = 1" if query.state in OPEN else "finished IS NOT NULL")  # which has an index
    return " AND ".join(conditions), wanted
