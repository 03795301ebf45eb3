"""A host that imports the connector once and forks for each request.

Descriptor 3 is a SOCK_SEQPACKET socket to the cell that this runs in (`runners/cell/host.c`), a packet a message: four
numbers of 32 bits, which are kind, run, a value and the bytes of the body, and the body. Requests come in with the
child's stdin, stdout and stderr attached; `forked` or `failed`, and `exited` go out. Before them goes what the gateway
is to know, as JSON: `ready` (with what went wrong until then) or `unfit`. The child does what a host does that was
started for this one request.

What a child writes to for the first time is copied for it, page by page, and that is most of what a fork costs. So the
host does what a child will do, the connector's own code excepted, until the interpreter has nothing left to remember
about it.
"""

from __future__ import annotations

import array
import contextlib
import struct
import sys
from _signal import (  # those of `signal` are members of an Enum, and looking them up costs a child fifty pages
    SIG_DFL,
    SIGCHLD,
)
from _signal import signal as set_handler
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from . import chances, channel, errors, handler, members, pages, rehearsal, sharing, subreaper, warming
from .own import gc, json, os, select, signal, socket

if TYPE_CHECKING:
    from .handler import Known
    from .targets import Target

CONTROL = 3
FORKED, FAILED, EXITED, SAYS = 1, 2, 3, 4
HEAD = struct.Struct("=IIiI")
SPENT = struct.Struct("=QQQ")
IN_TIME = 1  # of a request's value: its input comes later
MESSAGE = 1 << 17  # bytes
STREAMS = 3
TRIAL = 5.0  # seconds that a first child has to answer
PROBLEMS, WORDS, REASON = 10, 300, 2000  # how many are told, and characters: a message holds them all
TRACE = ("traceparent", "tracestate")


def serve(target: Target, one: Callable[[Target, Known], int]) -> None:
    """Fork until the gateway closes its end.

    `one(target, known)` serves the request on stdin and returns the exit status.
    """
    with socket.socket(fileno=os.dup(CONTROL)) as control:
        os.close(CONTROL)
        try:
            host, problems = _made_ready(control, target, one)
        except Exception as problem:  # noqa: BLE001  (whatever it is, calls are served without a fork)
            _say(control, {"ev": "unfit", "reason": _short(_reason(problem), REASON)})
            return
        gc.freeze()  # what is there now stays in pages that no child has to copy
        host.run([{key: _short(str(text), WORDS) for key, text in each.items()} for each in problems[:PROBLEMS]])


class _UnfitError(Exception):
    """It must not be forked; the message completes "it has ..."."""


def _reason(problem: Exception) -> str:
    if isinstance(problem, _UnfitError):
        return str(problem)
    # Also the copies of `own` call each other by the names that everybody sees.
    return f"replaced a part of Python that its host needs ({errors.one_line(problem)})"


def _made_ready(
    control: socket.socket, target: Target, one: Callable[[Target, Known], int]
) -> Tuple[_Host, List[handler.Problem]]:
    """Import and warm up; return what forks, and what has gone wrong. Raises `_UnfitError`, and what patches do."""
    _refuse(subreaper.missing())
    holdings = sharing.Holdings(control.fileno())
    generators = chances.Generators()
    problems = _imported(target, holdings, generators)
    _refuse(holdings.unfit())
    gc.collect()
    generators.find()
    host = _Host(control, target, one, holdings.again, generators)
    host.rehearse()
    _refuse(host.try_out())
    warming.before_forks()
    return host, problems


def _refuse(reason: Optional[str]) -> None:
    if reason:
        raise _UnfitError(reason)


def _imported(target: Target, holdings: sharing.Holdings, generators: chances.Generators) -> List[handler.Problem]:
    subreaper.become()  # what has been detached is known then
    with warming.one_thread():
        with holdings.watched(), generators.watched():
            problems = handler.warm_up(target)
            holdings.note(f"{target.name}.{members.WARMUP}")
        warming.known_costs(target.name)
    warming.release_loop()
    channel.flush()
    subreaper.cease()
    return problems


def _short(text: str, most: int) -> str:
    return errors.printable(text[:most])


def follow_trace(request: Any) -> None:
    """Set the environment as the request's own process would have it: a child that waited was forked without."""
    context = request.get("context") if isinstance(request, dict) else None
    for name in TRACE if isinstance(context, dict) else ():
        trace = context.get(name)
        if isinstance(trace, str):
            with contextlib.suppress(ValueError):  # it has a zero byte
                os.environ[name.upper()] = trace


def take_place(streams: List[int], cwd: str, env: Dict[str, str]) -> None:
    """Move to a request's streams, folder and environment."""
    for descriptor, stream in enumerate(streams):
        os.dup2(stream, descriptor)
        os.close(stream)
    os.chdir(cwd)
    for name, value in env.items():
        os.environ[name] = value


class _Host:
    """The loop over requests and children."""

    def __init__(
        self,
        control: socket.socket,
        target: Target,
        one: Callable[[Target, Known], int],
        again: List[sharing.Again],
        generators: chances.Generators,
    ) -> None:
        self._control = control
        self._again = again
        self._generators = generators
        self._target = target
        self._one = one
        self._known = handler.known(target)
        self._copier = pages.Copier()
        self._scouts = pages.Scouts()
        self._scout = 0  # the id of the child that is to tell what it has written to
        self._children: Dict[int, int] = {}  # pid -> id
        self._wake, wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        self._handler = set_handler(SIGCHLD, _ignored) or SIG_DFL
        """The connector's own, perhaps."""
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._wake_writer = wake
        self._own = (control.fileno(), self._wake, wake)

    def rehearse(self) -> None:
        """Have the interpreter learn what a child does."""
        for _ in range(rehearsal.TIMES):
            signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
            set_handler(SIGCHLD, SIG_DFL)
            channel.flush()
            self._generators.seed()
            subreaper.rehearse()
        set_handler(SIGCHLD, _ignored)
        rehearsal.repeat(rehearsal.TIMES, self._target, self._one, take_place)

    def try_out(self) -> Optional[str]:
        """Fork once, and have the child answer a request of ours; say why it cannot, None when it can.

        What some library does at a fork, or no longer does after one, happens to this child first.
        """
        asked, answer, log = os.pipe(), os.pipe(), os.pipe()
        os.write(asked[1], rehearsal.request("example"))
        os.close(asked[1])
        streams = [asked[0], answer[1], log[1]]
        pid = os.fork()
        if pid == 0:
            self._be_tried_out(streams)
        for descriptor in streams:
            os.close(descriptor)
        said = _said(answer[0], TRIAL)
        if not said.endswith(b"\n"):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        words = b"" if said.endswith(b"\n") else _said(log[0], 0)
        os.close(answer[0])
        os.close(log[0])
        if said.endswith(b"\n"):
            return None
        last = words.decode(errors="replace").strip().rpartition("\n")[2]
        return f"a child, forked to try it out, that does not answer{': ' if last else ''}{last[:WORDS]}"

    def run(self, problems: List[Dict[str, str]]) -> None:
        """Serve; `problems` is what did not work ahead of it."""
        _say(self._control, {"ev": "ready", "problems": problems})
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                elif not self._receive():
                    return
            self._reap()

    def _receive(self) -> bool:
        request, streams = _received(self._control)
        if request is None:
            return False
        channel.flush()  # a child would write it again, into its own request's log
        scout = self._scouts.wanted and not self._scout
        try:
            pid = os.fork()
        except OSError as problem:
            _tell(self._control, FAILED, request.run, 0, str(problem).encode())
            return True
        finally:
            if "pid" not in locals() or pid != 0:
                for stream in streams:
                    os.close(stream)
        if pid == 0:
            self._become(request, streams, scout=scout)
        if scout:
            self._scout = request.run
        self._children[pid] = request.run
        _tell(self._control, FORKED, request.run, pid)
        return True

    def _become(self, request: _Request, streams: List[int], *, scout: bool) -> None:
        """Be the request's own process; never returns."""
        status = 1
        try:
            self._leave_host()
            take_place(streams, request.folder, request.env)
            self._generators.seed()
            if request.in_time:
                self._copier.copy(self._scouts.written)
            status = self._one(self._target, self._known)
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:  # noqa: BLE001  (whatever it was: not one step further into the host's loop)
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            warming.leave()
            if scout:
                self._scouts.tell()
            os._exit(status & 0xFF)  # noqa: SLF001  (it is public)

    def _be_tried_out(self, streams: List[int]) -> None:
        """Be a process that serves a request of ours, and runs no code of the connector; never returns."""
        status = 1
        try:
            self._leave_host()
            take_place(streams, os.getcwd(), {})
            self._generators.seed()
            status = self._one(self._target, rehearsal.KNOWN)
        except BaseException:  # noqa: BLE001  (as above)
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            os._exit(status & 0xFF)  # noqa: SLF001  (it is public)

    def _leave_host(self) -> None:
        os.setsid()
        subreaper.become()
        signal.set_wakeup_fd(-1)
        set_handler(SIGCHLD, self._handler)
        for descriptor in self._own:
            os.close(descriptor)
        for file in self._again:
            file.open()

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            key = self._children.pop(pid, None)
            if key is not None and key == self._scout:
                self._scouts.learn()
                self._scout = 0
            if key is not None:
                times = int(usage.ru_utime * 1e6), int(usage.ru_stime * 1e6)
                _tell(self._control, EXITED, key, status, SPENT.pack(*times, usage.ru_maxrss * 1024))


def _ignored(_signal: int, _frame: Any) -> None:
    """Have the wakeup descriptor told, and nothing else."""


class _Request(NamedTuple):
    run: int
    in_time: bool
    folder: str
    env: Dict[str, str]


def _said(descriptor: int, seconds: float) -> bytes:
    """Read until the end, or until nothing comes for so long."""
    said = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while poll.poll(seconds * 1000):
        piece = os.read(descriptor, MESSAGE)
        if not piece:
            break
        said += piece
    return said


def _received(control: socket.socket) -> Tuple[Optional[_Request], List[int]]:
    descriptors = array.array("i")
    data, ancillary, _, _ = control.recvmsg(MESSAGE, socket.CMSG_LEN(STREAMS * descriptors.itemsize))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    if not data:
        return None, []
    _, run, value, size = HEAD.unpack_from(data)
    folder, *settings = os.fsdecode(data[HEAD.size : HEAD.size + size - 1]).split("\0")
    env = dict([setting.split("=", 1) for setting in settings])
    return _Request(run, bool(value & IN_TIME), folder, env), list(descriptors)


def _say(control: socket.socket, words: Dict[str, Any]) -> None:
    _tell(control, SAYS, 0, 0, json.dumps(words).encode())


def _tell(control: socket.socket, kind: int, run: int, value: int, body: bytes = b"") -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next receive ends the loop
        control.send(HEAD.pack(kind, run, value, len(body)) + body)
