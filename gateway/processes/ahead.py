"""Processes without a request, and those of them that a fork host has forked."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from typing import TYPE_CHECKING

from gateway.processes.run import StartFailed

if TYPE_CHECKING:
    from gateway.cells.cell import Ended
    from gateway.processes.base import OnLine, Room
    from gateway.processes.host import Host
    from gateway.processes.run import Child, Launch


class Waiting:
    """A process without a request; what it logs meanwhile is kept for the request that gets it."""

    child: Child

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []

    def on_line(self, stream: str, line: str) -> None:
        """Keep a line."""
        self._lines.append((stream, line))

    def hand_over(self, on_line: OnLine) -> None:
        """Give the process, and what it has said, to a request."""
        self.child.hand_over(on_line)
        for stream, line in self._lines:
            on_line(stream, line)


class Forked:
    """The children of one connector's host that wait: each in its folder, and blocked on stdin."""

    def __init__(self, launch: Launch, room: Room) -> None:
        self._launch = launch
        self._room = room
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Forked] = deque()
        self._forking: set[asyncio.Task[None]] = set()
        self._coming = 0
        self._given_up = 0
        """How many of those that are being forked are wanted, and how many have been given up meanwhile."""
        self._ending: set[asyncio.Task[None]] = set()
        self._host: Host | None = None
        self._held = False
        """One could not be forked, or died while it waited: the next request will tell why."""

    def __len__(self) -> int:
        """Count those that are on their way, too."""
        return len(self._waiting) + self._coming

    def take(self, on_line: OnLine) -> Child | None:
        """Return one that waits, for a request with this log; None when none does."""
        self._held = False
        while self._waiting:
            one = self._waiting.popleft()
            if one.child.untouched:
                one.hand_over(on_line)
                one.host.hand_over(one.child)
                return one.child
            self._end(one)
        return None

    def fill(self, host: Host) -> None:
        """Have the host fork until `warm` wait, as far as there is room."""
        if self._host is not host:
            self._host, self._held = host, False
        while not self._held and len(self) < self._launch.keep.warm and self._room.free() > 0:
            self._coming += 1
            task = self._loop.create_task(self._fork(host))
            self._forking.add(task)
            task.add_done_callback(self._forking.discard)

    def shed(self) -> bool:
        """Give one up; tell whether there was one."""
        if self._waiting:
            self._end(self._waiting.popleft())
        elif self._coming:
            self._coming -= 1
            self._given_up += 1
        else:
            return False
        return True

    def leave(self, host: Host) -> None:
        """Give those of one host up."""
        if self._host is not host:
            return
        self._host = None
        while self.shed():
            pass

    async def close(self) -> None:
        """Wait for the end of those that were given up."""
        while self._forking or self._ending:
            await asyncio.wait([*self._forking, *self._ending])

    async def _fork(self, host: Host) -> None:
        try:
            one = _Forked(host)
            one.child = await host.fork(self._launch, one.on_line, ahead=True)
        except StartFailed:
            self._held = self._held or self._host is host  # that another host died says nothing of this one
            self._arrived()
            return
        one.child.gone.add_done_callback(functools.partial(self._on_gone, one))
        if self._arrived() and self._host is host and one.child.untouched:
            self._waiting.append(one)
        else:
            self._end(one)

    def _arrived(self) -> bool:
        """Count one that is no longer being forked; tell whether it is wanted still."""
        if self._given_up:
            self._given_up -= 1
            return False
        self._coming -= 1
        return True

    def _on_gone(self, one: _Forked, _gone: asyncio.Future[Ended]) -> None:
        if one in self._waiting:
            self._held = True
            self._waiting.remove(one)
            self._end(one)

    def _end(self, one: _Forked) -> None:
        task = self._loop.create_task(one.child.discard())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class _Forked(Waiting):
    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host
