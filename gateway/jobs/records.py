"""How a job stands in its row, and how it is read back."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import msgspec

from gateway.jobs.contract import Attempt, Job, JobState, JobStatus, Outcome

SUMMARY = "id, state, owner, accepted, finished, interrupted, reason, job"
"""What lists need: columns that are small."""
ROW = f"{SUMMARY}, attempts, outcome, params, task_data, epoch"

_attempts = msgspec.json.Decoder(tuple[Attempt, ...])


class Row(NamedTuple):
    """A job's row, or its summary."""

    id: str
    state: str
    owner: str
    accepted: float
    finished: float | None
    interrupted: int
    reason: str
    job: str
    attempts: str = "[]"
    outcome: str | None = None
    params: str = "{}"
    task_data: str = "{}"
    epoch: int = 0
    unreadable: tuple[str, ...] = ()
    """The columns that no key opens; no column itself."""

    def read_job(self) -> Job:
        """Return the job, as it was accepted."""
        job = msgspec.json.decode(self.job, type=Job)
        return msgspec.structs.replace(job, id=self.id, params=self.params, task_data=self.task_data)

    def read_outcome(self) -> Outcome | None:
        """Return what it came to."""
        return None if self.outcome is None else msgspec.json.decode(self.outcome, type=Outcome)

    def read_attempts(self) -> tuple[Attempt, ...]:
        """Return the tries to deliver it."""
        return _attempts.decode(self.attempts)

    def status(self) -> JobStatus:
        """Return what is told of it."""
        job = msgspec.json.decode(self.job, type=Job)
        context = job.context
        return JobStatus(
            id=self.id, connector=job.connector, command=job.command, state=JobState(self.state),
            accepted=self.accepted, finished=self.finished, request_id=context.request_id, client=context.client,
            task_id=context.task_id,
            process_instance_id=context.process_instance_id,
            process_model_identifier=context.process_model_identifier, callback=context.callback_url is not None,
            node=self.owner, reason=self.reason, interrupted=self.interrupted, outcome=self.read_outcome(),
            attempts=self.read_attempts(),
        )  # fmt: skip


def values_of(job: Job) -> dict[str, Any]:
    """Return the columns that say what a job is; what lists need without its (large) values."""
    context = job.context
    instance = context.process_instance_id
    return {
        "id": job.id,
        "connector": job.connector,
        "process_instance": None if instance is None else _plain(str(instance)),
        "task_id": _plain(context.task_id),
        "client": _plain(context.client),
        "task": task_of(job),
        "size": size_of(job),
        "job": text_of(msgspec.structs.replace(job, params="{}", task_data="{}")),
        "params": job.params,
        "task_data": job.task_data,
    }


def text_of(value: Any) -> str:
    """Return something as JSON."""
    return msgspec.json.encode(value).decode()


def size_of(job: Job) -> int:
    """Return the characters of a job's values."""
    return len(job.params) + len(job.task_data)


def task_of(job: Job) -> str | None:
    """Return what a task's jobs of one command have in common; None for a job of no task."""
    if job.context.task_id is None:
        return None
    known = f"{job.context.client}\0{job.context.task_id}\0{job.connector}\0{job.command}"
    return hashlib.sha256(known.encode()).hexdigest()


def _plain(text: str | None) -> str | None:
    """Return a text as PostgreSQL can hold it; what it was is in the JSON."""
    return text and text.replace("\0", "\ufffd")
