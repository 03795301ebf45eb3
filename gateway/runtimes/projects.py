"""What a Python project says of itself in pyproject.toml, as far as it names what lies on this machine.

Sources: docs.astral.sh/uv, "Dependency sources" and "Workspaces"; python-poetry.org, "Path dependencies"; PEP 621; of
locks PEP 751.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.files import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = "pyproject.toml"
BUILT_OF = {FILE, "setup.py", "setup.cfg"}
"""Files that stand for a project where a tool wants requirements."""


class Project(NamedTuple):
    """A project: its folder, and what its pyproject.toml holds; nothing where it has none, or an odd one."""

    folder: Path
    data: dict[str, Any]

    @property
    def name(self) -> str | None:
        """Its name, None when only building it would tell."""
        name = self.table("project").get("name") or self.table("tool", "poetry").get("name")
        return name if isinstance(name, str) else None

    @property
    def is_dynamic(self) -> bool:
        """Whether only building it tells what it needs."""
        dynamic = self.table("project").get("dynamic")
        needs = {"dependencies", "optional-dependencies"}
        return "project" not in self.data or (isinstance(dynamic, list) and not needs.isdisjoint(map(str, dynamic)))

    @property
    def has_settings(self) -> bool:
        """Whether uv finds settings of its own there."""
        return "uv" in self.table("tool")

    def table(self, *keys: str) -> dict[str, Any]:
        """Return a table of it, an empty one where there is none."""
        found: Any = self.data
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    def requirements(self) -> Iterator[str]:
        """Yield what it needs, as lines; `{root:uri}` is Hatch's, `${PROJECT_ROOT}` uv's."""
        project = self.table("project")
        for several in (project.get("dependencies"), *self.table("project", "optional-dependencies").values()):
            for text in several if isinstance(several, list) else ():
                yield str(text).replace("{root:uri}", self.folder.as_uri()).replace("${PROJECT_ROOT}", str(self.folder))

    def paths(self) -> Iterator[Path]:
        """Yield the folders, wheels and archives that it names by path, or as members of its workspace."""
        yield from _paths(self.folder, self.table("tool", "poetry", "dependencies"))
        root = _workspace(self.folder)
        for project in (self, *([root] if root else [])):
            sources = project.table("tool", "uv", "sources")
            yield from _paths(project.folder, sources)
            if root:
                members = {_normal(key) for key, one in _dicts(sources) if one.get("workspace") is True}
                yield from (each.folder for each in _members(root) if each.name and _normal(each.name) in members)


def read(folder: Path) -> Project:
    """Read the project of a folder."""
    try:
        return Project(folder, tomllib.loads(read_text(folder / FILE)))
    except (OSError, ValueError):
        return Project(folder, {})


def is_lock(file: Path) -> bool:
    """Tell whether a file is a `pylock.toml`, by its name."""
    return re.fullmatch(r"pylock\.([^.]+\.)?toml", file.name) is not None


def locked(file: Path) -> Iterator[Path]:
    """Yield the folders, wheels and archives that a lock names by path."""
    try:
        packages = tomllib.loads(read_text(file)).get("packages")
    except (OSError, ValueError):
        return
    for package in packages if isinstance(packages, list) else ():
        yield from _paths(file.parent, package if isinstance(package, dict) else {})


def settings(folder: Path) -> Path | None:
    """Return the file that uv takes its settings from when it works in a folder."""
    for each in (folder, *folder.parents):
        if (each / "uv.toml").is_file():
            return each / "uv.toml"
        if read(each).has_settings:
            return each / FILE
    return None


def _workspace(folder: Path) -> Project | None:
    found = map(read, (folder, *folder.parents))
    return next((project for project in found if project.table("tool", "uv", "workspace")), None)


def _members(root: Project) -> Iterator[Project]:
    patterns = root.table("tool", "uv", "workspace").get("members")
    for pattern in patterns if isinstance(patterns, list) else ():
        if isinstance(pattern, str) and pattern and not os.path.isabs(pattern):
            yield from (read(folder) for folder in sorted(root.folder.glob(pattern)) if (folder / FILE).is_file())


def _paths(folder: Path, table: dict[str, Any]) -> Iterator[Path]:
    for _, one in _dicts(table):
        if isinstance(one.get("path"), str):
            yield Path(os.path.normpath(folder / one["path"]))


def _dicts(table: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is said of each name: there may be several, each for another platform."""
    for key, value in table.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                yield key, one


@functools.cache
def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
