"""Libraries that connectors use: a connector of each, what it answers, and the servers that it talks to.

tests/test_matrix_libraries.py holds that some answer the same in each mode, bench/matrix.py measures all of them.
"""

from __future__ import annotations

import contextlib
import http.server
import socketserver
import subprocess
import textwrap
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BUCKETS = b"<ListAllMyBucketsResult><Buckets><Bucket><Name>one</Name></Bucket></Buckets></ListAllMyBucketsResult>"
GRPC = """
import grpc, sys
from concurrent import futures
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request[::-1])
server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Handler()])
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
"""


class Case(NamedTuple):
    """A library: what has to be installed, what its connector is, and what its command `Go` answers.

    `{web}`, `{grpc}`, `{postgres}` and `{redis}` in the source are where those servers are.
    """

    requires: tuple[str, ...]
    source: str
    expected: Any
    fork: str = "fork"
    """What mode fork makes of it."""

    def module(self, servers: Mapping[str, str]) -> str:
        """Return the connector's file."""
        source = textwrap.dedent(self.source)
        for name, address in servers.items():
            source = source.replace(f"{{{name}}}", address)
        return source


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
        def Go():
            with grpc.insecure_channel("{grpc}") as channel:
                return channel.unary_unary("/a.A/Turn")(b"abc", timeout=20).decode()
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
        import pandas, pathlib
        def Go():
            pathlib.Path("kinds.csv").write_text("kind,count\\na,1\\nb,2\\na,3\\n")
            return pandas.read_csv("kinds.csv").groupby("kind", as_index=False).sum()
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
    "scipy": Case(
        ("scipy",),
        """
        import scipy.linalg
        import scipy.optimize
        def Go():
            found = scipy.optimize.brentq(lambda x: x * x - 4, 0, 9)
            return [*scipy.linalg.solve([[2, 0], [0, 4]], [2, 4]), round(found, 6)]
        """,
        [1.0, 1.0, 2.0],
    ),
    "matplotlib": Case(
        ("matplotlib",),
        """
        import io
        import matplotlib
        matplotlib.use("agg")
        from matplotlib import pyplot
        def Go():
            figure, axes = pyplot.subplots(figsize=(2, 2), dpi=50)
            axes.plot([1, 2, 3])
            picture = io.BytesIO()
            figure.savefig(picture, format="png")
            return picture.getvalue()[1:4].decode()
        """,
        "PNG",
    ),
    "pyarrow": Case(
        ("pyarrow",),
        """
        import pyarrow, pyarrow.acero
        def Go():
            table = pyarrow.table({"kind": ["a", "b", "a"], "count": [1, 2, 3]})
            return table.group_by("kind").aggregate([("count", "sum")]).sort_by("kind").to_pylist()
        """,
        [{"kind": "a", "count_sum": 4}, {"kind": "b", "count_sum": 2}],
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
    "lxml": Case(
        ("lxml",),
        """
        from lxml import etree
        def Go(): return etree.fromstring("<a><b>one</b><b>two</b></a>").xpath("//b/text()")
        """,
        ["one", "two"],
    ),
    "cryptography": Case(
        ("cryptography",),
        """
        from cryptography.fernet import Fernet
        def Go():
            box = Fernet(Fernet.generate_key())
            return box.decrypt(box.encrypt(b"secret")).decode()
        """,
        "secret",
    ),
    "Pillow": Case(
        ("Pillow",),
        """
        import io
        from PIL import Image
        def Go():
            picture = io.BytesIO()
            Image.new("RGB", (40, 30), "red").save(picture, "png")
            return Image.open(picture).resize((4, 3)).getpixel((0, 0))
        """,
        [255, 0, 0],
    ),
    "redis": Case(
        ("redis",),
        """
        import redis
        CLIENT = redis.Redis.from_url("{redis}", decode_responses=True)
        def Go(): return CLIENT.get("name")
        """,
        "one",
    ),
    "pymongo": Case(
        ("pymongo",),
        """
        import bson, pymongo
        def Go():
            with pymongo.MongoClient("mongodb://127.0.0.1:9", connect=False) as client:
                return bson.decode(bson.encode({"base": client.get_database("one").name}))
        """,
        {"base": "one"},
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


class Redis(socketserver.StreamRequestHandler):
    """What a client of Redis asks when it connects, and the one value of every key."""

    def handle(self) -> None:
        """Answer until the client goes."""
        while head := self.rfile.readline():
            words = []
            for _ in range(int(head[1:])):
                words.append(self.rfile.read(int(self.rfile.readline()[1:])))
                self.rfile.readline()
            answers = {b"GET": b"$3\r\none\r\n", b"HELLO": b"%1\r\n+proto\r\n:3\r\n"}
            self.wfile.write(answers.get(words[0].upper(), b"+OK\r\n"))


class _Threads(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


@contextlib.contextmanager
def listening(handler: type[socketserver.BaseRequestHandler]) -> Iterator[str]:
    """Serve on the loopback, a thread for each connection; return host and port."""
    with _Threads(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def grpc_server(python: Path) -> Iterator[str]:
    """Serve a service that turns texts round, with the interpreter of an environment that has grpcio."""
    with subprocess.Popen(
        [python, "-c", GRPC], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield f"127.0.0.1:{server.stdout.readline().strip()}"
        server.stdin.close()
