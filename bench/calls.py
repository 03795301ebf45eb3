"""How many function calls one call of a connector costs: a static C filter, as `spawn` has it, with a key and a log."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

from bench.servers import ROOT, compiled
from bench.spawn import BODY, site

if TYPE_CHECKING:
    from pathlib import Path

    from bench.harness import Plan

    Call = list[tuple[str, str, int]]

MOST_CALLS, MOST_ROOMS = 100, 12
OURS = f"{ROOT}/gateway/"
OTHERS = ("prometheus_client", "structlog", "asyncio", "aiohttp")
SHOWN = 25  # functions


def run(plan: Plan) -> None:
    """Count, and compare with what a call may take."""
    calls = _counted(plan.folder, 50 if plan.quick else 300)
    ours = [[one for one in call if one[0].startswith(OURS)] for call in calls]
    entered = Counter(file.removeprefix(OURS) for call in ours for file in {one[0] for one in call})
    files = sorted(file for file, count in entered.items() if 2 * count > len(calls))
    rooms = {file.partition("/")[0] for file in files}
    total = _median(ours)
    rows = [("gateway", f"{total:.0f}")]
    rows += [(name, f"{_median(_of(calls, name)):.0f}") for name in OTHERS]
    plan.report.table("Python function calls a call (median)", ("", "calls"), rows)
    rows = [(file, f"{_median(_of(ours, file)):.0f}") for file in files]
    plan.report.table("Rooms, and their files", ("file", "calls"), rows)
    plan.report.table("Functions", ("function", "calls"), _functions(ours))
    plan.report.at_most("function calls of ours a call", total, MOST_CALLS, "")
    plan.report.at_most("rooms that a call enters", len(rooms), MOST_ROOMS, "")


def _counted(folder: Path, calls: int) -> list[Call]:
    where = site(folder / "calls", compiled("filter", folder), "standard")
    answer, log = folder / "calls.json", folder / "calls.log"
    argv = [sys.executable, "-m", "bench.profiled", str(where.file), json.dumps(BODY), str(calls), str(answer)]
    with log.open("wb") as stream:
        subprocess.run(
            argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, timeout=300, check=False,
        )  # fmt: skip
    if not answer.exists():
        raise RuntimeError(f"the gateway counted nothing:\n{log.read_text()[-2000:]}")
    told: list[Call] = json.loads(answer.read_text())
    return told


def _of(calls: list[Call], name: str) -> list[Call]:
    return [[one for one in call if f"/{name}" in one[0]] for call in calls]


def _median(calls: list[Call]) -> float:
    return statistics.median(sum(count for _, _, count in call) for call in calls)


def _functions(calls: list[Call]) -> list[tuple[str, str]]:
    """Return the functions that are called most, per call."""
    counts: Counter[str] = Counter()
    for call in calls:
        for file, function, count in call:
            counts[f"{file.removeprefix(OURS)} {function}"] += count
    return [(name, f"{count / len(calls):.1f}") for name, count in counts.most_common(SHOWN)]
