"""A host a connector: it imports once, then forks for each request. A process per request stays.

Once there are requests, the next one's process is forked before it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING

from gateway.cells.wire import Why
from gateway.processes.ahead import Forked
from gateway.processes.host import BootFailed, Host, UnfitError
from gateway.processes.run import GRACE, Completed, Launch, StartFailed, Stop, never_ran

if TYPE_CHECKING:
    from gateway.cells.cell import Ended
    from gateway.processes.base import OnLine, Room, Worker
    from gateway.processes.notices import Notices
    from gateway.processes.run import Answered, Child, Mode, Payload
    from gateway.processes.spawn import SpawnPool
    from gateway.processes.standby import Standby

STRIKES = 2  # hosts in a row that did not get as far as forking
LINGER = 1.0  # seconds without a child until a host gives way: it is not to be lost between two calls of many


class ForkHost:
    """One connector's host, the next one while it boots, and the old ones while they have children."""

    def __init__(self, launch: Launch, spawn: SpawnPool, standby: Standby, room: Room, notices: Notices) -> None:
        """`standby` serves when the connector turns out to be unfit for forking."""
        self.launch = launch
        self._spawn = spawn
        self._standby = standby
        self._room = room
        self.notices = notices
        self._loop = asyncio.get_running_loop()
        self.used = self._loop.time()
        self._host: Host | None = None
        self._next: Host | None = None
        self._old: set[Host] = set()
        self._ending: dict[Host, asyncio.Task[None]] = {}
        self._unfit = False
        self._strikes = 0
        self._ahead = Forked(launch, room)
        self._coming = 0
        self._counted = 0
        """How many hosts take a place of their own."""
        self._lingers = False
        self._needed_at = 0.0
        self._called = False
        """There have been requests lately: the next one's process is forked ahead."""
        self._held = True
        """Nobody has asked for a host ahead yet, or the latest one did not get as far as forking."""

    @property
    def mode(self) -> Mode:
        """How processes are obtained now."""
        return self._standby.mode if self._unfit else "fork"

    async def obtain(self, launch: Launch, on_line: OnLine) -> Worker:
        """Return a process that was forked ahead, or what will be forked as soon as the host is ready."""
        self.used = self._loop.time()
        if self._unfit:
            return await self._standby.obtain(launch, on_line)
        self._called = True
        if not self._fits():
            return self._spawn.start(launch, on_line)
        child = self._ahead.take(on_line)
        if child is None:
            self.coming(1)
            return _Forking(self, launch, on_line)
        child.gone.add_done_callback(self._count)
        self._count()
        self._loop.call_soon(self._fork_ahead)  # the request goes first
        return child

    def idle(self) -> int:
        """Return how many processes are there without a request, but for the hosts that are needed."""
        hosts = [
            host for host in (self._host, self._next) if host is not None and host.alive and not self._needed(host)
        ]
        return len(hosts) + len(self._ahead) + self._standby.idle()

    def warm(self) -> None:
        """Start the host."""
        self._held = False
        if self._unfit:
            self._standby.warm()
        elif self.launch.keep.warm > 0 and self._room.free() > 0 and (self._host is None or not self._host.alive):
            with contextlib.suppress(StartFailed):  # the next request will tell
                self._current()

    def tend(self, now: float) -> None:
        """Replace a host that is worn or dead; let one go that nobody has needed for long."""
        self._lingers = self._lingers and now - self._needed_at < LINGER
        self._count()
        idle = now - self.used > self.launch.keep.warm_idle
        self._called = self._called and not idle
        while idle and self._ahead.shed():
            pass
        if self._unfit:
            self._standby.tend(now)
        elif idle and self.launch.keep.warm_min == 0:
            self._retire(self._host, self._next)
        elif self._host is None or not self._host.alive:
            if not self._held:
                self.warm()
        elif self._host.is_ready:
            self._host.resident.look()
            if self._next is None and self._host.resident.worn():
                self._renew(self._host)
        self._fork_ahead()

    def shed(self) -> bool:
        """Give up a process that was forked ahead; tell whether there was one."""
        return self._ahead.shed()

    def evict(self) -> bool:
        """Give up a process that was forked ahead, then the host when it has nothing to do."""
        if self.shed():
            return True
        host = self._next or self._host
        if host is not None and host.alive and not self._needed(host):
            self._retire(host)
            return True
        return self._standby.evict()

    async def close(self) -> None:
        """Let the host's children end by themselves; then it goes."""
        self._unfit = self._held = True
        self._retire(self._host, self._next)
        await self._ahead.close()
        await self._standby.close()
        await asyncio.gather(*[task for host, task in self._ending.items() if not host.busy], return_exceptions=True)

    def coming(self, change: int) -> None:
        """Count the calls for which the host is to fork: it cannot give way meanwhile."""
        self._coming += change
        if change > 0:
            with contextlib.suppress(StartFailed):  # whoever comes will tell
                self._current()
        self._count()

    async def worker(self, launch: Launch, on_line: OnLine) -> Worker:
        """Return a forked process; a standby or a new one where that cannot be.

        Raises:
            StartFailed: there is none to be had at all.
        """
        if self._unfit:
            return await self._standby.obtain(launch, on_line)
        try:
            host = self._current()
            await asyncio.shield(host.ready)
            child = await self._forked(host, launch, on_line)
        except UnfitError:
            return await self._standby.obtain(launch, on_line)
        except (BootFailed, StartFailed):
            # What is wrong with it a process of its own tells in its own words, and only this call waits for them.
            return self._spawn.start(launch, on_line)
        child.gone.add_done_callback(self._count)
        self._loop.call_soon(self._fork_ahead)
        return child

    # --- private

    def _fits(self) -> bool:
        """Have others give way for the host and one more child; tell whether there is room for both."""
        while self._room.free() < (self._host is None or not self._host.alive) - (len(self._ahead) > 0):
            if not self._room.evict():
                return False
        return True

    def _needed(self, host: Host) -> bool:
        """Tell whether a host has a child in work, is to have one, or had one a moment ago."""
        return host.busy > 0 or (host is self._host and (self._coming > 0 or self._lingers))

    def _count(self, _gone: object = None) -> None:
        """Have the hosts that are needed counted."""
        if self._host is None or not self._host.alive:
            self._lingers = False
        elif self._host.busy or self._coming:
            self._lingers, self._needed_at = True, self._loop.time()
        hosts = {self._host, self._next, *self._old}
        needed = sum(host is not None and host.alive and self._needed(host) for host in hosts)
        if needed != self._counted:
            change, self._counted = needed - self._counted, needed
            self._room.hosts(change)

    def _fork_ahead(self) -> None:
        host = self._host
        if self._called and not self._unfit and host is not None and host.alive and host.is_ready:
            self._ahead.fill(host)

    def _current(self) -> Host:
        if self._host is None or not self._host.alive:
            self._host = self._booting()
            self._count()
        return self._host

    def _booting(self) -> Host:
        host = Host(self._spawn, self.launch, self.notices.line)
        host.ready.add_done_callback(lambda ready: self._on_booted(host, ready.exception()))
        host.resident.gone.add_done_callback(lambda _: self._ahead.leave(host))
        host.resident.gone.add_done_callback(self._count)
        self._ending[host] = task = self._loop.create_task(_cleared(host))
        task.add_done_callback(lambda _: self._ending.pop(host, None))
        return host

    def _on_booted(self, host: Host, problem: BaseException | None) -> None:
        if problem is None:
            self._strikes = 0
            self._held = False
            if host.resident.heavy():
                self.notices.heavy()
            for trouble in host.problems:
                self.notices.warn_once(f"did not warm up as a whole: {trouble}")
            if self._next is host:
                self._next = None
                self._retire(self._host)
                self._host = host
                self._count()
            self._fork_ahead()
            return
        if host not in (self._host, self._next):  # it was given up meanwhile, or the gateway closes
            return
        self._held = True
        if isinstance(problem, UnfitError):
            self._give_up(f"it has {problem}")
        elif not _cell_died(host):
            self._strikes += 1
            if self._strikes == STRIKES:
                self._give_up(f"its host fails: {problem}")
        self._retire(host)

    def _renew(self, worn: Host) -> None:
        """Have a worn host serve on until its successor is ready; where there is no room for two, let it go."""
        if self._room.free() > 0:
            with contextlib.suppress(StartFailed):
                self._next = self._booting()
                return
        self._retire(worn)

    def _retire(self, *hosts: Host | None) -> None:
        for host in hosts:
            if host is None:
                continue
            self._host = None if self._host is host else self._host
            self._next = None if self._next is host else self._next
            self._ahead.leave(host)
            if host.alive:
                self._old.add(host)
                host.resident.gone.add_done_callback(functools.partial(self._forget, host))
                host.retire()
        self._count()

    def _forget(self, host: Host, _gone: asyncio.Future[Ended]) -> None:
        self._old.discard(host)
        self._count()

    def _give_up(self, reason: str) -> None:
        if self._unfit:
            return
        self._unfit = True
        self._standby.warm()
        self.notices.warn(f"cannot be forked safely, so its processes are started ahead instead (standby): {reason}")

    async def _forked(self, host: Host, launch: Launch, on_line: OnLine) -> Child:
        forking = self._loop.create_task(host.fork(launch, on_line))
        try:
            return await asyncio.shield(forking)
        except asyncio.CancelledError:
            await _done(forking)
            if forking.exception() is None:
                await forking.result().discard()
            raise


class _Forking:
    """A request whose process is still to be forked: a deadline, a drain or a hang-up may come first."""

    def __init__(self, pool: ForkHost, launch: Launch, on_line: OnLine) -> None:
        self._pool = pool
        self._launch = launch
        self._on_line = on_line
        self._loop = asyncio.get_running_loop()
        self._stop: Stop | None = None
        self._obtaining: asyncio.Task[Worker] | None = None
        self._worker: Worker | None = None

    async def run(self, payload: Payload, *, deadline: float, answered: Answered | None = None) -> Completed:
        try:
            worker = await self._obtained(deadline)
        finally:
            self._pool.coming(-1)
        if worker is None:
            return self._never_ran()
        self._worker = worker
        if self._stop is not None:
            worker.stop(self._stop)
        return await worker.run(payload, deadline=deadline, answered=answered)

    def stop(self, why: Stop, *, grace: float = GRACE) -> None:
        if self._worker is not None:
            self._worker.stop(why, grace=grace)
            return
        self._stop = self._stop or why
        self._give_up_obtaining()

    async def _obtained(self, deadline: float) -> Worker | None:
        """Return the process, None when the run was stopped before there was one."""
        if self._stop is not None:
            return None
        obtaining = self._obtaining = self._loop.create_task(self._pool.worker(self._launch, self._on_line))
        timer = self._loop.call_at(deadline, self.stop, Stop.DEADLINE)
        try:
            await asyncio.wait([obtaining])
        except asyncio.CancelledError:
            self._give_up_obtaining()
            await _done(obtaining)
            if not obtaining.cancelled() and obtaining.exception() is None:
                await _cancelled(obtaining.result())
            raise
        finally:
            timer.cancel()
        return None if obtaining.cancelled() else obtaining.result()

    def _give_up_obtaining(self) -> None:
        # Once: what it has begun to clear up is not to be cancelled in turn.
        if self._obtaining is not None and not self._obtaining.cancelling():
            self._obtaining.cancel()

    def _never_ran(self) -> Completed:
        return never_ran(self._launch, self._stop, "the process that imports the connector is not ready yet")


async def _cleared(host: Host) -> None:
    with contextlib.suppress(StartFailed):
        await host.resident.ended()


async def _done(task: asyncio.Task[Child] | asyncio.Task[Worker]) -> None:
    """Wait for a task's end whatever is cancelled meanwhile; its exception is its owner's business."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])


async def _cancelled(worker: Worker) -> None:
    """End a process that has been obtained for nobody."""
    worker.stop(Stop.CANCELLED, grace=0)
    with contextlib.suppress(StartFailed):
        await worker.run(b"", deadline=asyncio.get_running_loop().time())


def _cell_died(host: Host) -> bool:
    gone = host.resident.gone
    return gone.done() and gone.exception() is None and gone.result().why == Why.CELL_DIED
