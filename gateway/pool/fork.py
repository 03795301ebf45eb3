"""A host a connector: it imports once, then forks for each request. A process per request stays.

The host forks and reaps; the warden adopts what was forked, so deadline, tree kill, memory bound and sweep are the
same as for a process that was spawned. Protocol of the host's socket (descriptor 3), one JSON object a message:

    gateway -> host   {"id", "cwd", "env"} with the child's stdin, stdout and stderr attached
    host -> gateway   {"ev": "ready"} or {"ev": "unfit", "reason"}, then for each request
                      {"ev": "forked", "id", "pid"} or {"ev": "failed", "id", "message"}, and later
                      {"ev": "exited", "id", "status", "utime", "stime", "maxrss"}   times in seconds, maxrss in bytes
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.events import Bus, ConnectorWarning
from gateway.pool.resident import Resident
from gateway.process import Child, Launch, StartFailed, Stop
from gateway.warden.client import Gone

if TYPE_CHECKING:
    from gateway.pool.base import OnLine, Room, Worker
    from gateway.pool.spawn import SpawnPool
    from gateway.pool.standby import Standby
    from gateway.warden.client import Event

BOOT = 60.0  # seconds that a host may take to import and warm up
MESSAGE = 1 << 16  # bytes
SIGKILLED = 9


class _Ready(msgspec.Struct, frozen=True, tag_field="ev", tag="ready"):
    pass


class _Unfit(msgspec.Struct, frozen=True, tag_field="ev", tag="unfit"):
    reason: str


class _Forked(msgspec.Struct, frozen=True, tag_field="ev", tag="forked"):
    id: int
    pid: int


class _NotForked(msgspec.Struct, frozen=True, tag_field="ev", tag="failed"):
    id: int
    message: str


class _Exited(msgspec.Struct, frozen=True, tag_field="ev", tag="exited"):
    id: int
    status: int
    utime: float
    stime: float
    maxrss: int


_DECODER = msgspec.json.Decoder(_Ready | _Unfit | _Forked | _NotForked | _Exited)


class ForkHost:
    """One connector's host, the next one while it boots, and the old ones while they have children."""

    def __init__(self, launch: Launch, spawn: SpawnPool, standby: Standby, room: Room, bus: Bus) -> None:
        """`standby` serves when the host turns out to be unfit for forking."""
        self.launch = launch
        self._spawn = spawn
        self._standby = standby
        self._room = room
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._host: _Host | None = None
        self._old: set[_Host] = set()
        self._unfit: str | None = None
        self._used = self._loop.time()
        self._closed = False

    async def obtain(self, launch: Launch, on_line: OnLine) -> Worker:
        """Return a forked process."""
        self._used = self._loop.time()
        if self._unfit is None:
            host = self._current()
            try:
                return await self._forked(host, launch, on_line)
            except _UnfitError as problem:
                self._give_up(host, str(problem))
        return await self._standby.obtain(launch, on_line)

    def idle(self) -> int:
        """Return how many processes are there besides those that have a request."""
        hosts = len(self._old) + (self._host is not None and not self._host.resident.gone.done())
        return hosts + self._standby.idle()

    def warm(self) -> None:
        """Start the host."""
        if self._unfit is not None:
            self._standby.warm()
        elif self.launch.keep.warm > 0 and self._room.free() > 0:
            self._current()

    def tend(self, now: float) -> None:
        """Replace a host that is worn; let one go that nobody has needed for long."""
        self._standby.tend(now)
        host = self._host
        if host is None or not host.is_ready:
            return
        worn = host.resident.worn()
        if worn is not None or host.resident.gone.done():
            self._retire(host)
            self.warm()
        elif self.launch.keep.warm_min == 0 and now - self._used > self.launch.keep.warm_idle:
            self._retire(host)

    def evict(self) -> bool:
        """Give up the host when it has nothing to do."""
        host = self._host
        if host is not None and not host.busy and host.is_ready:
            self._retire(host)
            return True
        return self._standby.evict()

    async def close(self) -> None:
        """Let the host's children end by themselves; then it goes."""
        self._closed = True
        if self._host is not None:
            self._retire(self._host)
        await self._standby.close()

    async def killed(self) -> None:
        """Wait until every host is gone; they must have been told."""
        for host in list(self._old):
            host.resident.kill()
            await asyncio.wait([host.resident.gone])

    def _current(self) -> _Host:
        if self._host is None or self._host.resident.gone.done():
            self._host = _Host(self._spawn, self.launch, self._on_line)
        return self._host

    async def _forked(self, host: _Host, launch: Launch, on_line: OnLine) -> Child:
        await host.ready()
        child = Child(self._spawn.warden, launch, self._spawn.folder(), on_line)
        forking = self._loop.create_task(host.fork(child))
        try:
            await asyncio.shield(forking)
        except asyncio.CancelledError:
            child.stop(Stop.CANCELLED, grace=0)
            await asyncio.wait([forking])
            if forking.exception() is None:
                await child.discard()
            raise
        return child

    def _retire(self, host: _Host) -> None:
        self._host = None if self._host is host else self._host
        self._old.add(host)
        host.resident.gone.add_done_callback(lambda _gone: self._old.discard(host))
        host.retire()

    def _give_up(self, host: _Host, reason: str) -> None:
        if self._unfit is not None:
            return
        self._unfit = reason
        self._retire(host)
        self._bus.publish(
            ConnectorWarning(
                connector=self.launch.name,
                command="",
                request_id="",
                message=f"cannot be forked safely, so its processes are started ahead instead: {reason}",
            )
        )

    def _on_line(self, _stream: str, _line: str) -> None:
        """Drop what a host logs between requests: its import noise belongs to nobody's call."""


class _UnfitError(Exception):
    """The host has threads, sockets or the like; the message names them."""


class _Host:
    """One host process."""

    def __init__(self, spawn: SpawnPool, launch: Launch, on_line: OnLine) -> None:
        self.busy = 0
        self.is_ready = False
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._forking: dict[int, asyncio.Future[int]] = {}
        self._children: dict[int, _Adopted] = {}
        self._last_id = 0
        self._retired = False
        self._warden = spawn.warden
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self.resident = Resident(spawn.warden, launch, spawn.folder(), on_line)
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            self.resident.start(null, theirs.fileno(), host=True)
        except StartFailed as problem:
            self.resident.gone.set_exception(problem)
        finally:
            theirs.close()
            os.close(null)
        self.resident.gone.add_done_callback(self._on_gone)
        self._loop.add_reader(self._socket, self._on_readable)

    async def ready(self) -> None:
        """Wait until it can fork.

        Raises:
            StartFailed: it died, or takes too long.
            _UnfitError: it must not.
        """
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), BOOT)
        except TimeoutError:
            self.resident.kill()
            raise StartFailed(f"its host did not import it within {BOOT:g} s") from None

    async def fork(self, child: Child) -> None:
        """Fork a process for a child, and have the warden adopt it.

        Raises:
            StartFailed: the host is gone, or cannot fork.
        """
        self._last_id += 1
        key = self._last_id
        answer: asyncio.Future[int] = self._loop.create_future()
        self._forking[key] = answer
        self.busy += 1
        self.resident.uses += 1
        adopted = _Adopted(child, self, key)
        self._children[key] = adopted
        try:
            with child.prepared() as fds:
                message = msgspec.json.encode({"id": key, "cwd": child.folder, "env": child.private_env()})
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                self._socket.sendmsg([message], rights)
            pid = await answer
        except (StartFailed, OSError) as problem:
            self._forking.pop(key, None)
            self.child_over(key)
            await child.never_started()
            raise problem if isinstance(problem, StartFailed) else StartFailed(str(problem)) from problem
        child.attach(
            self._warden.adopt(
                adopted,
                pid=pid,
                host=self.resident.pid,
                cwd=child.folder,
                memory=child.launch.bounds.memory,
            )
        )

    def retire(self) -> None:
        """Take no more requests, and go when the last child is over."""
        self._retired = True
        if not self.busy:
            self.resident.kill()

    def child_over(self, key: int) -> None:
        """One child has ended."""
        if self._children.pop(key, None) is not None:
            self.busy -= 1
        if self._retired and not self.busy:
            self.resident.kill()

    def _on_readable(self) -> None:
        while True:
            try:
                data = self._socket.recv(MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(self._socket)
                return
            self._on_message(_DECODER.decode(data))

    def _on_message(self, message: _Ready | _Unfit | _Forked | _NotForked | _Exited) -> None:
        if isinstance(message, _Ready):
            self.is_ready = True
            if not self._ready.done():
                self._ready.set_result(None)
        elif isinstance(message, _Unfit):
            if not self._ready.done():
                self._ready.set_exception(_UnfitError(message.reason))
                self._ready.exception()
        elif isinstance(message, _Exited):
            if message.id in self._children:
                self._children[message.id].on_exit(message)
        else:
            answer = self._forking.pop(message.id, None)
            if answer is not None and not answer.done():
                if isinstance(message, _Forked):
                    answer.set_result(message.pid)
                else:
                    answer.set_exception(StartFailed(message.message))

    def _on_gone(self, gone: asyncio.Future[Gone]) -> None:
        self.is_ready = False
        self._loop.remove_reader(self._socket)
        self._on_readable() if self._socket.fileno() >= 0 else None
        self._socket.close()
        problem = gone.exception()
        reason = str(problem) if problem is not None else f"its host died: {self.resident.log_tail()[0][-500:]}"
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._forking.values()]
        for answer in waiting:
            if not answer.done():
                answer.set_exception(StartFailed(reason))
                answer.exception()
        for adopted in list(self._children.values()):
            adopted.host_died()
        task = self._loop.create_task(self.resident.ended() if problem is None else asyncio.sleep(0))
        task.add_done_callback(lambda done: done.exception())


class _Adopted:
    """Puts together what the warden and the host know of one child's end."""

    def __init__(self, child: Child, host: _Host, key: int) -> None:
        self._child = child
        self._host = host
        self._key = key
        self._gone: Gone | None = None
        self._exit: _Exited | None = None
        self._orphan = False

    def on_warden(self, event: Event) -> None:
        if isinstance(event, Gone):
            self._gone = event
            self._settle()
        else:
            self._child.on_warden(event)

    def on_exit(self, message: _Exited) -> None:
        self._exit = message
        self._settle()

    def host_died(self) -> None:
        self._orphan = True
        self._settle()

    def _settle(self) -> None:
        gone, exited = self._gone, self._exit
        if gone is None or (exited is None and not gone.reaped and not self._orphan and not gone.warden_died):
            return
        if exited is not None:
            gone = msgspec.structs.replace(
                gone,
                status=exited.status,
                utime=gone.utime + exited.utime,
                stime=gone.stime + exited.stime,
                peak_rss=max(gone.peak_rss, exited.maxrss),
            )
        elif not gone.reaped:
            gone = msgspec.structs.replace(gone, status=SIGKILLED)
        self._host.child_over(self._key)
        self._child.on_warden(gone)
