"""Other ways to run a program for each HTTP request, started with one program to run."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from typing import TYPE_CHECKING

from bench.machine import find
from bench.servers import HERE, Server, free_port, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAIVE = "naive aiohttp"
FLOOR = "aiohttp, no process"
PATHS = {"webhook": "/hooks/filter", "lighttpd": "/filter.cgi", NAIVE: "/", FLOOR: "/"}


def available(name: str) -> bool:
    """Tell whether this machine has the peer."""
    return name in (NAIVE, FLOOR) or find(name) is not None


@contextlib.contextmanager
def peer(name: str, program: Path, folder: Path) -> Iterator[Server]:
    """Run a peer that runs the program for each request."""
    port = free_port()
    folder.mkdir()
    if name == "webhook":
        argv = _webhook(program, folder, port)
    elif name == "lighttpd":
        argv = _lighttpd(program, folder, port)
    else:
        argv = [sys.executable, str(HERE / "naive.py"), str(port), *([str(program)] if name == NAIVE else [])]
    with started(argv, port=port, folder=folder) as server:
        yield server


def _webhook(program: Path, folder: Path, port: int) -> list[str]:
    hook = {
        "id": "filter",
        "execute-command": str(program),
        "include-command-output-in-response": True,
        "pass-environment-to-command": [{"source": "entire-payload", "envname": "PAYLOAD"}],
    }
    (folder / "hooks.json").write_text(json.dumps([hook]))
    return [str(find("webhook")), "-hooks", str(folder / "hooks.json"), "-ip", "127.0.0.1", "-port", str(port)]


def _lighttpd(program: Path, folder: Path, port: int) -> list[str]:
    shutil.copy(program, folder / "filter.cgi")
    (folder / "lighttpd.conf").write_text(
        f'server.modules = ("mod_cgi")\n'
        f'server.document-root = "{folder}"\n'
        f'server.bind = "127.0.0.1"\nserver.port = {port}\n'
        f"server.max-keep-alive-requests = 0\n"
        f'cgi.assign = (".cgi" => "")\n'
    )
    return [str(find("lighttpd")), "-D", "-f", str(folder / "lighttpd.conf")]
