"""What every way of obtaining a process has in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.processes.notices import Notices
    from gateway.processes.run import Answered, Completed, Launch, Mode, Payload, Stop

    OnLine = Callable[[str, str], None]
    """Takes a line of log: the stream's name and the text."""


def keeps(launch: Launch, workers: int = 1) -> str:
    """Say which processes are there without a request."""
    keep = launch.keep
    if launch.mode == "spawn" or (keep.warm == 0 and launch.mode == "standby"):
        return "nothing"
    each = f"; each of {workers} workers, once it is called" if workers > 1 else ""
    if launch.mode == "fork":
        ahead = f", {keep.warm} forked ahead from the first call on" if keep.warm else ", from the first call on"
        least = "" if keep.warm_min else "none"
        if keep.warm and keep.warm_min:
            least = "the host alone"
        return f"1 host{ahead}" + (f", {least} after {keep.warm_idle:g} s without a call" if least else "") + each
    least = (
        f", {keep.warm_min or 'none'} after {keep.warm_idle:g} s without a call" if keep.warm > keep.warm_min else ""
    )
    used = "" if launch.mode == "standby" else f", and those that calls have needed (at most {keep.concurrency})"
    return f"{keep.warm} {'process' if keep.warm == 1 else 'processes'}{used}{least}{each}"


def counts(launch: Launch, workers: int) -> tuple[int, int]:
    """Return how many processes are there without a request from the start on, and at most once there have been calls.

    What is forked ahead is not counted: nearly all of its memory is its host's.
    """
    keep = launch.keep
    if launch.mode == "spawn":
        return 0, 0
    if launch.mode == "persistent":
        return min(keep.warm, keep.concurrency), keep.concurrency
    ahead = keep.warm if launch.mode == "standby" else min(keep.warm, 1)
    return ahead, workers * (1 if launch.mode == "fork" else keep.warm)


class Worker(Protocol):
    """A process that is there for one request."""

    async def run(self, payload: Payload, *, deadline: float, answered: Answered | None = None) -> Completed:
        """Serve the request. Returns, or raises, only when nothing of it is left.

        `answered` is asked whether a result is complete; what the process does from then on, it may do to its end.

        Raises:
            gateway.process.StartFailed: it could not be started after all.
            asyncio.CancelledError: the run was cancelled, and is dead.
        """

    def stop(self, why: Stop, *, grace: float = ...) -> None:
        """End the run: SIGTERM, and SIGKILL to all of it after `grace` seconds."""


class Pool(Protocol):
    """A source of processes."""

    async def obtain(self, launch: Launch, on_line: OnLine) -> Worker:
        """Return a process that has read nothing yet; its log goes to `on_line`.

        Raises:
            gateway.process.StartFailed: there is none to be had.
        """


class Kept(Protocol):
    """The processes that are kept for one connector."""

    launch: Launch
    used: float
    """When the latest request came, in the loop's time."""
    notices: Notices

    @property
    def mode(self) -> Mode:
        """How they are obtained, which may be another way than was asked for."""

    async def obtain(self, launch: Launch, on_line: OnLine) -> Worker:
        """Return one of them, or a new one; `launch` is this one's with what one request adds to the environment."""

    def idle(self) -> int:
        """Return how many processes are there without a request, and can give way."""

    def warm(self) -> None:
        """Start what should be there ahead of requests."""

    def tend(self, now: float) -> None:
        """Recycle and shrink; called every second with the loop's time."""

    def evict(self) -> bool:
        """Give up one idle process for somebody who needs the room; tell whether there was one."""

    def close(self) -> Awaitable[None]:
        """Kill what is idle, and let what is in use end by itself."""


class Cap(Protocol):
    """Who counts what runs."""

    max_processes: int
    shared: bool
    """Other workers count too."""

    def free(self, idle: int) -> int:
        """Return how many more processes there may be beside `idle` ones that can give way."""

    def hosts(self, change: int) -> None:
        """Count so many hosts more, or less, that cannot give way."""

    def present(self, name: str) -> int:
        """Return how many processes of a connector have a request, or are kept by other workers."""

    def keep(self, name: str, change: int) -> None:
        """Tell other workers how many more, or less, are kept here: of a connector, or of all where it has no name."""

    def ask(self, name: str = "") -> None:
        """Ask another worker to give up one of a connector that it keeps, or what is too much."""


class Room(Protocol):
    """Who knows how many processes there may be."""

    def free(self, launch: Launch | None = None) -> int:
        """Return how many more processes may be started now; of one connector, `concurrency` holds as well."""

    def evict(self) -> bool:
        """Have some idle process given up, whosever it is; tell whether there was one."""

    def hosts(self, change: int) -> None:
        """Count so many hosts more, or less, that cannot give way."""
