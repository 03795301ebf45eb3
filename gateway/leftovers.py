"""What a gateway leaves when it dies, and who takes it away.

Its sockets close, so each of its cells kills what it runs, empties its folder and ends. Whatever is there then is
removed by the next gateway with the same `state_dir`. That one begins when the cells of those before it have ended:
there are never more runs than the limits say.

A living gateway has its folder below `run/` locked, and a cell that one has made for it.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

from gateway.cells.removing import remove
from gateway.locks import lock, locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 15.0  # seconds that the cells of a dead gateway have to kill what it ran
LEAST = 1.0  # seconds that the removal of each folder has
LOOK = 0.02  # seconds between two looks whether they have


async def claim(folder: Path, tell: Callable[[Path], None] | None = None) -> int:
    """Make this gateway's folder, and remove those of gateways that are dead with their cells.

    `tell` hears of each that could not be removed, or not in time: it stops no start, and is left for the next one.
    Returns a descriptor: the folder is this gateway's until it is closed.

    Raises:
        OSError: the folder, or one above it, cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    given_up: set[Path] = set()
    while True:
        with locked(folder.parent):
            dead, ending = _survey(folder.parent, given_up)
            if not dead and (not ending or loop.time() > deadline):
                folder.mkdir(mode=0o700)
                handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                lock(handle, shared=True)
                return handle
        try:
            for old in dead:
                if not await asyncio.to_thread(remove, old, max(LEAST, deadline - loop.time())):
                    given_up.add(old)
                    if tell is not None:
                        tell(old)
        finally:
            for handle in dead.values():
                os.close(handle)
        if not dead:
            await asyncio.sleep(LOOK)


def _survey(run: Path, given_up: set[Path]) -> tuple[dict[Path, int], bool]:
    """Return the folders of the dead, locked by us: who comes meanwhile leaves them alone. And whether cells still end.

    What is no folder, or locked by a gateway that lives, is none of our business.
    """
    dead: dict[Path, int] = {}
    ending = False
    for old in set(run.iterdir()) - given_up:
        handle = _open(old)
        if handle is None:
            continue
        if not lock(handle, wait=False):  # its gateway lives, or somebody removes it
            os.close(handle)
        elif any(_is_held(one) for one in _folders(old)):
            os.close(handle)
            ending = True
        else:
            dead[old] = handle
    return dead, ending


def _folders(old: Path) -> Iterator[str]:
    try:
        with os.scandir(old) as entries:
            yield from (one.path for one in entries if one.is_dir(follow_symlinks=False))
    except OSError:  # it has just been removed, or is none
        return


def _open(path: str | os.PathLike[str]) -> int | None:
    """Open a folder, also one that its owner may not read; None for anything else, which is nobody's."""
    flags = os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDONLY | flags)
    except OSError as problem:
        if problem.errno != errno.EACCES:
            return None
    try:
        there = os.open(path, os.O_PATH | flags)
    except OSError:
        return None
    try:
        os.chmod(f"/proc/self/fd/{there}", 0o700)
        return os.open(f"/proc/self/fd/{there}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    finally:
        os.close(there)


def _is_held(path: str | os.PathLike[str]) -> bool:
    """Tell whether somebody has a folder locked."""
    handle = _open(path)
    if handle is None:
        return False
    try:
        return not lock(handle, wait=False)
    finally:
        os.close(handle)
