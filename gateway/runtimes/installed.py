"""What a change of a virtual environment shows in: its packages as a whole, and the code of those that are worked on.

Nothing of it is run, so this reads what an interpreter would: `.pth` files (docs.python.org, `site`) and the records of
editable installations (PEP 610).
"""

from __future__ import annotations

import contextlib
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import msgspec

from gateway.files import read_file, read_text
from gateway.runtimes.base import SOURCES, sources

if TYPE_CHECKING:
    from collections.abc import Iterator

_PARTS = ("commands", "auths")


class _Folder(msgspec.Struct, frozen=True):
    editable: bool = False


class _DirectUrl(msgspec.Struct, frozen=True):
    url: str
    dir_info: _Folder = _Folder()


def traces(venv: Path, package: str | None) -> list[Path]:
    """Return the files and folders whose change means another environment, or other code in it.

    An installation changes the folder of packages. Files are looked at one by one where they are the package's own, or
    are imported from where somebody edits them.
    """
    packages, elsewhere = folders(venv), added(venv)
    paths = sorted(path for each in packages for path in each.glob("*.pth"))
    code = itertools.chain(
        *(_package(folder.joinpath(*package.split("."))) for folder in (*packages, *elsewhere) if package),
        *(sources(folder, ".py") for folder in elsewhere),
    )
    return [venv / "pyvenv.cfg", *packages, *paths, *list(dict.fromkeys(code))[:SOURCES]]


def added(venv: Path) -> list[Path]:
    """Return the folders outside of an environment that its interpreter imports from."""
    return [folder for each in folders(venv) for folder in _added(each)]


def names(venv: Path) -> list[str]:
    """Return the names of the packages that are installed in an environment."""
    found = {file.name.partition("-")[0] for each in folders(venv) for file in each.glob("*.dist-info")}
    return sorted(found, key=str.lower)


def releases(venv: Path) -> list[str]:
    """Return the names and versions of those packages."""
    return sorted(file.stem for each in folders(venv) for file in each.glob("*.dist-info"))


def version(venv: Path) -> tuple[int, ...]:
    """Return the version of an environment's Python, empty when it does not tell."""
    with contextlib.suppress(OSError):
        for line in read_text(venv / "pyvenv.cfg", "replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip() in {"version_info", "version"}:
                return tuple(int(word) for word in re.findall(r"\d+", value)[:3])
    return ()


def folders(venv: Path) -> list[Path]:
    """Return the folders that an environment's packages are in, without links."""
    return sorted({folder.resolve() for folder in venv.glob("lib*/*/site-packages")})


def _package(path: Path) -> Iterator[Path]:
    """Yield a package's files, and the folders in which a new file is a new command."""
    if path.is_dir():
        yield from (path / part for part in _PARTS)
        yield from sources(path, ".py")
    elif path.with_suffix(".py").exists():
        yield path.with_suffix(".py")


def _added(packages: Path) -> Iterator[Path]:
    """Yield the folders that are imported from besides this one."""
    for file in sorted(packages.glob("*.pth")):
        with contextlib.suppress(OSError):
            for line in read_text(file, "replace").splitlines():
                if line.strip() and not line.startswith(("#", "import ", "import\t")):
                    folder = packages / line.strip()
                    if folder.is_dir():
                        yield folder
    for file in sorted(packages.glob("*.dist-info/direct_url.json")):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            origin = msgspec.json.decode(read_file(file), type=_DirectUrl)
            if origin.dir_info.editable:
                project = Path(unquote(urlsplit(origin.url).path))
                yield from (folder for folder in (project / "src", project) if folder.is_dir())
