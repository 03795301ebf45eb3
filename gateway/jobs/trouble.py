"""Whether the store works, as far as whoever used it last can tell."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.observe.events import StoreChanged

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.observe.events import Event

LASTS = 60.0  # seconds for which a store that failed is told to be unhealthy, unless it works again before


class Trouble:
    """What is wrong with the store. Each change is told once."""

    def __init__(self, publish: Callable[[Event], None]) -> None:
        self._publish = publish
        self._since = 0.0
        self._reason = ""

    @property
    def reason(self) -> str:
        """What is wrong, or nothing."""
        return self._reason if time.monotonic() - self._since < LASTS else ""

    def failed(self, reason: str) -> None:
        """Note that it failed."""
        known = self.reason
        self._since, self._reason = time.monotonic(), reason
        if not known:
            self._publish(StoreChanged(ok=False, reason=reason))

    def worked(self) -> None:
        """Note that it has done a thing that counts."""
        if self._reason:
            self._reason = ""
            self._publish(StoreChanged(ok=True))
