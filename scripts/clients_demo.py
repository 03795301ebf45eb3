"""Three clients behind one gateway, over HTTPS: an old SDK, a new one, and none; a key is changed under load."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
GATEWAY = (sys.executable, "-m", "gateway")
CLOUD = '''
"""Asks an object store what there is, with the SDK that is installed."""

import os

import boto3


def Buckets() -> dict:
    """List the buckets."""
    found = boto3.client("s3", endpoint_url=os.environ["STORE"]).list_buckets()
    return {"boto3": boto3.__version__, "buckets": [one["Name"] for one in found["Buckets"]]}
'''
CONFIG = """
gateway: {{state_dir: {state}, connectors_dir: null, tls: {{cert: tls.crt, key: tls.key}}}}
secrets: {{dir: secrets}}
connectors:
  aws:
    runtime: python
    module: ./cloud.py
    requirements: [boto3]
    env: {{STORE: "{store}", AWS_DEFAULT_REGION: us-east-1,
           AWS_ACCESS_KEY_ID: common, AWS_SECRET_ACCESS_KEY: {{secret: common_aws}}}}
  echo:
    run: [cat]
    commands: {{Request: {{additional_parameters: true}}}}
"""
ACME = """
keys: [{keys}]
connectors:
  aws:
    requirements: ["boto3==1.26.*"]
    env: {{AWS_ACCESS_KEY_ID: acme, AWS_SECRET_ACCESS_KEY: {{secret: acme_aws}}}}
"""
CALLERS = 4
CALLS = 25  # of each, with the old key and with the new one


class Caller(NamedTuple):
    """A client, with its key."""

    url: str
    key: str
    trusted: ssl.SSLContext

    def ask(self, path: str, params: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Send a request; return status and JSON."""
        data = None if params is None else json.dumps(params).encode()
        request = urllib.request.Request(self.url + path, data, {"Authorization": f"Bearer {self.key}"})
        try:
            with urllib.request.urlopen(request, timeout=45, context=self.trusted) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as problem:
            return problem.code, json.load(problem)


class Store(http.server.BaseHTTPRequestHandler):
    """An object store that knows who asks, by the access key, and with what."""

    protocol_version = "HTTP/1.1"
    seen: list[str]

    def do_GET(self) -> None:
        """List one bucket: it is called as whoever asks."""
        found = re.search(r"Credential=(\w+)/", self.headers["Authorization"])
        agent = re.match(r"Boto3/\S+", self.headers["User-Agent"])
        who = found[1] if found else "nobody"
        self.seen.append(f"{who} with {agent[0] if agent else 'something else'}")
        body = (
            '<?xml version="1.0" encoding="UTF-8"?><ListAllMyBucketsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Buckets><Bucket><Name>{who}-orders</Name></Bucket></Buckets></ListAllMyBucketsResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> int:
    """Run the demo; 0 when everything answered as it should."""
    with tempfile.TemporaryDirectory() as name, store() as address:
        folder = Path(name)
        keys = prepare(folder, address)
        step("building both SDKs: gateway install")
        run("install", "--config", str(folder / "connectors.yaml"))
        step("what each sees: gateway list --client NAME")
        for client in keys:
            found = run("list", "--config", str(folder / "connectors.yaml"), "--client", client, "--json", quiet=True)
            print(f"  {client}: {', '.join(one['id'] for one in json.loads(found))}")
        with gateway(folder) as url:
            trusted = ssl.create_default_context(cafile=str(folder / "tls.crt"))
            callers = {client: Caller(url, key, trusted) for client, key in keys.items()}
            good = show(callers)
            good = change_key(folder, callers["acme"]) and good
    step("what the object store saw: " + "; ".join(sorted(set(Store.seen))))
    return 0 if good else 1


def prepare(folder: Path, store_address: str) -> dict[str, str]:
    """Write what an operator would; return each client's key."""
    certify(folder)
    (folder / "cloud.py").write_text(CLOUD)
    state = ROOT / ".gateway" / "clients-demo"
    (folder / "connectors.yaml").write_text(CONFIG.format(state=state, store=store_address))
    secrets = folder / "secrets"
    secrets.mkdir()
    (secrets / "common_aws").write_text("common-secret\n")
    (secrets / "acme_aws").write_text("acme-secret\n")
    clients = folder / "clients.d"
    clients.mkdir()
    keys, entries = {}, {}
    for client in ("acme", "beta", "gamma"):
        keys[client], entries[client] = new_key(folder, client)
    (clients / "acme.yaml").write_text(ACME.format(keys=entries["acme"]))
    (clients / "beta.yaml").write_text(f"keys: [{entries['beta']}]\n")
    (clients / "gamma.yaml").write_text(f"keys: [{entries['gamma']}]\nallow: [echo]\n")
    step("three clients: acme has an old boto3 of its own, beta the common one, gamma no AWS at all")
    for file in sorted(clients.iterdir()):
        print("".join(f"  {file.name}: {line}\n" for line in file.read_text().strip().splitlines()), end="")
    return keys


def new_key(folder: Path, client: str) -> tuple[str, str]:
    """Have a key made; return it, and what to write into the client's file."""
    done = subprocess.run(
        [*GATEWAY, "keys", "new", client, "--config", folder / "connectors.yaml"],
        capture_output=True,
        text=True,
        check=True,
    )
    entry = re.search(r"- (\{.*\})", done.stderr)
    assert entry is not None
    return done.stdout.strip(), entry[1]


def show(callers: dict[str, Caller]) -> bool:
    """Call everything; tell whether it went as it should."""
    answers = {}
    for client, caller in callers.items():
        step(f"{client}: POST {caller.url}/v1/do/aws/Buckets")
        status, answer = caller.ask("/v1/do/aws/Buckets", {})
        answers[client] = status, answer["command_response"]["body"]
        print(f"  {status} {json.dumps(answer['command_response']['body'] or answer['error'])}")
        print(f"  its commands: {', '.join(one['id'] for one in caller.ask('/v1/commands')[1])}")
    (acme, old), (beta, new), (gamma, _) = answers.values()
    step("a key that is nobody's")
    stranger = callers["acme"]._replace(key="acme_guessed").ask("/v1/commands")
    print(f"  {stranger[0]} {stranger[1]}")
    return (
        (acme, beta, gamma, stranger[0]) == (200, 200, 404, 401)
        and old["boto3"].startswith("1.26.")
        and not new["boto3"].startswith("1.26.")
        and (old["buckets"], new["buckets"]) == (["acme-orders"], ["common-orders"])
    )


def change_key(folder: Path, acme: Caller) -> bool:
    """Change acme's key while it calls all the time; tell whether no call has failed, and the old key is refused."""
    step(f"acme's key is changed while {CALLERS} callers call without a pause")
    file = folder / "clients.d" / "acme.yaml"
    before = file.read_text()
    key, entry = new_key(folder, "acme")
    failed: list[Any] = []
    halfway = threading.Barrier(CALLERS + 1)

    def calls() -> None:
        for each in (acme, acme._replace(key=key)):
            for _ in range(CALLS):
                status, answer = each.ask("/v1/do/echo/Request", {})
                if status != 200:
                    failed.append(answer)
            halfway.wait()
            halfway.wait()

    callers = [threading.Thread(target=calls) for _ in range(CALLERS)]
    for one in callers:
        one.start()
    write(file, before.replace("keys: [", f"keys: [{entry}, "))
    while acme._replace(key=key).ask("/v1/commands")[0] != 200:
        pass
    halfway.wait()  # all have called with the old one, and begin with the new one
    halfway.wait()
    write(file, re.sub(r"keys: \[.*\]", f"keys: [{entry}]", before))
    while acme.ask("/v1/commands")[0] != 401:
        pass
    halfway.wait()
    halfway.wait()
    for one in callers:
        one.join()
    print(f"  {2 * CALLERS * CALLS} calls, {len(failed)} failed; the old key: 401")
    return not failed


def write(file: Path, text: str) -> None:
    """Write a file at once, as nobody reads half of it."""
    draft = file.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(file)


@contextlib.contextmanager
def gateway(folder: Path) -> Iterator[str]:
    """Serve until the block ends; yield the URL."""
    step("gateway serve, with TLS")
    process = subprocess.Popen(
        [*GATEWAY, "serve", "--config", folder / "connectors.yaml", "--listen", "127.0.0.1:0", "--log-format", "json"],
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("CONNECTOR_PROXY_")},
    )
    try:
        assert process.stderr is not None
        events = map(json.loads, process.stderr)
        port = next(event["port"] for event in events if event["event"] == "listening")
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        yield f"https://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        drain.join()


@contextlib.contextmanager
def store() -> Iterator[str]:
    """Serve the object store until the block ends; yield its URL."""
    Store.seen = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def certify(folder: Path) -> None:
    """Make a certificate for 127.0.0.1 that holds for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway demo")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "tls.crt").write_bytes(made.public_bytes(pem))
    plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "tls.key").write_bytes(plain)


def run(verb: str, *arguments: str, quiet: bool = False) -> str:
    """Run a verb of the command line, and return what it prints."""
    done = subprocess.run([*GATEWAY, verb, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if not quiet or done.returncode:
        print("".join(f"  {line}\n" for line in done.stdout.splitlines()), end="")
    done.check_returncode()
    return done.stdout


def step(text: str) -> None:
    """Say what happens next."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
