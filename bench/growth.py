"""What grows with what: registered connectors, calls in flight, bodies, calls served."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

from bench.harness import Case, Figures, Plan, contest, eventually, key, settle, use_of, wrk
from bench.report import milliseconds
from bench.servers import Server, Site, compiled, events, gateway
from gateway.connectors.registry import POLL
from tests import procfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REGISTERED = (1, 100, 1000)
IN_FLIGHT = (0, 1, 100, 500)
BODIES = (1_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
BODY = {"text": "hello"}
LARGER = {"text": "hello" * 20_000}
DAY = 86_400  # calls: one a second
FAST = "/v1/do/c0/Go"
WORDS = {1_000: "1 kB", 100_000: "100 kB", 1_000_000: "1 MB", 10_000_000: "10 MB", 100_000_000: "100 MB"}


def run(plan: Plan) -> None:
    """Measure one kind of growth after the other."""
    program = compiled("filter", plan.folder)
    _registered(plan, program)
    _in_flight(plan, program)
    _bodies(plan, program)
    _leaks(plan, program)


# --- connectors


def _registered(plan: Plan, program: Path) -> None:
    figures = Figures()
    with contextlib.ExitStack() as stack:
        sites = {count: _site(plan.folder / f"registered-{count}", program, count) for count in REGISTERED}
        servers = {count: stack.enter_context(gateway(site)) for count, site in sites.items()}
        cases = [Case(f"{count:,}", server, FAST, BODY, 1) for count, server in servers.items()]
        contest(plan, cases, figures)
        most = REGISTERED[-1]

        def change(timeout: int) -> None:
            _configure(sites[most], program, most, timeout=timeout)

        for number in range(plan.rounds):
            _reload(servers[most], change, figures, number)
    rows = [
        (f"{count:,}", milliseconds(figures.median(key(f"{count:,}", 1), "p50")),
         milliseconds(figures.median(key(f"{count:,}", 1), "cpu")),
         f"{figures.ratio(key(f'{count:,}', 1), key('1', 1), 'p50'):.3f}")
        for count in REGISTERED
    ]  # fmt: skip
    plan.report.table("Connectors registered", ("", "p50 ms", "CPU ms/call", "p50 / with one"), rows)
    value = figures.ratio(key("1,000", 1), key("1", 1), "p50")
    plan.report.at_most("a call with 1,000 connectors takes at most 1.1 x one with 1", value, 1.1)
    rows = [
        ("the file is replaced", f"{figures.median('file', 'seconds'):.2f}", f"{figures.median('file', 'took'):.2f}"),
        ("SIGHUP", f"{figures.median('hup', 'seconds'):.2f}", f"{figures.median('hup', 'took'):.2f}"),
    ]
    title = f"Reload of {most:,} connectors, one of them changed"
    plan.report.table(title, ("begun by", "s until registry_loaded", "s it took (its own figure)"), rows)
    plan.report.note(
        f"A change counts at the second look that sees it: of the first figure {POLL} s to {2 * POLL} s are polling. "
        f"The goal is held against that figure less {POLL} s."
    )
    value = figures.median("file", "seconds") - POLL
    plan.report.at_most(f"a reload of {most:,} connectors takes under 2 s, less the polling", value, 2, " s")


def _reload(server: Server, change: Callable[[int], None], figures: Figures, number: int) -> None:
    for case, way in enumerate(("file", "hup")):
        settle(server.pid)
        before = len(events(server, "registry_loaded"))
        begun = time.time()
        change(100 + 10 * number + case)
        if way == "hup":
            os.kill(server.pid, signal.SIGHUP)
        eventually(lambda before=before: len(events(server, "registry_loaded")) > before, "a reload")
        event = events(server, "registry_loaded")[before]
        figures.add(way, "seconds", datetime.datetime.fromisoformat(event["timestamp"]).timestamp() - begun)
        figures.add(way, "took", event["took"])


# --- calls in flight


def _in_flight(plan: Plan, program: Path) -> None:
    figures = Figures()
    site = _site(plan.folder / "in-flight", program, 1, slow=max(IN_FLIGHT))
    with gateway(site) as server:
        server.post(FAST, BODY)
        for number in range(plan.rounds):
            for count in IN_FLIGHT:
                with slow_calls(server, count):
                    load = wrk(server.url + FAST, BODY, connections=1, seconds=1 + plan.seconds, folder=plan.folder)
                if load.bad:
                    plan.report.note(f"{count} slow calls: {load.bad} of {load.requests} fast ones failed")
                plan.report.progress(
                    f"round {number + 1}/{plan.rounds} {count} slow calls: p50 {load.p50 * 1000:.1f} ms, "
                    f"p99 {load.p99 * 1000:.1f} ms"
                )
                figures.add(str(count), "p50", load.p50)
                figures.add(str(count), "p99", load.p99)
                settle(server.pid)
    rows = [
        (str(count), milliseconds(figures.median(str(count), "p50")), milliseconds(figures.median(str(count), "p99")),
         f"{figures.ratio(str(count), '0', 'p50'):.2f}", f"{figures.ratio(str(count), '0', 'p99'):.2f}")
        for count in IN_FLIGHT
    ]  # fmt: skip
    headers = ("slow calls in flight", "p50 ms", "p99 ms", "p50 / alone", "p99 / alone")
    plan.report.table("A fast connector, one caller, beside calls that hang", headers, rows)
    value = figures.ratio("500", "0", "p99")
    plan.report.at_most("a fast connector's p99 beside 500 slow calls is at most 2 x alone", value, 2)


@contextlib.contextmanager
def slow_calls(server: Server, count: int) -> Iterator[None]:
    """Hold calls of the connector `slow` in flight; at the end their callers hang up."""
    idle = use_of(server.pid).processes
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            one.sendall(
                b"POST /v1/do/slow/Go HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 2\r\n\r\n{}"
            )
        eventually(lambda: _running(server) == count, f"{count} slow calls in flight")
        eventually(lambda: use_of(server.pid).processes >= idle + count, f"{count} processes")  # a slot comes earlier
        settle(server.pid)
        yield
    eventually(lambda: _running(server) == 0, "the end of the slow calls")


def _running(server: Server) -> int:
    running: int = server.get("/v1/status")["connectors"]["slow"]["in_flight"]
    return running


# --- bodies


def _bodies(plan: Plan, program: Path) -> None:
    figures = Figures()
    sizes = BODIES[:-1] if plan.quick else BODIES
    site = _site(plan.folder / "bodies", program, 1)
    rounds = min(plan.rounds, 3)
    with gateway(site) as server:
        server.post(FAST, BODY)
        settle(server.pid)
        before = procfs.memory(server.pid).resident  # once: what one body leaves behind counts in the next one's peak
        for number in range(rounds):
            for size in sizes:
                seconds, highest, stall = _one_body(server, size)
                peak = max(0, highest - before)
                plan.report.progress(
                    f"round {number + 1}/{rounds} {WORDS[size]}: {seconds:.3f} s, + {peak / 2**20:.0f} MiB, "
                    f"liveness {stall * 1000:.0f} ms"
                )
                figures.add(str(size), "seconds", seconds)
                figures.add(str(size), "peak", peak)
                figures.add(str(size), "stall", stall)
    rows = []
    for size in sizes:
        peak = figures.median(str(size), "peak")
        rows.append(
            (WORDS[size], f"{figures.median(str(size), 'seconds'):.3f}", f"{peak / 2**20:,.0f}",
             f"{peak / size:.1f}" if size >= 1_000_000 else "", milliseconds(figures.median(str(size), "stall")))
        )  # fmt: skip
    headers = ("in and out again", "s", "gateway's peak, MiB more", "x body", "slowest /liveness meanwhile, ms")
    plan.report.table("One body, through the filter", headers, rows)
    most = str(BODIES[-1])
    if figures.has(most, "peak"):
        times = figures.median(most, "peak") / BODIES[-1]
        plan.report.at_most(f"{WORDS[BODIES[-1]]} in and out again take at most 3 x in memory", times, 3)
        stall = figures.median(most, "stall") * 1000
        plan.report.at_most(f"a /liveness beside {WORDS[BODIES[-1]]} waits at most 100 ms", stall, 100, " ms")


def _one_body(server: Server, size: int) -> tuple[float, int, float]:
    body = b'{"text":"' + b"x" * (size - 11) + b'"}'
    space = bytearray(size + 10_000)
    settle(server.pid)
    with open(f"/proc/{server.pid}/clear_refs", "w") as file:
        file.write("5")  # the high-water mark begins anew
    with contextlib.closing(server.connect()) as connection, probing(server) as slowest:
        begun = time.perf_counter()
        connection.request("POST", FAST, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        view, got = memoryview(space), 0
        while count := answer.readinto(view[got:]):
            got += count
        seconds = time.perf_counter() - begun
    if answer.status != 200 or got < size:
        raise RuntimeError(f"a body of {size} bytes: {answer.status}, {got} bytes: {bytes(space[:300])!r}")
    return seconds, procfs.peak(server.pid), slowest()


@contextlib.contextmanager
def probing(server: Server) -> Iterator[Probe]:
    """Ask for /liveness every 5 ms meanwhile; the probe gives the slowest answer in seconds."""
    probe = Probe(server)
    probe.start()
    try:
        yield probe
    finally:
        probe.over.set()
        probe.join(60)


class Probe(threading.Thread):
    """Somebody who wants to know whether the gateway lives."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._slowest = 0.0
        self.over = threading.Event()

    def __call__(self) -> float:
        return self._slowest

    def run(self) -> None:
        with contextlib.closing(self._server.connect()) as connection:
            while not self.over.wait(0.005):
                begun = time.perf_counter()
                connection.request("GET", "/liveness")
                connection.getresponse().read()
                self._slowest = max(self._slowest, time.perf_counter() - begun)


# --- leaks


def _leaks(plan: Plan, program: Path) -> None:
    goal = DAY // 40 if plan.quick else DAY
    site = _site(plan.folder / "leaks", program, 1)
    with gateway(site) as server:
        calls = 0
        rows = []
        for what, until in (("warmed up", goal // 10), ("half way", goal // 2), ("at the end", goal)):
            while calls < until:
                for body in (BODY, LARGER):  # what holds on to a body does not show with small ones
                    load = wrk(server.url + FAST, body, connections=8, seconds=2, folder=plan.folder)
                    calls += load.requests
                    if not load.requests:
                        raise RuntimeError("the gateway answers nothing any more")
            settle(server.pid)
            use = use_of(server.pid)
            plan.report.progress(f"{calls} calls: {use.resident >> 20} MiB, {use.descriptors} descriptors")
            rows.append((f"{what}, {calls:,} calls", f"{use.resident / 2**20:.1f}", str(use.descriptors),
                         str(use.processes)))  # fmt: skip
    plan.report.table("What is left of calls (gateway and cells)", ("", "RSS MiB", "descriptors", "processes"), rows)


# --- sites


def _site(folder: Path, program: Path, count: int, *, slow: int = 0) -> Site:
    site = Site(folder)
    _configure(site, program, count, slow=slow)
    return site


def _configure(site: Site, program: Path, count: int, *, slow: int = 0, timeout: int = 99) -> None:
    commands = "commands: {Go: {additional_parameters: true}}"
    lines = [f"c{number}: {{run: [{program}], {commands}}}" for number in range(count)]
    lines[-1] = f"c{count - 1}: {{run: [{program}], timeout: {timeout}s, {commands}}}"
    if slow:
        lines.append(f"slow: {{run: [sleep, '600'], timeout: 10m, concurrency: {slow}, queue: {slow}, {commands}}}")
    site.configure(
        "\n".join(lines),
        gateway=f"max_processes: {slow + 64}\nmax_request: 128MiB",
        defaults="max_output: 128MiB\nqueue: 64",
    )
