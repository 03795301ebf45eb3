"""The built wheel, installed outside of the checkout, has all that it needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import uv

from tests.installing import ROOT, SECONDS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Site

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run(*argv: str | Path, cwd: Path, status: int = 0) -> str:
    done = subprocess.run(argv, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_runs_connectors_outside_of_the_checkout(site: Site) -> None:
    folder, binary = site.folder, uv.find_uv_bin()
    source = folder / "source"  # a build must not see, and not touch, what lies in the checkout
    for name in ("gateway", "runners"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, source)
    run(binary, "build", "--quiet", "--wheel", "--out-dir", folder / "dist", cwd=source)
    (wheel,) = (folder / "dist").glob("*.whl")
    shutil.rmtree(source)
    run(binary, "venv", "--quiet", folder / "venv", "--python", sys.executable, cwd=folder)
    run(binary, "pip", "install", "--quiet", "--python", folder / "venv/bin/python", wheel, cwd=folder)

    (folder / "tell.py").write_text("def Tell(text: str) -> dict:\n    return {'told': text}\n")
    (folder / "say.sh").write_text("# @param text str What to say\ncmd_Say() { param text; }\n")
    site.configure("py: {runtime: python, module: ./tell.py}\nsh: {runtime: shell, module: ./say.sh}")
    gateway = folder / "venv/bin/gateway"
    assert "2 of 2 connectors can be served" in run(gateway, "check", cwd=folder)
    for target, body in (("py/Tell", {"told": "☃"}), ("sh/Say", {"output": "☃"})):
        answer = json.loads(run(gateway, "call", "--quiet", target, "text=☃", cwd=folder))
        assert answer["command_response"]["body"] == body
