"""What is recorded of jobs, read back: rows and steps of the engine become what the port tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from dbos import DBOS

from gateway.jobs.port import INTERRUPTED, Attempt, Job, JobNotFound, JobStatus, Outcome, State

if TYPE_CHECKING:
    from dbos import StepInfo, WorkflowStatus

ACTIVE = ["PENDING", "ENQUEUED", "DELAYED"]

UNWANTED = "Unwanted"
"""The name of the error that an unwanted job ends with: `gateway.jobs.work.Unwanted`."""

NOT_BEGUN = "not begun"
"""Recorded as a run's result when the run did not begin after all: it counts for nothing, and is tried again."""

STATUSES: dict[State | None, str | list[str] | None] = {
    None: None,
    State.WAITING: ACTIVE,
    State.RUNNING: ACTIVE,
    State.DELIVERING: ACTIVE,
    State.DELIVERED: "SUCCESS",
    State.KEPT: "SUCCESS",
    State.CANCELLED: "CANCELLED",
    State.UNWANTED: "ERROR",
    State.DEAD: ["ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"],
}


class Summary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What lists show of a job, kept beside its (large) input."""

    connector: str
    command: str
    request_id: str
    client: str | None = None
    task_id: str | None = None
    process_instance_id: int | str | None = None
    process_model_identifier: str | None = None
    callback: bool = False

    @classmethod
    def of(cls, job: Job) -> Summary:
        """Return what lists show of a job."""
        context = job.context
        return cls(
            connector=job.connector, command=job.command, request_id=context.request_id, client=context.client,
            task_id=context.task_id, process_instance_id=context.process_instance_id,
            process_model_identifier=context.process_model_identifier, callback=context.callback_url is not None,
        )  # fmt: skip


async def read_row(name: str, *, load_input: bool = False) -> WorkflowStatus:
    """Return a job's row.

    Raises:
        JobNotFound: there is none.
    """
    rows = await DBOS.list_workflows_async(workflow_ids=[name], name="job", load_input=load_input)
    if not rows:
        raise JobNotFound(f"there is no job {name}")
    return rows[0]


def status_of(
    row: WorkflowStatus, steps: list[StepInfo] | None, held: State | None = None, interrupted: int = 0
) -> JobStatus:
    """Return what a row and its steps tell. `held` is the state of a job in this gateway's hands."""
    summary = summary_of(row)
    if row.status == "SUCCESS":
        state = State.DELIVERED if summary.callback else State.KEPT
    elif row.status == "CANCELLED":
        state = State.CANCELLED
    elif row.status not in ACTIVE:
        state = State.UNWANTED if getattr(row.error, "name", "") == UNWANTED else State.DEAD
    elif held is not None:
        state = held
    else:
        state = state_of(steps or [])
    if steps is not None:
        recorded = [0 if one is None else one.run.get(INTERRUPTED, 0) for one in outcomes(steps)]
        interrupted = max([interrupted, sum(one is None for one in outcomes(steps)), *recorded])
    return JobStatus(
        id=row.workflow_id, connector=summary.connector, command=summary.command, state=state,
        accepted=(row.created_at or 0) / 1000, finished=row.completed_at / 1000 if row.completed_at else None,
        request_id=summary.request_id, client=summary.client, task_id=summary.task_id,
        process_instance_id=summary.process_instance_id, process_model_identifier=summary.process_model_identifier,
        callback=summary.callback, node=row.executor_id, reason=_reason(row, state), interrupted=interrupted,
    )  # fmt: skip


def _reason(row: WorkflowStatus, state: State) -> str:
    if state in {State.DEAD, State.UNWANTED}:
        return "" if row.error is None else str(row.error)
    return row.output if state is State.DELIVERED and isinstance(row.output, str) else ""


def notice_of(name: str) -> str:
    """Return the name of what tells that a job was cancelled."""
    return f"{name}.cancelled"


def text_of(row: WorkflowStatus) -> str:
    """Return the job itself, as JSON, of a row that was read with its input."""
    assert row.input is not None
    return str(row.input["args"][0])


def summary_of(row: WorkflowStatus) -> Summary:
    """Return what stands beside the input."""
    return msgspec.convert(row.attributes or {"connector": "", "command": "", "request_id": ""}, Summary)


def outcomes(steps: list[StepInfo]) -> list[Outcome | None]:
    """Return the recorded runs that began; one that was interrupted, and may be repeated, is None."""
    return [
        msgspec.json.decode(str(one["output"]), type=Outcome) if one["output"] else None
        for one in steps
        if one["function_name"] == "run" and one["error"] is None and one["output"] != NOT_BEGUN
    ]


def attempts_of(steps: list[StepInfo]) -> list[Attempt]:
    """Return the recorded tries to deliver."""
    recorded = [str(one["output"]) for one in steps if one["function_name"] == "callback" and one["output"]]
    return [msgspec.json.decode(one, type=Attempt) for one in recorded]


def state_of(steps: list[StepInfo]) -> State:
    """Return where an open job is that is not in this gateway's hands."""
    if any(one is not None for one in outcomes(steps)):
        return State.DELIVERING
    return State.RUNNING if steps and steps[-1]["function_name"] == "begin" else State.WAITING
