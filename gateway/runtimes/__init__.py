"""How each kind of connector is started: one small module a runtime, behind one Protocol."""

from __future__ import annotations

from gateway.runtimes.base import Build, BuildFailed, CommandLine, Home, Made, Runtime, Tools, made_at
from gateway.runtimes.container import Container
from gateway.runtimes.exec import Exec
from gateway.runtimes.java import Java
from gateway.runtimes.node import Node
from gateway.runtimes.python import Python
from gateway.runtimes.shell import Shell

RUNTIMES: dict[str, Runtime] = {
    "exec": Exec(),
    "python": Python(),
    "java": Java(),
    "node": Node(),
    "shell": Shell(),
    "container": Container(),
}

__all__ = ["RUNTIMES", "Build", "BuildFailed", "CommandLine", "Home", "Made", "Runtime", "Tools", "made_at"]
