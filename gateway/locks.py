"""Locks between processes: whoever holds one loses it with its life, and never a moment later."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def lock(fd: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file or folder until its descriptor is closed; tell whether that could be done.

    Args:
        fd: the lock belongs to what it stands for, copies of the descriptor included.
        shared: others may have it, too, who want it shared.
        wait: for whoever has it; otherwise it cannot be done.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Have a file, which is made, or a folder, which is there, to oneself for the length of the block."""
    is_folder = os.path.isdir(path)
    flags = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_CREAT
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        lock(fd)
        yield
    finally:
        os.close(fd)
