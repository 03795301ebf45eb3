"""The gateway's end of the warden: start a process, signal it, hear when all of it is gone."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from typing import TYPE_CHECKING, Protocol

import msgspec

from gateway.warden import cgroup, procfs
from gateway.warden.folders import Folders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PROGRAM = os.path.join(os.path.dirname(__file__), "__main__.py")
MESSAGE = 1 << 16  # bytes; what the warden says is short
AGAIN = 50  # looks at most for what a dead warden has left: something may be forking while it is killed
LONGEST = 1 << 20  # bytes of a message that the warden reads; the kernel takes little more from an exec


class Failed(msgspec.Struct, frozen=True, tag_field="ev", tag="failed"):
    """The process could not be started; `errno` is 0 when the operating system gave none."""

    id: int
    errno: int
    message: str


class Started(msgspec.Struct, frozen=True, tag_field="ev", tag="started"):
    """The process was started, for those who asked to be told; or adopted."""

    id: int
    pid: int


class Leftover(msgspec.Struct, frozen=True, tag_field="ev", tag="leftover"):
    """The leader is dead, something it started is not."""

    id: int
    pid: int


class Rested(msgspec.Struct, frozen=True, tag_field="ev", tag="rested"):
    """Nothing of a run lives beside its leader but what may stay."""

    id: int
    pid: int


class Gone(msgspec.Struct, frozen=True, tag_field="ev", tag="gone"):
    """Everything of a run is dead and reaped. `status` is a wait status, times in seconds, `peak_rss` in bytes."""

    id: int
    pid: int
    status: int
    out_of_memory: bool = False
    utime: float = 0.0
    stime: float = 0.0
    peak_rss: int = 0
    warden_died: bool = False
    reaped: bool = True
    """False when a host has reaped the leader: it knows the status."""


class Ready(msgspec.Struct, frozen=True, tag_field="ev", tag="ready"):
    """The warden works; each run gets a control group below `groups`, if there is one."""

    id: int
    groups: str | None


Event = Started | Failed | Leftover | Rested | Gone


class Listener(Protocol):
    """Who is told about one run."""

    def on_warden(self, event: Event) -> None:
        """Take one event; never raises."""


class Handle:
    """One run at the warden."""

    def __init__(self, warden: Warden, key: int) -> None:
        self._warden = warden
        self._key = key

    def signal(self, number: int) -> None:
        """Send a signal to the run's process group."""
        self._warden.send({"op": "signal", "id": self._key, "signal": number})

    def busy(self, busy: bool) -> None:  # noqa: FBT001
        """Say that it has a request, or has none: whose a process without a trace can be, where there are no groups."""
        if not self._warden.cgroup:
            self._warden.send({"op": "busy", "id": self._key, "busy": busy})

    def rest(self, *, keep: bool) -> None:
        """SIGKILL everything of the run but its leader and what may stay; `keep`: what is there now may."""
        self._warden.send({"op": "rest", "id": self._key, "keep": keep})

    def kill(self) -> None:
        """SIGKILL everything the run ever started."""
        self._warden.send({"op": "kill", "id": self._key})


class Warden:
    """A warden process and the runs it is asked for; a new process is started when the old one died."""

    def __init__(self, folder: Path, *, cgroup: bool = True) -> None:
        self.folder = folder
        self.folders = Folders(str(folder))
        self.cgroup = False
        self.ready = asyncio.Event()
        """Set once the process works, and `cgroup` tells the truth."""
        self._want_cgroup = cgroup
        self._groups: str | None = None
        self._since = 0  # when the warden was started, in the kernel's ticks
        self._abandoned: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._listeners: dict[int, Listener] = {}
        self._last_key = 0
        self._generation = 0
        self._unsent: deque[tuple[int, bytes, list[int]]] = deque()
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(Event | Ready)

    @property
    def pid(self) -> int | None:
        """The warden's process id, None before the first run."""
        return self._process.pid if self._process is not None else None

    def open(self) -> None:
        """Start the warden's process. Called by the first `spawn` where nobody did before."""
        procfs.become_subreaper()  # for the day that the warden is killed
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
        self._generation += 1
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                PROGRAM,
                str(self.folder),
                f"{self.folder.name}-{self._generation}",
                "cgroup" if self._want_cgroup else "sweep",
            ],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a ^C in the terminal is for the gateway, which then drains
            env={"PATH": os.defpath},
        )
        facts = procfs.stat(self._process.pid)
        self._since = facts.started if facts else 0
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours, self._on_readable)

    def spawn(
        self,
        listener: Listener,
        *,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        memory: int,
        fds: Sequence[int],
        host: bool = False,
        busy: bool = True,
        tell: bool = False,
    ) -> Handle:
        """Have a process started with stdin, stdout, stderr and maybe descriptor 3 at `fds`.

        A `host` is a process that forks others; one that has no request yet is not `busy`; `tell` asks for a `Started`.
        The descriptors stay the caller's to close. `memory` is the bound on resident bytes, 0 for none.
        """
        message = {"op": "spawn", "argv": argv, "env": env, "host": host}
        message |= {"busy": busy, "tell": tell}
        return self._begin(listener, {**message, "cwd": cwd, "memory": memory}, fds)

    def adopt(self, listener: Listener, *, pid: int, host: int, cwd: str, memory: int, busy: bool) -> Handle:
        """Have a process that a host has forked watched, and swept up after, like one that was spawned."""
        message = {"op": "adopt", "pid": pid, "host": host, "cwd": cwd, "memory": memory, "busy": busy}
        return self._begin(listener, message, ())

    def send(self, message: Mapping[str, object], fds: Sequence[int] = ()) -> None:
        """Send one message; it waits in a queue when the socket is full."""
        if self._socket is None:
            return
        data = self._encoder.encode(message)
        if len(data) > LONGEST:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        if not self._unsent:
            try:
                self._send_now(data, fds)
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                return  # the reader learns it too, and tells everybody
            else:
                return
        self._unsent.append((int(str(message["id"])), data, [os.dup(fd) for fd in fds]))
        asyncio.get_running_loop().add_writer(self._socket, self._on_writable)

    async def close(self) -> None:
        """Have everything killed, and wait for the warden's end."""
        process = self._process
        self._disconnect()
        if process is not None:
            await asyncio.to_thread(process.wait)
        self._process = None
        await asyncio.to_thread(self.folders.close)
        for groups in self._abandoned:
            cgroup.remove(groups)
        self._abandoned.clear()

    # --- private

    def _begin(self, listener: Listener, message: Mapping[str, object], fds: Sequence[int]) -> Handle:
        if self._socket is None:
            self.open()
        self._last_key += 1
        key = self._last_key
        self._listeners[key] = listener
        try:
            self.send({**message, "id": key}, fds)
        except OSError:
            del self._listeners[key]
            raise
        return Handle(self, key)

    def _send_now(self, data: bytes, fds: Sequence[int]) -> None:
        if self._socket is None:
            return
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.sendmsg([data], rights)

    def _on_writable(self) -> None:
        while self._unsent and self._socket is not None:
            key, data, fds = self._unsent[0]
            try:
                self._send_now(data, fds)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                break  # the reader learns it too, and tells everybody
            except OSError as problem:
                self._refuse(key, problem)
            self._unsent.popleft()
            for fd in fds:
                os.close(fd)
        if self._socket is not None:
            asyncio.get_running_loop().remove_writer(self._socket)

    def _refuse(self, key: int, problem: OSError) -> None:
        listener = self._listeners.pop(key, None)
        if listener is not None:
            listener.on_warden(Failed(id=key, errno=problem.errno or 0, message=str(problem)))

    def _on_readable(self) -> None:
        for _ in range(64):  # then let others have the loop
            if self._socket is None:
                return
            try:
                data = self._socket.recv(MESSAGE)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._died()
                return
            self._dispatch(self._decoder.decode(data))

    def _dispatch(self, event: Event | Ready) -> None:
        if isinstance(event, Ready):
            self.cgroup = event.groups is not None
            self._groups = event.groups
            self.ready.set()
            return
        if isinstance(event, Started | Leftover | Rested):
            listener = self._listeners.get(event.id)
        else:
            listener = self._listeners.pop(event.id, None)
        if listener is not None:
            listener.on_warden(event)

    def _died(self) -> None:
        process = self._process
        self._disconnect()
        if process is not None:
            process.wait()
        if self._groups is not None:
            cgroup.kill(self._groups)
            self._abandoned.append(self._groups)
            self._groups = None
        self._sweep()
        listeners, self._listeners = self._listeners, {}
        for key, listener in listeners.items():
            listener.on_warden(Gone(id=key, pid=0, status=signal.SIGKILL, warden_died=True))

    def _sweep(self) -> None:
        """Kill what a dead warden has left: what was its own has become ours."""
        for _ in range(AGAIN):
            table = procfs.scan()
            ours = {one.pid for one in table.values() if one.ppid == os.getpid() and one.started >= self._since}
            orphans = ours | {pid for pid in table if procfs.mentions(pid, str(self.folder))}
            if not orphans:
                return
            for pid in procfs.parents_first(orphans, table):
                procfs.kill_exactly(pid, table.get(pid))
            for pid in ours:
                os.waitpid(pid, os.WNOHANG)

    def _disconnect(self) -> None:
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._socket.close()
        self._socket = None
        for _, _, fds in self._unsent:
            for fd in fds:
                os.close(fd)
        self._unsent.clear()
