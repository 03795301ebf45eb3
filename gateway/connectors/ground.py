"""Where a connector's files and the gateway's lie, and what has to be hidden and shown of them.

Of paths that lie inside each other the nearest holds. So a folder that is hidden may have something in it that is
shown, and that in turn something that is hidden.
"""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gateway.connectors.clients import client_files
from gateway.errors import ConfigError
from gateway.sandbox import TEMPORARY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gateway.settings import Settings

BIN = {"bin", "sbin", "scripts", "src"}
"""Folders that are a part of what lies above them."""
_SYSTEM = tuple(map(Path, ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc")))
"""What every level may read."""
_LOGS = Path("/var/log")


_LINKS = 40  # one after the other, as the kernel has it

Inode = tuple[int, int]
"""Device and inode; zeros where there is nothing."""


class Ground(NamedTuple):
    """Where things are, without links."""

    base: Path
    """The folder of connectors.yaml."""
    gathered: frozenset[Path]
    """Folders in which many connectors lie: the drop-ins, and the clients' files."""
    own: Path | None
    """The connector's own folder among the drop-ins."""
    hidden: set[Path]
    """What holds settings, secrets or other connectors."""
    strict: bool


class Wishes(NamedTuple):
    """What a sandbox is to do with paths."""

    hide: set[Path]
    code: set[Path]
    """What is there, and cannot be written."""
    needs: set[Path]
    """What has to be there."""
    others: Mapping[str, Inode]
    """Other connectors' code, and the gateway's."""
    read: list[Path]
    write: list[Path]
    """What the operator has named."""
    private: bool
    """Whether the folders for temporary files are its own."""


class Layers(NamedTuple):
    """What comes of it: no more than it takes."""

    hide: tuple[str, ...]
    show: tuple[str, ...]
    guard: tuple[str, ...]
    covered: tuple[Inode, ...]
    read: tuple[str, ...]
    write: tuple[str, ...]


def ground_of(folder: Path, settings: Settings, *, strict: bool = False) -> Ground:
    """Look where things are, for a connector whose entry stands in that folder."""
    drop_ins = settings.connectors_dir
    inside = drop_ins is not None and folder.parent == drop_ins and folder != settings.file.parent
    return Ground(
        base=real(settings.file.parent),
        gathered=frozenset(_gathered(settings)),
        own=folder if inside else None,
        hidden=_hidden(settings),
        strict=strict,
    )


def _hidden(settings: Settings) -> set[Path]:
    hidden = {settings.state_dir, *(real(folder) for folder in settings.lookup.folders if folder.exists())}
    hidden |= _gathered(settings)
    for named in (settings.file, *([settings.tls.key] if settings.tls is not None else [])):
        file = real(named)
        # A volume of Kubernetes: ..data, which the file's name leads to, becomes another folder with each change.
        versioned = file.parent.name.startswith("..") and file.parent.parent == real(named.parent)
        hidden |= {file, *([file.parent.parent] if versioned else [])}
    return hidden | _audit(settings) | set(_linked(settings))


def _linked(settings: Settings) -> Iterator[Path]:
    """Yield where clients' files and secrets lie that are links out of their folder."""
    with contextlib.suppress(ConfigError):  # whoever reads them tells it
        files = client_files(settings.clients_dir) if settings.clients_dir is not None else None
        yield from (real(file) for file in files or () if file.is_symlink())
    for folder in settings.lookup.folders:
        with contextlib.suppress(OSError):
            yield from (real(file) for file in folder.iterdir() if file.is_symlink() and file.is_file())


def _audit(settings: Settings) -> set[Path]:
    """Return where the audit lies: its file, or the folder with those that were rotated where that has nothing else."""
    file = settings.audit.file if settings.audit is not None else None
    if file is None or not file.is_file():
        return set()
    file = real(file)
    others = file.parent == _LOGS or is_shared(file.parent) or above(file.parent, real(settings.file.parent))
    return {file if others else file.parent}


def _gathered(settings: Settings) -> set[Path]:
    clients = settings.clients_dir
    found = [settings.connectors_dir, clients if clients is not None and clients.exists() else None]
    return {real(folder) for folder in found if folder is not None}


def units(path: Path, ground: Ground) -> Iterator[Path]:
    """Yield what a file or folder of the connector's own belongs to: the folder of it, where that is not shared."""
    if ground.own is not None and any(above(own, path) for own in located(ground.own)):
        return  # all of that folder is its own anyway
    folder = path if os.path.isdir(path) else path.parent
    if folder == ground.base:
        if ground.strict and folder not in ground.hidden and not is_shared(folder):
            yield folder
        elif folder != path:
            yield path
    elif folder in ground.gathered or is_shared(folder) or above(folder, ground.base):
        if folder != path:
            yield path
    elif above(ground.base, path):
        yield folder.parent if folder != path and folder.name in BIN and folder.parent != ground.base else folder
    elif not is_system(path):
        yield folder if ground.strict else path


def layers(ground: Ground, wishes: Wishes) -> Layers:
    """Work out what is hidden, shown, read and written."""
    temporary = set(TEMPORARY) if wishes.private else set()
    base, read, given = str(ground.base), _texts(wishes.read), _texts(wishes.write)
    taken = _texts(wishes.hide)
    hide = taken - read - given
    gone = hide | temporary
    write = set(given)
    if not ground.strict and _nearest(base, gone) in temporary - {base}:
        write.add(base)  # what lies beside connectors.yaml is as it is, wherever that file lies
    # What is given back is given back with all that is in it, but for what is hidden there.
    show, needs = (
        {path for path in _texts(paths) if _nearest(path, gone | given) not in given} - hide
        for paths in (wishes.code, wishes.needs)
    )
    covers = gone | show | write
    show |= needs if ground.strict else {path for path in needs if _nearest(path, covers) in gone}
    show |= {path for path in read if path in taken or _nearest(path, covers) in gone}
    show -= write
    covers = gone | show | write
    shown = {path for path in show if _nearest(_parent(path), covers) not in show}
    written = {
        path for path in write if ground.strict or path in taken or _nearest(_parent(path), covers) in gone | show
    }
    theirs: set[str] = set()
    if not ground.strict:  # who is restricted to a list writes none of it anyway
        free = {None, *(write - given)}
        theirs = {path for path in wishes.others if _nearest(path, covers) in free}
    hidden = {path for path in hide if _nearest(_parent(path), hide | shown | write) not in hide}
    guard = sorted(path for path in theirs if _nearest(_parent(path), theirs) is None)
    return Layers(
        hide=tuple(sorted(hidden)),
        show=tuple(sorted(shown)),
        guard=tuple(guard),
        covered=(*map(inode, sorted(hidden)), *(wishes.others[path] for path in guard)),
        read=tuple(sorted(read)) if ground.strict else (),
        write=tuple(sorted(written)),
    )


def inode(path: Path | str) -> Inode:
    """Return what tells one file of a name from another."""
    try:
        facts = os.stat(path)
    except OSError:
        return 0, 0
    return facts.st_dev, facts.st_ino


def real(path: Path) -> Path:
    """Return a path without links."""
    return Path(os.path.realpath(path))


def located(path: Path) -> set[Path]:
    """Return a path as it is called and, link by link, where that leads; nothing if no such one is to be seen."""
    return set(ways(path)) if os.path.exists(path) else set()


def ways(path: Path) -> Iterator[Path]:
    """Yield a path as it is called, once for each link on its way: up to that there is none. At last without any."""
    path = Path(os.path.abspath(path))
    for _ in range(_LINKS):
        link = next((one for one in (*reversed(path.parents), path) if os.path.islink(one)), None)
        yield path
        if link is None:
            return
        target = link.parent / link.readlink()
        path = (real(target.parent) / target.name if ".." in target.parts else target) / path.relative_to(link)


def above(path: Path, other: Path) -> bool:
    """Tell whether a path is another one or lies above it."""
    return other.is_relative_to(path)


def is_system(path: Path) -> bool:
    """Tell whether a path is the machine's own, which every level may read."""
    return any(above(folder, path) for folder in _SYSTEM)


def is_shared(folder: Path) -> bool:
    """Tell whether a folder is nobody's in particular."""
    return len(folder.parts) <= 2 or str(folder) in TEMPORARY or folder == real(Path("~").expanduser())


def _nearest(path: str, among: set[str]) -> str | None:
    """Return the path itself or the nearest above it that is among these."""
    for one in _way(path):
        if one in among:
            return one
    return None


@functools.lru_cache(maxsize=10_000)
def _way(path: str) -> tuple[str, ...]:
    return path, *map(str, Path(path).parents)


def _parent(path: str) -> str:
    return _way(path)[min(1, len(_way(path)) - 1)]


def _texts(paths: Iterable[Path]) -> set[str]:
    return set(map(str, paths))
