"""A soak: thousands of mixed good and hostile calls against a real gateway, and what is left of them.

    python bench/soak.py [CALLS] [AT_ONCE]

Prints outcomes, and the gateway's resident memory, descriptors and processes before, during and after.
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
from typing import TYPE_CHECKING, NamedTuple

import aiohttp

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests import procfs
from tests.support import Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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


class Use(NamedTuple):
    """What a gateway uses now: resident bytes of its process and of its largest cell, and what else could leak."""

    gateway: int
    cell: int
    cells: int
    descriptors: int
    connectors: int


async def main(calls: int, at_once: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with soaked(Path(folder)) as gateway:
            outcomes = await soak(gateway, len(CONNECTORS), 1)
            show("before", used(gateway))
            begun = time.monotonic()
            for quarter in range(1, 5):
                outcomes += await soak(gateway, calls // 4, at_once, seed=quarter)
                show(f"at {calls * quarter // 4}", used(gateway))
            took = time.monotonic() - begun
    print(f"{calls} calls, {at_once} at once, {took:.0f} s, {calls / took:.0f}/s")
    for outcome, count in outcomes.most_common():
        print(f"  {count:6} {outcome}")


@contextlib.asynccontextmanager
async def soaked(folder: Path) -> AsyncIterator[Server]:
    """Run a gateway with good and hostile connectors until the block ends."""
    site = Site(folder)
    lines = []
    for name, script in CONNECTORS.items():
        site.script(f"{name}.sh", script)
        lines.append(f"{name}: {{run: [./{name}.sh], queue: 100, {LIMITS.get(name, '')}{GO}}}")
    site.configure("\n".join(lines))
    async with served(site) as gateway:
        yield gateway


async def soak(gateway: Server, calls: int, at_once: int, *, seed: int = 0) -> collections.Counter[str]:
    """Make that many calls, each connector in turn, and wait until nothing runs any more; return the outcomes."""
    outcomes: collections.Counter[str] = collections.Counter()
    chance = random.Random(seed)
    todo = iter(range(calls))
    names = list(CONNECTORS)

    async def worker() -> None:
        for number in todo:
            outcomes[await one(gateway, names[number % len(names)], chance)] += 1

    await asyncio.gather(*(worker() for _ in range(at_once)))
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


def used(gateway: Server) -> Use:
    cells = gateway.cells()
    return Use(
        gateway=procfs.memory(gateway.pid).resident,
        cell=max((procfs.memory(pid).resident for pid in cells), default=0),
        cells=len(cells),
        descriptors=gateway.descriptors(),
        connectors=len(gateway.connectors()),
    )


def show(when: str, use: Use) -> None:
    print(
        f"{when:10} gateway {use.gateway >> 20} MiB, {use.descriptors} descriptors; "
        f"{use.cells} processes of cells, the largest {use.cell >> 10} KiB; connectors {use.connectors}",
        flush=True,
    )


if __name__ == "__main__":
    asyncio.run(main(*(int(word) for word in [*sys.argv[1:], "20000", "16"][:2])))
