"""Puts the runners into the wheel, the cell's program among them: the wheel is then for one platform. And Swagger UI.

GATEWAY_CELL_TARGET names another platform than this one: aarch64-linux-musl, x86_64-linux-musl.
An editable install has none of it: it runs what lies in the checkout, and finds Swagger UI in the package of its files.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from gateway.cells import program
from gateway.runners import RUNNERS

SWAGGER_UI = {
    "swagger-ui-bundle.js": "3f6abf70480db7e07914df4c98a77385f22ea585eaf457a3e6415ba0eae2d167",
    "swagger-ui.css": "c3cfe8248c4b0b89673600fb829924eafbac6de4bc4b2b06f5f5243483074d0a",
}
"""The files of /docs and their SHA-256: those of npm's swagger-ui-dist 5.34.0, which flask-swagger-ui hands on."""
TARGET = os.environ.get("GATEWAY_CELL_TARGET") or None


class Runners(BuildHookInterface):
    """Builds the cell for the platform of the wheel, and gathers what comes along."""

    _folder: tempfile.TemporaryDirectory[str]

    def dependencies(self) -> list[str]:
        """Return what a build needs beside what it always needs: a compiler where there is none."""
        return [] if program.compilers(TARGET) else ["ziglang>=0.14"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the program, and say what comes along."""
        if version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory(prefix="cell.")
        cell = Path(self._folder.name, "cell")
        program.build(cell, TARGET)
        into = build_data["force_include"]
        into |= {str(one): f"gateway/_runners/{one.name}" for one in RUNNERS.iterdir() if one.name != "cell"}
        into[str(cell)] = "gateway/_runners/cell/cell"
        for file in self._swagger_ui():
            into[str(file)] = f"gateway/http/assets/swagger-ui/{file.name}"
        machine = (TARGET or platform.machine()).partition("-")[0]
        # A static program asks for no C library: neither glibc's version nor that it is glibc matters.
        build_data["tag"] = f"py3-none-manylinux_2_17_{machine}.manylinux2014_{machine}.musllinux_1_1_{machine}"
        build_data["pure_python"] = False

    def _swagger_ui(self) -> Iterator[Path]:
        """Yield the files of /docs, and each compressed, as servers send it.

        Raises:
            ValueError: one is not what it should be.
        """
        package = importlib.util.find_spec("flask_swagger_ui")
        assert package is not None
        assert package.origin is not None
        for name, digest in SWAGGER_UI.items():
            file = Path(package.origin).parent / "dist" / name
            content = file.read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise ValueError(f"{file} is not the one whose SHA-256 is in hatch_build.py")
            compressed = Path(self._folder.name, f"{name}.gz")
            compressed.write_bytes(gzip.compress(content, 9, mtime=0))
            yield from (file, compressed)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was built."""
        if version != "editable":
            self._folder.cleanup()
