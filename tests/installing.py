"""What the tests of `gateway install` share: the verb itself, and wheels and packages that are made on the spot."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
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
