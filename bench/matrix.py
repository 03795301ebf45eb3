"""Real libraries in each mode of Python: the same answers, how long they take, and nothing left.

    python bench/matrix.py [LIBRARY...]

Fetches the libraries from the package index, writes docs/matrix.md (when all were asked for). Exits with 1 where an
answer is another than expected, or a process is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import uv

from tests import procfs
from tests.support import Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "matrix.md"
MODES = ("spawn", "standby", "fork", "persistent")
ROUNDS = 7  # calls one after the other, of which the least counts
AT_ONCE = 4
PATIENCE = 600  # seconds until all have been asked what they can do
BUCKETS = b"<ListAllMyBucketsResult><Buckets><Bucket><Name>one</Name></Bucket></Buckets></ListAllMyBucketsResult>"


class Case(NamedTuple):
    """A library: what its connector is, and what it answers. `{web}` and `{postgres}` in the source are filled in."""

    requires: tuple[str, ...]
    source: str
    expected: Any


CASES = {
    "requests": Case(
        ("requests",),
        """
        import requests
        SESSION = requests.Session()
        def Go(): return SESSION.get("{web}/json", timeout=20).json()
        """,
        {"hello": 1},
    ),
    "httpx": Case(
        ("httpx",),
        """
        import httpx
        async def Go():
            async with httpx.AsyncClient() as client:
                return (await client.get("{web}/json")).json()
        """,
        {"hello": 1},
    ),
    "boto3": Case(
        ("boto3",),
        """
        import boto3
        def Go():
            keys = {"region_name": "a", "aws_access_key_id": "a", "aws_secret_access_key": "b"}
            s3 = boto3.client("s3", endpoint_url="{web}", **keys)
            return [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
        """,
        ["one"],
    ),
    "psycopg": Case(
        ("psycopg[binary]",),
        """
        import psycopg
        def Go():
            with psycopg.connect("{postgres}") as connection:
                return connection.execute("SELECT n, n::text FROM generate_series(1, 2) n").fetchall()
        """,
        [[1, "1"], [2, "2"]],
    ),
    "grpcio": Case(
        ("grpcio",),
        """
        import grpc
        from concurrent import futures
        class Handler(grpc.GenericRpcHandler):
            def service(self, details):
                return grpc.unary_unary_rpc_method_handler(lambda request, context: request[::-1])
        def Go():
            server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Handler()])
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                answer = channel.unary_unary("/a.A/Turn")(b"abc", timeout=20)
            server.stop(None).wait()
            return answer.decode()
        """,
        "cba",
    ),
    "numpy": Case(
        ("numpy",),
        """
        import numpy
        def Go():
            matrix = numpy.eye(300) * 2
            when = numpy.datetime64("2024-01-02")
            return {"trace": numpy.trace(matrix @ matrix), "list": numpy.arange(3), "when": when}
        """,
        {"trace": 1200.0, "list": [0, 1, 2], "when": "2024-01-02T00:00:00"},
    ),
    "pandas": Case(
        ("pandas",),
        """
        import pandas
        def Go():
            frame = pandas.DataFrame({"kind": ["a", "b", "a"], "count": [1, 2, 3]})
            return frame.groupby("kind", as_index=False).sum()
        """,
        [{"kind": "a", "count": 4}, {"kind": "b", "count": 2}],
    ),
    "polars": Case(
        ("polars",),
        """
        import polars
        def Go():
            frame = polars.DataFrame({"kind": ["a", "b", "a"], "count": [1, 2, 3]})
            return frame.group_by("kind").sum().sort("kind").to_dicts()
        """,
        [{"kind": "a", "count": 4}, {"kind": "b", "count": 2}],
    ),
    "scikit-learn": Case(
        ("scikit-learn",),
        """
        from sklearn.linear_model import LinearRegression
        def Go(): return LinearRegression().fit([[0], [1], [2]], [1, 3, 5]).predict([[3]]).round(6)
        """,
        [7.0],
    ),
    "gevent": Case(
        ("gevent", "requests"),
        """
        from gevent import monkey
        monkey.patch_all()
        import gevent, requests
        def Go():
            jobs = [gevent.spawn(requests.get, "{web}/json", timeout=20) for _ in range(3)]
            gevent.joinall(jobs)
            return [job.value.json() for job in jobs]
        """,
        [{"hello": 1}] * 3,
    ),
}


class Web(http.server.BaseHTTPRequestHandler):
    """A page of JSON, and S3's list of buckets."""

    def do_GET(self) -> None:
        """Answer."""
        body = b'{"hello": 1}' if self.path == "/json" else BUCKETS
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if self.path == "/json" else "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def web() -> Iterator[str]:
    """Serve `Web` on the loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL of Debian's that trusts its machine; its socket is in a folder that all may enter."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries:
        sys.exit("there is no PostgreSQL: apt-get install postgresql")
    user: dict[str, Any] = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="matrix-postgres-"))
    data, port = folder / "data", 20_000 + os.getpid() % 20_000
    if user:
        shutil.chown(folder, "nobody", user["group"])
    initdb = [binaries[-1] / "initdb", "-D", data, "-U", "robot", "--auth", "trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd="/", **user)
    command = [binaries[-1] / "postgres", "-D", data, "-c", f"port={port}", "-c", "unix_socket_directories="]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **user) as server:
        try:
            ready = [binaries[-1] / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            while subprocess.run(ready, check=False).returncode:
                time.sleep(0.1)
            yield f"host=127.0.0.1 port={port} user=robot dbname=postgres"
        finally:
            server.terminate()
            server.wait()
            shutil.rmtree(folder)


def lay_out(site: Site, cases: dict[str, Case], filled: dict[str, str]) -> dict[str, str]:
    """Write a connector a library and mode, install each library, and return what version it has."""
    tool, lines, versions = uv.find_uv_bin(), [], {}
    for name, case in cases.items():
        source = case.source.strip("\n")
        for word, text in filled.items():
            source = source.replace(f"{{{word}}}", text)
        indent = len(source) - len(source.lstrip())
        module = name.replace("-", "_")
        (site.folder / f"{module}_.py").write_text("\n".join(line[indent:] for line in source.splitlines()) + "\n")
        venv = site.folder / f"venv-{name}"
        python = venv / "bin" / "python"
        subprocess.run([tool, "venv", "-q", "-p", sys.executable, venv], check=True)
        subprocess.run([tool, "pip", "install", "-q", "-p", python, *case.requires], check=True)
        listed = subprocess.run([tool, "pip", "freeze", "-p", python], check=True, capture_output=True, text=True)
        versions[name] = next(line for line in listed.stdout.splitlines() if line.startswith(f"{name}==")).split("==")[
            1
        ]
        for mode in MODES:
            keys = f"runtime: python, module: ./{module}_.py, venv: ./venv-{name}, mode: {mode}"
            lines.append(f"{name}-{mode}: {{{keys}}}")
    site.configure("\n".join(lines), defaults="timeout: 60s\ndescribe_timeout: 120s")
    return versions


async def measure(gateway: Server, connector: str, expected: Any) -> tuple[str, list[str]]:
    """Call a connector again and again; return what its cell of the table says, and what was wrong."""
    wrong: list[str] = []
    least = float("inf")

    async def call() -> None:
        nonlocal least
        begun = time.perf_counter()
        answer = await gateway.do(f"{connector}/Go")
        least = min(least, time.perf_counter() - begun)
        if answer.status != 200 or answer.json.get("error") or answer.body != expected:
            wrong.append(answer.raw[:300].decode())

    await call()
    for _ in range(2):
        await asyncio.gather(*(call() for _ in range(AT_ONCE)))
    for _ in range(ROUNDS):
        await call()
    status = await gateway.status(connector)
    mode = status["mode"]
    took = f"{least * 1000:.0f} ms" + ("" if connector.endswith(f"-{mode}") else f" in {mode}")
    return (f"{len(wrong)} of {1 + 2 * AT_ONCE + ROUNDS} wrong" if wrong else took), wrong


async def run(cases: dict[str, Case]) -> tuple[str, bool]:
    """Try all; return the table, and whether all of it was as it should be."""
    good = True
    rows, reasons = [], []
    with web() as address, postgres() as dsn, tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        site = Site(Path(folder))
        versions = lay_out(site, cases, {"web": address, "postgres": dsn})
        async with served(site, ready=False) as gateway:
            await eventually(gateway.ready, PATIENCE)
            for name, case in cases.items():
                cells = []
                for mode in MODES:
                    cell, wrong = await measure(gateway, f"{name}-{mode}", case.expected)
                    good = good and not wrong
                    cells.append(cell)
                    for one in wrong[:1]:
                        print(f"{name}-{mode}: {one}", file=sys.stderr)
                rows.append(f"| {name} {versions[name]} | {' | '.join(cells)} |")
                print(rows[-1], flush=True)
                notices = (await gateway.status(f"{name}-fork"))["notices"]
                reasons += [f"- {name}: {one}" for one in notices]
        left = [pid for pid in procfs.scan() if procfs.mentions(pid, folder)]
        good = good and not left
        for pid in left:
            print(f"left: {pid}", file=sys.stderr)
    head = f"| library | {' | '.join(MODES)} |\n| --- |{' --- |' * len(MODES)}"
    return "\n".join([head, *rows, *(["", "What mode fork says:", "", *reasons] if reasons else [])]) + "\n", good


def main() -> int:
    """Run it all, or what is named."""
    asked = sys.argv[1:] or list(CASES)
    unknown = set(asked) - set(CASES)
    if unknown:
        sys.exit(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    table, good = asyncio.run(run({name: CASES[name] for name in asked}))
    if asked == list(CASES):
        begin = DOCUMENT.read_text().partition("<!-- table -->\n")[0]
        DOCUMENT.write_text(f"{begin}<!-- table -->\n{table}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
