"""Builds a cell, and speaks to it as the gateway will: one message a packet."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parent.parent.parent
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1")
SANITIZED = "CELL_SANITIZED" in os.environ  # `make test` runs them a second time
(RUN, FEED, STOP, KILL, STARTED, FAILED, LOG, ENDED, READY, RESULT, GO_ON, REST, MEASURE, MEASURED, TOLD, LEAVE) = (
    range(1, 17)
)
(RESULT_ON_3, AHEAD, BODY_IN_FD, TELL, TELL_RESULT, CHANNEL, HOST, FORKED, KEEP, IN_TIME, RESULT_IN_LINE) = (
    1 << at for at in range(11)
)
OUT, ERR = 1, 2
WHY = ("by itself", "deadline", "stopped", "killed", "output", "memory", "processes", "disk", "lingered")
SAID = ("perhaps a part", "nothing since", "all")
STEPS = ("none", "pipes", "fork", "folder", "descriptors", "exec", "wire", "sandbox", "in host")
HEAD = struct.Struct("=IIII")
RUN_REST = struct.Struct("=IIIIIIIIQQQ")
ENDED_REST = struct.Struct("=IIIIIIQQQQ")
INLINE = 64 << 10
PATIENCE = 20.0
FOUND = 86  # as sanitizers.c says


def built(folder: Path, *flags: str) -> Path:
    """Compile the cell, with flags as `runners/cell/build` takes them."""
    program = folder / "cell"
    if SANITIZED and not flags:
        flags = (*SANITIZERS, str(ROOT / "tests/cell/sanitizers.c"))
    subprocess.run([ROOT / "runners/cell/build", program, *flags], check=True)
    return program


class Ended(NamedTuple):
    """What a run came to."""

    pid: int
    status: int
    why: str
    spoiled: bool
    left_behind: bool
    said: str
    cpu: float
    peak_rss: int
    log_bytes: int
    result: bytes
    log: dict[int, bytes]

    @property
    def code(self) -> int:
        """The exit status, or the number of the signal below 0."""
        return os.waitstatus_to_exitcode(self.status)


class Failed(Exception):
    """It could not be started: what was being done, and its errno."""


class Cell:
    """A cell, and this end of its socket."""

    def __init__(self, program: Path, folder: Path, *options: str, wrapper: Sequence[str] = ()) -> None:
        self.folder = folder
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.socket, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
        self.socket.settimeout(PATIENCE)
        self.process = subprocess.Popen(
            [*wrapper, str(program), "--control", str(theirs.fileno()), "--folder", str(folder), *options],
            pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, env={},
        )  # fmt: skip
        theirs.close()
        self._runs = 0
        kind, _, _, _, rest, _ = self.message()
        assert kind == READY
        self.got: int = struct.unpack_from("=II", rest)[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        assert self.process.wait(PATIENCE) != FOUND, "a sanitizer has found something"

    def send(self, data: bytes, fd: int = -1) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        self.socket.sendmsg([data], rights)

    def start(
        self, *argv: str, payload: bytes = b"", env: Sequence[str] = ("PATH=/usr/bin:/bin",), flags: int = 0,
        deadline: float = 0, grace: float = 0.2, linger: float = 60, output: int = 0, log: int = 0, memory: int = 0, pids: int = 0,
    ) -> int:  # fmt: skip
        self._runs += 1
        words = b"".join(word.encode() + b"\0" for word in (*argv, *env))
        body = words + payload
        fields = (
            len(argv), len(env), len(words), round(deadline * 1000), round(grace * 1000), round(linger * 1000), pids, 0,
            output, log, memory,
        )  # fmt: skip
        self._post(RUN, self._runs, flags | TELL, RUN_REST.pack(*fields), body)
        return self._runs

    def feed(self, run: int, payload: bytes, deadline: float = 0) -> None:
        self._post(FEED, run, 0, struct.pack("=II", round(deadline * 1000), 0), payload)

    def stop(self, run: int) -> None:
        self.send(HEAD.pack(STOP, run, 0, 0))

    def kill(self, run: int) -> None:
        self.send(HEAD.pack(KILL, run, 0, 0))

    def _post(self, kind: int, run: int, flags: int, rest: bytes, body: bytes) -> None:
        if len(body) <= INLINE:
            self.send(HEAD.pack(kind, run, flags, len(body)) + rest + body)
            return
        fd = os.memfd_create("body")
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(body)
            self.send(HEAD.pack(kind, run, flags | BODY_IN_FD, len(body)) + rest, fd)
        finally:
            os.close(fd)

    def message(self) -> tuple[int, int, int, int, bytes, int]:
        """Return kind, run, flags, bytes of the body, the rest, and a descriptor that came along."""
        data, ancillary, _, _ = self.socket.recvmsg(256 << 10, 64)
        if not data:
            raise EOFError
        fds = [fd for _, _, raw in ancillary for fd in array.array("i", raw)]
        return (*HEAD.unpack_from(data), data[HEAD.size :], fds[0] if fds else -1)

    def started(self) -> int:
        kind, _, _, _, rest, _ = self.message()
        if kind == FAILED:
            step, error = struct.unpack_from("=II", rest)
            raise Failed(STEPS[step], error)
        assert kind == STARTED
        pid: int = struct.unpack_from("=II", rest)[0]
        return pid

    def ended(self) -> Ended:
        log = {OUT: b"", ERR: b""}
        while True:
            kind, _, flags, size, rest, fd = self.message()
            if kind == LOG:
                log[flags] += rest
                continue
            assert kind == ENDED, kind
            pid, status, why, spoiled, left, said, user, system, peak, logged = ENDED_REST.unpack_from(rest)
            result = rest[ENDED_REST.size :]
            if flags & BODY_IN_FD:
                with open(fd, "rb") as file:
                    result = os.pread(file.fileno(), size, 0)
            assert len(result) == size
            return Ended(
                pid, status, WHY[why], bool(spoiled), bool(left), SAID[said], (user + system) / 1e6, peak, logged,
                result, log,
            )  # fmt: skip

    def run(self, *argv: str, **options: Any) -> Ended:
        self.start(*argv, **options)
        self.started()
        return self.ended()


def alive(pid: int) -> bool:
    """Tell whether a process lives: a zombie does not."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(") ")[2][0] != "Z"
    return False


def eventually(condition: Any, patience: float = PATIENCE) -> Any:
    value = until(condition, patience)
    assert value, "it did not happen"
    return value
