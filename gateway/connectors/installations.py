"""What a program cannot do without: the folder that it is installed in, and that of its interpreter."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.connectors.ground import BIN, above, is_shared, is_system, real, ways
from gateway.files import open_file, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator

_STORES = (Path("/nix/store"), Path("/gnu/store"))
"""Where a program's libraries lie in folders beside its own."""
_LIBRARIES = ("lib", "lib64", "libexec", "jmods")


def needed(program: Path) -> set[Path]:
    """Return what a program, and the interpreter that its #! line names, needs beside the machine's own folders.

    A folder that is not a program is needed as it is.
    """
    found: set[Path] = set()
    for one in (program, _interpreter(program)):
        for path in ways(one) if one is not None else ():
            found |= _installation(path) if os.path.exists(path) else set()
    return {path for path in found if not is_system(path) and not is_shared(path)}


def _installation(path: Path) -> set[Path]:
    home = path.parent.parent
    store = {one for one in _STORES if above(one, path)}
    if store:
        return store
    if os.path.isdir(path):
        return {path}
    if os.path.isfile(home / "pyvenv.cfg"):
        return {home, *_behind(home / "pyvenv.cfg")}
    if path.parent.name == "shims":  # of a version manager, which needs all that it has
        return {home}
    if path.parent.name in BIN and not is_shared(home) and any(os.path.isdir(home / name) for name in _LIBRARIES):
        return {home}
    return {path}


def _behind(file: Path) -> Iterator[Path]:
    """Yield the installation that a virtual environment was made from."""
    with contextlib.suppress(OSError):
        for line in read_text(file, "replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "home":
                yield real(Path(value.strip())).parent


def _interpreter(script: Path) -> Path | None:
    """Return what a script's #! line names."""
    try:
        with open_file(script) as file:
            first = file.readline(256)
    except OSError:
        return None
    words = first[2:].decode(errors="replace").split() if first.startswith(b"#!") else []
    return Path(words[0]) if words and words[0].startswith("/") else None
