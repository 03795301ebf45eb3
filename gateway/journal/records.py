"""What is known of a run that is over: as it is handed to the journal, as it is kept, and what can be asked for."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gateway.observe.events import RunFinished
from gateway.observe.redact import Redactor
from gateway.protocol.document import Object, Piece
from gateway.protocol.request import Caller

FAILED = "failed"
"""What is asked for by whoever wants all outcomes but `ok`."""


class Payload(msgspec.Struct, kw_only=True):
    """What a run was called with and what it answered, as it came: secrets are taken out of it where it is written."""

    params: Object
    task_data: msgspec.Raw
    result: tuple[Piece, ...]
    redact: Redactor
    """Knows the connector's secrets."""
    secret_values: Callable[[Object], list[str] | None]
    """Returns what of the parameters is secret; None where that is more than can be looked for."""
    hides: Callable[[str], bool]
    """Tells whether what is called so is secret."""
    too_large: bool = False
    """The parameters are, and were left out."""

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        given = sum(len(memoryview(raw)) for raw in self.params.values()) + len(memoryview(self.task_data))
        return given + sum(map(len, self.result))


class Ran(msgspec.Struct, kw_only=True):
    """A run that is over, as it is handed over. Times are seconds, `finished` since 1970."""

    id: str
    event: RunFinished
    caller: Caller
    finished: float
    took: float
    """From the call to its end."""
    started: float | None
    """From the call to when its process was asked for; None when none was."""
    job: str | None
    replay_of: str | None
    log: str
    payload: Payload | None
    again: bool = False
    """It was handed over before, when its call was answered, and has gone on since."""
    size: int = 0
    """About how many bytes it holds, once it is queued."""


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it is kept and listed. Times are seconds, `began` and `finished` since 1970; sizes are bytes."""

    id: str
    connector: str
    """By its registered name."""
    command: str
    client: str | None
    key_id: str | None
    request_id: str
    task_id: str | None
    process_instance_id: int | str | None
    process_model_identifier: str | None
    job: str | None
    """The job whose run it was, or that became of its call; of one that went on after its answer, its id there."""
    replay_of: str | None
    began: float
    """When the call came."""
    queue_wait: float
    started: float | None
    """From the call to when its process was asked for; None when none was."""
    wall: float
    """From then on to its end."""
    finished: float
    cpu_user: float
    cpu_system: float
    peak_rss: int
    request_bytes: int
    result_bytes: int
    log_bytes: int
    outcome: str
    error_code: str | None
    message: str | None
    status: int | None
    """The exit status."""
    signal: str | None
    kept: str
    """What there is of its parameters: `no`, `whole`, `masked` (secrets are left out), `too_large`."""


class RunDetail(RunSummary, frozen=True, kw_only=True):
    """All that is kept of a run."""

    log: str
    """The end of it."""
    params: msgspec.Raw | None = None
    task_data: msgspec.Raw | None = None
    result: msgspec.Raw | None = None
    """The answer: the envelope, or the text of one that is no JSON."""
    unreadable: bool = False
    """What is kept is sealed, and no key opens it."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs a list is to have; None is all of them. Times are seconds since 1970."""

    connector: str | None = None
    """By its registered name."""
    command: str | None = None
    outcome: str | None = None
    task: str | None = None
    process_instance: str | None = None
    client: str | None = None
    job: str | None = None
    since: float | None = None
    until: float | None = None
    after: str | None = None
    """The id of a run: those that were written after it."""
