"""A host a connector: it imports once, then forks for each request. A process per request stays.

Once there are requests, the next one's process is forked before it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, ClassVar

from gateway.cells.wire import Why
from gateway.processes.ahead import Ahead
from gateway.processes.base import after_idleness
from gateway.processes.completed import NEVER, Completed, StartFailed, Stop, completed
from gateway.processes.fork_host import BootFailed, Host, HostState, UnfitError
from gateway.processes.launch import GRACE, Launch
from gateway.processes.standby import Standby

if TYPE_CHECKING:
    from gateway.cells.cell import Ended, Listener
    from gateway.processes.base import OnLine, Process, Room
    from gateway.processes.launch import Answered, Keep, Payload
    from gateway.processes.notices import Notices
    from gateway.processes.run import Child
    from gateway.processes.spawn import SpawnPool
    from gateway.sections import Mode

STRIKES = 2  # hosts in a row that did not get as far as forking
WAY_OUT = (
    "Make it in the functions that use it, or end it in warmup(); "
    "mode: standby leaves all as it is, without this warning"
)
HOSTS = {
    HostState.BOOTING: "host, imports the connector",
    HostState.READY: "host, forks for each call",
    HostState.RETIRED: "host, goes after its last call",
}
LINGER = 1.0  # seconds without a child until a host gives way: it is not to be lost between two calls of many


class ForkHost:
    """One connector's host, the next one while it boots, and the old ones while they have children."""

    least: ClassVar[int] = 2  # a host, and its child

    def __init__(self, launch: Launch, spawn: SpawnPool, room: Room, notices: Notices) -> None:
        self.launch = launch
        self.notices = notices
        self._spawn = spawn
        self._standby = Standby(launch, spawn, room, notices)
        """Serves when the connector turns out to be unfit for forking."""
        self._room = room
        self._places = room.places
        self._loop = asyncio.get_running_loop()
        self.used = self._loop.time()
        self._host: Host | None = None
        self._next: Host | None = None
        self._old: set[Host] = set()
        self._ending: dict[Host, asyncio.Task[None]] = {}
        self._unfit = False
        self._strikes = 0
        self._ahead = Ahead(launch, room)
        self._coming = 0
        self._counted = (0, 0)
        """How many hosts have work, and how many have none."""
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

    def obtain(self, launch: Launch, on_line: OnLine) -> Process:
        """Return a process that was forked ahead, or what will be forked as soon as the host is ready."""
        self.used = self._loop.time()
        if self._unfit:
            return self._standby.obtain(launch, on_line)
        self._called = True
        if not self._fits():
            return self._spawn.obtain(launch, on_line)
        child = self._ahead.take(launch, on_line)
        if child is None:
            self.coming(1)
            return _Forking(self, launch, on_line)
        child.gone.add_done_callback(self._count)
        self._count()
        self._loop.call_soon(self._fork_ahead)  # the request goes first
        return child

    def warm(self) -> None:
        """Start the host."""
        self._held = False
        if self._unfit:
            self._standby.warm()
        elif self.launch.keep.warm > 0 and self._places.free() > 0 and (self._host is None or not self._host.alive):
            with contextlib.suppress(StartFailed):  # the next request will tell
                self._current()

    def tend(self, now: float) -> None:
        """Replace a host that is worn or dead; let one go that nobody has needed for long."""
        self._lingers = self._lingers and now - self._needed_at < LINGER
        self._count()
        idle = now - self.used > self.launch.keep.warm_idle
        self._called = self._called and not idle
        while idle and self._ahead.stock.retire():
            pass
        if self._unfit:
            self._standby.tend(now)
        elif idle and self.launch.keep.warm_min == 0:
            self._let_go(self._host, self._next)
        elif self._host is None or not self._host.alive:
            if not self._held:
                self.warm()
        elif self._host.state is HostState.READY:
            self._host.resident.look()
            if self._next is None and self._host.resident.worn():
                self._renew(self._host)
        self._fork_ahead()

    def retire(self, *, light: bool = False) -> bool:
        """Give up a process that was forked ahead, which is light; then the host when it has nothing to do."""
        if self._ahead.stock.retire():
            return True
        if light:
            return False
        host = self._next or self._host
        if host is not None and host.alive and not self._needed(host):
            self._let_go(host)
            return True
        return self._standby.retire()

    def kept(self) -> dict[Listener, str]:
        """Return the hosts, and what was forked or started ahead."""
        hosts = [host for host in (self._host, self._next, *self._old) if host is not None and host.alive]
        ahead: dict[Listener, str] = {one.child: "forked ahead, waits for a call" for one in self._ahead.stock}
        return {**{host.resident: HOSTS[host.state] for host in hosts}, **ahead, **self._standby.kept()}

    async def close(self) -> None:
        """Let the host's children end by themselves; then it goes."""
        self._unfit = self._held = True
        self._let_go(self._host, self._next)
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

    async def process(self, launch: Launch, on_line: OnLine) -> Process:
        """Return a forked process; a standby or a new one where that cannot be.

        Raises:
            StartFailed: there is none to be had at all.
        """
        if self._unfit:
            return self._standby.obtain(launch, on_line)
        try:
            host = self._current()
            await asyncio.shield(host.ready)
            child = await self._forked(host, launch, on_line)
        except UnfitError:
            return self._standby.obtain(launch, on_line)
        except (BootFailed, StartFailed):
            # What is wrong with it a process of its own tells in its own words, and only this call waits for them.
            return self._spawn.obtain(launch, on_line)
        child.gone.add_done_callback(self._count)
        self._loop.call_soon(self._fork_ahead)
        return child

    @staticmethod
    def keeps(keep: Keep) -> str:
        """See `Source`."""
        ahead = f", {keep.warm} forked ahead from the first call on" if keep.warm else ", from the first call on"
        least = "" if keep.warm_min else "none"
        if keep.warm and keep.warm_min:
            least = "the host alone"
        return f"1 host{ahead}{after_idleness(keep, least)}"

    @staticmethod
    def counts(keep: Keep) -> tuple[int, int]:
        """See `Source`."""
        return min(keep.warm, 1), 1

    # --- private

    def _fits(self) -> bool:
        """Have others give way for the host and one more child; tell whether there is room for both."""
        while self._places.free() < (self._host is None or not self._host.alive) - (len(self._ahead.stock) > 0):
            if not self._room.make_room():
                return False
        return True

    def _needed(self, host: Host) -> bool:
        """Tell whether a host has a child in work, is to have one, or had one a moment ago."""
        return host.busy > 0 or (host is self._host and (self._coming > 0 or self._lingers))

    def _count(self, _gone: object = None) -> None:
        """Have the hosts counted: those that have work take a place, the others have one that gives way."""
        if self._host is None or not self._host.alive:
            self._lingers = False
        elif self._host.busy or self._coming:
            self._lingers, self._needed_at = True, self._loop.time()
        hosts = {host for host in (self._host, self._next, *self._old) if host is not None and host.alive}
        needed = sum(map(self._needed, hosts))
        idle = len(hosts - self._old) - sum(map(self._needed, hosts - self._old))
        if (needed, idle) != self._counted:
            before, self._counted = self._counted, (needed, idle)
            self._places.kept += idle - before[1]
            self._places.host(needed - before[0])

    def _fork_ahead(self) -> None:
        host = self._host
        if self._called and not self._unfit and host is not None and host.state is HostState.READY:
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
                self._let_go(self._host)
                self._host = host
                self._count()
            self._fork_ahead()
            return
        if host not in (self._host, self._next):  # it was given up meanwhile, or the gateway closes
            return
        self._held = True
        if isinstance(problem, UnfitError):
            self._give_up(f"it has {problem}. {WAY_OUT}")
        elif not _cell_died(host):
            self._strikes += 1
            if self._strikes == STRIKES:
                self._give_up(f"its host fails: {problem}")
        self._let_go(host)

    def _renew(self, worn: Host) -> None:
        """Have a worn host serve on until its successor is ready; where there is no room for two, let it go."""
        if self._places.free() > 0:
            with contextlib.suppress(StartFailed):
                self._next = self._booting()
                self._count()
                return
        self._let_go(worn)

    def _let_go(self, *hosts: Host | None) -> None:
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

    def __init__(self, source: ForkHost, launch: Launch, on_line: OnLine) -> None:
        self._source = source
        self._launch = launch
        self._on_line = on_line
        self._loop = asyncio.get_running_loop()
        self._stop: Stop | None = None
        self._obtaining: asyncio.Task[Process] | None = None
        self._process: Process | None = None

    async def run(self, payload: Payload, *, deadline: float, answered: Answered | None = None) -> Completed:
        try:
            process = await self._obtained(deadline)
        finally:
            self._source.coming(-1)
        if process is None:
            return self._never_ran()
        self._process = process
        if self._stop is not None:
            process.stop(self._stop)
        return await process.run(payload, deadline=deadline, answered=answered)

    def stop(self, why: Stop, *, grace: float = GRACE) -> None:
        if self._process is not None:
            self._process.stop(why, grace=grace)
            return
        self._stop = self._stop or why
        self._give_up_obtaining()

    async def _obtained(self, deadline: float) -> Process | None:
        """Return the process, None when the run was stopped before there was one."""
        if self._stop is not None:
            return None
        obtaining = self._obtaining = self._loop.create_task(self._source.process(self._launch, self._on_line))
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
        words = "the process that imports the connector is not ready yet"
        return completed(NEVER, self._launch, stop=self._stop, log=(words, len(words)))


async def _cleared(host: Host) -> None:
    with contextlib.suppress(StartFailed):
        await host.resident.ended()


async def _done(task: asyncio.Task[Child] | asyncio.Task[Process]) -> None:
    """Wait for a task's end whatever is cancelled meanwhile; its exception is its owner's business."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])


async def _cancelled(process: Process) -> None:
    """End a process that has been obtained for nobody."""
    process.stop(Stop.CANCELLED, grace=0)
    with contextlib.suppress(StartFailed):
        await process.run(b"", deadline=asyncio.get_running_loop().time())


def _cell_died(host: Host) -> bool:
    gone = host.resident.gone
    return gone.done() and gone.exception() is None and gone.result().why == Why.CELL_DIED
