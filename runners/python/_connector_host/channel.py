"""The request comes in on fd 0 and the result leaves on fd 1; nothing else may use either."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
from typing import IO, Any, Tuple

from .errors import InvalidRequestError
from .own import io, json, os, select

STDIN, STDOUT, STDERR, RESULTS = 0, 1, 2, 3


class ResultChannel:
    """The only way to the gateway: a private copy of what was stdout."""

    def __init__(self, descriptor: int) -> None:
        """Own the descriptor, and be the calling process' own."""
        self._descriptor = descriptor
        self._process = os.getpid()

    @property
    def ours(self) -> bool:
        """Whether the calling process is the one to answer: one that a command has forked may come back from it."""
        return os.getpid() == self._process

    def write(self, document: bytes, log: str = "") -> None:
        """Write one JSON document on a line of its own, after all that was logged before it and `log`.

        The connector may have closed or replaced `sys.stderr`, or the gateway may have stopped reading it: a result is
        not lost for a log.
        """
        flush()
        if log:
            say(log)
        if self.ours:
            _write_all(self._descriptor, document + b"\n")

    def close(self) -> None:
        """Give the descriptor up: there is no further result."""
        os.close(self._descriptor)


def say(text: str) -> None:
    """Write to the log, as far as that is possible."""
    with contextlib.suppress(OSError):
        _write_all(STDERR, text.encode("utf-8", "backslashreplace"))


def flush() -> None:
    """Write out what Python has buffered for the log."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or something else put there
            stream.flush()


def take_over() -> ResultChannel:
    """Keep stdout for the result, and send whatever else is written to it to stderr, the log.

    This is done to the descriptor, not to ``sys.stdout``: C libraries and child processes write there too. The copy is
    not inherited by programs that the connector starts.
    """
    channel = ResultChannel(os.dup(STDOUT))
    _log_stdout()
    return channel


def _log_stdout() -> None:
    os.dup2(STDERR, STDOUT)
    # A log line shows up when it is printed, and no character makes print() fail. A fork has both from its host.
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.line_buffering:
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    if not faulthandler.is_enabled():
        faulthandler.enable(STDERR)  # a crash in C code leaves the Python stack in the log


def _leave_null_at(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)


def read_request() -> Any:
    """Read the request until EOF, leave /dev/null in its place, and decode it; not JSON: `InvalidRequestError`."""
    document = io.FileIO(STDIN, "rb", closefd=False).readall()
    _leave_null_at(STDIN)
    return decode(document)


def request_has_come() -> bool:
    """Tell whether there is anything to read on stdin."""
    return bool(select.select([STDIN], [], [], 0)[0])


def decode(document: bytes) -> Any:
    """Decode a request; not JSON: `InvalidRequestError`."""
    try:
        return json.loads(document)
    except (ValueError, RecursionError) as error:
        message = f"the request is not JSON: {error}"
        raise InvalidRequestError(message) from error


def take_over_lines() -> Tuple[IO[bytes], ResultChannel]:
    """Keep stdin for requests and descriptor 3 for results; whatever else uses them gets /dev/null and the log."""
    requests = os.fdopen(os.dup(STDIN), "rb")
    _leave_null_at(STDIN)
    results = ResultChannel(os.dup(RESULTS))
    _leave_null_at(RESULTS)
    _log_stdout()
    return requests, results


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
