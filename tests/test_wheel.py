"""The built wheel, installed outside of the checkout, has all that it needs."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import flask_swagger_ui
import pytest
import uv

from gateway.http.docs import SWAGGER_UI
from tests.cells.programs import AARCH64, is_static, machine
from tests.installing import ROOT, SECONDS

if TYPE_CHECKING:
    from tests.support import Site

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


CELL = "gateway/_runners/cell/"
ASSETS = "gateway/http/assets/"
DIST = Path(flask_swagger_ui.__file__).parent / "dist"


def run(*argv: str | Path, cwd: Path, status: int = 0, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        argv, cwd=cwd, env={**ENVIRONMENT, **(env or {})}, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def built(folder: Path, env: dict[str, str] | None = None) -> Path:
    """Build the wheel from a copy: a build must not see, and not touch, what lies in the checkout."""
    source = folder / "source"
    for name in ("gateway", "runners"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "cell.sources"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, source)
    before = set(source.rglob("*"))
    run(uv.find_uv_bin(), "build", "--quiet", "--wheel", "--out-dir", folder / "dist", cwd=source, env=env)
    assert {one for one in set(source.rglob("*")) - before if "__pycache__" not in str(one)} == set()
    shutil.rmtree(source)
    (made,) = (folder / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_carries_the_pages_and_the_cell_for_its_platform_alone(wheel: Path, tmp_path: Path) -> None:
    assert f"py3-none-manylinux_2_17_{os.uname().machine}." in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        pages = {
            f"gateway/http/console/{one}" for one in ("templates/base.html", "static/console.css", "static/htmx.min.js")
        }
        assert pages <= set(archive.namelist())
        assert [name for name in archive.namelist() if name.startswith(CELL)] == [f"{CELL}cell"]
        assert archive.getinfo(f"{CELL}cell").external_attr >> 16 & 0o111
        program = Path(archive.extract(f"{CELL}cell", tmp_path))
        assert {"python", "java", "node", "shell"} <= {
            name.split("/")[2] for name in archive.namelist() if "_run" in name
        }
    assert is_static(program)


def test_the_wheel_carries_the_page_that_shows_the_openapi_document(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix(ASSETS) for name in archive.namelist() if name.startswith(ASSETS)}
        (needs,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        assert b"flask" not in archive.read(needs).lower(), "a gateway does not need what the build takes them from"
        swagger = {f"swagger-ui/{name}{more}" for name in SWAGGER_UI for more in ("", ".gz")}
        assert names == {"docs.css", "docs.html", "docs.js", "swagger-ui.NOTICE.txt", *swagger}
        for name in SWAGGER_UI:
            plain, compressed = (archive.read(f"{ASSETS}swagger-ui/{name}{more}") for more in ("", ".gz"))
            assert gzip.decompress(compressed) == plain
            assert plain == (DIST / name).read_bytes()


def test_the_build_and_the_tests_have_one_swagger_ui() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pinned = [
        [one for one in needs if one.startswith("flask-swagger-ui")]
        for needs in (project["build-system"]["requires"], project["dependency-groups"]["dev"])
    ]
    assert pinned[0] == pinned[1]
    assert (DIST / "VERSION").read_text().strip() == f"v{pinned[0][0].partition('==')[2]}"
    assert f"swagger-ui-dist {pinned[0][0].partition('==')[2]}," in (ROOT / "hatch_build.py").read_text()


def test_a_wheel_for_another_platform_is_made_by_a_compiler_for_it(tmp_path: Path) -> None:
    compiler = tmp_path / "aarch64-linux-gnu-gcc"
    header = "\\177ELF\\002\\001\\001" + "\\000" * 9 + f"\\002\\000\\{AARCH64:o}\\000"
    compiler.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; printf "{header}" >"$2"\n')
    compiler.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    made = built(tmp_path, {"GATEWAY_CELL_TARGET": "aarch64-linux-musl", "PATH": path})
    assert "py3-none-manylinux_2_17_aarch64." in made.name
    with zipfile.ZipFile(made) as archive:
        assert machine(Path(archive.extract(f"{CELL}cell", tmp_path))) == AARCH64


def test_the_wheel_runs_connectors_outside_of_the_checkout(site: Site, wheel: Path) -> None:
    folder, binary = site.folder, uv.find_uv_bin()
    run(binary, "venv", "--quiet", folder / "venv", "--python", sys.executable, cwd=folder)
    run(binary, "pip", "install", "--quiet", "--python", folder / "venv/bin/python", wheel, cwd=folder)

    (folder / "tell.py").write_text("def Tell(text: str) -> dict:\n    return {'told': text}\n")
    (folder / "say.sh").write_text("# @param text str What to say\ncmd_Say() { param text; }\n")
    site.configure("py: {runtime: python, module: ./tell.py}\nsh: {runtime: shell, module: ./say.sh}")
    gateway = folder / "venv/bin/gateway"
    cell = run(folder / "venv/bin/python", "-m", "gateway.cells.program", cwd=folder).strip()
    assert cell.startswith(f"{folder}/venv/")
    assert run(cell, "--self-test", cwd=folder)
    swagger = "from gateway.http.docs import _swagger_ui; print(_swagger_ui())"
    assert run(folder / "venv/bin/python", "-c", swagger, cwd=folder).startswith(f"{folder}/venv/")
    assert "2 of 2 connectors can be served" in run(gateway, "check", cwd=folder)
    for target, body in (("py/Tell", {"told": "☃"}), ("sh/Say", {"output": "☃"})):
        answer = json.loads(run(gateway, "call", "--quiet", target, "text=☃", cwd=folder))
        assert answer["command_response"]["body"] == body
