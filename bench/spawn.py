"""A static C filter for each request: how much HTTP, pipes, bounds and the sweep cost beside the process itself."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from bench import peers
from bench.harness import Case, Figures, Plan, contest, key
from bench.report import load_table
from bench.servers import Site, compiled, gateway

if TYPE_CHECKING:
    from bench.servers import Server

CONNECTIONS = (1, 8, 32)
BODY = {"text": "hello", "number": 17}
PATH = "/v1/do/filter/Go"
TWO = "gateway, 2 workers"
OURS = {  # name -> (workers, cgroup)
    "gateway, 1 worker": (1, True),
    "gateway, 1 worker, no cgroup": (1, False),
    TWO: (2, True),
    f"{TWO}, no cgroup": (2, False),
}


def run(plan: Plan) -> None:
    """Measure the gateway and its peers."""
    program = compiled("filter", plan.folder)
    figures = Figures()
    with contextlib.ExitStack() as stack:
        targets: list[tuple[str, Server, str]] = []
        for name, (workers, cgroup) in OURS.items():
            site = _site(plan.folder / f"gateway-{workers}-{cgroup}", program, cgroup=cgroup)
            server = stack.enter_context(gateway(site, "--workers", str(workers)))
            targets.append((name, server, PATH))
        if not any(Path("/sys/fs/cgroup").rglob("gateway-*/slot-0")):
            plan.report.note("no cgroup v2 tree is writable here: the cases with cgroup ran without")
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


def _compare(plan: Plan, figures: Figures, others: list[str]) -> None:
    rows = []
    for name in OURS:
        rates = [f"{figures.ratio(key(name, 8), key(other, 8), 'rate'):.2f}" for other in others]
        rows.append((name, *rates))
    plan.report.table("Rate at 8 connections, as a multiple of", ("", *others), rows)
    for other, bound in (("webhook", 1.0), ("lighttpd", 0.9)):
        if other in others:
            value = figures.ratio(key(TWO, 8), key(other, 8), "rate")
            plan.report.at_least(f"two workers, 8 connections: at least {bound} x the rate of {other}", value, bound)


def _site(folder: Path, program: Path, *, cgroup: bool) -> Site:
    site = Site(folder)
    site.configure(
        f"filter: {{run: [{program}], concurrency: 32, queue: 64, commands: {{Go: {{additional_parameters: true}}}}}}",
        gateway=f"cgroup: {str(cgroup).lower()}",
    )
    return site
