"""Runs a connector host as the gateway does: one request on stdin, one result on stdout or on descriptor 3."""

import fcntl
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
RUNNERS = ROOT / "runners"
CONNECTORS = ROOT / "connectors.d"
TEST_CONNECTORS = ROOT / "tests" / "fixtures" / "hosts"

SECONDS = 60  # a host that hangs fails its test, also on a busy machine


@dataclass(frozen=True)
class Outcome:
    status: int
    stdout: bytes
    log: str
    fd3: bytes = b""

    @property
    def result(self) -> Any:
        """The one JSON value on stdout."""
        return json.loads(self.stdout)

    @property
    def error(self) -> dict[str, Any]:
        assert list(self.result) == ["error"], self
        return self.result["error"]


def describe(argv: list[str], **options: Any) -> Outcome:
    return send(argv, json.dumps({"protocol": 1, "op": "describe"}).encode(), **options)


def execute(
    argv: list[str],
    command: str,
    params: dict[str, Any] | None = None,
    *,
    more: dict[str, Any] | None = None,
    **options: Any,
) -> Outcome:
    request = {"protocol": 1, "op": "execute", "command": command, "params": params or {}} | (more or {})
    return send(argv, json.dumps(request).encode(), **options)


def send(
    argv: list[str], request: bytes, *, fd3: bool = False, locale: str = "C.UTF-8", cwd: Path | None = None
) -> Outcome:
    # PATH comes along for version managers; HOME, since Java writes caches there.
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LC_ALL": locale}
    if not fd3:
        done = subprocess.run(
            argv, input=request, capture_output=True, env=environment, cwd=cwd, timeout=SECONDS, check=False
        )
        return Outcome(done.returncode, done.stdout, done.stderr.decode())
    reading, writing = os.pipe()
    high = fcntl.fcntl(writing, fcntl.F_DUPFD, 10)
    os.close(writing)
    moved = ["bash", "-c", f'exec "$@" 3>&{high} {high}>&-', "fd3", *argv]
    with os.fdopen(reading, "rb") as results:
        try:
            done = subprocess.run(
                moved,
                input=request,
                capture_output=True,
                env=environment,
                cwd=cwd,
                timeout=SECONDS,
                pass_fds=[high],
                check=False,
            )
        finally:
            os.close(high)
        return Outcome(done.returncode, done.stdout, done.stderr.decode(), results.read())


class Conversation:
    """A host that serves a request a line, on stdin and descriptor 3."""

    def __init__(self, argv: list[str]) -> None:
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C.UTF-8"}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed at exit
        reading, writing = os.pipe()
        high = fcntl.fcntl(writing, fcntl.F_DUPFD, 10)
        os.close(writing)
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3>&{high} {high}>&-', "lines", *argv],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            pass_fds=[high],
        )
        os.close(high)
        self._results = os.fdopen(reading, "rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._results.close()
        self._log.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def receive(self) -> bytes:
        return self._results.readline()

    def execute(self, command: str, params: dict[str, Any] | None = None) -> Any:
        self.send(json.dumps({"protocol": 1, "op": "execute", "command": command, "params": params or {}}).encode())
        return json.loads(self.receive())

    def end(self) -> Outcome:
        """Close stdin and wait for the end; what is left on descriptor 3 is in the outcome."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        rest = self._results.read()
        status = self._process.wait(SECONDS)
        self._log.seek(0)
        return Outcome(status, b"", self._log.read().decode(), rest)
