"""The Python host in mode fork, on every interpreter it supports: the protocol of its socket, and what a child brings along."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import struct
import subprocess
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Tuple

import pytest

from tests.runners.test_python_host import HOST, PATIENCE, python

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["python"]

ACT = """
import os, sys, time
{top}
def Do(code: str):
    names = {{"os": os, "sys": sys, "module": sys.modules[__name__], "result": None}}
    exec(code, names)
    return names["result"]
class Count:
    def execute(self, config, task_data):
        return [config, task_data]
"""


HEAD = struct.Struct("=IIiI")  # kind, run, a value, bytes of the body
SPENT = struct.Struct("=QQQ")  # microseconds of user and system, most resident bytes
FORK, IN_TIME = 1, 1
FORKED, EXITED, SAYS = 1, 3, 4


class Forking:
    """A host that forks, and the cell's end of its socket (`runners/cell/host.c`)."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, folder: Path) -> None:
        self.process = process
        self.control = control
        self.folder = folder
        self.ready: Dict[str, Any] = {}
        self._last = 0

    def hear(self) -> Tuple[int, int, int, bytes]:
        """Return a message: kind, run, value and body."""
        packet = self.control.recv(1 << 17)
        kind, run, value, size = HEAD.unpack_from(packet)
        assert len(packet) == HEAD.size + size
        return kind, run, value, packet[HEAD.size :]

    def hear_words(self) -> Dict[str, Any]:
        kind, run, value, body = self.hear()
        assert (kind, run, value) == (SAYS, 0, 0)
        told: Dict[str, Any] = json.loads(body)
        return told

    def call(self, command: str, params: Dict[str, Any], *, ahead: bool = False, **more: Any) -> Tuple[Any, str]:
        """Return the result and the log of one call."""
        self._last += 1
        pipes = [os.pipe() for _ in range(3)]
        (stdin, request), (result, stdout), (log, stderr) = pipes
        words = [str(self.folder), f"HOME={self.folder}", f"TMPDIR={self.folder}"]
        body = b"".join(os.fsencode(word) + b"\0" for word in words)
        head = HEAD.pack(FORK, self._last, IN_TIME if ahead else 0, len(body))
        socket.send_fds(self.control, [head + body], [stdin, stdout, stderr])
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
        kind, run, pid, _ = self.hear()
        assert (kind, run) == (FORKED, self._last)
        assert pid > 0
        document = {"protocol": 1, "op": "execute", "command": command, "params": params, **more}
        with open(request, "wb") as stream:
            stream.write(json.dumps(document).encode())
        with open(result, "rb") as told, open(log, "rb") as lines:
            answer, text = told.read(), lines.read().decode()
        kind, run, status, spent = self.hear()
        assert (kind, run) == (EXITED, self._last)
        user, system, resident = SPENT.unpack(spent)
        assert user + system < 1e6 * PATIENCE
        assert 1 << 20 < resident < 1 << 32, "bytes"
        value = json.loads(answer)
        assert status == (256 if isinstance(value, dict) and "error" in value else 0)
        return value, text

    def do(self, code: str, **more: Any) -> Any:
        value, _ = self.call("Do", {"code": code}, module="act", **more)
        return value


@contextlib.contextmanager
def forking(python: str, folder: Path, *, top: str = "", path: List[str] | None = None) -> Iterator[Forking]:
    (folder / "act.py").write_text(ACT.format(top=top))
    (folder / "private").mkdir()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE)
    # A cell starts it with its end on descriptor 3 and with both outputs on one pipe.
    argv = ["bash", "-c", f'exec "$@" 3>&{theirs.fileno()} {theirs.fileno()}>&- 2>&1 | cat', "fork"]
    argv += [python, "-W", "error", str(HOST), "--fork", "--module", str(folder / "act.py")]
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PYTHONPATH": os.pathsep.join(path or [])}
    with ours, theirs:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        host = Forking(process, ours, folder / "private")
        try:
            host.ready = host.hear_words()
            assert host.ready["ev"] == "ready"
            yield host
        finally:
            ours.close()
            noise, _ = process.communicate(timeout=PATIENCE)
        assert b"Traceback" not in noise


@pytest.mark.parametrize("ahead", [False, True])
def test_a_child_has_the_request_its_streams_and_its_folder(python: str, tmp_path: Path, ahead: bool) -> None:
    with forking(python, tmp_path) as host:
        code = (
            "print('heard'); result = [os.getcwd(), os.environ['HOME'], sys.stdin.read(), os.getsid(0) == os.getpid()]"
        )
        for _ in range(2):
            value, log = host.call("Do", {"code": code}, module="act", ahead=ahead)
            assert value == [str(host.folder), str(host.folder), "", True]
            assert log == "heard\n"


def test_a_child_follows_the_trace_of_its_request(python: str, tmp_path: Path) -> None:
    with forking(python, tmp_path) as host:
        code = "result = os.environ.get('TRACEPARENT')"
        assert host.do(code, context={"traceparent": "00-1-2-01"}) == "00-1-2-01"
        assert host.do(code, context={"traceparent": None}) is None
        assert host.do(code, context={"traceparent": "\0"}) is None
        assert host.do("result = os.environ.get('TRACESTATE')", context={"tracestate": "a=b"}) == "a=b"


def test_nothing_of_the_connector_runs_before_it_is_called_and_each_child_is_new(python: str, tmp_path: Path) -> None:
    top = "ran = []\nhost = os.getpid()\ndef warmup(): ran.append(os.getpid())\nstreams = [os.fstat(n).st_ino for n in (0, 1, 2)]"
    with forking(python, tmp_path, top=top) as host:
        code = "module.ran.append('here'); result = [module.ran[0] == os.getppid(), module.ran[1:]]"
        assert [host.do(code) for _ in range(3)] == [[True, ["here"]]] * 3
        links = "[os.readlink(f'/proc/self/fd/{name}') for name in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{name}')]"
        files = [link for link in host.do(f"result = {links}") if not link.rpartition("/")[2].startswith("libffi.so.")]
        assert len(files) == 4, "0, 1, 2 and the result; libffi from 3.5 on keeps itself open, to be read"


def test_a_child_finds_commands_wherever_the_request_says_they_are(python: str, tmp_path: Path) -> None:
    with forking(python, tmp_path) as host:
        more = {"config": {"a": 1}, "task_data": {"b": 2}}
        for module in ({"module": "act"}, {"module": "moved"}, {}):
            assert host.call("Count", {}, **more, **module)[0] == [{"a": 1}, {"b": 2}]
        for command in ("Example", "warmup", "Nope"):
            value, _ = host.call(command, {}, module="act")
            assert value["error"]["error_code"] == "command_not_found"
        value, _ = host.call("Do", {"nope": 1}, module="act")
        assert value["error"]["error_code"] == "invalid_parameters"


def test_what_went_wrong_ahead_of_requests_is_told_within_bounds(python: str, tmp_path: Path) -> None:
    with forking(python, tmp_path, top="def warmup(): raise ValueError('\\udc80\U0001f600' * 1000)") as host:
        (problem,) = host.ready["problems"]
        assert problem["module"] == "act.warmup"
        assert problem["message"].startswith("ValueError: ?\U0001f600")
        assert len(problem["message"]) == 300
        assert host.do("result = 1") == 1


WALK = """
import resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for one in module.ballast:
    pass
result = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""


def test_a_child_that_waits_has_its_own_copies_of_what_the_first_have_written_to(python: str, tmp_path: Path) -> None:
    with forking(python, tmp_path, top="ballast = [[number] for number in range(150_000)]") as host:
        first, *_ = (host.do(each) for each in (WALK, "", "", ""))
        assert first > 2000
        if _kernel() >= (5, 14):
            assert host.do(WALK, ahead=True) < first / 4
        assert host.do(WALK) > 2000, "it has no time to copy anything"


def test_a_child_that_waits_copies_nothing_where_that_would_save_little(python: str, tmp_path: Path) -> None:
    with forking(python, tmp_path, top="ballast = [[number] for number in range(40_000)]") as host:
        first, *_ = (host.do(WALK) for _ in range(4))
        assert 500 < first < 2000
        assert host.do(WALK, ahead=True) > first / 2


def test_what_requests_imports_for_its_first_request_is_there_already(python: str, tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "requests.py").write_text("# has nothing\n")
    with forking(python, tmp_path, top="import requests", path=[str(tmp_path / "library")]) as host:
        assert host.do("result = 'netrc' in sys.modules")


def _kernel() -> Tuple[int, ...]:
    return tuple(int(number) for number in platform.release().split("-")[0].split(".")[:2])
