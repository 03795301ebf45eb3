"""One fork host: a process that has imported a connector and forks for each request.

The host forks and reaps; the warden adopts what was forked, so deadline, tree kill, memory bound and sweep are the
same as for a process that was spawned. Protocol of the host's socket (descriptor 3), one JSON object a message:

    gateway -> host   {"id", "cwd", "env", "ahead"} with the child's stdin, stdout and stderr attached
    host -> gateway   {"ev": "ready", "problems": [{"module", "message"}]} or {"ev": "unfit", "reason"}, then for each
                      request
                      {"ev": "forked", "id", "pid"} or {"ev": "failed", "id", "message"}, and later
                      {"ev": "exited", "id", "status", "utime", "stime", "maxrss"}   times in seconds, maxrss in bytes

The child gets its request only when the warden knows it: nothing that it starts can get away. One that is forked ahead
has its request later than that, and uses the time to copy the pages that it will write to.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from typing import TYPE_CHECKING

import msgspec

from gateway.pool.resident import Resident
from gateway.process import StartFailed
from gateway.warden import procfs
from gateway.warden.client import Gone, Started

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.pool.spawn import SpawnPool
    from gateway.process import Child, Launch
    from gateway.warden.client import Event

BOOT = 60.0  # seconds that a host may take to import and warm up
STUCK = 5.0  # seconds after which a host that does not answer, or tells no status, is given up
MESSAGE = 1 << 16  # bytes
SIGKILLED = 9


class _Problem(msgspec.Struct, frozen=True):
    module: str
    message: str


class _Ready(msgspec.Struct, frozen=True, tag_field="ev", tag="ready"):
    problems: tuple[_Problem, ...] = ()


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


_Message = _Ready | _Unfit | _Forked | _NotForked | _Exited
_DECODER = msgspec.json.Decoder(_Message)


class UnfitError(Exception):
    """The host has threads, sockets or the like, which children would share or miss; the message names them."""


class BootFailed(Exception):
    """The host died before it could fork, or takes too long."""


class Host:
    """One host process, and the children that it has forked."""

    def __init__(self, spawn: SpawnPool, launch: Launch, on_line: Callable[[str], None]) -> None:
        """Start it; what it logs itself goes to `on_line`.

        Raises:
            StartFailed: there are no more descriptors, or there is no disk.
        """
        self.busy = 0
        """How many requests its children have."""
        self.is_ready = False
        self.problems: list[str] = []
        """What did not work while it imported and warmed up, once it is ready."""
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done when it can fork; `UnfitError` when it must not, `BootFailed` when it died."""
        self._forking: dict[int, asyncio.Future[int]] = {}
        self._children: dict[int, _Adopted] = {}
        self._last_id = 0
        self._retired = False
        self._warden = spawn.warden
        self.resident = Resident(spawn.warden, launch, spawn.folder(), on_line)
        self._socket = self._start()
        self.resident.gone.add_done_callback(self._on_gone)
        self._loop.add_reader(self._socket, self._on_readable)
        self._patience = self._loop.call_later(BOOT, self._took_too_long)

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return not self.resident.gone.done()

    async def fork(self, child: Child, *, ahead: bool = False) -> int:
        """Fork a process for a child, and have the warden adopt it. To be shielded from cancellation.

        Returns:
            what `hand_over` knows it by, when it was forked `ahead` of its request.

        Raises:
            StartFailed: the host is gone, or cannot fork.
        """
        self._last_id += 1
        key = self._last_id
        adopted = self._children[key] = _Adopted(child, self, key)
        answer = self._forking[key] = self._loop.create_future()
        if not ahead:
            self.hand_over(key)
        stuck = self._loop.call_later(STUCK, self.give_up)
        try:
            with child.prepared() as fds:
                request = {"id": key, "cwd": child.folder, "env": child.private_env(), "ahead": ahead}
                message = msgspec.json.encode(request)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                self._socket.sendmsg([message], rights)
            pid = await answer
            cwd, memory = child.folder, child.launch.bounds.memory
            host = self.resident.pid
            child.attach(self._warden.adopt(adopted, pid=pid, host=host, cwd=cwd, memory=memory, busy=not ahead))
        except (StartFailed, OSError) as problem:
            self.child_over(key)
            await child.never_started()
            raise problem if isinstance(problem, StartFailed) else StartFailed(str(problem)) from problem
        finally:
            self._forking.pop(key, None)
            stuck.cancel()
        await adopted.known.wait()
        return key

    def hand_over(self, key: int) -> None:
        """One child has its request now."""
        if key in self._children:
            self._children[key].busy = True
            self.busy += 1
        self.resident.uses += 1

    def retire(self) -> None:
        """Take no more requests, and go when the last child is over."""
        self._retired = True
        if not self._children:
            self.resident.kill()

    def give_up(self) -> None:
        """Kill a host that does not answer. What has become of its children it tells nobody any more."""
        for adopted in self._children.values():
            adopted.look(self.resident.pid)
        self.resident.kill()

    def child_over(self, key: int) -> None:
        """One child has ended."""
        adopted = self._children.pop(key, None)
        if adopted is not None and adopted.busy:
            self.busy -= 1
        if self._retired and not self._children:
            self.resident.kill()

    # --- private

    def _start(self) -> socket.socket:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as problem:
            self.resident.drop_folder()
            raise StartFailed(str(problem)) from problem
        ours.setblocking(False)
        try:
            with theirs, open(os.devnull, "rb") as null:
                self.resident.start(null.fileno(), theirs.fileno(), host=True)
        except (OSError, StartFailed) as problem:
            ours.close()
            self.resident.drop_folder()
            raise StartFailed(str(problem)) from problem
        return ours

    def _took_too_long(self) -> None:
        self._fail(BootFailed(f"it was not imported within {BOOT:g} s"))
        self.resident.kill()

    def _fail(self, problem: Exception) -> None:
        if not self.ready.done():
            self.ready.set_exception(problem)
            self.ready.exception()  # looked at, also where nobody waits for it

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

    def _on_message(self, message: _Message) -> None:
        if isinstance(message, _Ready):
            if not self.ready.done():
                self._patience.cancel()
                self.is_ready = True
                self.problems = [f"{problem.module}: {problem.message}" for problem in message.problems]
                self.ready.set_result(None)
        elif isinstance(message, _Unfit):
            self._fail(UnfitError(message.reason))
        elif isinstance(message, _Exited):
            if message.id in self._children:
                self._children[message.id].on_exit(message)
        else:
            self._on_answer(message)

    def _on_answer(self, message: _Forked | _NotForked) -> None:
        answer = self._forking.get(message.id)
        if answer is None or answer.done():
            return
        if isinstance(message, _Forked):
            answer.set_result(message.pid)
        else:
            answer.set_exception(StartFailed(message.message))

    def _on_gone(self, gone: asyncio.Future[Gone]) -> None:
        self.is_ready = False
        self._patience.cancel()
        self._on_readable()  # its last words
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._fail(BootFailed(str(gone.exception() or f"it died: {self.resident.log_tail()[0][-500:]}")))
        for answer in self._forking.values():
            if not answer.done():
                answer.set_exception(StartFailed("its host died"))
        for adopted in list(self._children.values()):
            adopted.host_died()


class _Adopted:
    """Puts together what the warden and the host know of one child's end."""

    def __init__(self, child: Child, host: Host, key: int) -> None:
        self.known = asyncio.Event()
        """The warden has it, or it is over."""
        self.busy = False
        self._child = child
        self._host = host
        self._key = key
        self._gone: Gone | None = None
        self._exit: _Exited | None = None
        self._orphan = False
        self._status: int | None = None
        self._patience: asyncio.TimerHandle | None = None

    def on_warden(self, event: Event) -> None:
        if not isinstance(event, Started | Gone):
            self._child.on_warden(event)
            return
        self.known.set()
        if isinstance(event, Gone):
            self._gone = event
            if not self._settled():
                self._patience = asyncio.get_running_loop().call_later(STUCK, self._give_up)

    def on_exit(self, message: _Exited) -> None:
        self._exit = message
        self._settled()

    def host_died(self) -> None:
        self._orphan = True
        self._settled()

    def look(self, host: int) -> None:
        """Have the kernel tell how it ended: its host does not."""
        if self._gone is not None and not self._gone.reaped and self._status is None:
            self._status = procfs.unreaped(self._gone.pid, host)

    def _give_up(self) -> None:
        if not self._child.gone.done():
            self._host.give_up()

    def _settled(self) -> bool:
        """Tell the child, once all is known that will be."""
        gone, exited = self._gone, self._exit
        if gone is None or (exited is None and not gone.reaped and not self._orphan and not gone.warden_died):
            return False
        if exited is not None:
            gone = _together(gone, exited, self._child.launch.bounds.memory)
        elif not gone.reaped:
            gone = msgspec.structs.replace(gone, status=SIGKILLED if self._status is None else self._status)
        if self._patience is not None:
            self._patience.cancel()
        self._host.child_over(self._key)
        self._child.on_warden(gone)
        return True


def _together(gone: Gone, exited: _Exited, bound: int) -> Gone:
    peak = max(gone.peak_rss, exited.maxrss)
    return msgspec.structs.replace(
        gone,
        status=exited.status,
        utime=gone.utime + exited.utime,
        stime=gone.stime + exited.stime,
        peak_rss=peak,
        out_of_memory=gone.out_of_memory or (exited.status != 0 and 0 < bound < peak),
    )
