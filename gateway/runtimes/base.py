"""What a runtime has to answer: which command line runs the connector."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import msgspec

from gateway.document import Node
from gateway.errors import Quarantine


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a connector is defined and may keep what is built for it. Paths are absolute."""

    name: str
    node: Node
    folder: Path
    state_dir: Path
    path: str

    def resolve(self, text: str, *keys: str | int) -> Path:
        """Return a path as the file that holds the key means it."""
        mark = self.node.mark(keys)
        return (mark.path.parent if mark else self.folder) / text


class CommandLine(msgspec.Struct, frozen=True, kw_only=True):
    """How to start the connector: `argv[0]` is absolute; a change of one of `files` means another connector."""

    argv: tuple[str, ...]
    files: tuple[Path, ...] = ()


class Runtime(Protocol):
    """A kind of connector."""

    @property
    def options(self) -> type[msgspec.Struct]:
        """The keys that this runtime adds to a connector's entry."""

    def command_line(self, options: Any, place: Place) -> CommandLine:
        """Return how to start it.

        Raises:
            Quarantine: something is missing; the message says what to do.
            ConfigError: the options do not make sense together.
        """


def find_program(name: str, path: str) -> Path:
    """Return the absolute path of a program.

    Raises:
        Quarantine: the machine lacks it.
    """
    found = shutil.which(name, path=path)
    if found is None:
        raise Quarantine(f"{name} not found: install it, or name it by its path")
    return Path(os.path.abspath(found))


def missing_interpreter(script: Path, path: str) -> str | None:
    """Return the interpreter that a script's #! line names and the machine lacks."""
    try:
        with script.open("rb") as file:
            first = file.readline(256)
    except OSError:
        return None
    if not first.startswith(b"#!"):
        return None
    words = first[2:].decode(errors="replace").split()
    if not words:
        return None
    if not os.access(words[0], os.X_OK):
        return words[0]
    if os.path.basename(words[0]) == "env":
        names = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        if names and shutil.which(names[0], path=path) is None:
            return names[0]
    return None
