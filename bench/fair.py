"""What one client's calls take while another floods the same connector without pause: HTTP, and a key for each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.harness import Figures, Load, Plan, eventually, parse_wrk, percentile
from bench.report import milliseconds
from bench.servers import Site, compiled, gateway, post

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.servers import Server

SLOTS = 8
CONNECTIONS = 64  # of the flood
CALLS = 200
OTHER, FLOOD, OPERATOR = "other", "flood", "operator"  # clients, whose keys are called so, too
WIDE, NARROW = "wide", "narrow"  # connectors, by what their queues hold
QUEUES = {WIDE: CONNECTIONS, NARROW: 32}


class Case(NamedTuple):
    """A call's neighbours."""

    name: str
    connector: str
    flood: str | None


ALONE = Case("alone", WIDE, None)
OWN = Case(f"within its own client's flood from {CONNECTIONS} connections", WIDE, OTHER)
BESIDE = Case("beside another client's", WIDE, FLOOD)
FULL = Case("beside another client's, which keeps a queue of 32 full", NARROW, FLOOD)
CASES = (ALONE, OWN, BESIDE, FULL)


def run(plan: Plan) -> None:
    """Make a client's calls, one after the other, in each case."""
    figures = Figures()
    with gateway(_site(plan.folder / "fair", compiled("filter", plan.folder))) as server:
        for number in range(plan.rounds):
            for case in CASES:
                _measure(plan, server, case, figures)
                plan.report.progress(f"round {number + 1}/{plan.rounds} {case.name}")
    rows = [
        (case.name, *(milliseconds(figures.median(case.name, measure)) for measure in ("p50", "p99")),
         *(f"{figures.median(case.name, measure):,.0f}" if case.flood else "" for measure in ("answered", "refused")))
        for case in CASES
    ]  # fmt: skip
    headers = ("a call", "p50 ms", "p99 ms", "flood: answered /s", "refused /s")
    plan.report.table(f"One call after the other to a connector with {SLOTS} slots", headers, rows)
    for measure in ("p50", "p99"):
        ratio = figures.ratio(BESIDE.name, OWN.name, measure)
        plan.report.at_most(f"{measure} beside another client's flood, as a part of that within its own", ratio, 0.5)


def _site(folder: Path, program: Path) -> Site:
    site = Site(folder)
    connectors = "".join(
        f"{name}: {{run: [{program}], concurrency: {SLOTS}, queue: {queue}, commands: {{Go: {{}}}}}}\n"
        for name, queue in QUEUES.items()
    )
    site.configure(connectors, gateway=f"api_key: {OPERATOR}")
    (folder / "clients.d").mkdir()
    for name in (OTHER, FLOOD):
        digest = hashlib.sha256(name.encode()).hexdigest()
        (folder / "clients.d" / f"{name}.yaml").write_text(f'keys: [{{sha256: "{digest}"}}]\n')
    return site


def _measure(plan: Plan, server: Server, case: Case, figures: Figures) -> None:
    path, took, refused = f"/v1/do/{case.connector}/Go", [], 0
    loads: list[Load] = []
    with contextlib.closing(server.connect()) as connection, contextlib.ExitStack() as stack:
        if case.flood is not None:
            stack.enter_context(_flooding(server, path, case.flood, plan.folder, loads))
            eventually(lambda: _queued(server, case.connector) >= SLOTS, "the flood")
        for _ in range(20 if plan.quick else CALLS):
            since = time.monotonic()
            try:
                post(connection, path, b"{}", _key(OTHER))
            except RuntimeError:
                refused += 1
            else:
                took.append(time.monotonic() - since)
    if refused:
        plan.report.note(f"{case.name}: {refused} calls were refused")
    for measure, share in (("p50", 0.5), ("p99", 0.99)):
        figures.add(case.name, measure, percentile(took, share))
    for load in loads:
        seconds = load.requests / load.rate
        figures.add(case.name, "answered", (load.requests - load.bad) / seconds)
        figures.add(case.name, "refused", load.bad / seconds)


@contextlib.contextmanager
def _flooding(server: Server, path: str, client: str, folder: Path, loads: list[Load]) -> Iterator[None]:
    """Repeat a client's call from many connections, each as soon as it is answered; add what came of it to `loads`."""
    script = folder / "flood.lua"
    head = "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in _key(client).items())
    script.write_text(f'wrk.method = "POST"\nwrk.body = "{{}}"\n{head}')
    argv = ["wrk", "--latency", "-t1", f"-c{CONNECTIONS}", "-d600s", "--timeout", "30s", "-s", str(script)]
    process = subprocess.Popen(
        [*argv, f"{server.url}{path}"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        yield
        process.send_signal(signal.SIGINT)
        loads.append(parse_wrk(process.communicate(timeout=60)[0]))
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _queued(server: Server, connector: str) -> int:
    with contextlib.closing(server.connect()) as connection:
        connection.request("GET", "/v1/status", headers=_key(OPERATOR))
        told: Any = json.loads(connection.getresponse().read())
        queued: int = told["connectors"][connector]["queued"]
        return queued


def _key(client: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {client}"}
