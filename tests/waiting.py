"""Waiting for a thing where no loop runs: the one place of the tests that looks again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

LOOK = 0.005  # seconds between two looks: the processor is for what is waited for


def until(condition: Callable[[], T], patience: float) -> T:
    """Return a condition's value as soon as it is true, or what it is after so many seconds."""
    deadline = time.monotonic() + patience
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(LOOK)
    return value
