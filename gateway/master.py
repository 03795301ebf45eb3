"""Runs several gateway processes on one port: starts them, replaces the ones that crash, passes signals on.

The master serves nothing and holds no state but who is alive: workers count slots in a shared file, sum up their
metrics in a shared folder, and ask each other for their status. A worker that loses its master stops at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess  # noqa: TID251 - workers are gateways, not connectors: no warden can be their parent
import sys
import time
from typing import TYPE_CHECKING

import structlog

from gateway import signals
from gateway.core import claim
from gateway.slots import Table, ring
from gateway.team import Team, metrics_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.config import Settings

FIRST_PAUSE = 0.2  # seconds before a crashed worker is replaced; doubles
LAST_PAUSE = 10.0
STEADY = 30.0  # seconds alive after which a crash is an accident rather than a habit


class Master:
    """The parent of the workers."""

    def __init__(self, settings: Settings, arguments: Sequence[str]) -> None:
        """`arguments` are the ones that each worker is started with."""
        self._settings = settings
        self._arguments = arguments
        self._folder = settings.state_dir / "run" / f"team-{os.getpid()}-{time.monotonic_ns():x}"
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._stopping = asyncio.Event()
        self._clearing = asyncio.Lock()
        self._log = structlog.get_logger()

    async def run(self) -> int:
        """Run until told to stop; return the exit status: 0, or the one of a worker that could not start."""
        lock = claim(self._folder)
        metrics_folder(self._folder).mkdir()
        table = Table(self._folder / "slots", self._settings.workers)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)
        reserved = self._reserve()
        port = reserved.getsockname()[1]
        try:
            with signals.taken():
                keepers = [self._keep(worker, table, lock, port) for worker in range(self._settings.workers)]
                statuses = await asyncio.gather(*keepers)
        finally:
            reserved.close()
            table.close()
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
            os.close(lock)
        return max(statuses)

    def _reserve(self) -> socket.socket:
        """Take the port without listening: workers come and go, the port stays ours."""
        host = self._settings.host
        family = socket.AF_INET6 if host is not None and ":" in host else socket.AF_INET
        reserved = socket.socket(family, socket.SOCK_STREAM)
        try:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Without SO_REUSEPORT first: it would let a second gateway of the same user in.
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host or "", self._settings.port))
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind((host or "", self._settings.port))
        except OSError:
            reserved.close()
            raise
        return reserved

    async def _keep(self, worker: int, table: Table, handle: int, port: int) -> int:
        """Keep one worker alive; return its last exit status."""
        pause = FIRST_PAUSE
        generation = 0
        while True:
            team = Team(folder=self._folder, worker=worker, workers=self._settings.workers, generation=generation)
            begun = time.monotonic()
            ours = self._start(team, port)
            process = self._workers[worker]
            status = await asyncio.to_thread(process.wait)
            os.close(ours)
            await team.ended(worker, generation)
            await self._free(worker, table, handle)
            if self._stopping.is_set():
                return 0 if status in {0, -signal.SIGTERM} else 1  # the second one may come behind its end
            if status == 2 and generation == 0:  # the configuration, which it has told about
                self._on_signal(signal.SIGTERM)
                return 2
            self._log.error("worker_died", worker=worker, pid=process.pid, status=status, next_in=pause)
            if time.monotonic() - begun > STEADY:
                pause = FIRST_PAUSE
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return 0
            pause = min(LAST_PAUSE, 2 * pause)
            generation += 1

    def _start(self, team: Team, port: int) -> int:
        """Start a worker; return our end of the pipe by whose closing it learns that we are gone."""
        theirs, ours = os.pipe()
        host = self._settings.host or ""
        listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            with signals.held():  # what is told to it before it listens waits, instead of killing it
                self._workers[team.worker] = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "gateway",
                        "serve",
                        *self._arguments,
                        "--listen",
                        listen,
                        "--team",
                        team.to_text(),
                    ],
                    stdin=theirs,
                    start_new_session=True,  # a ^C in the terminal reaches them through us, once
                    env={**self._settings.environ, "PROMETHEUS_MULTIPROC_DIR": str(team.metrics)},
                )
        finally:
            os.close(theirs)
        return ours

    async def _free(self, worker: int, table: Table, handle: int) -> None:
        """Free the slots of a dead worker, for which others may be waiting."""
        async with self._clearing:
            await asyncio.to_thread(table.clear, worker)  # a worker that hangs may have the table locked
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
            bell.setblocking(False)
            ring(bell, f"/proc/self/fd/{handle}", range(self._settings.workers))

    def _on_signal(self, number: int) -> None:
        if number != signal.SIGHUP:
            self._stopping.set()
        for process in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
