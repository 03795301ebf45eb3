"""Real libraries in each mode of Python: the same answers, how long they take, and nothing left.

    python bench/matrix.py [LIBRARY...]

Fetches the libraries from the package index, one after the other, and writes the row of each into docs/matrix.md when
it is known. Exits with 1 where an answer is another than expected, or a process is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import uv

from tests import procfs
from tests.installing import environment_with
from tests.jobs.postgres import Postgres
from tests.libraries import CASES, Case, Redis, Web, grpc_server, listening
from tests.support import Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "matrix.md"
MODES = ("spawn", "standby", "fork", "persistent")
ROUNDS = 7  # calls one after the other, of which the least counts
AT_ONCE = 4
PATIENCE = 600  # seconds until all have been asked what they can do


@contextlib.contextmanager
def servers() -> Iterator[dict[str, str]]:
    """Run what the connectors talk to; return where each is."""
    database = Postgres()
    try:
        grpc = grpc_server(environment_with(*CASES["grpcio"].requires) / "bin/python")
        with listening(Web) as web, listening(Redis) as redis, grpc as turning:
            yield {"web": f"http://{web}", "redis": f"redis://{redis}", "grpc": turning, "postgres": database.url}
    finally:
        database.close()


def lay_out(site: Site, name: str, case: Case, addresses: dict[str, str]) -> str:
    """Write a connector for each mode, and return what version of the library it has."""
    venv = environment_with(*case.requires)
    module = f"{name.replace('-', '_')}_.py"
    (site.folder / module).write_text(case.module(addresses))
    keys = f"runtime: python, module: ./{module}, venv: {venv}"
    lines = [f"{name}-{mode}: {{{keys}, mode: {mode}}}" for mode in MODES]
    site.configure("\n".join(lines), defaults="timeout: 60s\ndescribe_timeout: 120s")
    listed = [uv.find_uv_bin(), "pip", "freeze", "-p", str(venv / "bin/python")]
    frozen = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    found = re.search(rf"^{re.escape(name)}==(\S+)$", frozen, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else ""


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


async def row(name: str, case: Case, addresses: dict[str, str]) -> tuple[str, str | None, bool]:
    """Try one library; return its row, what mode fork says of it, and whether all of it was as it should be."""
    cells, good = [], True
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        site = Site(Path(folder))
        version = lay_out(site, name, case, addresses)
        async with served(site, ready=False) as gateway:
            await eventually(gateway.ready, PATIENCE)
            for mode in MODES:
                cell, wrong = await measure(gateway, f"{name}-{mode}", case.expected)
                good = good and not wrong
                cells.append(cell)
                for one in wrong[:1]:
                    print(f"{name}-{mode}: {one}", file=sys.stderr)
            notices = (await gateway.status(f"{name}-fork"))["notices"]
        for pid in procfs.scan():
            if procfs.mentions(pid, folder):
                good = False
                print(f"left of {name}: {pid}", file=sys.stderr)
    return f"| {name} {version} | {' | '.join(cells)} |", notices[0] if notices else None, good


def write(name: str, found: str, notice: str | None) -> None:
    """Put a library's row, and its notice, in the place of the last ones of the document."""
    begin, _, rest = DOCUMENT.read_text().partition("<!-- table -->\n")
    rows = {line.split()[1]: line for line in rest.splitlines() if line.startswith("| ")}
    notices = {line[2:].partition(":")[0]: line for line in rest.splitlines() if line.startswith("- ")}
    notices.pop(name, None)
    rows[name] = found
    if notice:
        notices[name] = f"- {name}: {notice}"
    head = f"| library | {' | '.join(MODES)} |\n| --- |{' --- |' * len(MODES)}"
    told = [notices[one] for one in CASES if one in notices]
    lines = [head, *(rows[one] for one in CASES if one in rows)]
    DOCUMENT.write_text(
        "\n".join([f"{begin}<!-- table -->", *lines, *(["", "What mode fork says:", "", *told] if told else [])]) + "\n"
    )


def main() -> int:
    """Run it all, or what is named."""
    asked = sys.argv[1:] or list(CASES)
    unknown = set(asked) - set(CASES)
    if unknown:
        sys.exit(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    all_good = True
    with servers() as addresses:
        for name in asked:
            found, notice, good = asyncio.run(row(name, CASES[name], addresses))
            all_good = all_good and good
            print(found, flush=True)
            write(name, found, notice)
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
