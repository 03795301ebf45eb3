"""One fork host: a process that has imported a connector and forks for each request.

It lives in a cell, and what it forks are runs of that cell: deadline, tree kill, bounds and sweep are the same as for a
process that was spawned. The cell asks it to fork (`runners/cell/host.c`). What it has to say itself is JSON:

    {"ev": "ready", "problems": [{"module", "message"}]} or {"ev": "unfit", "reason"}

A child that is forked ahead has its request later, and uses the time to copy the pages that it will write to.
"""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING

import msgspec

from gateway.cells.wire import Flag
from gateway.processes.completed import StartFailed
from gateway.processes.resident import Resident
from gateway.processes.run import Child
from gateway.states import move

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.cells.cell import Ended
    from gateway.processes.base import OnLine
    from gateway.processes.launch import Launch
    from gateway.processes.spawn import SpawnPool

STUCK = 5.0  # seconds after which a host that does not fork is given up


class _Problem(msgspec.Struct, frozen=True):
    module: str
    message: str


class _Ready(msgspec.Struct, frozen=True, tag_field="ev", tag="ready"):
    problems: tuple[_Problem, ...] = ()


class _Unfit(msgspec.Struct, frozen=True, tag_field="ev", tag="unfit"):
    reason: str


_DECODER = msgspec.json.Decoder(_Ready | _Unfit)


class HostState(enum.Enum):
    """Where a host is in its life."""

    BOOTING = "booting"
    """It imports the connector, and warms up."""
    READY = "ready"
    """It forks."""
    RETIRED = "retired"
    """It forks no more, and goes with its last child."""
    GONE = "gone"
    """There is no process."""


MOVES = {
    HostState.BOOTING: {HostState.READY, HostState.RETIRED, HostState.GONE},
    HostState.READY: {HostState.RETIRED, HostState.GONE},
    HostState.RETIRED: {HostState.GONE},
    HostState.GONE: frozenset[HostState](),
}


class UnfitError(Exception):
    """The host has threads, sockets or the like, which children would share or miss; the message names them."""


class BootFailed(Exception):
    """The host died before it could fork, or takes too long."""


class Host:
    """One host process, and the children that it has forked."""

    def __init__(self, spawn: SpawnPool, launch: Launch, on_line: Callable[[str], None]) -> None:
        """Start it; what it logs itself goes to `on_line`.

        Raises:
            StartFailed: there is no cell, or there are no more descriptors.
        """
        self.state = HostState.BOOTING
        self.problems: list[str] = []
        """What did not work while it imported and warmed up, once it is ready."""
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done when it can fork; `UnfitError` when it must not, `BootFailed` when it died."""
        self._children: set[Child] = set()
        self._busy: set[Child] = set()
        self.resident = Resident(spawn, launch, on_line)
        if self.resident.cell.group is not None:
            self.resident.cell.group.bound(1 + launch.keep.concurrency + launch.keep.warm)
        self.resident.on_words = self._on_words
        self.resident.start(Flag.HOST)
        self.resident.gone.add_done_callback(self._on_gone)
        self._patience = self._loop.call_later(launch.keep.boot, self._took_too_long)

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return self.state is not HostState.GONE

    @property
    def busy(self) -> int:
        """How many requests its children have."""
        return len(self._busy)

    async def fork(self, launch: Launch, on_line: OnLine, *, ahead: bool = False) -> Child:
        """Return a process that it has forked. To be shielded from cancellation.

        Raises:
            StartFailed: the host is gone, or cannot fork.
        """
        child = Child(self.resident.cell, launch, on_line, lambda: self._child_over(child))
        self._children.add(child)
        if not ahead:
            self.hand_over(child)
        stuck = self._loop.call_later(STUCK, self.resident.kill)
        try:
            await child.fork(in_time=ahead)
        except StartFailed:
            await child.discard()
            raise
        finally:
            stuck.cancel()
        return child

    def hand_over(self, child: Child) -> None:
        """One child has its request now."""
        self._busy.add(child)
        self.resident.uses += 1

    def retire(self) -> None:
        """Take no more requests, and go when the last child is over."""
        if self.state in {HostState.BOOTING, HostState.READY}:
            self._move(HostState.RETIRED)
        if not self._children:
            self.resident.kill()

    # --- private

    def _child_over(self, child: Child) -> None:
        self._children.discard(child)
        self._busy.discard(child)
        if not self.alive:
            self.resident.release()
        elif self.state is HostState.RETIRED and not self._children:
            self.resident.kill()

    def _move(self, state: HostState) -> None:
        self.state = move(self.state, state, MOVES)

    def _took_too_long(self) -> None:
        self._fail(BootFailed(f"it was not imported within {self.resident.launch.keep.boot:g} s"))
        self.resident.kill()

    def _fail(self, problem: Exception) -> None:
        if not self.ready.done():
            self.ready.set_exception(problem)
            self.ready.exception()  # looked at, also where nobody waits for it

    def _on_words(self, words: bytes) -> None:
        try:
            message = _DECODER.decode(words)
        except msgspec.DecodeError as problem:
            self._fail(BootFailed(f"its host said what cannot be read: {problem}"))
            self.resident.kill()
            return
        if isinstance(message, _Unfit):
            self._fail(UnfitError(message.reason))
        elif not self.ready.done():
            self._patience.cancel()
            if self.state is HostState.BOOTING:
                self._move(HostState.READY)
            self.problems = [f"{problem.module}: {problem.message}" for problem in message.problems]
            self.ready.set_result(None)

    def _on_gone(self, gone: asyncio.Future[Ended]) -> None:
        self._move(HostState.GONE)
        self._patience.cancel()
        self._fail(BootFailed(str(gone.exception() or f"it died: {self.resident.log_tail()[0][-500:]}")))
