"""Installs this repository's connectors, starts the gateway, shows discovery, calls each, shows failures, and stops."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml
from aiosmtpd.controller import Controller

if TYPE_CHECKING:
    from aiosmtpd.smtp import SMTP, Envelope, Session

ROOT = Path(__file__).parent.parent
KEY = "demo-key"
GATEWAY = (sys.executable, "-m", "gateway")
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("a shell script", "machine/Load", {}),
    ("a Python script", "table/Parse", {"text": "name,city\nAda,London\nGrace,New York"}),
    ("a Perl script", "text/Find", {"text": "order 17, order 18", "pattern": r"order (\d+)"}),
    ("a program that knows nothing of connectors", "echo/Request", {"greeting": "hello"}),
    ("bash functions", "files/Checksum", {"text": "hello"}),
    ("a Node module with packages from npm", "markdown/MarkdownToHtml", {"markdown": "# Order 17\n*on its way*"}),
    ("a Java class with libraries from Maven", "pdf/TextToPdf", {"text": "Order 17"}),
    (
        "Python functions: a mail to a server in this script",
        "smtp/SendEmail",
        {"to": "ada@example.org", "subject": "Order 17", "body": "It is on its way."},
    ),
]
BUILT = {"markdown": ("node", "npm"), "pdf": ("java", "javac", "mvn"), "postgres": (), "s3": ()}
"""What has to be installed, and the programs which that takes."""
SHOWN = 300  # characters of a result
FAILURES: list[tuple[str, str, dict[str, Any]]] = [
    ("an error that the connector tells", "text/Find", {"text": "x", "pattern": "("}),
    ("parameters that do not fit", "table/Parse", {"txt": "x", "delimiter": 5}),
    ("a database that nobody has named", "postgres/Query", {"sql": "SELECT 1"}),
    ("an object store that nobody has named", "s3/GetObject", {"bucket": "orders", "key": "17.pdf"}),
]


def main() -> int:
    """Run the demo; 0 when everything answered as it should."""
    with tempfile.TemporaryDirectory() as folder, Inbox() as inbox:
        file = Path(folder) / "connectors.yaml"
        configure(file, inbox.port)
        skipped = install(file)
        step("starting the gateway: .venv/bin/gateway serve --listen 127.0.0.1:0")
        process = subprocess.Popen(
            [*GATEWAY, "serve", "--config", file, "--listen", "127.0.0.1:0", "--log-format", "json"],
            stderr=subprocess.PIPE,
            env={**os.environ, "CONNECTOR_PROXY_API_KEY": KEY},
        )
        try:
            assert process.stderr is not None
            events = map(json.loads, process.stderr)
            port = next(event["port"] for event in events if event["event"] == "listening")
            good = run(f"http://127.0.0.1:{port}", skipped)
        finally:
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate()
        step("the mail that arrived")
        print("".join(f"  {line}\n" for line in inbox.mails), end="")
        good = good and bool(inbox.mails)
    step(f"stopped with SIGTERM: exit status {process.returncode}; its log has a line a run, for example")
    print("  " + next(line for line in log.decode().splitlines() if '"event":"run"' in line))
    return 0 if good and process.returncode == 0 else 1


def configure(file: Path, mail_port: int) -> None:
    """Write the repository's connectors.yaml again, with a mail server."""
    document = yaml.safe_load((ROOT / "connectors.yaml").read_text())
    for key in ("connectors_dir", "state_dir"):
        document["gateway"][key] = str(ROOT / document["gateway"][key])
    clear = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": mail_port, "SMTP_STARTTLS": False, "SMTP_FROM": "me@example.org"}
    document["connectors"]["smtp"] = {"config": clear}
    file.write_text(yaml.safe_dump(document))


def install(file: Path) -> dict[str, str]:
    """Build what is not built yet; return the connectors that cannot be, and why."""
    skipped = {}
    for name, programs in BUILT.items():
        missing = [program for program in programs if shutil.which(program) is None]
        if missing:
            skipped[name] = f"this machine has no {', '.join(missing)}"
    names = [name for name in BUILT if name not in skipped]
    step(f"building: .venv/bin/gateway install {' '.join(names)}")
    done = subprocess.run(
        [*GATEWAY, "install", "--config", file, *names], stdout=subprocess.PIPE, text=True, check=False
    )
    print("".join(f"  {line}\n" for line in done.stdout.splitlines()), end="")
    for line in done.stdout.splitlines():
        if line.startswith("failed "):
            skipped[line.split()[1]] = "it could not be built, see above"
    return skipped


class Inbox:
    """A mail server that keeps the lines of what it gets."""

    def __init__(self) -> None:
        """Find a free port."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.mails: list[str] = []
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)

    def __enter__(self) -> Self:
        """Start it in a thread of its own."""
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self._controller.stop()

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Take a mail."""
        assert isinstance(envelope.content, bytes)
        self.mails += envelope.content.decode().splitlines()
        return "250 OK"


def run(url: str, skipped: dict[str, str]) -> bool:
    """Call everything; tell whether it went as it should."""
    step(f"discovery: GET {url}/v1/commands")
    for command in ask(f"{url}/v1/commands")[1]:
        parameters = ", ".join(f"{p['id']}: {p['type']}" for p in command["parameters"])
        print(f"  {command['id']}({parameters})  {command.get('description', '')}")
    good = True
    for what, target, params in CALLS:
        if skips(target, skipped):
            continue
        step(f"{what}: POST /v1/do/{target} {json.dumps(params)}")
        status, answer = ask(f"{url}/v1/do/{target}", params)
        body = json.dumps(answer["command_response"]["body"])
        print(f"  {status} {body if len(body) <= SHOWN else f'{body[:SHOWN]}... ({len(body)} characters)'}")
        good = good and status == 200 and answer["error"] is None
    for what, target, params in FAILURES:
        if skips(target, skipped):
            continue
        step(f"{what}: POST /v1/do/{target} {json.dumps(params)}")
        status, answer = ask(f"{url}/v1/do/{target}", params)
        print(f"  {status} {answer['error']['error_code']}: {answer['error']['message'].strip()}")
        good = good and answer["error"] is not None
    return good


def skips(target: str, skipped: dict[str, str]) -> bool:
    """Say why a connector is not called, if it is not."""
    name = target.partition("/")[0]
    if name in skipped:
        step(f"{target} is skipped: {skipped[name]}")
    return name in skipped


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
