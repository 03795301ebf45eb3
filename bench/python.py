"""Class connectors on requests and boto3 in every mode, beside the same classes in process behind Flask."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import uv

from bench.harness import Case, Figures, Plan, contest, key
from bench.report import load_table
from bench.servers import HERE, Server, Site, compiled, free_port, gateway, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONNECTIONS = (1, 8)
COMMANDS = {"text": "Combine", "fetch": "Fetch", "bucket": "Client", "kept": "Client"}
WHAT = {
    "text": "two texts put together",
    "fetch": "HTTP GET through requests",
    "bucket": "a boto3 client, made for each call",
    "kept": "a boto3 client, kept (warmup)",
}
FRESH, STANDBY, FORK, PERSISTENT = "spawn (fresh interpreter)", "standby", "fork", "persistent"
MODES = {FRESH: "spawn", STANDBY: "standby", FORK: "fork", PERSISTENT: "persistent"}
RELOADING, PLAIN = "Flask, re-importing", "Flask"
OURS = tuple(MODES)
HOST = "48"  # MiB: what a host that has imported boto3 has in memory
MORE, EACH = 2, 6  # connectors that nobody calls, and commands in each: a proxy that re-imports meets them all
REQUIREMENTS = ("flask==3.1.2", "gunicorn==23.0.0")


def run(plan: Plan) -> None:
    """Measure each connector in each mode."""
    plugins = _plugins(plan.folder / "plugins")
    site = _site(plan.folder / "gateway", plugins)
    plan.report.progress("gateway install: a venv a connector")
    site.install(*(f"{name}-fork" for name in COMMANDS))
    figures = Figures()
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(_target(plan.folder))
        bodies = {
            "text": {"first": "one ", "second": "two"},
            "fetch": {"url": target.url},
            "bucket": {"region": "eu-north-1"},
            "kept": {"region": "eu-north-1"},
        }
        one = stack.enter_context(gateway(site))
        flasks = {}
        for name, reimport in ((RELOADING, True), (PLAIN, False)):
            flasks[name] = stack.enter_context(_flask(plan.folder / f"flask-{reimport}", plugins, reimport=reimport))
        cases = []
        for connector, command in COMMANDS.items():
            places = {name: (one, f"{connector}-{mode}") for name, mode in MODES.items()}
            places |= {name: (server, connector) for name, server in flasks.items()}
            for count in CONNECTIONS:
                cases += [
                    Case(f"{connector}, {name}", server, f"/v1/do/{entry}/{command}", bodies[connector], count)
                    for name, (server, entry) in places.items()
                ]
        contest(plan, cases, figures)
    for connector, what in WHAT.items():
        names = [f"{connector}, {name}" for name in (*OURS, *flasks)]
        load_table(plan.report, f"Python: {what}", names, CONNECTIONS, figures)
    _compare(plan, figures)
    _note_the_floor(plan)


def _note_the_floor(plan: Plan) -> None:
    """Measure what no way of forking goes below."""
    program = compiled("fork", plan.folder)
    done = subprocess.run([program, HOST], check=True, capture_output=True, text=True, timeout=60)
    bare, page = done.stdout.split()
    plan.report.note(
        f"A C program of {HOST} MiB (bench/fork.c), here: fork, exit and wait {float(bare):.2f} ms, and "
        f"{float(page):.2f} us for each page that the child writes to."
    )


def _compare(plan: Plan, figures: Figures) -> None:
    report = plan.report
    rows = []
    for connector in COMMANDS:
        fork = f"{connector}, {FORK}"
        fresh, reloading, plain = (f"{connector}, {name}" for name in (FRESH, RELOADING, PLAIN))
        rows.append(
            (
                WHAT[connector],
                f"{figures.ratio(key(fresh, 8), key(fork, 8), 'cpu'):.1f}",
                f"{figures.ratio(key(fork, 8), key(reloading, 8), 'rate'):.2f}",
                f"{figures.ratio(key(fork, 8), key(plain, 8), 'rate'):.2f}",
            )
        )
    headers = ("fork against", "less CPU than fresh", "rate / re-importing", "rate / Flask")
    report.table("Ratios at 8 connections", headers, rows)
    for name in ("bucket", "kept"):
        p50 = figures.median(key(f"{name}, {FORK}", 1), "p50") * 1000
        report.at_most(f"fork, {WHAT[name]}, one caller: p50 under 5 ms", p50, 5, " ms")
        saved = figures.ratio(key(f"{name}, {FRESH}", 8), key(f"{name}, {FORK}", 8), "cpu")
        report.at_least(f"fork, {WHAT[name]}: a 60th of the CPU of a fresh interpreter", saved, 60)
    for connector in COMMANDS:
        for other, bound in ((RELOADING, 4.0), (PLAIN, 1.0)):
            value = figures.ratio(key(f"{connector}, {FORK}", 8), key(f"{connector}, {other}", 8), "rate")
            text = f"fork, {WHAT[connector]}: at least {bound:g} x the rate of {other}"
            report.at_least(text, value, bound)


def _plugins(folder: Path) -> Path:
    """Lay out the package, and beside the connectors that are called some that are installed and never called."""
    shutil.copytree(HERE / "plugins", folder, ignore=shutil.ignore_patterns("__pycache__"))
    names = [f"connector_{name}" for name in COMMANDS]
    for number in range(MORE):
        name = f"connector_more{number}"
        names.append(name)
        commands = folder / name / "commands"
        commands.mkdir(parents=True)
        (folder / name / "__init__.py").touch()
        (commands / "__init__.py").touch()
        for index in range(EACH):
            (commands / f"command{index}.py").write_text(
                (HERE / "plugins/connector_fetch/commands/fetch.py").read_text().replace("Fetch", f"Command{index}")
            )
    project = folder / "pyproject.toml"
    listed = ", ".join(f'"{name}"' for name in names)
    project.write_text(project.read_text().split("packages = ")[0] + f"packages = [{listed}]\n")
    return folder


def _site(folder: Path, plugins: Path) -> Site:
    """Configure each connector four times; the one in mode fork has the venv that the others use too."""
    site = Site(folder)
    lines = []
    for name in COMMANDS:
        lines.append(f"{name}-fork: {{runtime: python, package: connector_{name}, requirements: [{plugins}]}}")
        lines += [
            f"{name}-{mode}: {{runtime: python, package: connector_{name}, mode: {mode}, "
            f"venv: .gateway/runtimes/{name}-fork/current/venv}}"
            for mode in MODES.values()
            if mode != "fork"
        ]
    site.configure("\n".join(lines), defaults="queue: 64")
    return site


def _target(folder: Path) -> contextlib.AbstractContextManager[Server]:
    port = free_port()
    return started([sys.executable, str(HERE / "target.py"), str(port)], port=port, folder=folder)


@contextlib.contextmanager
def _flask(folder: Path, plugins: Path, *, reimport: bool) -> Iterator[Server]:
    """Serve with three gunicorn workers, out of a venv of the bench."""
    folder.mkdir()
    venv = plugins.parent / "flask-venv"
    if not venv.exists():
        for command in (
            ["venv", "--quiet", "--python", sys.executable, str(venv)],
            ["pip", "install", "--quiet", "--compile-bytecode", "--python", f"{venv}/bin/python", *REQUIREMENTS,
             str(plugins)],
        ):  # fmt: skip
            subprocess.run([uv.find_uv_bin(), *command], check=True, timeout=300, stdin=subprocess.DEVNULL)
    port = free_port()
    argv = [f"{venv}/bin/gunicorn", "--workers", "3", "--bind", f"127.0.0.1:{port}", "--chdir", str(HERE), "proxy:app"]
    env = {"REIMPORT": str(int(reimport)), "PYTHONPATH": ""}
    with started(argv, port=port, folder=folder, env=env) as server:
        yield server
