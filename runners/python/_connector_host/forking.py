"""A host that imports the connector once and forks for each request.

Descriptor 3 is a SOCK_SEQPACKET socket, one JSON object a message: requests `{"id", "cwd", "env"}` with the child's
stdin, stdout and stderr attached come in; `ready` or `unfit`, `forked` or `failed`, and `exited` go out (see
`gateway/pool/fork.py`). The child does what a host does that was started for this one request.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from . import handler, warming

if TYPE_CHECKING:
    from .targets import Target

CONTROL = 3
MESSAGE = 1 << 16  # bytes
STREAMS = 3


def serve(target: Target, one: Callable[[Target], int]) -> None:
    """Fork until the gateway closes its end. `one(target)` serves the request on stdin and returns the exit status."""
    control = socket.socket(fileno=os.dup(CONTROL))
    os.close(CONTROL)
    handler.warm_up(target)
    warming.known_costs(target.name)
    _flush()
    gc.collect()
    gc.freeze()  # what is there now stays in pages that no child has to copy
    reason = unfit(control.fileno())
    if reason:
        _tell(control, ev="unfit", reason=reason)
        return
    _Host(control, target, one).run()


def unfit(control: int) -> Optional[str]:
    """Say what two forked children would share or miss: threads, sockets. None when there is nothing."""
    found = [f"thread {thread.name}" for thread in threading.enumerate() if thread is not threading.main_thread()]
    if not found and len(os.listdir("/proc/self/task")) > 1:
        found.append("threads of a C library")
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            link = os.readlink("/proc/self/fd/" + name)
            if link.startswith("socket:") and int(name) != control:
                found.append(_socket_name(int(name)))
    return ", ".join(found) or None


def _socket_name(descriptor: int) -> str:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as one:
        return f"an open socket to {one.getpeername()}"
    return f"an open socket (descriptor {descriptor})"


class _Host:
    """The loop over requests and children."""

    def __init__(self, control: socket.socket, target: Target, one: Callable[[Target], int]) -> None:
        self._control = control
        self._target = target
        self._one = one
        self._children: Dict[int, int] = {}  # pid -> id
        self._wake, wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._wake_writer = wake

    def run(self) -> None:
        _tell(self._control, ev="ready")
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
        message, streams = _received(self._control)
        if message is None:
            return False
        _flush()
        try:
            pid = os.fork()
        except OSError as problem:
            _tell(self._control, ev="failed", id=message["id"], message=str(problem))
            return True
        finally:
            if "pid" not in locals() or pid != 0:
                for stream in streams:
                    os.close(stream)
        if pid == 0:
            self._become(message, streams)
        self._children[pid] = message["id"]
        _tell(self._control, ev="forked", id=message["id"], pid=pid)
        return True

    def _become(self, message: Dict[str, Any], streams: List[int]) -> None:
        """Be the request's own process; never returns."""
        status = 70
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            os.close(self._wake)
            os.close(self._wake_writer)
            for stream, descriptor in zip(streams, range(STREAMS)):
                os.dup2(stream, descriptor)
                os.close(stream)
            os.chdir(message["cwd"])
            os.environ.update(message["env"])
            warming.in_child()
            status = self._one(self._target)
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:  # noqa: BLE001  (whatever it was: not one step further into the host's loop)
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            warming.leave()
            os._exit(status & 0xFF)

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            key = self._children.pop(pid, None)
            if key is not None:
                _tell(
                    self._control,
                    ev="exited",
                    id=key,
                    status=status,
                    utime=usage.ru_utime,
                    stime=usage.ru_stime,
                    maxrss=usage.ru_maxrss * 1024,
                )


def _flush() -> None:
    """Write out what is buffered here: a child would write it again, into its own request's log."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _received(control: socket.socket) -> Tuple[Optional[Dict[str, Any]], List[int]]:
    descriptors = array.array("i")
    data, ancillary, _, _ = control.recvmsg(MESSAGE, socket.CMSG_LEN(STREAMS * descriptors.itemsize))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    return (json.loads(data) if data else None), list(descriptors)


def _tell(control: socket.socket, **message: Any) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next receive ends the loop
        control.send(json.dumps(message).encode())
