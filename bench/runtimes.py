"""Java and Node: a fresh process, one started ahead, and one that stays."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from typing import TYPE_CHECKING

from bench.harness import Case, Figures, Plan, contest, key, percentile
from bench.report import load_table, milliseconds
from bench.servers import HERE, Server, Site, gateway, post

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = (1, 8)
MODES = ("spawn", "standby", "persistent")
ENTRIES = {
    "java": ("java", "runtime: java, class: bench.Echo, sources: [{here}/java]"),
    "node": ("node", "runtime: node, module: {here}/echo.mjs"),
}
BODY = {"text": "hello"}
PAUSE = 0.5  # seconds between two calls of the caller who leaves the successor the time to boot
BOUND = 0.008


def run(plan: Plan) -> None:
    """Measure each runtime in each mode."""
    site = Site(plan.folder / "gateway")
    languages = [name for name, (program, _) in ENTRIES.items() if _has(plan, program)]
    names = {f"{language}-{mode}": language for language in languages for mode in MODES}
    site.configure(
        "\n".join(f"{name}: {{{ENTRIES[language][1].format(here=HERE)}, mode: {name.partition('-')[2]}}}"
                  for name, language in names.items()),
        defaults="queue: 64",
    )  # fmt: skip
    _install(plan, site, names)
    figures = Figures()
    with gateway(site) as server:
        served = list(_served(plan, server, names))
        cases = [Case(name, server, f"/v1/do/{name}/Go", BODY, count) for count in CONNECTIONS for name in served]
        contest(plan, cases, figures)
        calls = 5 if plan.quick else 20
        for number in range(plan.rounds):
            for name in served:
                times = list(_paused(server, f"/v1/do/{name}/Go", calls))
                p50 = percentile(times, 0.5)
                figures.add(name, "paused p50", p50)
                figures.add(name, "paused max", max(times))
                plan.report.progress(f"round {number + 1}/{plan.rounds} {name}, pausing: {p50 * 1000:.1f} ms")
    load_table(plan.report, "Java and Node, callers without a pause", served, CONNECTIONS, figures)
    rows = [
        (name, milliseconds(figures.median(name, "paused p50")), milliseconds(figures.median(name, "paused max")),
         f"{figures.ratio(name, names[name] + '-spawn', 'paused p50'):.2f}" if f"{names[name]}-spawn" in served else "")
        for name in served
    ]  # fmt: skip
    title = f"Java and Node, one caller who pauses {PAUSE} s between calls: the successor has booted meanwhile"
    plan.report.table(title, ("", "p50 ms", "max ms", "p50 / spawn"), rows)
    for language in languages:
        name = f"{language}-standby"
        if name in served:
            value = figures.median(name, "paused p50") * 1000
            plan.report.at_most(f"{name}, one caller who pauses: p50 under 8 ms", value, BOUND * 1000, " ms")
            value = figures.median(key(name, 1), "p50") * 1000
            plan.report.note(f"{name}, one caller without a pause: p50 {value:.3g} ms (it waits for the boot)")


def _has(plan: Plan, program: str) -> bool:
    if shutil.which(program) is not None:
        return True
    plan.report.note(f"skipped {program}: it is not installed")
    return False


def _install(plan: Plan, site: Site, names: dict[str, str]) -> None:
    """Build each by itself: one whose runtime lacks a mode fails, and is skipped later with its reason."""
    for name in names:
        try:
            site.install(name)
        except RuntimeError as problem:
            plan.report.progress(str(problem).splitlines()[-1])


def _served(plan: Plan, server: Server, names: dict[str, str]) -> Iterator[str]:
    deadline = time.monotonic() + 20
    for name in names:
        status = server.get("/v1/status")["connectors"][name]
        while status["state"] == "describing" and time.monotonic() < deadline:
            time.sleep(0.1)
            status = server.get("/v1/status")["connectors"][name]
        if status["state"] == "ready":
            yield name
        else:
            plan.report.note(f"skipped {name}: {status['reason']}")


def _paused(server: Server, path: str, calls: int) -> Iterator[float]:
    with contextlib.closing(server.connect()) as connection:
        for _ in range(calls):
            time.sleep(PAUSE)
            begun = time.perf_counter()
            post(connection, path, json.dumps(BODY).encode())
            yield time.perf_counter() - begun
