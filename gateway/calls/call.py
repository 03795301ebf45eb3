"""What a caller asks for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from gateway.calls.extension import Acknowledgement, Extension
from gateway.protocol.document import Object
from gateway.protocol.request import Caller

EMPTY = msgspec.Raw(b"{}")


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller asks for. `timeout` (seconds) can only shorten the command's own."""

    connector: str
    command: str
    params: Object
    caller: Caller
    task_data: msgspec.Raw = EMPTY
    timeout: float | None = None
    begun: float | None = None
    """When it was there in full, in the loop's time, where that was not only now: its connector was waited for."""
    small: bool = False
    """None of its values is so large that its request has to be written in pieces."""
    job: str | None = None
    """The job whose run it is: the command's job_timeout holds."""
    replay_of: str | None = None
    """The run of the journal that it repeats."""
    extension: Extension | None = None
    """It may become a job while it runs, or go on after its acknowledgement."""
    acknowledgement: Acknowledgement | None = None
    """Its run may go on once it has answered, within the command's job_timeout."""
    on_slot: Callable[[], Awaitable[None]] | None = None
    """Awaited when the call holds its slot, before a process is asked for. What it takes does not count as the run's
    time; when it raises, nothing was started and the slot is given back."""
