"""What a call comes to."""

from __future__ import annotations

import msgspec

from gateway.observe.events import RunFinished
from gateway.protocol.result import Result


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller gets: the connector's result and what the run took."""

    result: Result
    run: RunFinished
    logs: tuple[str, ...] = ()
    accepted: bool = False
    """The connector only acknowledged the call; the outcome goes to the caller's callback URL."""
