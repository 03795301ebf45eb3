"""A soak: thousands of mixed good and hostile calls against a real gateway, and what is left of them.

    python bench/soak.py [CALLS] [AT_ONCE]

Prints outcomes, and the gateway's resident memory, descriptors and processes before, during and after.
"""

from __future__ import annotations

import asyncio
import collections
import random
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parent.parent))

from gateway.warden import procfs
from tests.support import Server, Site, eventually, served

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


async def main(calls: int, at_once: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        lines = []
        for name, script in CONNECTORS.items():
            site.script(f"{name}.sh", script)
            lines.append(f"{name}: {{run: [./{name}.sh], queue: 100, {LIMITS.get(name, '')}{GO}}}")
        site.configure("\n".join(lines))
        async with served(site) as gateway:
            await soak(gateway, calls, at_once)


async def soak(gateway: Server, calls: int, at_once: int) -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    chance = random.Random(1)
    todo = iter(range(calls))
    for target in CONNECTORS:
        outcomes[await one(gateway, target, chance)] += 1
    show("before", gateway)
    begun = time.monotonic()

    async def worker() -> None:
        for number in todo:
            outcomes[await one(gateway, chance.choice(list(CONNECTORS)), chance)] += 1
            if number % (calls // 4 or 1) == 0:
                show(f"at {number}", gateway)

    await asyncio.gather(*(worker() for _ in range(at_once)))
    took = time.monotonic() - begun
    await eventually(lambda: not gateway.connectors())
    show("after", gateway)
    print(f"{calls} calls, {at_once} at once, {took:.0f} s, {calls / took:.0f}/s")
    for outcome, count in outcomes.most_common():
        print(f"  {count:6} {outcome}")


async def one(gateway: Server, target: str, chance: random.Random) -> str:
    params = {"n": BIG if chance.random() < 0.02 else chance.randrange(10**6)}
    hang_up = chance.random() < 0.05
    timeout = aiohttp.ClientTimeout(total=chance.random() * 0.1) if hang_up else None
    try:
        answer = await gateway.do(f"{target}/Go", params, timeout=timeout)
    except TimeoutError:
        return "hung up"
    return f"{target}: {answer.status} {answer.code or ''}"


def show(when: str, gateway: Server) -> None:
    warden = next(iter(gateway.processes() - gateway.connectors()))
    mine, hers = procfs.memory(gateway.pid), procfs.memory(warden)
    print(
        f"{when:10} gateway {mine.resident >> 20} MiB, {gateway.descriptors()} descriptors; "
        f"warden {hers.resident >> 20} MiB, connectors {len(gateway.connectors())}",
        flush=True,
    )


if __name__ == "__main__":
    asyncio.run(main(*(int(word) for word in [*sys.argv[1:], "20000", "16"][:2])))
