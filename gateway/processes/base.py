"""What every mode, that is every way of obtaining a process, has in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from gateway.cells.cell import Listener
    from gateway.processes.completed import Completed, Stop
    from gateway.processes.launch import Answered, Keep, Launch, Payload
    from gateway.processes.notices import Notices
    from gateway.processes.places import Places
    from gateway.sections import Mode

    OnLine = Callable[[str, str], None]
    """Takes a line of log: the stream's name and the text."""


class Process(Protocol):
    """A process that is there for one request."""

    async def run(self, payload: Payload, *, deadline: float, answered: Answered | None = None) -> Completed:
        """Serve the request. Returns, or raises, only when nothing of it is left.

        `answered` is asked whether a result is complete; what the process does from then on, it may do to its end.

        Raises:
            gateway.processes.completed.StartFailed: it could not be started after all.
            asyncio.CancelledError: the run was cancelled, and is dead.
        """

    def stop(self, why: Stop, *, grace: float = ...) -> None:
        """End the run: SIGTERM, and SIGKILL to all of it after `grace` seconds."""


class Pool(Protocol):
    """A source of processes."""

    def obtain(self, launch: Launch, on_line: OnLine) -> Process:
        """Return a process that has read nothing yet; its log goes to `on_line`.

        Raises:
            gateway.processes.completed.StartFailed: there is none to be had.
        """


class Source(Protocol):
    """Where the processes of one connector come from, and those that are kept for it: a mode at work."""

    least: ClassVar[int]
    """How many processes one request takes at least."""
    launch: Launch
    used: float
    """When the latest request came, in the loop's time."""
    notices: Notices

    @property
    def mode(self) -> Mode:
        """How they are obtained, which may be another way than was asked for."""

    def obtain(self, launch: Launch, on_line: OnLine) -> Process:
        """Return one of them, or a new one; `launch` is this one's with what one request adds to the environment.

        Raises:
            gateway.processes.completed.StartFailed: there is none to be had.
        """

    def warm(self) -> None:
        """Start what should be there ahead of requests."""

    def tend(self, now: float) -> None:
        """Recycle and shrink; called every second with the loop's time."""

    def retire(self, *, light: bool = False) -> bool:
        """Give up one without a request for somebody who needs the room; tell whether there was one.

        With `light` only one that is there again in no time.
        """

    def kept(self) -> Mapping[Listener, str]:
        """Return what is there besides runs, and what it does: whoever listens to its cell."""

    def close(self) -> Awaitable[None]:
        """Kill what has no request, and let what is in use end by itself."""

    @staticmethod
    def keeps(keep: Keep) -> str:
        """Say which processes are there without a request."""

    @staticmethod
    def counts(keep: Keep) -> tuple[int, int]:
        """Return how many are there without a request from the start on, and at most once there have been calls.

        What is forked ahead is not counted: nearly all of its memory is its host's.
        """


class Room(Protocol):
    """Who makes room."""

    places: Places

    def make_room(self) -> bool:
        """Have some process without a request given up, whosever it is; tell whether there was one."""


def after_idleness(keep: Keep, least: str) -> str:
    """Say what is left when nothing was done for long."""
    return f", {least} after {keep.warm_idle:g} s without a call" if least else ""


def processes(keep: Keep, more: str = "") -> str:
    """Say how many processes are started ahead, and how many stay."""
    least = str(keep.warm_min or "none") if keep.warm > keep.warm_min else ""
    return f"{keep.warm} {'process' if keep.warm == 1 else 'processes'}{more}{after_idleness(keep, least)}"
