"""A static C filter for each request: how much HTTP, pipes, bounds and the sweep cost beside the process itself."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bench import peers
from bench.harness import Case, Figures, Plan, contest, key
from bench.report import load_table
from bench.servers import Site, compiled, gateway

if TYPE_CHECKING:
    from pathlib import Path

    from bench.servers import Server

CONNECTIONS = (1, 8, 32)
BODY = {"text": "hello", "number": 17}
PATH = "/v1/do/filter/Go"
OFF, STANDARD = "gateway, off", "gateway, standard"
OURS = {OFF: "off", STANDARD: "standard", "gateway, strict": "strict"}  # name -> level
GOALS = {OFF: 0.9, STANDARD: 0.8}  # at 8 connections, as a multiple of a peer's rate


def run(plan: Plan) -> None:
    """Measure the gateway and its peers."""
    program = compiled("filter", plan.folder)
    figures = Figures()
    with contextlib.ExitStack() as stack:
        targets: list[tuple[str, Server, str]] = []
        for name, level in OURS.items():
            where = site(plan.folder / f"gateway-{level}", program, level)
            server = stack.enter_context(gateway(where))
            targets.append((name, server, PATH))
        for name, path in peers.PATHS.items():
            if not peers.available(name):
                plan.report.note(f"skipped {name}: it is not installed (apt install {name})")
                continue
            server = stack.enter_context(peers.peer(name, program, plan.folder / name.replace(" ", "-")))
            targets.append((name, server, path))
        for name, server, path in targets:
            if b"hello" not in server.post(path, BODY):
                raise RuntimeError(f"{name} does not answer what it was sent")
        cases = [Case(*target, BODY, count) for count in CONNECTIONS for target in targets]
        contest(plan, cases, figures)
    names = [name for name, _, _ in targets]
    load_table(plan.report, "A static C filter a request", names, CONNECTIONS, figures)
    _compare(plan, figures, [name for name in names if name not in OURS and name != peers.FLOOR])


def site(folder: Path, program: Path, level: str) -> Site:
    """Return a site whose one connector is the filter."""
    made = Site(folder)
    keys = f"run: [{program}], concurrency: 32, queue: 64, sandbox: {level}"
    made.configure(f"filter: {{{keys}, commands: {{Go: {{additional_parameters: true}}}}}}")
    return made


def _compare(plan: Plan, figures: Figures, others: list[str]) -> None:
    rows = []
    for name in OURS:
        rates = [f"{figures.ratio(key(name, 8), key(other, 8), 'rate'):.2f}" for other in others]
        rows.append((name, *rates))
    plan.report.table("Rate at 8 connections, as a multiple of", ("", *others), rows)
    for name, bound in GOALS.items():
        for other in ("webhook", "lighttpd"):
            if other in others:
                value = figures.ratio(key(name, 8), key(other, 8), "rate")
                plan.report.at_least(f"{name}, 8 connections: at least {bound} x the rate of {other}", value, bound)
