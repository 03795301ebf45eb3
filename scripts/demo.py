"""Starts the gateway on this repository's connectors, shows discovery, calls each, shows a failure, and stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
KEY = "demo-key"
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("a shell script", "machine/Load", {}),
    ("a Python script", "table/Parse", {"text": "name,city\nAda,London\nGrace,New York"}),
    ("a Perl script", "text/Find", {"text": "order 17, order 18", "pattern": r"order (\d+)"}),
    ("a program that knows nothing of connectors", "echo/Request", {"greeting": "hello"}),
]
FAILURES: list[tuple[str, str, dict[str, Any]]] = [
    ("an error that the connector tells", "text/Find", {"text": "x", "pattern": "("}),
    ("parameters that do not fit", "table/Parse", {"txt": "x", "delimiter": 5}),
]


def main() -> int:
    """Run the demo; 0 when everything answered as it should."""
    step("starting the gateway: .venv/bin/gateway serve --listen 127.0.0.1:0")
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--listen", "127.0.0.1:0", "--log-format", "json"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        env={**os.environ, "CONNECTOR_PROXY_API_KEY": KEY},
    )
    try:
        assert process.stderr is not None
        events = map(json.loads, process.stderr)
        port = next(event["port"] for event in events if event["event"] == "listening")
        good = run(f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate()
    step(f"stopped with SIGTERM: exit status {process.returncode}; its log has a line a run, for example")
    print("  " + next(line for line in log.decode().splitlines() if '"event":"run"' in line))
    return 0 if good and process.returncode == 0 else 1


def run(url: str) -> bool:
    """Call everything; tell whether it went as it should."""
    step(f"discovery: GET {url}/v1/commands")
    for command in ask(f"{url}/v1/commands")[1]:
        parameters = ", ".join(f"{p['id']}: {p['type']}" for p in command["parameters"])
        print(f"  {command['id']}({parameters})  {command.get('description', '')}")
    good = True
    for what, target, params in CALLS:
        step(f"{what}: POST /v1/do/{target} {json.dumps(params)}")
        status, answer = ask(f"{url}/v1/do/{target}", params)
        print(f"  {status} {json.dumps(answer['command_response']['body'])}")
        good = good and status == 200 and answer["error"] is None
    for what, target, params in FAILURES:
        step(f"{what}: POST /v1/do/{target} {json.dumps(params)}")
        status, answer = ask(f"{url}/v1/do/{target}", params)
        print(f"  {status} {answer['error']['error_code']}: {answer['error']['message'].strip()}")
        good = good and answer["error"] is not None
    return good


def ask(url: str, params: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Send a request with the key; return status and JSON."""
    data = None if params is None else json.dumps(params).encode()
    request = urllib.request.Request(url, data, {"Spiff-Connector-Proxy-Api-Key": KEY})
    try:
        with urllib.request.urlopen(request, timeout=45) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as problem:
        return problem.code, json.load(problem)


def step(text: str) -> None:
    """Say what happens next."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
