"""Jobs that a gateway has recorded in the tables of DBOS, the engine of earlier versions: moved into our own.

A job was a workflow there, and `begin`, `run` and each `callback` one of its steps. What was open comes to us as the
jobs of a dead gateway do. An earlier gateway that shares the database, and lives, keeps its own.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.jobs.contract import INTERRUPTED, OPEN, Attempt, Job, JobState, Outcome, Verdict
from gateway.jobs.records import text_of, values_of
from gateway.jobs.store import IMPORT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.jobs.database import Effect, Step
    from gateway.jobs.store import Store

BATCH = 100  # jobs that are moved in one transaction
SILENT = 6.0  # seconds after which an earlier gateway is dead
PATIENCE = 30.0  # seconds for a batch
_NOT_BEGUN = "not begun"
_ACTIVE = ("PENDING", "ENQUEUED", "DELAYED")
_NOTICE = ".cancelled"  # a workflow of its own, which tells that a job was cancelled

_JOBS = """
SELECT s.workflow_uuid, s.status, COALESCE(s.executor_id, ''), s.created_at, s.completed_at,
    COALESCE(i.inputs, s.inputs), COALESCE(o.output, s.output), COALESCE(o.error, s.error), n.status
FROM workflow_status s
LEFT JOIN workflow_input i ON i.workflow_uuid = s.workflow_uuid
LEFT JOIN workflow_output o ON o.workflow_uuid = s.workflow_uuid
LEFT JOIN workflow_status n ON n.workflow_uuid = s.workflow_uuid || '.cancelled'
WHERE s.name = 'job' AND ({which}) ORDER BY s.created_at, s.workflow_uuid LIMIT :limit OFFSET :broken
"""
_IS_OPEN = f"s.status IN {_ACTIVE} OR n.status IN {_ACTIVE}"
_IS_DEAD = f"""
COALESCE(CASE WHEN s.status IN {_ACTIVE} THEN s.executor_id ELSE n.executor_id END, '')
    NOT IN (SELECT id FROM gateway_node)
"""
_NONE_LIVES = "NOT EXISTS (SELECT 1 FROM gateway_node)"
_STEPS = """
SELECT function_name, output FROM operation_outputs WHERE workflow_uuid = :id AND error IS NULL ORDER BY function_id
"""
_BURY = f"DELETE FROM gateway_node WHERE seen < clock_timestamp() - make_interval(secs => {SILENT})"
# A live gateway of an earlier version may take the job first: then its row is another, and stays.
_TAKE = """
DELETE FROM workflow_status
WHERE workflow_uuid = :id AND status = :status AND COALESCE(executor_id, '') = :executor
"""
_GONE = "NOT EXISTS (SELECT 1 FROM workflow_status WHERE workflow_uuid = :id)"
_MOVE = f"{IMPORT} WHERE {_GONE} ON CONFLICT (id) DO NOTHING"
_CLEAR = tuple(
    f"DELETE FROM {table} WHERE workflow_uuid IN (:id, :notice) AND {_GONE}"
    for table in ("operation_outputs", "workflow_input", "workflow_output", "workflow_status")
)


class LegacyStore:
    """Moves them, if there are any."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tables: set[str] = set()

    async def move_open(self) -> None:
        """Move what is open, where its gateway is dead for certain."""
        self._tables = await self._store.tables()
        await self._move(f"({_IS_OPEN}) AND {_IS_DEAD}" if self._shared else _IS_OPEN)

    async def move_ended(self) -> None:
        """Move what has ended, unless a gateway of an earlier version lives, which counts on it."""
        await self._move(_NONE_LIVES if self._shared else "1 = 1")

    async def move_again(self) -> None:
        """Look again, in a shared database: an earlier gateway may have died."""
        if self._shared:
            await self._store.database.run((_BURY, {}), patience=PATIENCE)
            await self._move(f"({_IS_OPEN}) AND {_IS_DEAD}")
            await self.move_ended()
            nodes = await self._read(("SELECT id FROM gateway_node LIMIT 1", {}))
            if not nodes[0].rows:
                self._tables = set()

    @property
    def _shared(self) -> bool:
        return "gateway_node" in self._tables

    async def _move(self, which: str) -> None:
        if "workflow_status" not in self._tables:
            return
        broken = 0
        while True:
            [found] = await self._read((_JOBS.format(which=which), {"limit": BATCH, "broken": broken}))
            if not found.rows:
                return
            old = [_Old(*row) for row in found.rows]
            names = [name for one in old for name in (one.id, one.id + _NOTICE)]
            steps = [result.rows for result in await self._read(*((_STEPS, {"id": name}) for name in names))]
            moves: list[Step] = []
            for number, one in enumerate(old):
                values = converted(one, steps[2 * number], steps[2 * number + 1])
                broken += values is None
                moves += [] if values is None else _moved(one, await self._store.sealing.values(values))
            if moves:
                await self._store.database.run(*moves, patience=PATIENCE)

    async def _read(self, *steps: Step) -> list[Effect]:
        return await self._store.database.run(*steps, patience=PATIENCE, reads=True)


class _Old(NamedTuple):
    id: str
    status: str
    executor: str
    created: int
    completed: int | None
    inputs: str
    output: str | None
    error: str | None
    notice: str | None


class _Inputs(msgspec.Struct, frozen=True):
    positionalArgs: tuple[str, str]  # noqa: N815 - as it stands there
    """The job, and the token of the run that it adopted."""


class _Error(msgspec.Struct, frozen=True):
    name: str = ""
    message: str = ""


def _moved(one: _Old, values: dict[str, Any]) -> list[Step]:
    values |= {"status": one.status, "executor": one.executor, "notice": one.id + _NOTICE}
    return [(statement, values) for statement in (_TAKE, _MOVE, *_CLEAR)]


def converted(one: _Old, steps: Sequence[tuple[Any, ...]], notice: Sequence[tuple[Any, ...]]) -> dict[str, Any] | None:
    """Return the columns of a job that was recorded so; None when nobody can read it."""
    try:
        text, adopted = msgspec.json.decode(one.inputs, type=_Inputs).positionalArgs
        job = msgspec.json.decode(text, type=Job)
        recorded = [(name, msgspec.json.decode(output, type=str)) for name, output in steps if output is not None]
        runs = [text for name, text in recorded if name == "run" and text != _NOT_BEGUN]
        outcome = next((msgspec.json.decode(text, type=Outcome) for text in runs if text), None)
        attempts = _attempts(steps)
        error = msgspec.json.decode(one.error, type=_Error) if one.error else _Error()
        reason = msgspec.json.decode(one.output, type=str) if one.output else error.message
        told = _attempts(notice)
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError):
        return None
    begun = recorded[-1][0] == "begin" if recorded else bool(adopted)
    state = _state(one, job, error, outcome, attempts, begun=begun)
    is_held = state in OPEN or one.notice in _ACTIVE
    return {
        **values_of(job),
        "state": state.value,
        "owner": one.executor or "unknown",
        "held": 1 if is_held else 0,
        "accepted": one.created / 1000,
        "finished": None if state in OPEN else one.completed / 1000 if one.completed else time.time(),
        "interrupted": max(runs.count(""), outcome.run.get(INTERRUPTED, 0) if outcome is not None else 0),
        "reason": reason.replace("\0", "\ufffd"),
        "attempts": text_of([*attempts, *told]),
        "outcome": None if outcome is None else text_of(outcome),
        "task": values_of(job)["task"] if state in OPEN else None,
    }


def _attempts(steps: Sequence[tuple[Any, ...]]) -> list[Attempt]:
    recorded = [msgspec.json.decode(output, type=str) for name, output in steps if name == "callback" and output]
    return [msgspec.json.decode(text, type=Attempt) for text in recorded]


def _state(  # noqa: PLR0911 - a table
    one: _Old, job: Job, error: _Error, outcome: Outcome | None, attempts: Sequence[Attempt], *, begun: bool
) -> JobState:
    calls_back = job.context.callback_url is not None
    if one.status == "CANCELLED":
        return JobState.CANCELLED
    if one.status == "SUCCESS":
        return JobState.DELIVERED if calls_back else JobState.KEPT
    if one.status not in _ACTIVE:
        return JobState.UNWANTED if error.name == "Unwanted" else JobState.DEAD
    if outcome is None:
        return JobState.RUNNING if begun else JobState.WAITING
    if not calls_back:
        return JobState.KEPT
    last = attempts[-1] if attempts else None
    if last is None or last.verdict is Verdict.AGAIN:
        return JobState.DELIVERING
    if last.verdict is Verdict.DONE:
        return JobState.DELIVERED
    return JobState.UNWANTED if last.race else JobState.DEAD
