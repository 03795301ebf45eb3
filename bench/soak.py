"""A soak: good, bad and hostile calls together against a real gateway, and what is left of them.

    python bench/soak.py [MINUTES] [AT_ONCE]

Beside the calls there are requests that no client sends, uploads that stall, clients that do not read their answer, and
a probe in a process of its own. Prints outcomes, the slowest probe, and the gateway's resident memory, descriptors and
processes before, during and after. Exits with 1 where an answer was a 500, the log tells of a bug, or something stays.
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
from typing import TYPE_CHECKING

import aiohttp

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.fuzz import Told, bugs, fuzz
from bench.usage import show, used
from tests.support import Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

GO = "commands: {Go: {additional_parameters: true}}"
CONNECTORS = {
    "echo": "exec cat",
    "says_no": 'echo \'{"error": {"error_code": "no", "message": "no"}}\'',
    "fails": "echo broken >&2; exit 3",
    "crashes": "kill -SEGV $$",
    "hangs": "setsid sleep 1000 & exec sleep 1000",
    "daemon": "(setsid sh -c 'cd /; exec env -i sleep 1000' >/dev/null 2>&1 &) ; echo 1",
    "holds_pipe": "sleep 1000 & echo 1",
    "noisy": "head -c 300000 /dev/zero | tr '\\0' x >&2; echo 1",
    "floods": "exec yes",
    "garbage": "head -c 1000 /dev/urandom",
    "deaf": "exec 0<&-; echo 1",
    "litters": "mkdir -p a/b; touch a/b/c; chmod 0 a/b; echo 1",
}
LIMITS = {"hangs": "timeout: 300ms, ", "floods": "max_output: 64KiB, "}
BIG = "x" * 300_000
FUZZERS = 2
HELD = 10  # uploads that stall, and clients that do not read, at any time
LONGEST = 120.0  # seconds that one of them stays at most
PARTS = 6
PROBE = """
import http.client, select, sys, time
connection, slowest = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1])), 0.0
while not select.select([sys.stdin], [], [], 0.05)[0]:
    begun = time.monotonic()
    connection.request("GET", "/liveness")
    assert connection.getresponse().read() == b'{"ok":true}'
    slowest = max(slowest, time.monotonic() - begun)
print(f"the slowest /liveness took {slowest * 1000:.0f} ms")
"""


async def main(minutes: float, at_once: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with soaked(Path(folder)) as gateway:
            await soak(gateway, 10 * len(CONNECTORS), at_once)
            show("before", used(gateway))
            outcomes, told, slowest = await _soaked_for(gateway, minutes * 60, at_once)
            with contextlib.suppress(AssertionError):  # what is left shows
                await eventually(lambda: not gateway.connectors())
            after = used(gateway)
            show("after", after)
            found = bugs(gateway)
            outcomes.update({f"no client sends this: {status}": count for status, count in told.statuses.items()})
    calls = sum(outcomes.values())
    print(f"{calls} calls, {at_once} at once, {minutes:g} min, {calls / minutes / 60:.0f}/s; {slowest}")
    for outcome, count in outcomes.most_common():
        print(f"  {count:6} {outcome}")
    for bug in (*told.bugs[:20], *found[:20]):
        print(bug)
    return 1 if told.bugs or found or after.connectors or any(": 500" in outcome for outcome in outcomes) else 0


async def _soaked_for(gateway: Server, seconds: float, at_once: int) -> tuple[collections.Counter[str], Told, str]:
    """Return the outcomes of calls, what came back to what no client sends, and the slowest probe in words."""
    outcomes: collections.Counter[str] = collections.Counter()
    told = Told()
    begun = time.monotonic()
    probe = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROBE, str(gateway.port), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    beside = [asyncio.create_task(fuzz(gateway, 1 << 60, seconds, seed=1, at_once=FUZZERS, told=told))]
    beside += [asyncio.create_task(_held(gateway, one)) for one in (_stalls, _does_not_read) for _ in range(HELD)]
    try:
        for part in range(PARTS):
            while time.monotonic() - begun < seconds * (part + 1) / PARTS:
                outcomes += await soak(
                    gateway, 100 * len(CONNECTORS), at_once, seed=sum(outcomes.values()), alone=False
                )
            show(f"{(time.monotonic() - begun) / 60:.1f} min", used(gateway))
    finally:
        for task in beside:
            task.cancel()
        ended = await asyncio.gather(*beside, return_exceptions=True)
        slowest, _ = await probe.communicate(b"")
    assert all(isinstance(one, asyncio.CancelledError | Told) for one in ended), ended
    return outcomes, told, slowest.decode().strip()


async def _held(gateway: Server, hold: Callable[[int], Awaitable[None]]) -> None:
    while True:
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(LONGEST):
                await hold(gateway.port)
        await asyncio.sleep(0.1)


async def _stalls(port: int) -> None:
    """Begin to send a large body, and wait for what becomes of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"POST /v1/do/echo/Go HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000000\r\n\r\n")
        writer.write(b'{"n": "' + b"x" * (8 << 20))
        await reader.read()
    finally:
        writer.transport.abort()


async def _does_not_read(port: int) -> None:
    """Ask for a large answer, and do not read it."""
    body = b'{"n": "%s"}' % (b"x" * (8 << 20))
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    try:
        head = b"POST /v1/do/echo/Go HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        await reader.readexactly(1)
        await asyncio.Event().wait()
    finally:
        writer.transport.abort()


@contextlib.asynccontextmanager
async def soaked(folder: Path) -> AsyncIterator[Server]:
    """Run a gateway with good and hostile connectors until the block ends."""
    site = Site(folder)
    lines = []
    for name, script in CONNECTORS.items():
        site.script(f"{name}.sh", script)
        lines.append(f"{name}: {{run: [./{name}.sh], queue: 100, {LIMITS.get(name, '')}{GO}}}")
    site.configure("\n".join(lines), defaults="job_timeout: 2s")  # some of what hangs becomes a job
    async with served(site) as gateway:
        yield gateway


async def soak(
    gateway: Server, calls: int, at_once: int, *, seed: int = 0, alone: bool = True
) -> collections.Counter[str]:
    """Make that many calls, each connector in turn; `alone`, wait until nothing runs any more. Return the outcomes."""
    outcomes: collections.Counter[str] = collections.Counter()
    chance = random.Random(seed)
    todo = iter(range(calls))
    names = list(CONNECTORS)

    async def worker() -> None:
        for number in todo:
            outcomes[await one(gateway, names[number % len(names)], chance)] += 1

    await asyncio.gather(*(worker() for _ in range(at_once)))
    if alone:
        await eventually(lambda: not gateway.connectors())
    return outcomes


async def one(gateway: Server, target: str, chance: random.Random) -> str:
    params = {"n": BIG if chance.random() < 0.02 else chance.randrange(10**6)}
    hang_up = chance.random() < 0.05
    timeout = aiohttp.ClientTimeout(total=chance.random() * 0.1) if hang_up else None
    try:
        answer = await gateway.do(f"{target}/Go", params, timeout=timeout)
    except TimeoutError:
        return "hung up"
    return f"{target}: {answer.status} {answer.code or ''}"


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*(float(word) for word in sys.argv[1:2] or ["30"]), *map(int, sys.argv[2:3] or ["16"]))))
