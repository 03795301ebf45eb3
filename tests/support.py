"""What the tests share: a real gateway as a process, executables to put before it, one way to wait."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
from aiohttp import web

from gateway.gateway import Gateway
from gateway.observe.events import Bus
from gateway.settings import read_settings
from tests import procfs

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from multidict import CIMultiDict

PATIENCE = 20.0  # seconds until a thing that should happen counts as not happening


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: CIMultiDict[str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def body(self) -> Any:
        """`command_response.body`"""
        return self.json["command_response"]["body"]

    @property
    def code(self) -> str | None:
        """`error.error_code`"""
        error = self.json["error"]
        return error["error_code"] if error else None

    @property
    def message(self) -> str:
        return self.json["error"]["message"]


class Site:
    """A folder with connectors.yaml, connectors.d and executables, as an operator has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drop_ins = folder / "connectors.d"
        self.drop_ins.mkdir(parents=True, exist_ok=True)
        self.file = folder / "connectors.yaml"
        self.state = folder / ".gateway"
        self.level: str | None = None
        """The sandbox of its connectors, where they do not say. `off` for a test that compares process ids: in a
        namespace they are others."""

    def configure(self, connectors: str = "", *, gateway: str = "", defaults: str = "") -> None:
        """Write connectors.yaml from its sections' contents (YAML, any indentation)."""
        parts = []
        defaults = f"sandbox: {self.level}\n{textwrap.dedent(defaults).strip()}" if self.level else defaults
        for name, text in (("gateway", gateway), ("defaults", defaults), ("connectors", connectors)):
            body = textwrap.dedent(text).strip()
            parts.append(f"{name}:\n{textwrap.indent(body, '  ')}\n" if body else f"{name}: {{}}\n")
        self.file.write_text("".join(parts))

    def script(self, name: str, text: str, *, shell: str = "/bin/sh") -> Path:
        """Write an executable script; `name` is relative to the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!{shell}\n{textwrap.dedent(text)}")
        path.chmod(0o755)
        return path

    def python(self, name: str, text: str) -> Path:
        """Write an executable Python script (standard library, the interpreter that runs the tests)."""
        return self.script(name, text, shell=f"{sys.executable} -IS")


class Server:
    """A running `gateway serve`."""

    def __init__(
        self, process: subprocess.Popen[bytes], site: Site, log: Path, port: int, session: aiohttp.ClientSession
    ) -> None:
        self.process = process
        self.site = site
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.session = session
        self._log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    async def request(self, method: str, path: str, **options: Any) -> Answer:
        async with self.session.request(method, self.url + path, **options) as response:
            return Answer(response.status, response.headers.copy(), await response.read())

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.request("GET", path, **options)

    async def ready(self) -> bool:
        return (await self.get("/v1/readiness")).status == 200

    async def do(self, target: str, params: Any = None, **options: Any) -> Answer:
        """POST /v1/do/<target> with a JSON object (`data=` for anything else)."""
        if "data" not in options:
            options["json"] = params or {}
        return await self.request("POST", f"/v1/do/{target}", **options)

    async def commands(self) -> list[str]:
        return [one["id"] for one in (await self.get("/v1/commands")).json]

    async def status(self, connector: str | None = None) -> Any:
        status = (await self.get("/v1/status")).json
        return status["connectors"][connector] if connector else status

    def events(self, name: str | None = None, **facts: Any) -> list[dict[str, Any]]:
        """Return the log's lines as objects, those with this event name and these facts."""
        found = []
        for line in self._log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if name in (None, event.get("event")) and facts.items() <= event.items():
                    found.append(event)
        return found

    def log(self) -> str:
        return self._log.read_text()

    def processes(self) -> set[int]:
        """Return the gateway's living descendants (its cells among them)."""
        table = procfs.scan()
        return procfs.descendants({self.pid}, table) - {self.pid}

    def connectors(self) -> set[int]:
        """Return every living process (zombies included) that some call of this gateway has started."""
        cells = self.cells()
        table = procfs.scan()
        traced = {pid for pid in table if procfs.mentions(pid, str(self.site.state))}
        return (procfs.descendants(cells, table) | traced) - cells - {self.pid}

    def cells(self) -> set[int]:
        """Return the processes of its cells, two each where they have namespaces."""
        return {pid for pid in self.processes() if is_cell(pid)}

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for the end and return the exit status."""
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), PATIENCE)


@contextlib.asynccontextmanager
async def served(
    site: Site,
    *arguments: str,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: tuple[int, ...] = (),
    ready: bool = True,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Server]:
    """Run `gateway serve` on a free port until the block ends; with `ready`, once all of its connectors were asked.

    With `tls` it is called by that.
    """
    log = site.folder / f"serve-{time.monotonic_ns()}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--config", str(site.file), "--listen", "127.0.0.1:0",
             "--log-format", "json", *arguments],
            stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, cwd=cwd or site.folder, pass_fds=pass_fds,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **(env or {})},
        )  # fmt: skip
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=tls or True)) as session:
            server = Server(process, site, log, 0, session)
            await eventually(lambda: process.poll() is not None or server.events("listening"))
            if process.poll() is not None:
                raise AssertionError(f"the gateway did not start:\n{log.read_text()}")
            server.port = server.events("listening")[0]["port"]
            server.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.port}"
            if ready:
                await eventually(server.ready)
            yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, PATIENCE)


@contextlib.asynccontextmanager
async def called_by(server: Server, **options: Any) -> AsyncIterator[Server]:
    """Give a server that serves a module's tests a client session of one test's own loop."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), **options) as session:
        server.session = session
        yield server


@contextlib.asynccontextmanager
async def opened(file: Path) -> AsyncIterator[Gateway]:
    """Open a gateway without HTTP."""
    settings, _ = read_settings(file)
    made = Gateway(settings, Bus())
    await made.open(watch=False)
    try:
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def listening(app: web.Application) -> AsyncIterator[str]:
    """Serve an application on a free port of this machine; its URL."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Gate:
    """What connectors wait at, each for a byte of a named pipe, until a test lets them through."""

    def __init__(self, path: Path) -> None:
        """A connector reads a byte of `path`; it may come before it is let through, or after."""
        self.path = path
        os.mkfifo(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def let(self, connectors: int = 1) -> None:
        """Let so many through."""
        os.write(self._descriptor, b"." * connectors)

    def close(self) -> None:
        """Take it away; who still waits goes on."""
        os.close(self._descriptor)


async def eventually(condition: Callable[[], Any | Awaitable[Any]], patience: float = PATIENCE) -> Any:
    """Wait until a condition (a function, or a coroutine function) is true; return its value."""
    deadline = time.monotonic() + patience
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {patience} s: {condition}")
        await asyncio.sleep(0.02)


async def gone(pids: set[int], patience: float = PATIENCE) -> None:
    """Wait until none of these processes is left, not even as a zombie."""
    await eventually(lambda: not [pid for pid in pids if not reaped(pid)], patience)


def reaped(pid: int) -> bool:
    """Tell whether a process is gone; one that a dead gateway left to us is reaped here, as init would."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return not os.path.exists(f"/proc/{pid}")


def cli(
    site: Site, *arguments: str, env: dict[str, str] | None = None, pass_fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run one verb of the command line in the site's folder."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        capture_output=True, text=True, cwd=site.folder, timeout=60, stdin=subprocess.DEVNULL, pass_fds=pass_fds,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **(env or {})},
    )  # fmt: skip


def is_cell(pid: int) -> bool:
    """Tell whether a process is a cell. What a cell has just forked is one until its exec."""
    return b"cell/cell\0--control" in cmdline(pid)


def cmdline(pid: int) -> bytes:
    """Return the command line of a process, nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
