"""Puts the runners into the wheel, the cell's program among them: the wheel is then for one platform.

GATEWAY_CELL_TARGET names another platform than this one: aarch64-linux-musl, x86_64-linux-musl.
An editable install has neither: it runs what lies in the checkout.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from gateway.cells import program
from gateway.runners import RUNNERS

TARGET = os.environ.get("GATEWAY_CELL_TARGET") or None


class Runners(BuildHookInterface):
    """Builds the cell for the platform of the wheel."""

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
        machine = (TARGET or platform.machine()).partition("-")[0]
        # A static program asks for no C library: neither glibc's version nor that it is glibc matters.
        build_data["tag"] = f"py3-none-manylinux_2_17_{machine}.manylinux2014_{machine}.musllinux_1_1_{machine}"
        build_data["pure_python"] = False

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was built."""
        if version != "editable":
            self._folder.cleanup()
