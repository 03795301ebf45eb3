"""A PostgreSQL server of the test's own: a fresh cluster, a free loopback port, an unprivileged user."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest


def binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class Postgres:
    """Starts and stops the server; `url` stays the same."""

    def __init__(self) -> None:
        folder = binaries()
        if folder is None:
            pytest.skip("there is no PostgreSQL here: apt-get install postgresql")
        self._bin = folder
        self._user = "postgres" if os.getuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="jobs-pg-"))
        if self._user:
            shutil.chown(self.folder, pwd.getpwnam(self._user).pw_uid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"postgresql://gateway@127.0.0.1:{self.port}/gateway"
        self._server: subprocess.Popen[bytes] | None = None
        self._call("initdb", "-D", str(self.folder / "data"), "-U", "gateway", "-A", "trust", "-N")
        self.start()
        self._call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "gateway", "gateway")

    def start(self) -> None:
        self._server = subprocess.Popen(
            [self._bin / "postgres", "-D", self.folder / "data", "-p", str(self.port), "-k", self.folder,
             "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=60", "-c", "shared_buffers=32MB", "-c", "autovacuum=off"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, user=self._user,
        )  # fmt: skip
        self._call("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-U", "gateway", patience=5000)

    def stop(self) -> None:
        """Stop at once: connections break."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(20)
            self._server = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self, program: str, *arguments: str, patience: int = 1) -> None:
        for left in range(patience, 0, -1):
            done = subprocess.run(
                [self._bin / program, *arguments], user=self._user, cwd="/", capture_output=True, timeout=60
            )
            if done.returncode == 0:
                return
            if left == 1:
                raise AssertionError(done.stderr.decode() or done.stdout.decode())
