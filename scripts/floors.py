"""Holds the tests to what they cover: of each package, so many percent of its branches (`make coverage`).

The floors stand in pyproject.toml, in `tool.floors`; `gateway` are the modules that lie in no package. A package that
has none has to be given one. What was measured lies where `tool.coverage.run` says, a file for each process.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections import Counter
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "build" / "coverage" / "report.json"
SPARE = 2  # points that a floor may lie below what is covered until that is worth a word


def measured() -> dict[str, float]:
    """Return the percentage of each package's branches that some test has taken."""
    one = coverage.Coverage(config_file=str(ROOT / "pyproject.toml"))
    one.combine(keep=True)
    one.json_report(outfile=str(REPORT))
    taken: Counter[str] = Counter()
    there: Counter[str] = Counter()
    for name, file in json.loads(REPORT.read_text())["files"].items():
        parts = Path(name).parts
        package = parts[parts.index("gateway") + 1] if len(parts) - parts.index("gateway") > 2 else "gateway"
        taken[package] += file["summary"]["covered_branches"]
        there[package] += file["summary"]["num_branches"]
    return {package: 100 * taken[package] / there[package] if there[package] else 100.0 for package in sorted(there)}


def judged(found: dict[str, float], floors: dict[str, int]) -> tuple[list[str], list[str]]:
    """Return what is to be told of each package, and what is wrong."""
    told: list[str] = []
    wrong = [f"{package} has a floor and is no package" for package in sorted(floors.keys() - found.keys())]
    for package, percent in found.items():
        floor = floors.get(package)
        told.append(f"{package:12} {percent:5.1f} % of its branches")
        if floor is None:
            wrong.append(f"{package} has no floor: give it {int(percent)}")
        elif percent < floor:
            wrong.append(f"{package} is below its floor: {percent:.1f} % of its branches instead of {floor}")
        elif percent >= floor + SPARE:
            told[-1] += f": its floor, {floor}, can rise to {int(percent)}"
    return told, wrong


def main() -> int:
    """Print a line a package; 1 when something is wrong."""
    floors = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["floors"]
    told, wrong = judged(measured(), floors)
    print("\n".join(told))
    for one in wrong:
        print(f"floors: {one}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
