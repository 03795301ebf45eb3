"""One cell: the native process that runs what a connector is, one run after another, and this end of its socket."""

from __future__ import annotations

import array
import asyncio
import contextlib
import enum
import errno
import fcntl
import os
import socket
import subprocess
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from gateway.cells import wire
from gateway.cells.wire import Flag, Kind, Said, Why
from gateway.states import move

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from struct import Struct

    from gateway.cells.groups import Group
    from gateway.sandbox import Sandbox

    Judge = Callable[[int], str | None]
    """Says why steps of a sandbox that were got are not enough, None when they are."""

AT_ONCE = 16  # messages that are read before others have the loop
OVERDUE = 15.0  # seconds after the end that a run should have come to: then something is wrong with its cell
STOPPED = 9  # a wait status: SIGKILL

_BODY_IN_FD = int(Flag.BODY_IN_FD)  # a number: the operators of an enumeration are slow
_LONGEST = (1 << 32) - 1  # milliseconds that the wire can hold

_buffer = bytearray(wire.MESSAGE)
_view = memoryview(_buffer)
_ROOM_FOR_DESCRIPTORS = socket.CMSG_SPACE(wire.DESCRIPTORS * array.array("i").itemsize)

Piece = bytes | bytearray | memoryview


class Ended(NamedTuple):
    """All of a run is dead and reaped. `status` is a wait status, times in seconds, sizes in bytes."""

    pid: int
    status: int
    why: Why
    left_behind: bool = False
    said: int = Said.PERHAPS_A_PART
    cpu_user: float = 0.0
    cpu_system: float = 0.0
    peak_rss: int = 0
    log_bytes: int = 0
    result: bytearray = bytearray()


class Measured(NamedTuple):
    """What a process has taken so far: seconds, and resident bytes now and at most."""

    rested: wire.Rested
    """Whether it has come to rest, so that nothing lives beside it but what may; and what was taken away for that."""
    clean: bool
    """Its folder holds nothing but what may stay."""
    cpu_user: float
    cpu_system: float
    resident: int
    peak: int


class Listener:
    """Who hears of one run. Raises nothing."""

    def on_started(self, pid: int) -> None:
        """Hear that the process was started; `pid` as it is in its cell."""

    def on_failed(self, message: str, *, stale: bool = False) -> None:
        """Hear that it could not be; `stale`: not in this cell, which does not hide a file that was replaced."""

    def on_log(self, stream: int, data: bytes) -> None:
        """Take what was written to stdout (1) or stderr (2)."""

    def on_result(self, result: bytearray) -> None:
        """Take what there is of the result; nothing when something came before there was a request."""

    def on_measured(self, measured: Measured) -> None:
        """Hear what it takes."""

    def on_told(self, words: bytes) -> None:
        """Take a host's own words."""

    def on_ended(self, ended: Ended) -> None:
        """Hear that all of it is over."""


class Words(NamedTuple):
    """A command line and an environment, as the wire has them."""

    argc: int
    envc: int
    data: bytes

    @classmethod
    def of(cls, argv: Sequence[str], env: Iterable[tuple[str, str]]) -> Words:
        """Put them together.

        Raises:
            OSError: one has a NUL in it.
        """
        words = [*argv, *(f"{name}={value}" for name, value in env)]
        data = os.fsencode("\0".join(words)) + b"\0"
        if data.count(0) != len(words):
            raise OSError(errno.EINVAL, "an argument or a variable has a NUL in it")
        return cls(len(argv), len(words) - len(argv), data)


class Allowance(NamedTuple):
    """What one run may use: bytes (0: unbounded), processes, seconds.

    `grace` is between SIGTERM and SIGKILL, `linger` between the end of the result and SIGTERM.
    """

    grace: float
    output: int
    log: int
    memory: int
    processes: int = 0
    linger: float = 0.0


class CellState(enum.Enum):
    """What can be done with a cell."""

    FIT = "fit"
    """It can be used again."""
    WORN = "worn"
    """Something of a run is left in it: it goes when it has nothing to do."""
    STALE = "stale"
    """It cannot hide any more what it was to hide: so it goes, and all others of its connector do."""
    CLOSED = "closed"
    """It was told to go."""
    DEAD = "dead"
    """It has ended without that."""


MOVES = {
    CellState.FIT: {CellState.WORN, CellState.STALE, CellState.CLOSED, CellState.DEAD},
    CellState.WORN: {CellState.STALE, CellState.CLOSED, CellState.DEAD},
    CellState.STALE: {CellState.WORN, CellState.CLOSED, CellState.DEAD},
    CellState.CLOSED: frozenset[CellState](),
    CellState.DEAD: frozenset[CellState](),
}


class Cell:
    """A cell's process, and the runs in it."""

    def __init__(self, argv: Sequence[str], folder: str, judge: Judge | None, group: Group | None) -> None:
        """Start it; with a `judge`, what is asked of it waits until that has seen what there is of its sandbox.

        Raises:
            OSError: there are no descriptors, or no processes, to be had.
        """
        self.folder = folder
        self.key = ""
        """Whose it is."""
        self.sandbox: Sandbox | None = None
        self.state = CellState.FIT
        self.alive = True
        """It was not heard to have ended, nor told to go."""
        self.got: int | None = None
        """The steps of the sandbox that it has, once it has said so."""
        self.idle_since = 0.0
        self.memo: tuple[object, object, Words, Allowance] | None = None
        """The words and limits of the latest run, and what they are those of."""
        self.group = group
        self._judge = judge
        self.loop = asyncio.get_running_loop()
        self.on_death: asyncio.Future[None] = self.loop.create_future()
        self._listeners: dict[int, Listener] = {}
        self._due: dict[int, float] = {}
        self._last_run = 0
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        joining = ("--group", group.path) if group is not None else ()
        try:
            self._socket.setblocking(False)
            self.process = subprocess.Popen(
                [argv[0], "--control", str(theirs.fileno()), "--folder", folder, *joining, *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a ^C in the terminal is for the gateway, which then drains
                env={},
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self.loop.add_reader(self._socket, self._on_readable)

    @property
    def busy(self) -> bool:
        """Whether there is a run in it."""
        return bool(self._listeners)

    @property
    def listeners(self) -> list[Listener]:
        """Those who hear of what lives in it, the eldest first."""
        return list(self._listeners.values())

    def name_of_next(self) -> str:
        """Return a name for the run that begins next, which no other run of this machine has."""
        instance, _, number = self.folder.rpartition("/")
        return f"gateway-{os.path.basename(instance)}-{number}-{self._last_run + 1}"

    def begin(
        self,
        listener: Listener,
        words: Words,
        limits: Allowance,
        *,
        flags: int = 0,
        payload: Iterable[Piece] = (),
        seconds: float = 0.0,
        fds: Sequence[int] = (),
    ) -> int:
        """Have a process started; return what the run is known by. `seconds` is its time, 0 for no end.

        Raises:
            OSError: there is no memory or there are no descriptors for its request.
        """
        self._last_run += 1
        run = self._last_run
        if not self.alive:
            self.loop.call_soon(listener.on_ended, Ended(0, STOPPED, Why.CELL_DIED))
            return run
        pieces = [words.data, *payload]
        argc, envc, data = words
        time = min(max(1, round(seconds * 1000)), _LONGEST) if seconds else 0
        grace = min(max(1, round(limits.grace * 1000)), _LONGEST) if limits.grace else 0
        linger = min(round(limits.linger * 1000), _LONGEST)
        bounds = (limits.processes, 0, limits.output, limits.log, limits.memory)
        fields = (argc, envc, len(data), time, grace, linger, *bounds)
        self._post((Kind.RUN, run, flags), wire.RUN, fields, pieces, fds)
        self._listeners[run] = listener
        if seconds:
            self._due[run] = self.loop.time() + seconds + limits.grace + OVERDUE
        return run

    def feed(self, run: int, payload: Iterable[Piece], *, seconds: float, grace: float, flags: int = 0) -> None:
        """Give a process that was started ahead its request, and the time for it.

        Raises:
            OSError: there is no memory or there are no descriptors for it.
        """
        self._post((Kind.FEED, run, flags), wire.FEED, (_ms(seconds), 0), list(payload))
        self._due[run] = self.loop.time() + seconds + grace + OVERDUE

    def stop(self, run: int, *, grace: float) -> None:
        """SIGTERM to the run's group, and SIGKILL to all of it after the grace that it was begun with."""
        self._tell(Kind.STOP, run)
        self._due[run] = self.loop.time() + grace + OVERDUE

    def kill(self, run: int) -> None:
        """SIGKILL to all of a run."""
        self._tell(Kind.KILL, run)
        self._due[run] = self.loop.time() + OVERDUE

    def go_on(self, run: int) -> None:
        """Let what outlives the leader live until the deadline: its result was the answer."""
        self._tell(Kind.GO_ON, run)

    def rest(self, run: int, *, keep: bool) -> None:
        """Have what lives beside the leader killed, and the folder emptied; or have what is there noted, to stay."""
        if not keep:
            self._due.pop(run, None)
        self._tell(Kind.REST, run, Flag.KEEP if keep else 0)

    def measure(self, run: int) -> None:
        """Ask what a process takes."""
        self._tell(Kind.MEASURE, run)

    def overdue(self, now: float) -> bool:
        """Tell whether it has not ended a run long after it should have."""
        return any(now > due for due in self._due.values())

    def close(self) -> None:
        """Have everything in it killed, and let it end."""
        with contextlib.suppress(OSError):
            self._send_now(wire.HEAD.pack(Kind.LEAVE, 0, 0, 0), ())
        self._disconnect(CellState.CLOSED)

    def destroy(self) -> None:
        """Kill the cell itself: nothing else helps. Its runs hear that it died."""
        if self.alive:
            self._move(CellState.WORN)
        if self.group is not None:
            self.group.kill()
        self.process.kill()

    # --- private: out

    def _post(
        self,
        head: tuple[Kind, int, int],
        fixed: Struct,
        fields: tuple[int, ...],
        pieces: Sequence[Piece],
        fds: Sequence[int] = (),
    ) -> None:
        kind, run, flags = head
        size = sum(map(len, pieces))
        if size <= wire.INLINE:
            data = b"".join((fixed.pack(kind, run, flags, size, *fields), *pieces))
            if fds or self._unsent or self._judge is not None:
                self._send(data, fds)
                return
            try:
                self._socket.send(data)
            except OSError:
                self._send(data)
            return
        body = os.memfd_create("body", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            _write_all(body, pieces)
            fcntl.fcntl(body, fcntl.F_ADD_SEALS, wire.SEALS)
            self._send(fixed.pack(kind, run, flags | Flag.BODY_IN_FD, size, *fields), (body, *fds))
        finally:
            os.close(body)

    def _tell(self, kind: Kind, run: int, flags: int = 0) -> None:
        if run in self._listeners:
            self._send(wire.HEAD.pack(kind, run, flags, 0))

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if not self._unsent and self._judge is None:
            try:
                self._send_now(data, fds)
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                return  # the reader learns it too, and tells everybody
            else:
                return
        if self.alive:
            self._unsent.append((data, _duplicates(fds)))
            if self._judge is None:
                self.loop.add_writer(self._socket, self._on_writable)

    def _send_now(self, data: bytes, fds: Sequence[int]) -> None:
        if not self.alive:
            return
        if fds:
            socket.send_fds(self._socket, [data], list(fds))
        else:
            self._socket.send(data)

    def _on_writable(self) -> None:
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                self._send_now(data, fds)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                break
            self._unsent.popleft()
            _close_all(fds)
        if self.alive:
            self.loop.remove_writer(self._socket)

    # --- private: in

    def _on_readable(self) -> None:
        for _ in range(AT_ONCE):
            if not self.alive:
                return
            try:
                size, ancillary, _, _ = self._socket.recvmsg_into([_buffer], _ROOM_FOR_DESCRIPTORS)
            except BlockingIOError:
                return
            except ConnectionResetError:  # once, ahead of its last words: it has not read ours
                continue
            if not size:
                self._disconnect(CellState.DEAD)
                return
            if ancillary:
                self._hear_with(size, [fd for _, _, raw in ancillary for fd in array.array("i", raw)])
            else:
                self._hear(size, ())
            if not self._listeners:  # nothing more is to come; should it, the loop says so
                return

    def _hear_with(self, size: int, fds: list[int]) -> None:
        try:
            self._hear(size, fds)
        finally:
            _close_all(fds)

    def _hear(self, size: int, fds: Sequence[int]) -> None:
        kind, run, flags, body = wire.HEAD.unpack_from(_buffer)
        listener = self._listeners.get(run)
        at = wire.HEAD.size
        if kind == Kind.READY:
            self.got = wire.READY.unpack_from(_buffer, at)[0]
            self._be_judged(self.got)
        elif listener is None:
            return
        elif kind == Kind.ENDED:
            facts = wire.ENDED.unpack_from(_buffer, at)
            at += wire.ENDED.size
            result = _body_in(fds, body) if flags & _BODY_IN_FD else bytearray(_view[at:size])
            del self._listeners[run]
            self._due.pop(run, None)
            listener.on_ended(self._ended(facts, result))
        elif kind == Kind.LOG:
            listener.on_log(flags, bytes(_view[at:size]))
        elif kind == Kind.STARTED:
            listener.on_started(wire.FAILED.unpack_from(_buffer, at)[0])
        elif kind == Kind.FAILED:
            step, error = wire.FAILED.unpack_from(_buffer, at)
            words = bytes(_view[at + wire.FAILED.size : size]).decode(errors="replace")
            del self._listeners[run]
            self._due.pop(run, None)
            self._refused(listener, wire.why_not_started(step, error, words), stale=error == errno.ESTALE)
        elif kind == Kind.RESULT:
            listener.on_result(_body_in(fds, body) if flags & _BODY_IN_FD else bytearray(_view[at:size]))
        elif kind == Kind.MEASURED:
            clean, _, user, system, resident, peak = wire.MEASURED.unpack_from(_buffer, at)
            listener.on_measured(Measured(wire.Rested(flags), bool(clean), user / 1e6, system / 1e6, resident, peak))
        elif kind == Kind.TOLD:
            listener.on_told(bytes(_view[at:size]))

    def _refused(self, listener: Listener, message: str, *, stale: bool) -> None:
        if stale:
            self._move(CellState.STALE)
        listener.on_failed(message, stale=stale)

    def _ended(self, facts: tuple[int, ...], result: bytearray) -> Ended:
        pid, status, number, unfit, left_behind, said, user, system, peak, log_bytes = facts
        why = wire.WHY[number]
        if unfit:
            self._move(CellState.WORN)
        # One that failed since the kernel has killed something of it had no memory left.
        if status and self.group is not None and self.group.has_killed() and why is Why.BY_ITSELF:
            why = Why.MEMORY
        return Ended(pid, status, why, bool(left_behind), said, user / 1e6, system / 1e6, peak, log_bytes, result)

    def _be_judged(self, got: int) -> None:
        judge, self._judge = self._judge, None
        refusal = judge(got) if judge is not None else None
        if refusal is None:
            if self._unsent:
                self.loop.add_writer(self._socket, self._on_writable)
            return
        listeners, self._listeners = self._listeners, {}
        self.close()
        for listener in listeners.values():
            listener.on_failed(refusal)

    def _move(self, state: CellState) -> None:
        if state is not self.state:
            self.state = move(self.state, state, MOVES)

    def _disconnect(self, state: CellState) -> None:
        if not self.alive:
            return
        self._move(state)
        self.loop.remove_reader(self._socket)
        self.loop.remove_writer(self._socket)
        self.alive = False
        self._socket.close()
        for _, fds in self._unsent:
            _close_all(fds)
        self._unsent.clear()
        self._due.clear()
        listeners, self._listeners = self._listeners, {}
        self.on_death.set_result(None)
        for listener in listeners.values():
            listener.on_ended(Ended(0, STOPPED, Why.CELL_DIED))


def _ms(seconds: float) -> int:
    """Return milliseconds as the wire has them: at least one where there is a time at all."""
    return min(max(1, round(seconds * 1000)), _LONGEST) if seconds else 0


def _body_in(fds: Sequence[int], length: int) -> bytearray:
    body = bytearray(length)
    left = memoryview(body)
    offset = 0
    while left and (read := os.preadv(fds[0], [left], offset)):
        left, offset = left[read:], offset + read
    return body


def _write_all(fd: int, pieces: Sequence[Piece]) -> None:
    for piece in pieces:
        left = memoryview(piece)
        while left:
            left = left[os.write(fd, left) :]


def _duplicates(fds: Iterable[int]) -> list[int]:
    made: list[int] = []
    try:
        for fd in fds:
            made.append(os.dup(fd))  # noqa: PERF401 - what there is of them is closed when there are no more
    except OSError:
        _close_all(made)
        raise
    return made


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
