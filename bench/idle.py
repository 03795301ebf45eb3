"""What a gateway uses that has nothing to do."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from bench.harness import Figures, Plan, settle, use_of
from bench.servers import Site, compiled, gateway
from tests import procfs

if TYPE_CHECKING:
    from pathlib import Path

WATCHED = 10  # seconds; the kernel counts CPU in hundredths
CASES = {  # name -> (connectors, option)
    "1 connector": (1, "--no-restart"),
    "1,000 connectors": (1000, "--no-restart"),
    "1 connector, kept by a keeper": (1, "--restart"),
}


def run(plan: Plan) -> None:
    """Watch each for some seconds."""
    program = compiled("filter", plan.folder)
    figures = Figures()
    trees = {}
    rounds = min(plan.rounds, 3)
    for number in range(rounds):
        for number_of_case, (name, (connectors, option)) in enumerate(CASES.items()):
            site = _site(plan.folder / f"idle-{number_of_case}", program, connectors)
            with contextlib.ExitStack() as stack:
                server = stack.enter_context(gateway(site, option))
                server.post("/v1/do/c0/Go", {})
                settle(server.pid)
                begun, before = time.monotonic(), use_of(server.pid)
                time.sleep(2 if plan.quick else WATCHED)
                after = use_of(server.pid)
                cpu = (after.cpu - before.cpu) / (time.monotonic() - begun)
                figures.add(name, "cpu", cpu)
                figures.add(name, "resident", after.resident / 2**20)
                trees[name] = _parts(server.pid)
            plan.report.progress(f"round {number + 1}/{rounds} {name}: {after.resident >> 20} MiB, {cpu:.2%}")
    plan.report.table(
        "Idle: all processes of a gateway, after one call",
        ("", "RSS MiB", "% of a core", "processes and their MiB"),
        [
            (name, f"{figures.median(name, 'resident'):.0f}", f"{figures.median(name, 'cpu'):.2%}", trees[name])
            for name in CASES
        ],
    )


def _parts(pid: int) -> str:
    sizes = sorted(
        (procfs.memory(one).resident >> 20 for one in procfs.descendants({pid}, procfs.scan())), reverse=True
    )
    return " + ".join(map(str, sizes))


def _site(folder: Path, program: Path, connectors: int) -> Site:
    site = Site(folder)
    site.configure(
        "\n".join(f"c{number}: {{run: [{program}], commands: {{Go: {{}}}}}}" for number in range(connectors))
    )
    return site
