"""What the tests of `gateway install` share: the verb itself, and wheels and packages that are made on the spot."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
import uv

from gateway.locks import locked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support import Site

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
SECONDS = 300  # an index, a mirror or a busy machine may be slow


def command(site: Site, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "gateway", *arguments, "--config", str(site.file)]


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "500", **(more or {})}


def install(site: Site, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `gateway install` to its end."""
    return subprocess.run(
        command(site, "install", *arguments), env=environment(env), cwd=site.folder,
        capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def installed(site: Site, *arguments: str, env: dict[str, str] | None = None) -> None:
    """Install, and fail the test when it failed."""
    done = install(site, *arguments, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


def environment_with(*requirements: str) -> Path:
    """Return a virtual environment that has these; it is kept for later tests, below build/."""
    tool = uv.find_uv_bin()
    with _kept(sys.executable, sys.version, *requirements) as (folder, whole):
        if not whole:
            subprocess.run([tool, "venv", "-q", "--clear", "-p", sys.executable, folder / "venv"], check=True)
            _fetch([tool, "pip", "install", "-q", "-p", str(folder / "venv/bin/python"), *requirements], folder)
    return folder / "venv"


def packages_with(*packages: str) -> Path:
    """Return a folder `node_modules` that has these; it is kept for later tests, below build/."""
    with _kept("node", *packages) as (folder, whole):
        if not whole:
            _fetch(["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *packages], folder)
    return folder / "node_modules"


@contextlib.contextmanager
def _kept(*key: str) -> Iterator[tuple[Path, bool]]:
    """Have a folder to oneself that is named for what is in it, and whether that is whole; it is, after the block."""
    folder = ROOT / "build" / "libraries" / hashlib.sha256("\n".join(key).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "whole"
    with locked(folder):
        yield folder, whole.exists()
        whole.touch()


def _fetch(command: list[str], folder: Path) -> None:
    """Run what fetches libraries; the test is skipped where that cannot be done."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        pytest.skip(f"cannot be had here: {' '.join(command)}: {(done.stderr or done.stdout).strip()[-300:]}")


def wheel(folder: Path, name: str, version: str, files: dict[str, str], *, requires: tuple[str, ...] = ()) -> Path:
    """Make a wheel, so that a test needs neither an index nor a build."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        record = ""
        for inside, text in contents.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{inside},sha256={digest},{len(text.encode())}\n"
            archive.writestr(inside, text)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return path


def synthetic(folder: Path) -> Path:
    """Lay out the synthetic Spiff package as the real ones are: a folder with pyproject.toml and the package."""
    shutil.copytree(
        FIXTURES / "connector_synthetic", folder / "connector_synthetic", ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "pyproject.toml").write_text(
        """\
[tool.poetry]
name = "connector-synthetic"
version = "1.2.3"
description = "Faxes"
authors = ["Nobody <nobody@example.org>"]
packages = [{include = "connector_synthetic"}]

[tool.poetry.dependencies]
python = ">=3.8"
connector-toolbelt = "^2.0"

[build-system]
requires = ["poetry-core"]
build-backend = "poetry.core.masonry.api"
"""
    )
    return folder


def interpreters() -> dict[tuple[int, int], Path]:
    """Return every CPython from 3.8 on by its version, the oldest first: pyenv's, and those on PATH."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders = [*root.glob("versions/3.*/bin"), *map(Path, os.get_exec_path()), Path("/usr/bin"), Path("/usr/local/bin")]
    found: dict[tuple[int, int], Path] = {}
    for place in (place for folder in folders if folder.name != "shims" for place in folder.glob("python3.*")):
        minor = place.name.partition("3.")[2]
        if minor.isdecimal() and int(minor) >= 8:
            found.setdefault((3, int(minor)), place)
    return dict(sorted(found.items()))


class Gated:
    """A package whose build begins, says so, and goes on when the test lets it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.begun = folder.parent / f"{name}-begun"
        self._gate = folder.parent / f"{name}-gate"
        folder.mkdir(parents=True)
        os.mkfifo(self._gate)
        (folder / "backend.py").write_text(
            "import pathlib, shutil\n"
            "def build_wheel(target, config_settings=None, metadata_directory=None):\n"
            f"    pathlib.Path({str(self.begun)!r}).touch()\n"
            f"    open({str(self._gate)!r}).close()\n"
            f"    (wheel,) = pathlib.Path({str(folder / 'made')!r}).iterdir()\n"
            "    return shutil.copy(wheel, target).split('/')[-1]\n"
        )

    def version(self, version: str, files: dict[str, str]) -> None:
        """Give it a new version, whose build has not begun."""
        shutil.rmtree(self.folder / "made", ignore_errors=True)
        wheel(self.folder / "made", self.name, version, files)
        self.begun.unlink(missing_ok=True)
        (self.folder / "pyproject.toml").write_text(
            f'[project]\nname = "{self.name}"\nversion = "{version}"\n'
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        )

    def go_on(self) -> None:
        """Let a build that has begun end."""
        self._gate.write_text("")


class Installing:
    """A `gateway install` that runs beside the test."""

    def __init__(self, site: Site, *arguments: str) -> None:
        self._process = subprocess.Popen(
            command(site, "install", *arguments), env=environment(), cwd=site.folder,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._process.communicate()

    def stop(self) -> None:
        self._process.terminate()

    def ended(self) -> tuple[int, str]:
        """Wait for its end; return exit status and output."""
        out, err = self._process.communicate(timeout=SECONDS)
        return self._process.returncode, out + err


def sources(folder: Path, name: str, files: dict[str, str], *, script: str = "", extras: str = "") -> Path:
    """Make a package's sources that bring along what builds them: no index is needed.

    Args:
        script: Python that runs whenever something is built.
        extras: its `[project.optional-dependencies]`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for inside, text in files.items():
        (folder / inside).write_text(text)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "1.0"\n[project.optional-dependencies]\n{extras}\n'
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (folder / "backend.py").write_text(
        f"{script}\n"
        "import pathlib, tomllib, zipfile\n"
        "HERE = pathlib.Path(__file__).parent\n"
        "def _wheel(target, contents):\n"
        "    extras = tomllib.loads((HERE / 'pyproject.toml').read_text())['project']['optional-dependencies']\n"
        "    needs = ''.join(f\"Provides-Extra: {key}\\n\" + ''.join(f\"Requires-Dist: {one} ; extra == '{key}'\\n\""
        " for one in value) for key, value in extras.items())\n"
        f"    info = '{name}-1.0.dist-info'\n"
        "    contents = {**contents,\n"
        f"        info + '/METADATA': 'Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n' + needs,\n"
        "        info + '/WHEEL': 'Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n'}\n"
        "    contents[info + '/RECORD'] = ''.join(f'{one},,\\n' for one in (*contents, info + '/RECORD'))\n"
        f"    made = '{name}-1.0-py3-none-any.whl'\n"
        "    with zipfile.ZipFile(pathlib.Path(target) / made, 'w') as archive:\n"
        "        for inside, text in contents.items():\n"
        "            archive.writestr(inside, text)\n"
        "    return made\n"
        "def build_wheel(target, config_settings=None, metadata_directory=None):\n"
        f"    return _wheel(target, {{name: (HERE / name).read_text() for name in {list(files)!r}}})\n"
        "def build_editable(target, config_settings=None, metadata_directory=None):\n"
        f"    return _wheel(target, {{'{name}.pth': str(HERE) + '\\n'}})\n"
    )
    return folder


@contextlib.contextmanager
def index(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder of wheels as a package index on loopback: its URL, and what it was asked for."""
    asked: list[str] = []

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            where, _, name = self.path.strip("/").partition("/")
            wheels = [file for file in sorted(folder.glob("*.whl")) if file.name.startswith(f"{name.rstrip('/')}-")]
            if where == "files" and (folder / name).exists():
                self._answer("application/octet-stream", (folder / name).read_bytes())
            elif where == "simple" and wheels:
                links = "".join(f'<a href="/files/{file.name}">{file.name}</a>' for file in wheels)
                self._answer("text/html", links.encode())
            else:
                self.send_error(404)

        def _answer(self, kind: str, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_HEAD(self) -> None:
            self.send_error(405)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/simple/", asked
        finally:
            server.shutdown()
            thread.join()
