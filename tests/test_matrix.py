"""The same answers in every mode that a runtime has, whatever a connector's libraries do, and nothing left of it."""

from __future__ import annotations

import asyncio
import http.server
import shutil
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests import procfs
from tests.installing import ROOT, installed
from tests.libraries import listening
from tests.one_gateway import nothing_is_left, nothing_is_left_of_the_file  # noqa: F401
from tests.support import Server, Site, cmdline, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

HAS_NODE = shutil.which("node") is not None
HAS_JAVA = shutil.which("javac") is not None
LEFT = "4242.17"  # seconds that what a call leaves behind would sleep

WEB = """
import requests, urllib.request

SESSION = requests.Session()

def Requests(url: str):
    with SESSION.get(url, timeout=10) as answer:
        return answer.json()

def Urllib(url: str):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return {"status": answer.status, "text": answer.read()}
"""
ARCHIVE = """
import pathlib, zipfile

ARCHIVE = zipfile.ZipFile(pathlib.Path(__file__).with_name("data.zip"))

def Read(number: int):
    text = ARCHIVE.read(f"{number}.txt").decode()
    return [text[:20], len(text)]
"""
HELPER = """
import subprocess

HELPER = subprocess.Popen(["sed", "-u", "s/^/echo /"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

def Ask(text: str):
    print(text, file=HELPER.stdin, flush=True)
    return HELPER.stdout.readline().rstrip()
"""
POOLS = """
import concurrent.futures, multiprocessing, threading

def Pool(method: str):
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(abs, [-1, -2, -3])

def Process(method: str):
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=queue.put, args=([1, 2],))
    process.start()
    found = queue.get(timeout=20)
    process.join()
    return {"found": found, "status": process.exitcode}

def Threads():
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        return list(pool.map(abs, [-1, -2, -3]))
"""
DATABASE = """
import sqlite3

def Rows():
    with sqlite3.connect("own.db") as database:
        database.execute("CREATE TABLE numbers (number INTEGER, data BLOB)")
        database.executemany("INSERT INTO numbers VALUES (?, ?)", [(1, b"a"), (2, None)])
        return database.execute("SELECT * FROM numbers ORDER BY number")
"""
LEAVES = f"""
import pathlib, subprocess, threading, time

WRITTEN = open(pathlib.Path(__file__).with_name("at-import.txt"), "a")
WRITTEN.write("imported\\n")
KEPT = []

def Text(text: str):
    WRITTEN.write(text)
    KEPT.append(open(pathlib.Path(__file__).with_name("in-calls.txt"), "a"))
    KEPT[0].write(text)
    return "left text in two buffers"

def Process():
    subprocess.Popen(["sleep", "{LEFT}"], start_new_session=True)
    return "left a process"

def Thread():
    threading.Thread(target=time.sleep, args=({LEFT},), daemon=True).start()
    return "left a thread"
"""
SHAPES = """
import asyncio, collections, dataclasses, datetime, decimal, enum, pathlib, uuid

Point = collections.namedtuple("Point", "x y")

class Kind(enum.Enum):
    FINE = "fine"

@dataclasses.dataclass
class Line:
    price: decimal.Decimal
    made: datetime.date
    kinds: set

def Values():
    yield Point(1, 2)
    yield Line(decimal.Decimal("0.10"), datetime.date(2024, 1, 2), {Kind.FINE})
    yield {uuid.UUID(int=1): pathlib.Path("/tmp"), "bytes": b"\\xff", "inner": (n for n in [1])}

async def Stream():
    yield await asyncio.sleep(0, result=1)
    yield 2

def Bytes(): return {"response": b"\\xff\\x00", "mimetype": "image/png"}
def Nothing(): pass
def Text(): return "plain ☃"
def Refused(): return {"a": [object()]}
"""
NODE = f"""
import {{ spawn }} from 'node:child_process';

export const Fetch = async ({{ url }}) => (await fetch(url)).json();
export function Callback(params, callback) {{ setTimeout(() => callback(null, params.text), 1); }}
export async function* Stream() {{ yield 1; yield new Date(0); }}
export const Bytes = () => ({{ response: Buffer.from([0xff, 0]), mimetype: 'image/png' }});
export const Nothing = () => undefined;
export const Values = () => [1n, 2n ** 64n, new Map([['a', new Set([1])]]), Buffer.from('hi'), new URL('http://a/')];
export const Refused = () => ({{ a: [Symbol('s')] }});
export function Timer() {{ setInterval(() => {{}}, 1000); return 'left a timer'; }}
export function Process() {{ spawn('sleep', ['{LEFT}'], {{ detached: true, stdio: 'ignore' }}); return 'left a process'; }}
"""
JAVA = f"""
package matrix;

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class Matrix implements connector.Connector {{
    private final HttpClient client = HttpClient.newHttpClient();

    public String describe() {{
        String any = "\\"additional_parameters\\": true, \\"parameters\\": []}}";
        return "{{\\"commands\\": [{{\\"name\\": \\"Fetch\\", " + any + ", {{\\"name\\": \\"Thread\\", " + any
                + ", {{\\"name\\": \\"Process\\", " + any + ", {{\\"name\\": \\"Nothing\\", " + any + "]}}";
    }}

    public String execute(String request) throws Exception {{
        if (request.contains("\\"Fetch\\"")) {{
            String url = request.replaceAll("(?s).*\\"url\\": *\\"([^\\"]*)\\".*", "$1");
            HttpRequest asked = HttpRequest.newBuilder(URI.create(url)).build();
            return client.send(asked, HttpResponse.BodyHandlers.ofString()).body();
        }}
        if (request.contains("\\"Thread\\"")) {{
            new Thread(() -> {{
                try {{
                    Thread.sleep(4242170);
                }} catch (InterruptedException end) {{
                    return;
                }}
            }}).start();
            return "\\"left a thread\\"";
        }}
        if (request.contains("\\"Process\\"")) {{
            new ProcessBuilder("setsid", "sleep", "{LEFT}").start();
            return "\\"left a process\\"";
        }}
        return null;
    }}
}}
"""
FILES = {
    "web.py": WEB, "archive.py": ARCHIVE, "helper.py": HELPER, "pools.py": POOLS, "database.py": DATABASE,
    "leaves.py": LEAVES, "shapes.py": SHAPES, "act.mjs": NODE, "java/matrix/Matrix.java": JAVA,
}  # fmt: skip
MODES = ("spawn", "standby", "persistent")
PYTHON_MODES = (*MODES, "fork")
CALLS: list[tuple[str, dict[str, Any], Any]] = [
    ("web/Requests", {"url": "{url}"}, {"hello": "☃"}),
    ("web/Urllib", {"url": "{url}"}, {"status": 200, "text": "eyJoZWxsbyI6ICJcdTI2MDMifQ=="}),
    *(("archive/Read", {"number": number}, [f"{number} {'x' * 18}", 100_002]) for number in (1, 2)),
    *(("helper/Ask", {"text": text}, f"echo {text}") for text in ("a", "b")),
    *(("pools/Pool", {"method": method}, [1, 2, 3]) for method in ("fork", "spawn", "forkserver")),
    *(("pools/Process", {"method": method}, {"found": [1, 2], "status": 0}) for method in ("fork", "spawn", "forkserver")),
    ("pools/Threads", {}, [1, 2, 3]),
    ("database/Rows", {}, [[1, "YQ=="], [2, None]]),
    ("leaves/Process", {}, "left a process"),
    ("leaves/Thread", {}, "left a thread"),
    (
        "shapes/Values", {},
        [
            [1, 2], {"price": "0.10", "made": "2024-01-02", "kinds": ["fine"]},
            {"00000000-0000-0000-0000-000000000001": "/tmp", "bytes": "/w==", "inner": [1]},
        ],
    ),
    ("shapes/Stream", {}, [1, 2]),
    ("shapes/Nothing", {}, None),
    ("shapes/Text", {}, "plain ☃"),
]  # fmt: skip
NODE_CALLS: list[tuple[str, dict[str, Any], Any]] = [
    ("Fetch", {"url": "{url}"}, {"hello": "☃"}),
    ("Callback", {"text": "a"}, "a"),
    ("Stream", {}, [1, "1970-01-01T00:00:00.000Z"]),
    ("Nothing", {}, None),
    ("Values", {}, [1, "18446744073709551616", {"a": [1]}, "aGk=", "http://a/"]),
    ("Timer", {}, "left a timer"),
    ("Process", {}, "left a process"),
]
JAVA_CALLS: list[tuple[str, dict[str, Any], Any]] = [
    ("Fetch", {"url": "{url}"}, {"hello": "☃"}),
    ("Thread", {}, "left a thread"),
    ("Process", {}, "left a process"),
    ("Nothing", {}, None),
]

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Hello(http.server.BaseHTTPRequestHandler):
    """Answers the same to all."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"hello": "\\u2603"}')

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(Hello) as address:
        yield f"http://{address}/"


def lay_out(folder: Path) -> str:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        for number in range(10):
            archive.writestr(f"{number}.txt", f"{number} {'x' * 100_000}")
    lines = []
    for mode in PYTHON_MODES:
        for name in ("web", "archive", "helper", "pools", "database", "leaves", "shapes"):
            venv = f", venv: {ROOT / '.venv'}" if name == "web" else ""
            lines.append(f"{name}-{mode}: {{runtime: python, module: ./{name}.py, mode: {mode}{venv}}}")
    for mode in MODES:
        if HAS_NODE:
            lines.append(f"node-{mode}: {{runtime: node, module: ./act.mjs, mode: {mode}}}")
        if HAS_JAVA:
            lines.append(f"java-{mode}: {{runtime: java, class: matrix.Matrix, sources: [./java], mode: {mode}}}")
    return "\n".join(lines)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(short_site: Site) -> AsyncIterator[Server]:
    site = short_site
    site.configure(lay_out(site.folder), defaults="timeout: 60s\nwarm: 0")
    if HAS_JAVA:
        installed(site, *(f"java-{mode}" for mode in MODES))
    async with served(site) as server:
        yield server


async def answers(gateway: Server, target: str, params: dict[str, Any], expected: Any, url: str) -> None:
    """Have two calls answered alike, one after the other, and what they have left be gone."""
    sent = {name: value.replace("{url}", url) if isinstance(value, str) else value for name, value in params.items()}
    for _ in range(2):
        answer = await gateway.do(target, sent)
        assert (answer.status, answer.code) == (200, None), answer.raw
        assert answer.body == expected
    await eventually(lambda: not [pid for pid in procfs.scan() if LEFT.encode() in cmdline(pid).split(b"\0")])


@pytest.mark.parametrize("mode", PYTHON_MODES)
@pytest.mark.parametrize(("command", "params", "expected"), CALLS)
async def test_of_a_python_connector(
    gateway: Server, url: str, mode: str, command: str, params: dict[str, Any], expected: Any
) -> None:
    name, _, command = command.partition("/")
    await answers(gateway, f"{name}-{mode}/{command}", params, expected, url)


@pytest.mark.parametrize("mode", PYTHON_MODES)
async def test_of_a_hundred_calls_eight_at_once_each_gets_its_own_answer(gateway: Server, mode: str) -> None:
    places = asyncio.Semaphore(8)

    async def call(number: int) -> None:
        digit = number % 10
        for target, params, expected in (
            (f"archive-{mode}/Read", {"number": digit}, [f"{digit} {'x' * 18}", 100_002]),
            (f"helper-{mode}/Ask", {"text": f"number {number}"}, f"echo number {number}"),
        ):
            async with places:
                answer = await gateway.do(target, params)
            assert (answer.status, answer.code) == (200, None), answer.raw
            assert answer.body == expected

    async with asyncio.TaskGroup() as calls:
        for number in range(100):
            calls.create_task(call(number))


@pytest.mark.parametrize("mode", ["spawn", "standby", "fork"])
async def test_what_a_call_leaves_in_the_buffers_of_files_is_written_once(gateway: Server, mode: str) -> None:
    texts = [f"{mode} {number}\n" for number in range(3)]
    for text in texts:
        assert (await gateway.do(f"leaves-{mode}/Text", {"text": text})).body == "left text in two buffers"
    for name in ("at-import.txt", "in-calls.txt"):
        lines = (gateway.site.folder / name).read_text().splitlines(keepends=True)
        assert [line for line in lines if line in texts] == texts


async def test_what_an_import_leaves_there_is_written_by_the_host_alone(gateway: Server) -> None:
    file = gateway.site.folder / "at-import.txt"
    await gateway.do("leaves-fork/Text", {"text": ""})
    before = file.read_text()
    await gateway.do("leaves-fork/Text", {"text": ""})
    assert file.read_text() == before


@pytest.mark.skipif(not HAS_NODE, reason="there is no node")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("command", "params", "expected"), NODE_CALLS)
async def test_of_a_node_connector(
    gateway: Server, url: str, mode: str, command: str, params: dict[str, Any], expected: Any
) -> None:
    await answers(gateway, f"node-{mode}/{command}", params, expected, url)


@pytest.mark.skipif(not HAS_JAVA, reason="there is no JDK")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("command", "params", "expected"), JAVA_CALLS)
async def test_of_a_java_connector(
    gateway: Server, url: str, mode: str, command: str, params: dict[str, Any], expected: Any
) -> None:
    await answers(gateway, f"java-{mode}/{command}", params, expected, url)


@pytest.mark.parametrize(
    "connector",
    [*(f"shapes-{mode}" for mode in PYTHON_MODES), *(f"node-{mode}" for mode in MODES if HAS_NODE)],
)
async def test_bytes_go_out_as_they_are_and_what_has_no_form_is_refused(gateway: Server, connector: str) -> None:
    answer = await gateway.do(f"{connector}/Bytes")
    assert (answer.status, answer.headers["Content-Type"], answer.raw) == (200, "image/png", b"\xff\x00")
    refused = await gateway.do(f"{connector}/Refused")
    assert (refused.status, refused.code) == (502, "connector_invalid_output")
    assert "a[0] is a" in refused.message
