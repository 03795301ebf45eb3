"""A process that stays: its log, its age, its memory, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from gateway.process import CHUNK, GRACE, LogPipe, StartFailed, private_env, uncancelled
from gateway.warden import procfs
from gateway.warden.client import Failed, Gone, Leftover, Rested, Started

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.pool.base import OnLine
    from gateway.process import Launch
    from gateway.warden.client import Event, Handle, Warden


DRAIN = 16  # reads at most of what is in the pipe now: one that floods its log keeps nobody


class Resident:
    """A process that serves more than one request."""

    def __init__(self, warden: Warden, launch: Launch, folder: str, on_line: Callable[[str], None]) -> None:
        """`on_line` takes what it logs before its first request."""
        self.launch = launch
        self.folder = folder
        self.uses = 0
        self.pid = 0
        self._warden = warden
        self._loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[Gone] = self._loop.create_future()
        self._born = self._loop.time()
        self._handle: Handle | None = None
        self._heavy: bool | None = None
        self._rested: asyncio.Future[bool] | None = None
        self._log_fd = -1
        self._log = LogPipe(launch.bounds.log, on_line)

    def start(self, stdin: int, channel: int, *, host: bool) -> None:
        """Have it started with these ends for stdin and descriptor 3; stdout and stderr are log.

        Raises:
            StartFailed: no descriptors or no disk.
        """
        theirs = -1
        try:
            self._log_fd, theirs = os.pipe()
            os.set_blocking(self._log_fd, False)
            self._loop.add_reader(self._log_fd, self._on_log)
            self._handle = self._warden.spawn(
                self,
                argv=self.launch.resident,
                env=private_env(self.launch.env, self.folder),
                cwd=self.folder,
                memory=self.launch.bounds.memory,
                fds=(stdin, theirs, theirs, channel),
                host=host,
                busy=False,
                tell=True,
            )
        except OSError as problem:
            self._close_log()
            self.drop_folder()
            raise StartFailed(str(problem)) from problem
        finally:
            if theirs >= 0:
                os.close(theirs)

    def drop_folder(self) -> None:
        """Give the folder up."""
        self._warden.folders.drop(self.folder)

    def fresh_log(self, on_line: OnLine) -> None:
        """Bound the log anew, for the next request, and send it there; what is there already is the one's before."""
        self._drain_log()
        self._log.finish()
        self._log = LogPipe(self.launch.bounds.log, lambda line: on_line("stderr", line))

    def log_tail(self) -> tuple[str, int]:
        """Return the last words of the present request's log, and its bytes."""
        self._drain_log()
        return self._log.tail(), self._log.total

    def heavy(self) -> bool:
        """Tell whether it was over `recycle_rss` at the first look: its successor will be too, so it does not count."""
        if self._heavy is None and self.pid:
            self._heavy = procfs.memory(self.pid).resident > self.launch.keep.rss
        return bool(self._heavy)

    def worn(self) -> str | None:
        """Say why it should be replaced, None when it should not."""
        keep = self.launch.keep
        if self.uses >= keep.uses:
            return f"{self.uses} uses"
        if self._loop.time() - self._born > keep.age:
            return "age"
        if self.pid and not self._heavy and procfs.memory(self.pid).resident > keep.rss:
            return "resident memory"
        return None

    def busy(self, busy: bool) -> None:  # noqa: FBT001
        """Say that it has a request, or has none."""
        if self._handle is not None and not self.gone.done():
            self._handle.busy(busy)

    async def rest(self, *, keep: bool = False) -> bool:
        """Have all killed that lives beside it, but for what was there at the call with `keep`.

        Returns whether it could be done; where it could not, the process is dead, or dies.
        """
        if self._handle is None or self.gone.done():
            return False
        self._rested = self._loop.create_future()
        self._handle.rest(keep=keep)
        patience = None if keep else self._loop.call_later(GRACE, self.kill)
        try:
            return await self._rested
        finally:
            if patience is not None:
                patience.cancel()

    def files(self) -> frozenset[str]:
        """Return the names in its folder."""
        with contextlib.suppress(OSError):
            return frozenset(os.listdir(self.folder))
        return frozenset()

    def clear_folder(self, keep: frozenset[str]) -> bool:
        """Remove all other names from its folder; tell whether it could be done."""
        return self._warden.folders.clear(self.folder, keep)

    def signal(self, number: int) -> None:
        """Send a signal to its group."""
        if self._handle is not None and not self.gone.done():
            self._handle.signal(number)

    def kill(self) -> None:
        """SIGKILL to it and everything it started."""
        if self._handle is not None and not self.gone.done():
            self._handle.kill()

    async def ended(self) -> Gone:
        """Wait for the end whatever is cancelled meanwhile, and clear up.

        Raises:
            StartFailed: there never was a process.
        """
        await uncancelled(self.gone)
        self.drop_folder()
        return self.gone.result()

    def on_warden(self, event: Event) -> None:
        """Take what the warden says of it."""
        if isinstance(event, Started):
            self.pid = event.pid
            return
        if isinstance(event, Leftover):
            self.kill()
            return
        if isinstance(event, Rested):
            self._set_rested(True)
            return
        self._set_rested(False)
        self._drain_log()
        self._close_log()
        if self.gone.done():
            return
        if isinstance(event, Failed):
            self.gone.set_exception(StartFailed(event.message))
            self.gone.exception()  # looked at, also where nobody waits for it
        elif isinstance(event, Gone):
            self.gone.set_result(event)

    def _set_rested(self, rested: bool) -> None:  # noqa: FBT001
        if self._rested is not None and not self._rested.done():
            self._rested.set_result(rested)

    def _on_log(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._log_fd, CHUNK)
            if data:
                self._log.feed(data)
                return True
            self._close_log()
        return False

    def _drain_log(self) -> None:
        for _ in range(DRAIN):
            if self._log_fd < 0 or not self._on_log():
                return

    def _close_log(self) -> None:
        if self._log_fd < 0:
            return
        self._loop.remove_reader(self._log_fd)
        os.close(self._log_fd)
        self._log_fd = -1
        self._log.finish()
