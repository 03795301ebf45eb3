"""Runs several gateway processes on one port: starts them, replaces those that crash or hang, passes signals on.

The master serves nothing and holds no state but who is alive: workers count slots in a shared file, sum up their
metrics in a shared folder, and ask each other for their status. A worker that loses its master dies with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess  # noqa: TID251 - workers are gateways, not connectors: no cell can be their parent
import sys
import time
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway import signals
from gateway.cells import orphans
from gateway.errors import ConfigError
from gateway.gateway import claim
from gateway.observe import logs
from gateway.processes.slots import Table, ring
from gateway.team import BEAT, SIGN, Team, log_lock, metrics_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.settings import Settings

FIRST_PAUSE = 0.2  # seconds before a crashed worker is replaced; doubles
LAST_PAUSE = 10.0
STEADY = 30.0  # seconds alive after which a crash is an accident rather than a habit
MISSED = 5  # signs of life in a row that a worker may miss until it counts as hanging
MARGIN = 20.0  # seconds beyond the drain until a worker that is still there is killed
HURRY = 5.0  # seconds for that when it was told to stop at once
STDERR = 2


class Master:
    """The parent of the workers."""

    def __init__(self, settings: Settings, log_format: logs.Format) -> None:
        self._settings = settings
        self._log_format = log_format
        self._folder = settings.state_dir / "run" / f"team-{os.getpid()}-{time.monotonic_ns():x}"
        self._workers: dict[int, _Worker] = {}
        self._stopping = asyncio.Event()
        self._stops = 0
        self._problem = ""
        self._clearing = asyncio.Lock()
        self._log = structlog.get_logger()

    async def run(self) -> int:
        """Run until told to stop; return the exit status: 0, or the one of a worker that did not end by itself.

        Raises:
            ConfigError: the workers cannot start.
            OSError: the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        orphans.be_unreadable()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)
        with signals.taken(), self._claimed() as handle, self._reserved() as reserved:
            logs.configure(self._log_format, lock=log_lock(self._folder))
            metrics_folder(self._folder).mkdir()
            table = Table(self._folder / "slots", self._settings.workers)
            port = reserved.getsockname()[1]
            # They have no workers of their own, so no need of an environment to give them.
            lent = msgspec.structs.replace(self._settings, port=port, environ={}, team_key=secrets.token_hex(32)).lend()
            watching = asyncio.create_task(self._watch())
            try:
                keepers = [self._keep(worker, table, handle, lent) for worker in range(self._settings.workers)]
                statuses = await asyncio.gather(*keepers)
            finally:
                watching.cancel()
                os.close(lent)
                table.close()
        if self._problem:
            raise ConfigError(self._problem)
        return max(statuses)

    # --- private

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[int]:
        """Have the team's folder; give a descriptor of it."""
        try:
            handle = claim(self._folder)
        except OSError as problem:
            raise ConfigError(f"gateway.state_dir: {problem.filename}: {problem.strerror}") from problem
        try:
            yield handle
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(handle)

    @contextlib.contextmanager
    def _reserved(self) -> Iterator[socket.socket]:
        """Take the port without listening: workers come and go, the port stays ours."""
        host = self._settings.host
        family = socket.AF_INET6 if host is not None and ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as reserved:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Without SO_REUSEPORT first: it would let a second gateway of the same user in.
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host or "", self._settings.port))
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind((host or "", self._settings.port))
            yield reserved

    async def _keep(self, worker: int, table: Table, handle: int, lent: int) -> int:
        """Keep one worker alive; return its last exit status."""
        pause = FIRST_PAUSE
        generation = 0
        while True:
            team = Team(
                folder=self._folder,
                worker=worker,
                workers=self._settings.workers,
                generation=generation,
                settings=lent,
            )
            begun = time.monotonic()
            one = self._workers[worker] = self._start(team)
            status = await one.ended()
            await team.ended(worker, generation)
            await self._free(worker, table, handle)
            if self._stopping.is_set() and status in {0, -signal.SIGTERM}:  # the second one may come behind its end
                return 0
            if status == 2 and generation == 0:  # the configuration
                self._problem = self._problem or one.problem
                if not self._stopping.is_set():
                    self._on_signal(signal.SIGTERM)
                return 2
            if time.monotonic() - begun > STEADY:
                pause = FIRST_PAUSE
            facts = {"problem": one.problem} if one.problem else {}
            # In a thread: whoever holds the log's lock may hang, and be the next that `_watch` kills.
            await asyncio.to_thread(self._log.error, "worker_died", worker=worker, pid=one.pid, status=status, **facts)
            if self._stopping.is_set():
                return 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return 0
            pause = min(LAST_PAUSE, 2 * pause)
            generation += 1

    def _start(self, team: Team) -> _Worker:
        theirs, ours = socket.socketpair()
        for end in (theirs, ours):
            end.setblocking(False)
        with contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            # What is told to it before it listens waits, instead of killing it.
            with theirs, signals.held():
                process = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "gateway",
                        "serve",
                        "--log-format",
                        self._log_format,
                        "--team",
                        team.to_text(),
                    ],
                    stdin=theirs.fileno(),
                    pass_fds=[team.settings],
                    start_new_session=True,  # a ^C in the terminal reaches them through us, once
                    env={**self._settings.environ, "PROMETHEUS_MULTIPROC_DIR": str(team.metrics)},
                )
            undo.pop_all()
        return _Worker(process, ours)

    async def _free(self, worker: int, table: Table, handle: int) -> None:
        """Free the slots of a dead worker, for which others may be waiting."""
        async with self._clearing:
            await asyncio.to_thread(table.clear, worker)  # a worker that hangs may have the table locked
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
            bell.setblocking(False)
            ring(bell, f"/proc/self/fd/{handle}", range(self._settings.workers))

    async def _watch(self) -> None:
        """Kill workers that give no sign of life. Looks are counted, not seconds: we may have been frozen with them."""
        log = select.poll()
        log.register(STDERR, select.POLLOUT)
        while True:
            await asyncio.sleep(BEAT)
            if log.poll(0):  # or else they, too, wait for whoever reads the log
                for one in self._workers.values():
                    one.look()

    def _on_signal(self, number: int) -> None:
        for one in self._workers.values():
            one.signal(number)
        if number == signal.SIGHUP:
            return
        self._stopping.set()
        self._stops += 1
        patience = {1: self._settings.drain + MARGIN, 2: HURRY}.get(self._stops, 0)
        asyncio.get_running_loop().call_later(patience, self._kill)

    def _kill(self) -> None:
        for one in self._workers.values():
            one.kill("did not end in time and was killed")


class _Worker:
    """One worker's process, and the line on which it says that it lives, or why it ends."""

    def __init__(self, process: subprocess.Popen[bytes], line: socket.socket) -> None:
        self.pid = process.pid
        self.problem = ""
        self._process = process
        self._line = line
        self._missed: int | None = None  # signs of life in a row; None until it has given one
        asyncio.get_running_loop().add_reader(line, self._on_line)

    async def ended(self) -> int:
        """Wait for its end; return its exit status."""
        loop = asyncio.get_running_loop()
        end = loop.create_future()
        handle = os.pidfd_open(self.pid)
        loop.add_reader(handle, end.set_result, None)
        try:
            await end
        finally:
            loop.remove_reader(handle)
            os.close(handle)
            self._on_line()
            loop.remove_reader(self._line)
            self._line.close()
        return self._process.wait()

    def look(self) -> None:
        """Take note that time has passed."""
        if self._missed is not None:
            self._missed += 1
            if self._missed > MISSED:
                self.kill(f"gave no sign of life for {BEAT * MISSED:g} s and was killed")

    def kill(self, problem: str) -> None:
        """End it at once. Its cells kill what it ran."""
        if self._process.returncode is None:
            self.problem = problem
            self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        self._process.send_signal(number)

    def _on_line(self) -> None:
        try:
            said = self._line.recv(1 << 16)
        except BlockingIOError:
            return
        if said:
            self._missed = 0
            self.problem += said.replace(SIGN, b"").decode(errors="replace")
        else:
            asyncio.get_running_loop().remove_reader(self._line)
