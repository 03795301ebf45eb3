"""Private folders for runs: made ahead, used again when nothing was left in them, removed by a thread otherwise.

On a disk with a journal mkdir and rmdir wait, 0.1 to 0.3 ms each; a rename does not. So a folder is taken from those
that are ready, and is gone from its name the moment it is dropped.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

AHEAD = 32
LOW = 8
MODE = 0o700
SPARE = ".spare"  # in the root: what is ready, and what has been dropped


class Folders:
    """The private folders below one gateway's own."""

    def __init__(self, root: str) -> None:
        """`root` exists when the first folder is taken."""
        self.root = root
        self._names = itertools.count(1)
        self._ready: deque[str] = deque()
        self._dropped: deque[str] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="folders")
        self._work: Future[None] | None = None

    def take(self) -> str:
        """Return the path of a fresh folder.

        Raises:
            OSError: none can be made.
        """
        folder = f"{self.root}/{next(self._names)}"
        try:
            os.rename(self._ready.popleft(), folder)
        except IndexError:
            os.mkdir(folder, MODE)
        if len(self._ready) < LOW:
            self._busy()
        return folder

    def drop(self, folder: str) -> None:
        """Remove a folder and what is in it: from its name at once, from the disk soon."""
        dropped = f"{self.root}/{SPARE}/dropped-{os.path.basename(folder)}"
        with contextlib.suppress(OSError):
            try:
                os.rename(folder, dropped)
            except FileNotFoundError:  # nothing was ever made ahead
                os.makedirs(os.path.dirname(dropped), MODE, exist_ok=True)
                os.rename(folder, dropped)
            if len(self._ready) < AHEAD and _as_new(dropped):
                self._ready.append(dropped)
            else:
                self._dropped.append(dropped)
                self._busy()

    def clear(self, folder: str, keep: Container[str]) -> bool:
        """Empty a folder but for some names, as `drop` removes one; tell whether it could be done."""
        try:
            if os.stat(folder).st_mode & 0o7777 != MODE:
                os.chmod(folder, MODE)
            left = [name for name in os.listdir(folder) if name not in keep]
            if left:
                bin_ = self.take()
                try:
                    for name in left:
                        _move(f"{folder}/{name}", f"{bin_}/{name}")
                finally:
                    self.drop(bin_)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Wait for what is under way; nothing can be taken any more."""
        self._thread.shutdown()

    def _make(self) -> str:
        folder = f"{self.root}/{SPARE}/{next(self._names)}"
        os.makedirs(folder, MODE)
        return folder

    def _busy(self) -> None:
        if self._work is None or self._work.done():
            with contextlib.suppress(RuntimeError):  # closed
                self._work = self._thread.submit(self._do)

    def _do(self) -> None:
        while True:
            if self._dropped:
                remove_tree(self._dropped.popleft())
            elif len(self._ready) < AHEAD:
                try:
                    self._ready.append(self._make())
                except OSError:  # whoever needs one learns why
                    return
            else:
                return


def _move(path: str, to: str) -> None:
    try:
        os.rename(path, to)
    except PermissionError:  # a folder that is closed to its owner cannot be moved
        if os.path.islink(path):
            raise
        os.chmod(path, MODE)
        os.rename(path, to)


def _as_new(folder: str) -> bool:
    """Tell whether nobody could see that a folder has been used; it gets another name anyway."""
    try:
        return os.stat(folder).st_mode & 0o7777 == MODE and not os.listdir(folder)
    except OSError:
        return False


def remove_tree(folder: str) -> None:
    """Remove a folder and everything in it; what is closed to its owner is opened first."""
    try:
        os.rmdir(folder)
    except OSError:
        _open_up(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _open_up(folder: str) -> None:
    # A link's target is nothing of ours.
    with contextlib.suppress(OSError):
        os.chmod(folder, 0o700)
    for base, names, _ in os.walk(folder):
        for path in (os.path.join(base, name) for name in names):
            if not os.path.islink(path):
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700)
