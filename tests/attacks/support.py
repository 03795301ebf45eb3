"""Gateways that are attacked by a connector of their own: where they run, what they serve, and what must not be left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from tests import procfs
from tests.support import PATIENCE, Answer, Server, Site, eventually, is_cell, reaped
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NOBODY = 65534
KEY = "the key of all callers"
PASSWORD = "the victim's password"
MEMORY, DISK, PIDS = 64, 8, 300  # MiB, MiB, processes
SHM_KEY = 0xA77AC4  # of the System V segments that arms.c makes
MODES = ("spawn", "standby", "persistent", "fork")
LEVELS = ("off", "standard", "strict")
GRACE = 2.0  # seconds from SIGTERM to SIGKILL


class Place(NamedTuple):
    """A machine, as a gateway may find it."""

    name: str
    ordinary: bool
    """Run by an ordinary user."""
    apart: bool
    """There are namespaces to be had."""
    groups: bool = False
    """There are control groups, if this machine has them."""

    @property
    def levels(self) -> tuple[str, ...]:
        return LEVELS if self.apart else LEVELS[:2]


PLACES = {
    place.name: place
    for place in (
        Place("root-groups", ordinary=False, apart=True, groups=True),
        Place("root-apart", ordinary=False, apart=True),
        Place("root-beside", ordinary=False, apart=False),
        Place("user-apart", ordinary=True, apart=True),
        Place("user-beside", ordinary=True, apart=False),
    )
    if place.ordinary or os.getuid() == 0
}


def differs(place: Place, level: str, mode: str) -> bool:
    """Tell whether it is another case for what a cell does: by what there is, and by how a process is obtained."""
    most, least = place.name == "root-groups", place.name == "user-beside"
    return (mode == "spawn" and level != "strict") or (level == "strict" and mode == "spawn" and most) or (
        level == "standard" and (most or least)) or (level == "off" and mode == "fork" and least)  # fmt: skip


def twice(place: Place, level: str, mode: str) -> bool:
    """Tell whether it is the most that there is, or the least: for what takes long."""
    return (place.name, level) in {("root-groups", "standard"), ("user-beside", "off")}


def interpreter() -> tuple[str, str]:
    """Return a Python that everybody may run, where there is one, and the PYTHONPATH that it needs."""
    everybodys = Path("/usr/bin") / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    chosen = everybodys if everybodys.exists() else Path(sys.executable)
    return str(chosen), f"{ROOT}:{sysconfig.get_paths()['purelib']}"


class Attacked:
    """A running gateway in one place, with connectors of each level and mode that are hostile, and victims."""

    def __init__(self, place: Place, arms: Path, *, kept: bool = False) -> None:
        self.place = place
        # Where everybody may look, as most machines have it; pytest's own folder is closed.
        self.folder = Path(tempfile.mkdtemp(prefix=f"attacks-{place.name}-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.site = Site(self.folder)
        self._lay_out(arms)
        self._configure()
        if place.ordinary and os.getuid() == 0:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        self._start(arms, kept=kept)

    def _lay_out(self, arms: Path) -> None:
        python, _ = interpreter()
        for name in ("hostile", "victim"):
            folder = self.folder / name
            folder.mkdir()
            script = folder / f"{name}.py"
            script.write_text(f"#!{python} -IS\n{(HERE / 'site' / f'{name}.py').read_text()}")
            script.chmod(0o755)
            shutil.copy(arms, folder / "arms")
        neighbour = self.site.drop_ins / "neighbour"
        neighbour.mkdir()
        (neighbour / "connector.yaml").write_text(
            f"run: [./neighbour.sh]\nconfig: {{password: {PASSWORD!r}}}\n"
            "commands: {Echo: {additional_parameters: true}}\n"
        )
        (neighbour / "neighbour.sh").write_text("#!/bin/sh\nexec cat\n")
        (neighbour / "neighbour.sh").chmod(0o755)

    def _configure(self) -> None:
        lines = []
        for level in self.place.levels:
            for mode in MODES:
                how = (
                    "runtime: python, module: ./hostile/hostile.py"
                    if mode == "fork"
                    else f"run: [./hostile/hostile.py{', --lines' if mode == 'persistent' else ''}],"
                    " commands: {Run: {additional_parameters: true}}"
                )
                lines.append(f"{level}-{mode}: {{{how}, mode: {mode}, sandbox: {level}}}")
        lines += [
            f"victim-{mode}: {{run: [./victim/victim.py{', --lines' if mode == 'persistent' else ''}],"
            f" mode: {mode}, env: {{TOKEN: {PASSWORD!r}}}, config: {{password: {PASSWORD!r}}},"
            " commands: {Echo: {additional_parameters: true}, Wait: {additional_parameters: true}}}"
            for mode in MODES[:3]
        ]
        self.site.configure(
            "\n".join(lines),
            gateway=f"cgroup: {str(self.place.groups).lower()}",
            defaults=f"""
                timeout: 12s
                concurrency: 4
                queue: 200
                max_memory: {MEMORY}MiB
                max_disk: {DISK}MiB
                max_pids: {PIDS}
            """,
        )

    def _start(self, arms: Path, *, kept: bool) -> None:
        python, path = interpreter()
        wrapper: list[str] = []
        if self.place.ordinary and os.getuid() == 0:
            wrapper += ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        if not self.place.apart:
            wrapper += [str(arms), "jail"]
        log = self.folder / "serve.log"
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*wrapper, python, "-m", "gateway", "serve", "--config", str(self.site.file),
                 "--listen", "127.0.0.1:0", "--log-format", "json", "--restart" if kept else "--no-restart"],
                stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, cwd=self.folder,
                env={"PATH": os.defpath, "HOME": str(self.folder), "PYTHONPATH": path,
                     "CONNECTOR_PROXY_API_KEY": KEY},
            )  # fmt: skip
        self._log = log
        server = Server(self.process, self.site, log, 0, None)  # type: ignore[arg-type]
        until(lambda: server.events("listening") or self.process.poll() is not None, PATIENCE)
        if not server.events("listening"):
            self.close()
            raise AssertionError(f"the gateway did not start:\n{log.read_text()}")
        self.port = server.events("listening")[0]["port"]
        assert until(self._ready, PATIENCE), "some connector has not said what it can do"

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/readiness", timeout=PATIENCE):
                return True
        except urllib.error.HTTPError as answer:
            answer.close()
            return False

    @property
    def pid(self) -> int:
        return self.process.pid

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Enemy]:
        """Speak to it over connections of this test's own loop."""
        headers = {"Spiff-Connector-Proxy-Api-Key": KEY}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:
            yield Enemy(self, Server(self.process, self.site, self._log, self.port, session))

    def close(self) -> None:
        """End it, and all that is left of it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        self.process.kill()
        self.process.wait()
        for pid in self.strays():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- what there is of it

    def mine(self) -> set[int]:
        """Return every process that has anything to do with this gateway, wherever it has gone, zombies included."""
        table = procfs.scan()
        return procfs.descendants({self.pid}, table) - {self.pid} | {pid for pid in table if self._bears(pid)}

    def strays(self) -> set[int]:
        """Return what an attack has started that lives: it is known by its command line, which outlives a fork."""
        return {pid for pid in procfs.scan() if self._is_armed(pid)}

    def zombies(self) -> set[int]:
        table = procfs.scan()
        return {pid for pid in procfs.descendants({self.pid}, table) if table[pid].state == "Z"}

    def files(self) -> list[Path]:
        """Return what lies in private folders."""
        found = []
        for cell in (self.site.state / "run").glob("*/*"):
            for run in (cell, *cell.iterdir()) if cell.is_dir() else ():
                names = set(os.listdir(run)) if run.is_dir() and not run.is_symlink() else {""}
                found += [run / name for name in names if run != cell or not (name.isdigit() or name == ".spare")]
        return found

    def _bears(self, pid: int) -> bool:
        return str(self.folder).encode() in _bytes(f"/proc/{pid}/cmdline") and pid != self.pid

    def _is_armed(self, pid: int) -> bool:
        return f"{self.folder}/hostile/arms".encode() in _bytes(f"/proc/{pid}/cmdline") and not is_cell(pid)


class Enemy:
    """A gateway, and the connectors that it has against it."""

    def __init__(self, attacked: Attacked, server: Server) -> None:
        self.attacked = attacked
        self.place = attacked.place
        self.server = server
        self.folder = attacked.folder
        self.state = attacked.site.state
        self.site_drop_in = attacked.site.drop_ins / "neighbour"

    async def run(self, connector: str, code: str, *, timeout: float | None = None) -> Answer:
        """Have a hostile connector run code."""
        headers = {"X-Timeout": str(timeout)} if timeout else {}
        return await self.server.do(f"{connector}/Run", {"code": unindented(code)}, headers=headers)

    async def told(self, connector: str, code: str) -> Any:
        """Have it run code that comes to its end; return its `result`."""
        answer = await self.run(connector, code)
        assert answer.status == 200, answer.raw
        return answer.body

    async def serves_others(self) -> None:
        for victim in ("victim-spawn", "victim-persistent", "victim-standby", "neighbour"):
            answer = await self.server.do(f"{victim}/Echo", {"hello": 1})
            assert answer.status == 200, answer.raw

    @contextlib.asynccontextmanager
    async def waiting_victim(self, mode: str = "spawn") -> AsyncIterator[int]:
        """Have a victim with something in its folder in the middle of a call: its pid, seen from outside."""
        call = asyncio.create_task(self.server.do(f"victim-{mode}/Wait", {}))
        try:
            notes = await eventually(lambda: list(self.state.glob("run/**/notes")) or call.done())
            assert not call.done(), call.result().raw
            folder = notes[0].parent
            (pid,) = [pid for pid in procfs.scan() if _link(f"/proc/{pid}/cwd") == str(folder)]
            yield pid
        finally:
            if not call.done():
                await eventually(lambda: call.done() or _opened(folder / "go-on"))
        assert (await call).status == 200


def _opened(fifo: Path) -> bool:
    """Tell a reader to go on; there is none yet when it cannot be opened."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def words(answer: Answer) -> str:
    """Return what an error says, nothing when there is none."""
    error = answer.json["error"]
    return error["message"] if error else ""


def unindented(code: str) -> str:
    return textwrap.dedent(code)


def left_of(attacked: Attacked) -> dict[str, Any]:
    """Say what is left of attacks; nothing should be."""
    found = {
        "processes": {pid: _bytes(f"/proc/{pid}/cmdline") for pid in attacked.strays() if not reaped(pid)},
        "zombies": attacked.zombies(),
        "files": attacked.files(),
        "temporary": [path for folder in ("/tmp", "/var/tmp", "/dev/shm") for path in Path(folder).glob("taken-over*")],
        "segments": [line for line in _bytes("/proc/sysvipc/shm").splitlines()[1:] if int(line.split()[0]) == SHM_KEY],
    }
    return {name: what for name, what in found.items() if what}


def clear_away(attacked: Attacked) -> None:
    """Remove what another test would stumble over."""
    for pid in attacked.strays():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        for path in Path(folder).glob("taken-over*"):
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
    segments = [line.split()[1] for line in _bytes("/proc/sysvipc/shm").splitlines()[1:]
                if int(line.split()[0]) == SHM_KEY]  # fmt: skip
    for number in segments:
        subprocess.run(["ipcrm", "-m", number], check=False)


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
