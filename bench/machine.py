"""What is measured on: the machine, the versions, and the Debian packages that the bench needs."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import shutil
import subprocess
from pathlib import Path

PROGRAMS = {"wrk": "wrk", "webhook": "webhook", "lighttpd": "lighttpd"}  # program -> Debian package
_SBIN = "/usr/sbin:/sbin"


def find(program: str) -> str | None:
    """Return the path of a program; servers lie where only root's PATH leads."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")


def install_missing() -> list[str]:
    """Install the missing Debian packages where that can be done; return a line for each thing done or left."""
    missing = [package for program, package in PROGRAMS.items() if find(program) is None]
    if not missing:
        return []
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return [f"missing Debian packages: {' '.join(missing)} (not root, or no apt: install them yourself)"]
    lines = [f"installing Debian packages: {' '.join(missing)}"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    commands = [["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing]]
    if not list(Path("/var/lib/apt/lists").glob("*_Packages*")):
        commands.insert(0, ["apt-get", "-qq", "update"])
    for command in commands:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            lines.append(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
    return lines


def describe(rounds: int, seconds: float) -> str:
    """Return one paragraph: CPU, cores, kernel, date, versions, load, how long."""
    versions = [f"Python {platform.python_version()}", *filter(None, (_version(*one) for one in _ASKED))]
    return (
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {_cpu_model()}, {os.cpu_count()} cores, "
        f"Linux {platform.release()}, {_cgroups()}; {', '.join(versions)}. Load average before: {load():.2f}. "
        f"Medians of {rounds} rounds of {seconds:g} s a case."
    )


def load() -> float:
    """Return how many processes have wanted to run, on average over the last minute."""
    return os.getloadavg()[0]


def raise_limits() -> int:
    """Allow ourselves, and what we start, as many descriptors as we may have; return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


_ASKED = (
    ("wrk", "dpkg-query", "-W", "-f", "${Version}", "wrk"),
    ("webhook", "dpkg-query", "-W", "-f", "${Version}", "webhook"),
    ("lighttpd", "dpkg-query", "-W", "-f", "${Version}", "lighttpd"),
    ("java", "java", "--version"),
    ("node", "node", "--version"),
)


def _version(name: str, *command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    first = (done.stdout.splitlines() or [""])[0].removeprefix("openjdk").split()
    return f"{name} {first[0]}" if first else None


def _cgroups() -> str:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, _, kind, options, *_ = line.split()
        if kind == "cgroup2":
            return "cgroup2 with favordynmods" if "favordynmods" in options.split(",") else "cgroup2"
    return "no cgroup2"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
