"""What the processes kept for one connector have to tell that belongs to no request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.observe.events import ConnectorLine, ConnectorWarning
from gateway.units import Size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.observe.events import Bus
    from gateway.processes.launch import Launch


class Notices:
    """Publishes it, and remembers the warnings for the status view: for as long as the connector stays as it is."""

    def __init__(self, launch: Launch, bus: Bus) -> None:
        self._launch = launch
        self._bus = bus
        self._told: dict[str, None] = {}

    def __iter__(self) -> Iterator[str]:
        """Give the warnings, each once."""
        return iter(self._told)

    def line(self, line: str) -> None:
        """Tell what a process has logged while it had no request."""
        self._bus.publish(
            ConnectorLine(
                connector=self._launch.name,
                command="",
                request_id="",
                stream="stderr",
                line=self._launch.redact(line),
            )
        )

    def heavy(self) -> None:
        """Tell that a process is over `recycle_rss` before it has done anything."""
        limit = Size(self._launch.keep.rss)
        self.warn_once(f"takes more than {limit} (recycle_rss) for its imports alone: its memory recycles nothing")

    def warn_once(self, message: str) -> None:
        """Tell what should be mended, unless that has been told."""
        if self._launch.redact(message) not in self._told:
            self.warn(message)

    def warn(self, message: str) -> None:
        """Tell what should be mended."""
        message = self._launch.redact(message)
        self._told[message] = None
        self._bus.publish(ConnectorWarning(connector=self._launch.name, command="", request_id="", message=message))
