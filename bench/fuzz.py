"""Feeds a gateway what no client would send: cases of its own OpenAPI document, and what mutations make of them.

    python bench/fuzz.py [REQUESTS] [SECONDS] [SEED]

Prints the statuses, the slowest probe, and what the gateway used before and after. Exits with 1 where an answer was a
500, the log tells of a bug, or the gateway has ended.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.usage import show, used
from tests.support import Server, Site, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

AT_ONCE = 32
MUTATIONS = 15
"""Requests that are made of one case."""
CASES = 50
"""Cases that are made in one go of one operation."""
SILENT = 2.0  # seconds after which no answer is waited for any more: a request that is not whole has none
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PROBE = 0.05  # seconds between two probes

CONNECTORS = """
echo:
  run: [cat]
  queue: 1000
  commands:
    Any: {additional_parameters: true}
    Plain:
      parameters:
        text: {type: str}
        number: {type: int, required: false}
        truth: {type: bool, required: false}
        any: {required: false, default: 1}
        pin: {secret: true, required: false}
        one: {enum: [1, x], required: false}
    Schema:
      parameters:
        a:
          required: false
          schema:
            properties:
              b: {type: array, items: {type: integer}, uniqueItems: true}
              c: {pattern: "^([a-z]+)+$"}
              d: {multipleOf: 0.5, maximum: 1.0e+300}
              e: {format: date, minLength: 2}
odd:
  run: [sh, -c, "head -c 300 | tail -c 100"]
  queue: 1000
  commands:
    Cut: {additional_parameters: true}
    Suggest: {typeahead: words, parameters: {prefix: {required: false}, limit: {type: int, required: false}}}
"""
GATEWAY = """
metrics: open
typeahead: open
callbacks: {hosts: {127.0.0.1: {}}}
"""
TEXTS = (
    "\0", "\ud800", "é", "\uff11", "../..", "%00", "%ff%fe", "x" * 9000, "9" * 5000, "-1", "1e400", "0x10", "NaN", "{}",
    "[" * 2000, "\u202e", "a\r\nb: c", "${HOME}", "' OR 1=1 --", "\\u0000", "999999999999999999d", "nan", "inf", "-0",
    "1e-320",
)  # fmt: skip
VALUES = (
    b"1e400", b"-1e400", b"9" * 5000, b'"\\ud800"', b'"\\u0000"', b"NaN", b"-Infinity", b"[" * 3000 + b"]" * 3000,
    b'"\xff"', b"\xef\xbb\xbf1", b"01", b"1.", b"tru", b"null", b'{"a":1,"a":2}', b"[" + b"1," * 5000 + b"1]",
    b'"' + b"x" * 100_000 + b'"', b"0.1", b"1" + b"0" * 400, b"{}", b'""', b"[]", b"-0", b"1E+2", b'"\\x"', b"//",
    b"{'a':1}",
)  # fmt: skip
NAMES = (
    b"spiff__task_id",
    b"spiff__callback_url",
    b"spiff__task_data",
    b"spiff__process_instance_id",
    b"a",
    b"text",
    b"",
)
HEADERS: dict[str, tuple[str, ...]] = {
    "Content-Encoding": ("gzip", "deflate", "br", "zstd", "x", "gzip, gzip", ""),
    "Transfer-Encoding": ("chunked", "gzip, chunked", "x"),
    "Expect": ("100-continue", "x"),
    "Content-Type": (
        "text/plain",
        "multipart/form-data",
        "application/json; charset=utf-16",
        "application/json; charset=x",
    ),
    "X-Timeout": ("0", "-1", "nan", "1e-320", "9e99", "x", "0.05"),
    "X-Request-Id": ("", "x" * 200, "a b", "é"),
    "Prefer": ("respond-async", "respond-async, wait=9", "\x01"),
    "traceparent": ("00-" + "0" * 32 + "-" + "0" * 16 + "-00", "x"),
    "Host": ("", "a b", "[::1", "x" * 300),
    "Cookie": ("a", "a=b; a=\x80", "=" * 500),
    "Accept-Encoding": ("gzip", "identity;q=0", "br;q=x"),
    "Range": ("bytes=0-1", "bytes=9-1,x"),
    "Upgrade": ("websocket", "h2c"),
    "If-None-Match": ("*", '"'),
}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "PRI", "X" * 40)


class Request(NamedTuple):
    """One request, taken apart."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def written(self) -> bytes:
        """Return what goes over the wire."""
        told = {name.lower() for name, _ in self.headers}
        more = [("Host", "127.0.0.1")] if "host" not in told else []
        if "transfer-encoding" not in told:
            more.append(("Content-Length", str(len(self.body))))
        lines = [f"{self.method} {self.target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in (*self.headers, *more, ("Connection", "close"))]
        return "\r\n".join([*lines, "", ""]).encode(errors="surrogatepass") + self.body


class Told:
    """What came back."""

    def __init__(self) -> None:
        self.statuses: collections.Counter[str] = collections.Counter()
        self.slowest_probe = 0.0
        self.bugs: list[bytes] = []

    @property
    def sent(self) -> int:
        """Requests so far."""
        return sum(self.statuses.values())


# --- what is sent


def cases(document: dict[str, Any], chance: random.Random) -> Iterator[list[Request]]:
    """Yield cases of each operation, those that fit it and those that do not, in turn and without end."""
    import hypothesis  # noqa: PLC0415 - they take a second
    import schemathesis  # noqa: PLC0415
    from schemathesis import GenerationMode  # noqa: PLC0415

    operations = [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]
    settings = hypothesis.settings(
        max_examples=CASES,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    while True:
        for operation in operations:
            for mode in GenerationMode:
                made: list[Request] = []
                drawn = hypothesis.given(case=operation.as_strategy(generation_mode=mode))(_collector(made))
                with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing is wrong for some operations
                    hypothesis.seed(chance.randrange(1 << 32))(settings(drawn))()
                yield made


def _collector(made: list[Request]) -> Callable[[Any], None]:
    def collect(case: Any) -> None:
        made.append(_taken_apart(case))

    return collect


def _taken_apart(case: Any) -> Request:
    import requests  # noqa: PLC0415 - what the library makes

    wanted = case.as_transport_kwargs(base_url="http://127.0.0.1")
    wanted = {name: wanted.get(name) for name in ("method", "url", "headers", "params", "data", "json", "cookies")}
    try:
        prepared = requests.Request(**wanted).prepare()
    except (ValueError, UnicodeError, requests.RequestException):  # it cannot be said in HTTP
        return Request("GET", quote(str(wanted["url"])[16:]) or "/", (), b"")
    split = urlsplit(prepared.url or "")
    body = prepared.body or b""
    headers = tuple((str(name), str(value)) for name, value in prepared.headers.items() if name != "Content-Length")
    return Request(
        str(prepared.method),
        split.path + (f"?{split.query}" if split.query else ""),
        headers,
        body.encode(errors="surrogatepass") if isinstance(body, str) else bytes(body),
    )


def mutations(case: Request, chance: random.Random) -> Iterator[bytes]:
    """Yield a case as it is, and what becomes of it."""
    yield case.written()
    for _ in range(MUTATIONS):
        one = case
        for _ in range(chance.choice((1, 1, 2))):
            one = chance.choice((_other_body, _other_body, _other_target, _other_header, _other_header, _other_method))(
                one, chance
            )
        raw = one.written()
        yield _broken(raw, chance) if chance.random() < 0.1 else raw


def _other_body(one: Request, chance: random.Random) -> Request:
    value = chance.choice(VALUES)
    values = (value, b"1", b'"http://127.0.0.1:9/x"')
    several = range(chance.randrange(1, 4))
    members = b",".join(b'"%s":%s' % (chance.choice(NAMES), chance.choice(values)) for _ in several)
    body = chance.choice((b"{%s}" % members, value, one.body[: chance.randrange(len(one.body) + 1)], b"{%s" % members))
    return one._replace(body=body)


def _other_target(one: Request, chance: random.Random) -> Request:
    text = chance.choice(TEXTS)
    escaped = quote(text, errors="surrogatepass") if chance.random() < 0.8 else text.replace("\r\n", "")
    path, _, query = one.target.partition("?")
    steps = path.split("/")
    if chance.random() < 0.5:
        steps[chance.randrange(len(steps))] = escaped
        return one._replace(target="/".join(steps) + (f"?{query}" if query else ""))
    name = chance.choice(("limit", "offset", "older_than", "state", "prefix", "run", "redirect_url", "state", "code"))
    return one._replace(target=f"{path}?{query}&{name}={escaped}")


def _other_header(one: Request, chance: random.Random) -> Request:
    name = chance.choice(list(HEADERS))
    value = chance.choice((*HEADERS[name], *(text for text in TEXTS if "\n" not in text)))
    return one._replace(headers=(*one.headers, (name, value)))


def _other_method(one: Request, chance: random.Random) -> Request:
    return one._replace(method=chance.choice(METHODS))


def _broken(raw: bytes, chance: random.Random) -> bytes:
    """Change, drop or add some bytes, the lengths left as they were."""
    data = bytearray(raw)
    for _ in range(chance.randrange(1, 6)):
        place = chance.randrange(len(data) or 1)
        data[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    return bytes(data)


# --- how


async def fuzz(
    gateway: Server, requests: int, seconds: float, seed: int, *, at_once: int = AT_ONCE, told: Told | None = None
) -> Told:
    """Send so many requests, as long as so many seconds have not passed; say what came back, as it comes, in `told`."""
    told, chance = told or Told(), random.Random(seed)
    over = time.monotonic() + seconds
    source = cases((await gateway.get("/openapi.json")).json, chance)
    probing = asyncio.create_task(_probe(gateway, told))
    try:
        while told.sent < requests and time.monotonic() < over:
            made = await asyncio.to_thread(next, source)
            todo = (raw for case in made for raw in mutations(case, chance))
            await asyncio.gather(*(work(gateway.port, todo, told) for _ in range(at_once)))
    finally:
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
    return told


async def work(port: int, todo: Iterator[bytes], told: Told) -> None:
    """Send one after the other."""
    for raw in todo:
        answer = (await answered(port, raw)).removeprefix(CONTINUE)
        status = answer.split(b" ", 2)[1].decode() if answer.startswith(b"HTTP/1.") else "none"
        told.statuses[status] += 1
        if status == "500":
            told.bugs.append(raw[:2000] + b"\n-> " + answer[:2000])


async def answered(port: int, raw: bytes) -> bytes:
    """Send it and return the answer; nothing where none comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(SILENT):
                writer.write(raw)
                while chunk := await reader.read(1 << 16):
                    answer += chunk
    finally:
        writer.transport.abort()
    return answer


async def _probe(gateway: Server, told: Told) -> None:
    while True:
        begun = time.monotonic()
        await gateway.get("/liveness")
        told.slowest_probe = max(told.slowest_probe, time.monotonic() - begun)
        await asyncio.sleep(PROBE)


@contextlib.asynccontextmanager
async def fuzzed(folder: Path) -> AsyncIterator[Server]:
    """Run a gateway with what there is to be fuzzed until the block ends."""
    site = Site(folder)
    site.configure(CONNECTORS, gateway=GATEWAY)
    async with served(site) as gateway:
        yield gateway


def bugs(gateway: Server) -> list[str]:
    """Return what the log tells of bugs."""
    events = [*gateway.events("internal_error"), *gateway.events("listener_failed")]
    return [str(event) for event in events] + [line for line in gateway.log().splitlines() if "Traceback" in line]


async def main(requests: int, seconds: int, seed: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with fuzzed(Path(folder)) as gateway:
            await fuzz(gateway, 1000, seconds, seed + 1)
            show("before", used(gateway))
            begun = time.monotonic()
            told = await fuzz(gateway, requests, seconds, seed)
            took = time.monotonic() - begun
            show("after", used(gateway))
            found = bugs(gateway)
            ended = gateway.process.poll()
            print(f"{told.sent} requests (seed {seed}), {took:.0f} s, {told.sent / took:.0f}/s")
            print(f"the slowest /liveness {told.slowest_probe * 1000:.0f} ms, made by this process, too")
            for status, count in told.statuses.most_common():
                print(f"  {count:7} {status}")
            for bug in (*told.bugs[:20], *found[:20]):
                print(bug)
    return 1 if told.bugs or found or ended is not None else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*(int(word) for word in [*sys.argv[1:], *("100000", "480", "1")[len(sys.argv) - 1 :]]))))
