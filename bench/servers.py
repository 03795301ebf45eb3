"""What the scenarios start, and stop again: gateways, peers, whatever serves HTTP on the loopback."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.harness import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent


class Server:
    """A process that serves HTTP."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.pid = process.pid
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = log

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        """Return a connection that stays open between requests."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def post(self, path: str, body: object) -> bytes:
        """Return the answer to a POST of JSON.

        Raises:
            RuntimeError: it was no success.
        """
        with contextlib.closing(self.connect()) as connection:
            return post(connection, path, json.dumps(body).encode())

    def get(self, path: str) -> Any:
        """Return the JSON answer to a GET."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())

    def listens(self) -> bool:
        """Tell whether the port takes connections."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


def post(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str] | None = None
) -> bytes:
    """Return the answer to a POST.

    Raises:
        RuntimeError: it was no success.
    """
    connection.request("POST", path, body, {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    data = answer.read()
    if answer.status >= 300 or (data.startswith(b'{"command_response"') and b'"error":null' not in data):
        raise RuntimeError(f"{path} answered {answer.status}: {data[:500].decode(errors='replace')}")
    return data


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def started(
    argv: Sequence[str], *, port: int, folder: Path, env: Mapping[str, str] | None = None, patience: float = 30
) -> Iterator[Server]:
    """Run a server in a session of its own until the block ends.

    Raises:
        RuntimeError: it ended before it listened; the message has its log.
    """
    log = folder / f"log-{time.monotonic_ns()}"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, cwd=folder, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        )  # fmt: skip
    server = Server(process, port, log)
    try:
        eventually(lambda: process.poll() is not None or server.listens(), f"{argv[0]} listening", patience)
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(argv)} did not start:\n{log.read_text()[-2000:]}")
        yield server
    finally:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number) if number == signal.SIGKILL else process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2 if number == signal.SIGTERM else 10)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)


class Site:
    """A folder with a connectors.yaml."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "connectors.yaml"
        self.state = folder / ".gateway"

    def configure(self, connectors: str, *, gateway: str = "", defaults: str = "") -> None:
        """Replace connectors.yaml from its sections' contents, at once."""
        text = ""
        for name, lines in (("gateway", gateway), ("defaults", defaults), ("connectors", connectors)):
            body = textwrap.dedent(lines).strip()
            text += f"{name}:\n{textwrap.indent(body, '  ')}\n" if body else f"{name}: {{}}\n"
        draft = self.folder / "connectors.yaml.new"
        draft.write_text(text)
        draft.replace(self.file)

    def install(self, *names: str) -> None:
        """Run `gateway install`.

        Raises:
            RuntimeError: something could not be built.
        """
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "install", *names, "--config", str(self.file)],
            capture_output=True, text=True, check=False, timeout=600, stdin=subprocess.DEVNULL, cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"gateway install failed:\n{done.stdout}{done.stderr}")


@contextlib.contextmanager
def gateway(site: Site, *arguments: str) -> Iterator[Server]:
    """Run `gateway serve` until the block ends."""
    port = free_port()
    argv = [sys.executable, "-m", "gateway", "serve", "--config", str(site.file), "--listen", f"127.0.0.1:{port}",
            "--log-format", "json", *arguments]  # fmt: skip
    with started(argv, port=port, folder=site.folder) as server:
        eventually(lambda: server.get("/v1/readiness").get("ok"), "readiness")
        yield server


def events(server: Server, name: str) -> list[dict[str, Any]]:
    """Return the events of one name in a gateway's log."""
    found = []
    for line in server.log.read_text().splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if event.get("event") == name:
                found.append(event)
    return found


def compiled(name: str, folder: Path) -> Path:
    """Compile one of the C programs here, statically.

    Raises:
        RuntimeError: there is no compiler, or no static libc.
    """
    program = folder / name
    try:
        subprocess.run(
            ["gcc", "-O2", "-static", "-o", str(program), str(HERE / f"{name}.c")],
            check=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    except FileNotFoundError as missing:
        raise RuntimeError("gcc is needed (apt install gcc libc6-dev)") from missing
    except subprocess.CalledProcessError as problem:
        raise RuntimeError(f"gcc failed:\n{problem.stderr}") from problem
    return program
