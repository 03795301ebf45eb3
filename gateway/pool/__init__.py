"""How a process is obtained. One file a way, one Protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.process import Child, Launch


class Pool(Protocol):
    """A source of processes, each for one request."""

    async def obtain(self, launch: Launch, on_line: Callable[[str, str], None]) -> Child:
        """Return a process that has read nothing yet; its log goes to `on_line(stream, line)`.

        Raises:
            gateway.process.StartFailed: there is none to be had.
        """


__all__ = ["Pool"]
