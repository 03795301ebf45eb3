"""How each kind of connector is started: one small module a runtime, behind one Protocol."""

from __future__ import annotations

from gateway.runtimes import exec as exec_
from gateway.runtimes.base import CommandLine, Place, Runtime

RUNTIMES: dict[str, Runtime] = {"exec": exec_.Exec()}

__all__ = ["RUNTIMES", "CommandLine", "Place", "Runtime"]
