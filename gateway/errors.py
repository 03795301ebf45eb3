"""What can go wrong with an invocation: one class per thing that a caller can act on.

`code` is the stable vocabulary of `docs/errors.md`; it becomes the name of a BPMN error event, so it never changes
and never holds a message. Statuses of HTTP are not known here: `gateway.http.statuses` has the one table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.observe.events import RunFinished


class GatewayError(Exception):
    """The gateway could not run the command."""

    code = "connector_failed"

    def __init__(self, message: str = "", *, logs: tuple[str, ...] = (), retry_after: float | None = None) -> None:
        """`logs` are lines for the caller; `retry_after` is in seconds."""
        self.message = message or (type(self).__doc__ or "").strip()
        self.logs = logs
        self.retry_after = retry_after
        self.run: RunFinished | None = None
        """What the failed run took, once it is known."""
        super().__init__(self.message)


class InvalidRequest(GatewayError):
    """The body is not a JSON object."""

    code = "invalid_request"


class InvalidParameters(GatewayError):
    """A parameter is missing, unknown or of the wrong type."""

    code = "invalid_parameters"


class Forbidden(GatewayError):
    """The key has not the role for it; or there is no key, and a browser asks for the page of another site."""

    code = "forbidden"


class CommandNotFound(GatewayError):
    """There is no such connector or command."""

    code = "command_not_found"


class RequestTooLarge(GatewayError):
    """The body is over the limit."""

    code = "request_too_large"


class RequestTimeout(GatewayError):
    """The request did not come in time."""

    code = "request_timeout"


class GatewayBusy(GatewayError):
    """The gateway holds as many bytes, or connections, as it may."""

    code = "gateway_busy"


class AuditUnavailable(GatewayError):
    """The audit cannot be written, and has to be."""

    code = "audit_unavailable"


class JournalUnavailable(GatewayError):
    """The journal of runs is off, or cannot be read."""

    code = "journal_unavailable"


class RunNotFound(GatewayError):
    """There is no such run, or it is so old that it was removed."""

    code = "run_not_found"


class RunConflict(GatewayError):
    """The run cannot be repeated: what it was called with was not kept, or not all of it."""

    code = "run_conflict"


class ConnectorBusy(GatewayError):
    """All slots and queue places of the connector are taken, or the wait for one ran out."""

    code = "connector_busy"


class RateLimited(GatewayError):
    """The client sends calls faster than it may, or has as many at work as it may."""

    code = "rate_limited"


class GatewayDraining(GatewayError):
    """The gateway is shutting down."""

    code = "gateway_draining"


class ConnectorUnavailable(GatewayError):
    """The connector is quarantined, or its circuit is open."""

    code = "connector_unavailable"


class ConnectorStartFailed(GatewayError):
    """The connector's process could not be started."""

    code = "connector_start_failed"


class ConnectorTimeout(GatewayError):
    """The deadline passed."""

    code = "connector_timeout"


class ConnectorCrashed(GatewayError):
    """The connector died of a signal."""

    code = "connector_crashed"


class ConnectorOutOfMemory(GatewayError):
    """The connector went over its memory limit."""

    code = "connector_out_of_memory"


class ConnectorFailed(GatewayError):
    """The connector's exit status is not 0 and it told no error."""

    code = "connector_failed"


class ConnectorInvalidOutput(GatewayError):
    """The connector's result is not valid."""

    code = "connector_invalid_output"


class ConnectorOutputTooLarge(GatewayError):
    """The connector's result is over the limit."""

    code = "connector_output_too_large"


class ConfigError(Exception):
    """The configuration cannot be used. The message names the file, the line and the key."""


class Quarantine(Exception):
    """One connector cannot be served. The message says why and what to do."""
