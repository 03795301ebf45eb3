"""The compiled modules of an environment, without which each process would compile what it imports.

Environments that hold the same packages share them, as uv has them share the modules: by hard links.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.files import read_text, walk
from gateway.runtimes.base import BuildFailed, digest
from gateway.runtimes.installed import folders, releases, version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.runtimes.base import Tools

LEFT_OUT = r"site-packages/.*/tests?/"  # more than half of pandas, and no connector imports it
_CACHE = "__pycache__"


async def compile_modules(venv: Path, tools: Tools) -> None:
    """Compile what is installed, but for packages' own tests, or take it from an environment with the same packages."""

    async def first(draft: Path) -> None:
        await _compile(venv, tools)
        draft.write_text(str(venv))

    same = digest([version(venv), releases(venv)])
    try:
        known = await tools.shared(f"bytecode-{same[:16]}", first)
        other = Path(read_text(known))
        if other != venv:
            if not await asyncio.to_thread(_share, other, venv):
                await _compile(venv, tools)
            known.write_text(str(venv))  # the newest is removed last
    except OSError:  # it is another user's
        await _compile(venv, tools)


async def _compile(venv: Path, tools: Tools) -> None:
    python = str(venv / "bin" / "python")
    with contextlib.suppress(BuildFailed):  # there are packages with modules of another Python
        await tools.run(python, "-ISm", "compileall", "-qq", "-j", "0", "-x", LEFT_OUT, *map(str, folders(venv)))


def _share(other: Path, venv: Path) -> bool:
    """Link what was compiled of the very same files, as others can look alike. Tell whether that is all."""
    whole = other.exists()
    for theirs in folders(other):
        ours = venv / theirs.relative_to(other.resolve())
        for compiled in _compiled(theirs):
            source = compiled.parent.parent / f"{compiled.name.partition('.')[0]}.py"
            place = ours / compiled.relative_to(theirs)
            try:
                if os.path.samefile(source, ours / source.relative_to(theirs)):
                    place.parent.mkdir(exist_ok=True)
                    place.hardlink_to(compiled)
                else:
                    whole = False
            except OSError:
                whole = False
    return whole


def _compiled(folder: Path) -> Iterator[Path]:
    found = map(Path, walk(folder, lambda _name: False))
    return (file for file in found if file.parent.name == _CACHE and file.suffix == ".pyc")
