"""What one client's calls wait for while another floods the same connector, through the gateway without HTTP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from bench.harness import Figures, Plan, percentile
from bench.report import milliseconds
from bench.servers import Site, compiled
from tests.processes.flood import CONNECTOR, Seen, beside, opened

if TYPE_CHECKING:
    from pathlib import Path

SLOTS = 8
CONNECTIONS = 64  # of the flood
CALLS = 200


class Case(NamedTuple):
    """A call's neighbours."""

    name: str
    flood: str
    connections: int
    queue: int


OTHER = "other"
ALONE = Case("alone", "flood", 0, CONNECTIONS)
OWN = Case(f"in its own client's flood of {CONNECTIONS} connections", OTHER, CONNECTIONS, CONNECTIONS)
BESIDE = Case("beside another client's", "flood", CONNECTIONS, CONNECTIONS)
FULL = Case("beside another client's, which keeps a queue of 32 full", "flood", CONNECTIONS, 32)
CASES = (ALONE, OWN, BESIDE, FULL)


def run(plan: Plan) -> None:
    """Make a client's calls, one after the other, in each case."""
    program = compiled("filter", plan.folder)
    figures = Figures()
    calls = 20 if plan.quick else CALLS
    for number in range(plan.rounds):
        for case in CASES:
            seen = asyncio.run(_seen(plan.folder / f"fair-{case.queue}", program, case, calls))
            for share in (50, 99):
                figures.add(case.name, f"p{share}", percentile(seen.seconds, share / 100))
            figures.add(case.name, "passed", max(seen.passed))
            if seen.refused:
                plan.report.note(f"{case.name}: {seen.refused} of {calls} calls were refused in round {number + 1}")
            plan.report.progress(f"round {number + 1}/{plan.rounds} {case.name}: {max(seen.passed)} passed by")
    rows = [
        (case.name, *(milliseconds(figures.median(case.name, measure)) for measure in ("p50", "p99")),
         f"{figures.median(case.name, 'passed'):.0f}")
        for case in CASES
    ]  # fmt: skip
    headers = ("a call", "p50 ms", "p99 ms", "runs of the flood that got a slot before it, at most")
    plan.report.table(f"One call after the other to a connector with {SLOTS} slots", headers, rows)
    for case in (BESIDE, FULL):
        most = figures.median(case.name, "passed")
        plan.report.at_most(f"runs that pass a call {case.name}", most, SLOTS + 1, "")


async def _seen(folder: Path, program: Path, case: Case, calls: int) -> Seen:
    site = Site(folder)
    limits = f"concurrency: {SLOTS}, queue: {case.queue}"
    site.configure(f"{CONNECTOR}: {{run: [{program}], {limits}, commands: {{Go: {{}}}}}}")
    async with opened(site.file) as gateway:
        return await beside(gateway, other=OTHER, calls=calls, flood=case.flood, connections=case.connections)
