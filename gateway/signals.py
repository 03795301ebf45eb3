"""The signals that `gateway serve` takes. Until somebody does, they wait: what came too early is not lost, nor deadly.

What is held back stays so in every process that is started meanwhile: a gateway that is kept begins like that, cells
must not.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TAKEN = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def hold() -> None:
    """Have them wait from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Have them wait for the length of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def taken() -> Iterator[None]:
    """Let them come, now that there are handlers; behind the block nobody needs them any more."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TAKEN)
    try:
        yield
    finally:
        hold()
