"""The operator's side of a large gateway: what each page takes, what calls pay for it, and what followers cost."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPException
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from bench.harness import Figures, Load, Plan, eventually, parse_wrk, percentile, settle, use_of
from bench.held import BEAT, Held
from bench.report import milliseconds
from bench.servers import Server, Site, compiled, free_port, post, started
from gateway.journal.file import RunsFile
from gateway.sealing import Keyring
from gateway.sections import JournalSection
from gateway.units import Size
from tests.journal.support import ran

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPConnection, HTTPResponse

    from gateway.journal.records import Ran

CONNECTORS, BROKEN, RUNS, JOBS = 1_000, 20, 100_000, 2_000
FOLLOWERS = 10
CLIENTS = ("acme", "globex", "initech")
OPERATOR = "operator"  # clients and the operator: the keys are called so, too
BATCH = 2_000
LOG = "a line of the log of a run that went on for some time\n" * 300  # 16 KiB
OUTCOMES = ("ok",) * 16 + ("error", "connector_crashed", "connector_timeout", "connector_busy")
TIMES = 5  # that a page is asked for in a round
PAUSE = 0.05  # seconds between two requests for a page
CALL = "/v1/do/c0/Go"
HEADERS = {"Authorization": f"Bearer {OPERATOR}"}
PAGE_GOAL, HELD_GOAL, FOLLOWERS_GOAL = 300, 20, 1.05  # ms, ms, x
SIGNATURE = """\
{to: {type: str, description: "E.164 number"}, pages: {type: int, default: 1}, quality: {type: str},
 cover: {type: any, required: false}}"""


class Page(NamedTuple):
    """What is asked for; a page of the console needs a session."""

    name: str
    path: str


def run(plan: Plan) -> None:
    """Fill a gateway, ask for each page, and have some followed."""
    sizes = (100, 2, 2_000, 100) if plan.quick else (CONNECTORS, BROKEN, RUNS, JOBS)
    site, held = _site(plan, *sizes[:2]), Held(plan.folder / "held")
    took = _fill(site, sizes[2], sizes[0])
    plan.report.progress(f"{sizes[2]:,} runs written in {took:.1f} s")
    with _gateway(site, "-m", "bench.held", str(held.file)) as server:
        job = _warm(plan, server, sizes[0], sizes[3])
        cookie, pages = _log_in(server), _pages(sizes[0], sizes[2], sizes[3], job)
        _measure_pages(plan, server, held, cookie, pages)
        _measure_calls(plan, server, cookie, pages)
    with _gateway(site, "-m", "gateway") as server:
        _measure_followers(plan, server, _log_in(server))


# --- what there is


def _site(plan: Plan, connectors: int, broken: int) -> Site:
    site = Site(plan.folder / "site")
    program = compiled("filter", plan.folder)
    commands = f"{{Go: {{additional_parameters: true}}, Send: {{async: true, parameters: {SIGNATURE}}}}}"
    lines = [f"c{number}: {{run: [{program}], commands: {commands}}}" for number in range(connectors)]
    lines += [f"broken{number}: {{run: [./no-such-program]}}" for number in range(broken)]
    lines.append('held: {run: [sleep, "1000"], concurrency: 1, commands: {Go: {async: true}}}')
    site.configure(
        "\n".join(lines),
        gateway=f"api_key: {OPERATOR}\njournal: {{size: 1GiB}}\njobs: {{backlog: 20000}}\ndrain: 500ms",
    )
    (site.folder / "clients.d").mkdir()
    for name in CLIENTS:
        digest = hashlib.sha256(name.encode()).hexdigest()
        (site.folder / "clients.d" / f"{name}.yaml").write_text(f'keys: [{{sha256: "{digest}"}}]\n')
    return site


def _fill(site: Site, runs: int, connectors: int) -> float:
    """Write runs into the journal as the gateway would; return how many seconds that took."""
    begun, now = time.monotonic(), time.time()
    file = RunsFile(site.state / "journal" / "runs.sqlite", JournalSection(size=Size(1 << 30)), Keyring((), "journal"))
    made = (_ran(number, now - (runs - number) * 5, connectors) for number in range(runs))
    while batch := list(itertools.islice(made, BATCH)):
        file.add(batch)
    file.close()
    return time.monotonic() - begun


def _ran(number: int, at: float, connectors: int) -> Ran:
    outcome = OUTCOMES[number * 7 % len(OUTCOMES)]
    return ran(
        f"{number:032x}", at=at, log=LOG if number % 20 == 0 else "done\n", connector=f"c{number % connectors}",
        command="Go" if number % 3 else "Send", outcome=outcome, client=(None, *CLIENTS)[number % 4],
        message=None if outcome == "ok" else "what the connector has said of it", pid=7, wall=0.2, total=0.25,
        task_id=f"task-{number}", process_instance_id=number // 5, job=f"job-{number}" if number % 10 == 0 else None,
    )  # fmt: skip


@contextlib.contextmanager
def _gateway(site: Site, *program: str) -> Iterator[Server]:
    port = free_port()
    argv = [sys.executable, *program, "serve", "--config", str(site.file), "--listen", f"127.0.0.1:{port}",
            "--log-format", "json"]  # fmt: skip
    with started(argv, port=port, folder=site.folder) as server:
        eventually(lambda: server.get("/v1/readiness").get("ok"), "readiness")
        yield server


def _warm(plan: Plan, server: Server, connectors: int, jobs: int) -> str:
    """Call each connector, so that each has metrics, and submit jobs; return the name of one."""
    begun = time.monotonic()
    with contextlib.closing(server.connect()) as connection:
        for number in range(connectors):
            post(connection, f"/v1/do/c{number}/Go", b"{}", HEADERS)
        answer = b""
        for number in range(jobs):
            key = (OPERATOR, *CLIENTS)[number % 4]
            body = json.dumps({"spiff__callback_url": "http://127.0.0.1:9/", "spiff__task_id": f"task-{number}"})
            answer = post(connection, "/v1/do/held/Go", body.encode(), {"Authorization": f"Bearer {key}"})
    job: str = json.loads(answer)["command_response"]["body"]["job_id"]
    plan.report.progress(f"{connectors:,} calls and {jobs:,} jobs in {time.monotonic() - begun:.1f} s")
    return job


def _log_in(server: Server) -> dict[str, str]:
    """Return the headers of a session of the operator's."""
    with contextlib.closing(server.connect()) as connection:
        form = urlencode({"key": OPERATOR})
        connection.request("POST", "/console/login", form, {"Content-Type": "application/x-www-form-urlencoded"})
        answer = connection.getresponse()
        answer.read()
        if answer.status != 303:
            raise RuntimeError(f"nobody could log in: {answer.status}")
        return {"Cookie": (answer.getheader("Set-Cookie") or "").partition(";")[0]}


def _pages(connectors: int, runs: int, jobs: int, job: str) -> list[Page]:
    console = {
        "overview": "", "its last page": f"?page={-(-connectors // 50)}", "search": "?q=c99",
        "connector": "/connectors/c0", "a broken one": "/connectors/broken0", "command": "/connectors/c0/commands/Send",
        "runs": "/runs", "runs of a connector": "/runs?connector=c7", "of a command": "/runs?command=Send",
        "of a client": "/runs?client=acme", "that failed": "/runs?outcome=failed",
        "that timed out": "/runs?outcome=connector_timeout", "of an unknown outcome": "/runs?outcome=nothing",
        "of a task": f"/runs?task=task-{runs // 2}", "of a process instance": "/runs?process_instance=17",
        "of a job": "/runs?job=job-100", "of the last hour": "/runs?since=1h",
        "older than a day": "/runs?until=24h", "a connector's that failed": "/runs?connector=c7&outcome=failed",
        "a client's of a command": "/runs?client=acme&command=Send", "the oldest": f"/runs?offset={runs - 50}",
        "the oldest that failed": f"/runs?outcome=failed&offset={runs // 5 - 50}",
        "one run": f"/runs/{runs // 2 + 1:032x}", "one with a long log": f"/runs/{runs // 2:032x}",
        "jobs": "/jobs", "jobs of a state": "/jobs?state=waiting", "of a connector": "/jobs?connector=held",
        "jobs of a client": "/jobs?client=acme", "the oldest jobs": f"/jobs?offset={jobs - 50}",
        "one job": f"/jobs/{job}",
    }  # fmt: skip
    others = (
        "/docs", "/openapi.json", "/v1/commands", "/v1/status", "/v1/status?client=acme", "/metrics",
        "/v1/runs?limit=500", f"/v1/runs?limit=500&offset={runs - 500}", "/v1/runs?outcome=failed&limit=500",
        "/v1/jobs?limit=500",
    )  # fmt: skip
    return [*(Page(name, f"/console{path}") for name, path in console.items()), *(Page(path, path) for path in others)]


# --- pages


def _measure_pages(plan: Plan, server: Server, held: Held, cookie: dict[str, str], pages: list[Page]) -> None:
    figures, sizes = Figures(), {}
    with contextlib.closing(server.connect()) as connection:
        for number in range(plan.rounds):
            for page, _ in itertools.product(pages, range(TIMES)):
                time.sleep(PAUSE)
                held.taken()
                before, begun = _cpu(server.pid), time.monotonic()
                sizes[page.name] = _get(connection, page.path, cookie)
                figures.add(page.name, "seconds", time.monotonic() - begun)
                time.sleep(5 * BEAT)  # it has looked again
                figures.add(page.name, "cpu", _cpu(server.pid) - before)
                figures.add(page.name, "held", held.taken())
            plan.report.progress(f"round {number + 1}/{plan.rounds} of {len(pages)} pages")
    rows: list[tuple[str, ...]] = [
        (page.name, milliseconds(figures.median(page.name, "seconds")),
         milliseconds(figures.most(page.name, "seconds")), milliseconds(figures.median(page.name, "cpu")),
         milliseconds(figures.median(page.name, "held")), milliseconds(figures.most(page.name, "held")),
         f"{sizes[page.name] / 1000:,.0f}")
        for page in pages
    ]  # fmt: skip
    headers = ("page", "median ms", "worst ms", "CPU ms", "loop held ms", "worst ms", "kB")
    plan.report.table("Pages, each alone", headers, rows)
    slowest = max(figures.median(page.name, "seconds") for page in pages) * 1000
    longest = max(figures.median(page.name, "held") for page in pages) * 1000
    plan.report.at_most("the slowest page, median", slowest, PAGE_GOAL, " ms")
    plan.report.at_most("the loop is held at once, of the worst page", longest, HELD_GOAL, " ms")


def _get(connection: HTTPConnection, path: str, cookie: dict[str, str]) -> int:
    """Return the size of what is answered; pages of the console have a session, others the key."""
    connection.request("GET", path, headers=cookie if path.startswith("/console") else HEADERS)
    answer = connection.getresponse()
    data = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} answered {answer.status}: {data[:300].decode(errors='replace')}")
    return len(data)


def _cpu(pid: int) -> float:
    """Return the seconds that the threads of a process have computed, to the nanosecond."""
    used = 0
    for task in os.scandir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"{task.path}/schedstat") as file:
            used += int(file.read().split()[0])
    return used / 1e9


# --- calls beside pages


def _measure_calls(plan: Plan, server: Server, cookie: dict[str, str], pages: list[Page]) -> None:
    """Make one call after the other while a page is asked for again and again."""
    seen = [one for one in pages if one.name in {"overview", "runs", "the oldest that failed", "jobs", "/openapi.json",
                                                 "/v1/commands", "/v1/status", "/metrics"}]  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for page in (None, *seen):
        with _asking(server, page, cookie) if page is not None else contextlib.nullcontext():
            took = _calls(server, 0.5 if plan.quick else 1.5)
        name = page.name if page is not None else "nothing"
        rows.append((name, *(milliseconds(percentile(took, share)) for share in (0.5, 0.99, 1.0))))
        plan.report.progress(f"calls beside {name}: p99 {rows[-1][2]} ms")
    title = f"One call after the other, while a page is asked for every {PAUSE * 1000:.0f} ms"
    plan.report.table(title, ("beside", "p50 ms", "p99 ms", "longest ms"), rows)


def _calls(server: Server, seconds: float) -> list[float]:
    took, until = [], time.monotonic() + seconds
    with contextlib.closing(server.connect()) as connection:
        while (begun := time.monotonic()) < until:
            post(connection, CALL, b"{}", HEADERS)
            took.append(time.monotonic() - begun)
    return took


@contextlib.contextmanager
def _asking(server: Server, page: Page, cookie: dict[str, str]) -> Iterator[None]:
    over = threading.Event()

    def ask() -> None:
        with contextlib.closing(server.connect()) as connection:
            while not over.wait(PAUSE):
                _get(connection, page.path, cookie)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- followers


def _measure_followers(plan: Plan, server: Server, cookie: dict[str, str]) -> None:
    """Load the gateway with nobody looking, and with ten browsers on the overview and the log of what is called."""
    figures, cases = Figures(), {"nobody": 0, f"{FOLLOWERS} pages": FOLLOWERS}
    for number in range(plan.rounds + 1):
        for name, count in sorted(cases.items(), reverse=bool(number % 2)):
            with _following(server, count, cookie):
                settle(server.pid)
                before = use_of(server.pid).cpu
                load = _load(server, plan)
                cpu = (use_of(server.pid).cpu - before) / max(1, load.requests)
            if number:  # the first round is not counted: what is made at the first calls is made
                for measure, value in (("rate", load.rate), ("p50", load.p50), ("p99", load.p99), ("cpu", cpu)):
                    figures.add(name, measure, value)
            plan.report.progress(f"round {number}/{plan.rounds} {name}: {load.rate:.0f}/s, {cpu * 1000:.3f} s/1,000")
    rows: list[tuple[str, ...]] = [
        (name, f"{figures.median(name, 'rate'):,.0f}", milliseconds(figures.median(name, "p50")),
         milliseconds(figures.median(name, "p99")), f"{figures.median(name, 'cpu') * 1000:.3f}",
         f"{figures.spread(name, 'cpu'):.0%}")
        for name in cases
    ]  # fmt: skip
    headers = ("who looks", "calls/s @8", "p50 ms", "p99 ms", "CPU s/1,000 calls", "spread of it")
    plan.report.table("Calls while pages are followed: overviews, and the log of what is called", headers, rows)
    ratio = figures.ratio(f"{FOLLOWERS} pages", "nobody", "cpu")
    plan.report.at_most(f"CPU of a call with {FOLLOWERS} pages open", ratio, FOLLOWERS_GOAL)


def _load(server: Server, plan: Plan) -> Load:
    script = plan.folder / "call.lua"
    script.write_text(f'wrk.method = "POST"\nwrk.body = "{{}}"\nwrk.headers["Authorization"] = "Bearer {OPERATOR}"\n')
    argv = ["wrk", "--latency", "-t1", "-c8", f"-d{max(1, round(plan.seconds))}s", "-s", str(script)]
    done = subprocess.run(
        [*argv, f"{server.url}{CALL}"], capture_output=True, text=True, check=True, timeout=60, stdin=subprocess.DEVNULL
    )
    return parse_wrk(done.stdout)


@contextlib.contextmanager
def _following(server: Server, count: int, cookie: dict[str, str]) -> Iterator[None]:
    """Hold streams open, and read what comes."""
    paths = ("/console/live?q=&page=1", "/console/connectors/c0/log")
    with contextlib.ExitStack() as stack:
        for number in range(count):
            connection = stack.enter_context(contextlib.closing(server.connect()))
            connection.request("GET", paths[number % 2], headers={**cookie, "Accept": "text/event-stream"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"{paths[number % 2]} answered {answer.status}")
            thread = threading.Thread(target=_drain, args=(answer,), daemon=True)
            thread.start()
            stack.callback(thread.join, 10)
            stack.callback(_hang_up, connection)
        yield


def _drain(answer: HTTPResponse) -> None:
    with contextlib.suppress(OSError, ValueError, HTTPException):
        while answer.read1(1 << 16):
            pass


def _hang_up(connection: HTTPConnection) -> None:
    with contextlib.suppress(OSError):
        connection.sock.shutdown(socket.SHUT_RDWR)
