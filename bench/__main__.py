"""`python -m bench [SCENARIO...]`: measure, print, and write docs/performance.md."""

from __future__ import annotations

import argparse
import importlib
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from bench import machine
from bench.harness import Plan
from bench.report import Report, lacking, write_section
from bench.servers import ROOT

SCENARIOS = ("spawn", "calls", "python", "runtimes", "growth", "idle", "fair", "jobs", "console")
DOCUMENT = ROOT / "docs" / "performance.md"
BUSY = 0.3  # load average above which figures are doubtful


def main() -> int:
    """Run the scenarios; the exit status is 1 when one of them could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("scenario", nargs="*", metavar="SCENARIO", help=f"{', '.join(SCENARIOS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, in each of which every case has its turn")
    parser.add_argument("--seconds", type=float, default=3, help="seconds a case and round (wrk counts whole ones)")
    parser.add_argument("--quick", action="store_true", help="one round of a second: tries the bench, writes nothing")
    asked = parser.parse_args()
    unknown = set(asked.scenario) - set(SCENARIOS)
    if unknown:
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    if not asked.quick:
        lost = lacking(DOCUMENT, asked.scenario or SCENARIOS)
        if lost:
            parser.error(f"{DOCUMENT} has no place for {', '.join(lost)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is stopped
    rounds, seconds = (1, 1.0) if asked.quick else (asked.rounds, asked.seconds)
    console = Console() if sys.stdout.isatty() else Console(width=140)
    for line in machine.install_missing():
        console.print(f"bench: {line}", markup=False, highlight=False)
    if machine.find("wrk") is None:
        console.print("bench: nothing can be measured without wrk (apt install wrk)", style="red")
        return 1
    machine.raise_limits()
    facts = machine.describe(rounds, seconds)
    console.print(facts, highlight=False)
    if machine.load() > BUSY:
        console.print(f"bench: the machine is busy (load {machine.load():.2f}): the figures are noise", style="yellow")
    failed = 0
    for name in asked.scenario or SCENARIOS:
        failed += not _measure(name, console, facts, rounds, seconds, quick=asked.quick)
    return min(failed, 1)


def _measure(name: str, console: Console, facts: str, rounds: int, seconds: float, *, quick: bool) -> bool:
    begun = time.monotonic()
    report = Report(name, console)
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
        plan = Plan(Path(folder), rounds, seconds, quick, report)
        try:
            importlib.import_module(f"bench.{name}").run(plan)
        except (
            RuntimeError,
            ValueError,
            OSError,
            subprocess.SubprocessError,
        ) as problem:  # the other scenarios are measured all the same
            console.print(f"{name}: {type(problem).__name__}: {problem}", style="red", markup=False)
            return False
    report.show()
    console.print(f"{name}: {time.monotonic() - begun:.0f} s", highlight=False)
    if quick:
        console.print(f"{name}: a quick run, so {DOCUMENT.name} stays as it is")
    else:
        write_section(DOCUMENT, name, report.markdown(facts))
    return True


if __name__ == "__main__":
    raise SystemExit(main())
