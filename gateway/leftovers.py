"""What a gateway leaves when it dies, and who takes it away.

Its sockets close, so each of its cells kills what it runs, empties its folder and ends. Whatever is there then is
removed by the next gateway with the same `state_dir`. That one begins when the cells of those before it have ended:
there are never more runs than the limits say.

A living gateway has its folder below `run/` locked, and a cell that one has made for it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING

from gateway.locks import lock, locked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 15.0  # seconds that the cells of a dead gateway have to kill what it ran
LOOK = 0.02  # seconds between two looks whether they have


async def claim(folder: Path) -> int:
    """Make this gateway's folder, and remove those of gateways that are dead with their cells.

    Returns a descriptor: the folder is this gateway's until it is closed.

    Raises:
        OSError: the folder, or one above it, cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while True:
        with locked(folder.parent):
            ending = [old for old in folder.parent.iterdir() if not _removed(old)]
            if not ending or asyncio.get_running_loop().time() > deadline:
                folder.mkdir(mode=0o700)
                handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                lock(handle, shared=True)
                return handle
        await asyncio.sleep(LOOK)


def _removed(old: Path) -> bool:
    """Remove the folder of a gateway that is dead; False while cells of it live."""
    if _is_held(old):
        return True  # its gateway lives
    if any(_is_held(one) for one in _folders(old)):
        return False
    shutil.rmtree(old, ignore_errors=True)
    return True


def _folders(old: Path) -> Iterator[str]:
    try:
        with os.scandir(old) as entries:
            yield from (one.path for one in entries if one.is_dir(follow_symlinks=False))
    except OSError:  # it has just been removed, or is none
        return


def _is_held(path: str | os.PathLike[str]) -> bool:
    """Tell whether somebody has a folder locked. Anything else than a folder is nobody's."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not lock(handle, wait=False)
    finally:
        os.close(handle)
