"""Workspaces of npm, yarn and pnpm: packages of one repository that name each other, under one lock."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import yaml

from gateway.files import read_file, read_text

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = "package.json"
PNPM = "pnpm-workspace.yaml"


class Workspace(NamedTuple):
    """`root` has the lock; `members` are the folders of its packages."""

    root: Path
    members: frozenset[Path]


def workspace_of(source: Path) -> Workspace | None:
    """Return the workspace that a package is the root or a member of."""
    for root in (source, *source.parents):
        members = _members(root)
        if members and (source == root or source in members):
            return Workspace(root, members)
    return None


def manifest(folder: Path) -> dict[str, Any]:
    """Return what package.json says; nothing where it cannot be read: its tool says what is wrong with it."""
    return read_json(folder / PACKAGE)


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a file; an empty one where there is none."""
    try:
        found = msgspec.json.decode(read_file(file))
    except (OSError, msgspec.MsgspecError):
        return {}
    return found if isinstance(found, dict) else {}


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping in a file; an empty one where there is none."""
    try:
        found = yaml.safe_load(read_text(file))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _members(root: Path) -> frozenset[Path]:
    said = manifest(root).get("workspaces")
    patterns = said.get("packages") if isinstance(said, dict) else said
    if patterns is None:
        patterns = read_yaml(root / PNPM).get("packages")
    found: set[Path] = set()
    for pattern in patterns if isinstance(patterns, list) else ():
        if str(pattern).startswith("!"):
            found -= _matching(root, str(pattern)[1:])
        else:
            found |= _matching(root, str(pattern))
    return frozenset(found)


def _matching(root: Path, pattern: str) -> set[Path]:
    pattern = os.path.normpath(pattern)
    if pattern.startswith(("/", "..")):
        return set()
    folders = {path for path in root.glob(pattern) if (path / PACKAGE).exists()} - {root}
    return {path for path in folders if "node_modules" not in path.relative_to(root).parts}
