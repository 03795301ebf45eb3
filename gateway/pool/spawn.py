"""A new process for each request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.process import Child

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.process import Launch
    from gateway.warden.client import Warden


class SpawnPool:
    """Starts the executable when it is asked."""

    def __init__(self, warden: Warden) -> None:
        self._warden = warden
        self._count = 0

    async def obtain(self, launch: Launch, on_line: Callable[[str, str], None]) -> Child:
        """Start a process in a folder of its own."""
        self._count += 1
        return Child.start(self._warden, launch, f"{self._warden.folder}/{self._count}", on_line)
