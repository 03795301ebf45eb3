"""How a process is started, and what it may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from gateway.observe.redact import NO_SECRETS, Redactor
from gateway.sandbox import Sandbox
from gateway.sections import Mode

GRACE = 2.0  # seconds between SIGTERM and SIGKILL
BOOT = 60.0  # seconds that a host has to import and warm up, where its connector may not take longer to describe itself
RUN_NAME = "{run}"  # stands for the run's own name in a command line
Answered = Callable[[bytearray], bool]
"""Tells whether a result is complete."""
Payload = bytes | tuple[bytes | bytearray | memoryview, ...]
"""What a process reads on stdin: in one piece, or in several that nobody has to put together."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What one run may use: bytes of result, of log and of resident memory (0: unbounded).

    `linger`: seconds that it may live on after its result.
    """

    output: int
    log: int
    memory: int
    linger: float = 2.0


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """How long processes are kept for requests to come. Ages in seconds, sizes in bytes."""

    warm: int = 1
    warm_min: int = 0
    warm_idle: float = 600.0
    uses: int = 1000
    age: float = 3600.0
    rss: int = 512 << 20
    concurrency: int = 8
    boot: float = BOOT
    """Seconds that a host may take to import and warm up."""


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """How to start a process. `argv[0]` is an absolute path; `env` lacks HOME and TMPDIR, as a rule: a run's folder."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    result_on_fd3: bool
    result_in_line: bool = False
    """A line break ends its result; otherwise the end of the channel does."""
    bounds: Bounds
    cleanup: tuple[str, ...] = ()
    """A command line to run after a run that was stopped or died: for what lives outside of our processes."""
    heap_full: str | None = None
    """What the log of a run says that ended because its heap was full."""
    name: str = ""
    """The connector, for messages."""
    key: str = ""
    """Changes with anything that makes it another connector."""
    mode: Mode = "spawn"
    resident: tuple[str, ...] = ()
    """The command line of a process that serves more than one request (modes fork and persistent)."""
    keep: Keep = Keep()
    redact: Redactor = NO_SECRETS
    """Takes secrets out of what its processes say without a request."""
    sandbox: Sandbox = Sandbox()
    """What its cell is asked for."""


def pieces(payload: Payload) -> tuple[bytes | bytearray | memoryview, ...]:
    """Return what a payload consists of."""
    return (payload,) if isinstance(payload, bytes) else payload
