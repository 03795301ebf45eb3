"""A gateway that counts its own function calls: `python -m bench.profiled FILE BODY CALLS ANSWER`.

A thread of it makes the calls, one after the other over one connection, and writes what they took into ANSWER as JSON.
Only the loop's thread is counted. A coroutine counts whenever it goes on, as the interpreter's hook has it.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from bench.servers import free_port, post

if TYPE_CHECKING:
    from types import CodeType, FrameType

WARM = 200  # calls that are not counted
STILL = 0.002  # seconds without a function call after which a call is over, its log line included
KEY = "the-key-of-the-bench"

_counts: Counter[CodeType] = Counter()


def main() -> None:
    """Serve until the calls are made."""
    file, body, calls, answer = sys.argv[1:]
    port = free_port()
    client = threading.Thread(target=_call, args=(port, body.encode(), int(calls), Path(answer)), daemon=True)
    client.start()
    os.environ["CONNECTOR_PROXY_API_KEY"] = KEY
    from gateway.cli.main import main as verb  # noqa: PLC0415 - after the thread, which is not to be counted

    sys.setprofile(_hook)
    verb(["serve", "--config", file, "--listen", f"127.0.0.1:{port}", "--log-format", "json"])


def _hook(frame: FrameType, event: str, _: object) -> None:
    if event == "call":
        _counts[frame.f_code] += 1


def _call(port: int, body: bytes, calls: int, answer: Path) -> None:
    try:
        connection = _connected(port)
        for _ in range(WARM):
            _post(connection, body)
        told = [_counted(connection, body) for _ in range(calls)]
        answer.write_text(json.dumps(told))
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def _counted(connection: http.client.HTTPConnection, body: bytes) -> list[tuple[str, str, int]]:
    """Make a call; return file, function and how often it was called."""
    _rest()
    before = _counts.copy()
    _post(connection, body)
    _rest()
    return [(code.co_filename, code.co_qualname, count - before[code]) for code, count in _counts.copy().items()
            if count > before[code]]  # fmt: skip


def _rest() -> None:
    before = -1
    while (now := _counts.total()) != before:
        before = now
        time.sleep(STILL)


def _connected(port: int) -> http.client.HTTPConnection:
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.connect()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return connection


def _post(connection: http.client.HTTPConnection, body: bytes) -> None:
    post(connection, "/v1/do/filter/Go", body, {"Authorization": f"Bearer {KEY}"})


if __name__ == "__main__":
    main()
