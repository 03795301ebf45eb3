"""Folders that stay for a connector, so that its tools do not fetch anew in each private folder what they have had."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gateway.cells.removing import remove
from gateway.observe.events import ConnectorWarning
from gateway.units import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.observe.events import Bus

LOOK = 30.0  # seconds between two looks at how much they hold
SECONDS = 60.0  # for the removal of one
_VARIABLES = {
    "XDG_CACHE_HOME": "",
    "npm_config_cache": "npm",
    "GOCACHE": "go-build",
    "GOMODCACHE": "go-mod",
    "DENO_DIR": "deno",
    "PLAYWRIGHT_BROWSERS_PATH": "ms-playwright",
    "PUPPETEER_CACHE_DIR": "puppeteer",
    "HF_HOME": "huggingface",
}
"""What tells tools where to keep what they fetch, with the name of its folder in the cache."""


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    """One connector's folder, and how many bytes it may hold."""

    folder: Path
    size: Size

    def env(self) -> dict[str, str]:
        """Return what leads tools to it."""
        return {name: str(self.folder / below) for name, below in _VARIABLES.items()}

    def prepare(self, user: tuple[int, int] | None) -> None:
        """Have it there, for that user or else the gateway's own; what was another user's is removed.

        Raises:
            OSError: it cannot be made.
        """
        uid, gid = user or (os.geteuid(), os.getegid())
        with contextlib.suppress(FileNotFoundError):
            if os.lstat(self.folder).st_uid != uid:
                remove(self.folder, SECONDS)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir(mode=0o700)
            if user is not None:
                os.chown(self.folder, uid, gid, follow_symlinks=False)

    def held(self) -> int:
        """Return how many bytes it takes on the disk; no end of them where it is too deep to be looked at."""
        total, seen, todo = 0, set(), [str(self.folder)]
        while todo:
            try:
                with os.scandir(todo.pop()) as listing:
                    for entry in listing:
                        facts = entry.stat(follow_symlinks=False)
                        if facts.st_ino not in seen:
                            total += facts.st_blocks * 512
                        if facts.st_nlink > 1:
                            seen.add(facts.st_ino)
                        if entry.is_dir(follow_symlinks=False):
                            todo.append(entry.path)
            except OSError as problem:  # gone meanwhile, or closed
                if problem.errno == errno.ENAMETOOLONG:
                    return sys.maxsize
        return total

    def empty(self) -> None:
        """Take all out of it at once. The folder itself stays: processes that wait were given it."""
        taken = self.folder.with_name(f".{uuid.uuid4().hex}")
        taken.mkdir(mode=0o700)
        for name in os.listdir(self.folder):
            with contextlib.suppress(OSError):
                (self.folder / name).rename(taken / name)
        remove(taken, SECONDS)


class Caches:
    """The caches of the connectors that are registered."""

    def __init__(self, state_dir: Path, bus: Bus) -> None:
        """`state_dir` holds them."""
        self.held: dict[str, int] = {}
        """How many bytes each held at the latest look."""
        self._folder = state_dir / "cache"
        self._bus = bus

    async def keep(self, caches: Callable[[], dict[str, Cache]], names: Callable[[], Iterable[str]]) -> None:
        """Look at them for ever: `caches` returns those there are, `names` all connectors."""
        while True:
            try:
                await asyncio.to_thread(self._tidy, set(names()))
                for name, cache in caches().items():
                    self.held[name] = await self._bounded(name, cache)
            except OSError as problem:
                self._warn("", f"caches cannot be looked at: {problem}")
            await asyncio.sleep(LOOK)

    async def _bounded(self, name: str, cache: Cache) -> int:
        held = await asyncio.to_thread(cache.held)
        if held <= cache.size:
            return held
        await asyncio.to_thread(cache.empty)
        self._warn(name, f"its cache held more than {cache.size} (cache) and was emptied")
        return await asyncio.to_thread(cache.held)

    def _tidy(self, names: set[str]) -> None:
        """Remove the caches of connectors that are no more."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._folder):
                if name not in names:
                    remove(self._folder / name, SECONDS)

    def _warn(self, name: str, message: str) -> None:
        self._bus.publish(ConnectorWarning(connector=name, command="", request_id="", message=message))


def cache_of(name: str, size: Size | None, state_dir: Path) -> Cache | None:
    """Return a connector's cache, None where it has none."""
    return None if size is None else Cache(folder=state_dir / "cache" / name, size=size)
