"""A process that stays: its log, its age, its memory, its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.cells.cell import Allowance, Ended, Listener, Words
from gateway.cells.wire import Flag, Rested
from gateway.processes.completed import StaleCell, StartFailed
from gateway.processes.launch import GRACE
from gateway.processes.log import LogPipe
from gateway.processes.run import uncancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.cells.cell import Measured
    from gateway.observe.redact import Redactor
    from gateway.processes.base import OnLine
    from gateway.processes.launch import Launch
    from gateway.processes.spawn import SpawnPool


class Resident(Listener):
    """A process that serves more than one request, in a cell of its own."""

    def __init__(self, spawn: SpawnPool, launch: Launch, on_line: Callable[[str], None]) -> None:
        """`on_line` takes what it logs before its first request.

        Raises:
            StartFailed: there is no cell to be had.
        """
        self.launch = launch
        self.uses = 0
        self.cpu = (0.0, 0.0)
        """Seconds of user and system that it has taken, at the latest look."""
        self.peak = 0
        self.swept = Rested(0)
        """What was taken away after requests so far."""
        self.pid = 0
        """As it is in its cell; 0: it was not heard to have been started."""
        self.on_words: Callable[[bytes], None] | None = None
        self.cell = spawn.cell(launch)
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[Ended] = self._loop.create_future()
        self._run = 0
        self._born = self._loop.time()
        self._resident = 0
        self._heavy: bool | None = None
        self._rested: asyncio.Future[bool] | None = None
        self._log = LogPipe(launch.bounds.log, on_line, launch.redact)
        self._released = False

    def start(self, flags: Flag, fds: Sequence[int] = ()) -> None:
        """Have it started: a HOST, or with its stdin and descriptor 3 at `fds` (CHANNEL). stdout and stderr are log.

        Raises:
            StartFailed: there are no descriptors.
        """
        launch = self.launch
        try:
            words = Words.of(launch.resident, launch.env.items())
            bounds = Allowance(GRACE, 0, 0, launch.bounds.memory, launch.sandbox.max_pids)
            self._run = self.cell.begin(self, words, bounds, flags=flags | Flag.TELL, fds=fds)
        except OSError as problem:
            self.release()
            raise StartFailed(str(problem)) from problem

    def release(self) -> None:
        """Give its cell back, once nothing is in it."""
        if not self._released and not self.cell.busy:
            self._released = True
            self._spawn.give_back(self.cell, self.launch)

    def fresh_log(self, on_line: OnLine, redact: Redactor) -> None:
        """Bound the log anew, for the next request, and send it there; what is there already is the one's before."""
        self._log.finish()
        self._log = LogPipe(self.launch.bounds.log, lambda line: on_line("stderr", line), redact)

    def log_tail(self) -> tuple[str, int]:
        """Return the last words of the present request's log, and its bytes."""
        return self._log.tail(), self._log.total

    def heavy(self) -> bool:
        """Tell whether it was over `recycle_rss` at the first look: its successor will be too, so it does not count."""
        if self._heavy is None:
            self.look()
        return bool(self._heavy)

    def worn(self) -> str | None:
        """Say why it should be replaced, None when it should not."""
        keep = self.launch.keep
        if self.uses >= keep.uses:
            return f"{self.uses} uses"
        if self._loop.time() - self._born > keep.age:
            return "age"
        if not self._heavy and self._resident > keep.rss:
            return "resident memory"
        return None

    def look(self) -> None:
        """Have the next look at it soon."""
        if not self.gone.done():
            self.cell.measure(self._run)

    def begin_request(self, deadline: float) -> None:
        """Have the cell hold a deadline, a moment of the loop's clock, until it comes to rest."""
        if not self.gone.done():
            self.cell.feed(self._run, (), seconds=max(0.001, deadline - self._loop.time()), grace=GRACE)

    async def rest(self, *, keep: bool = False) -> bool:
        """Have all taken away that lives beside it or lies in its folder, but for what was there when `keep` was said.

        Returns whether it could be done; where it could not, the process is dead, or dies.
        """
        if self.gone.done():
            return False
        self._rested = self._loop.create_future()
        self.cell.rest(self._run, keep=keep)
        patience = None if keep else self._loop.call_later(GRACE, self.kill)
        try:
            return await self._rested
        finally:
            if patience is not None:
                patience.cancel()

    def stop(self, grace: float) -> None:
        """SIGTERM to its group, and SIGKILL to all of it after the grace."""
        if self.gone.done():
            return
        if grace > 0:
            self.cell.stop(self._run, grace=grace)
        else:
            self.cell.kill(self._run)

    def kill(self) -> None:
        """SIGKILL to it and everything it started."""
        self.stop(0)

    async def ended(self) -> Ended:
        """Wait for the end whatever is cancelled meanwhile.

        Raises:
            StartFailed: there never was a process.
        """
        await uncancelled(self.gone)
        self.release()
        return self.gone.result()

    # --- what the cell says

    def on_started(self, pid: int) -> None:
        """Learn its process id, as it is in its cell."""
        self.pid = pid

    def on_log(self, _stream: int, data: bytes) -> None:
        """Take a piece of log."""
        self._log.feed(data)

    def on_told(self, words: bytes) -> None:
        """Take what a host has to say."""
        if self.on_words is not None:
            self.on_words(words)

    def on_measured(self, measured: Measured) -> None:
        """Learn what it takes, and whether it has come to rest."""
        self.cpu = (measured.cpu_user, measured.cpu_system)
        self.peak = measured.peak
        self._resident = measured.resident
        if self._heavy is None:
            self._heavy = measured.resident > self.launch.keep.rss
        self.swept |= measured.rested
        if measured.rested:
            self._set_rested(measured.clean)

    def on_failed(self, message: str, *, stale: bool = False) -> None:
        """Learn that there never was a process."""
        if not self.gone.done():
            self.gone.set_exception(StaleCell(message) if stale else StartFailed(message))
            self.gone.exception()  # looked at, also where nobody waits for it
        self._set_rested(False)

    def on_ended(self, ended: Ended) -> None:
        """Learn that nothing of it is left."""
        self._log.finish()
        if not self.gone.done():
            self.gone.set_result(ended)
        self._set_rested(False)

    def _set_rested(self, rested: bool) -> None:  # noqa: FBT001
        if self._rested is not None and not self._rested.done():
            self._rested.set_result(rested)
