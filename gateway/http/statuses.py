"""The one table from errors to HTTP statuses. The status is a promise: see `docs/errors.md`."""

from __future__ import annotations

from gateway import errors
from gateway.jobs.contract import JobConflict, JobNotFound, JobsUnavailable

STATUSES: dict[type[errors.GatewayError], int] = {
    errors.InvalidRequest: 400,
    errors.InvalidParameters: 400,
    errors.Forbidden: 403,
    errors.CommandNotFound: 404,
    errors.RequestTimeout: 408,
    errors.RequestTooLarge: 413,
    errors.ConnectorBusy: 429,
    errors.RateLimited: 429,
    errors.GatewayBusy: 503,
    errors.GatewayDraining: 503,
    errors.AuditUnavailable: 503,
    errors.ConnectorUnavailable: 503,
    errors.JournalUnavailable: 503,
    errors.RunNotFound: 404,
    errors.RunConflict: 409,
    errors.ConnectorStartFailed: 502,
    errors.ConnectorTimeout: 504,
    errors.ConnectorCrashed: 502,
    errors.ConnectorOutOfMemory: 502,
    errors.ConnectorFailed: 502,
    errors.ConnectorInvalidOutput: 502,
    errors.ConnectorOutputTooLarge: 502,
    JobsUnavailable: 503,
    JobNotFound: 404,
    JobConflict: 409,
}

TOLD = 200
"""The connector told an error."""
ACCEPTED = 202
"""The outcome comes to the callback URL."""
RAISED = 500
"""The connector's own code raised."""
UNSUGGESTED = 502
"""The connector told an error instead of suggestions: whoever asks takes a 200 for a list."""
HTTP_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    417: "expectation_failed",
    500: "internal_error",
}
"""Codes of what never reached a command."""
