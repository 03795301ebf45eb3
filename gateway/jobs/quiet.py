"""What of the engine's own log is worth an operator's time."""

from __future__ import annotations

import logging

_EXPECTED = (
    "DBOSWorkflowCancelledError",
    "DBOSAwaitedWorkflowCancelledError",
    "DBOSWorkflowConflictIDError",
    "DBOSNonExistentWorkflowError",
    "DeadLetter",
    "Unwanted",
)


class Expected(logging.Filter):
    """Drops what is no fault: a job that was cancelled, that ended as a dead letter, or that others run now."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is to be logged."""
        if record.exc_info and record.exc_info[0] is not None and record.exc_info[0].__name__ in _EXPECTED:
            return False
        return record.levelno >= logging.ERROR


def quieten(logger: logging.Logger) -> None:
    """Let a library's log go the way of all others, without what is expected."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True
    logger.setLevel(logging.ERROR)
    if not any(isinstance(one, Expected) for one in logger.filters):
        logger.addFilter(Expected())
