"""A new process for each request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.process import Child, StartFailed

if TYPE_CHECKING:
    from gateway.pool.base import OnLine
    from gateway.process import Launch
    from gateway.warden.client import Warden


class SpawnPool:
    """Starts the executable when it is asked."""

    def __init__(self, warden: Warden) -> None:
        self.warden = warden

    def folder(self) -> str:
        """Return the path of a private folder that nobody has had yet.

        Raises:
            StartFailed: there is none to be had.
        """
        try:
            return self.warden.folders.take()
        except OSError as problem:
            raise StartFailed(f"no private folder: {problem}") from problem

    def start(self, launch: Launch, on_line: OnLine, *, ahead: bool = False) -> Child:
        """Start a process in a folder of its own; `ahead` of its request.

        Raises:
            StartFailed: there is none to be had.
        """
        return Child.start(self.warden, launch, self.folder(), on_line, ahead=ahead)

    async def obtain(self, launch: Launch, on_line: OnLine) -> Child:
        """Start a process."""
        return self.start(launch, on_line)
