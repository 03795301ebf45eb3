"""What requirements name on this machine: more files of them, packages, and whether they carry hashes.

The tool that installs them reads them by itself; this looks only for what a build is made from, by pip's format
(pip.pypa.io, "Requirements File Format").
"""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from gateway.files import read_file
from gateway.observe.telling import secrets_within
from gateway.runtimes import projects
from gateway.runtimes.base import must_exist

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KEY = "requirements"

_CONSTRAINTS = {"-c", "--constraint", "--constraints"}
_FILES = {"-r", "--requirement", "--requirements", *_CONSTRAINTS}
_INDEX = {"-i", "--index-url", "--no-index"}
_INDEXES = {*_INDEX, "--extra-index-url"}
_LINKS = {"-f", "--find-links"}
_PACKAGES = {"-e", "--editable"}
ARCHIVES = (".whl", ".zip", ".tar.gz", ".tar.bz2", ".tar.xz", ".tgz")
_LISTS = (".txt", ".in", ".toml", ".cfg", ".list", ".lst", ".lock", ".pip", ".reqs")
_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8-sig"}
_REPOSITORY = re.compile(r"(?:-e|--editable)(?:\s*=\s*|\s+)(?=(?:[\w.-]+(?:\[[^\]]*\])?\s*@\s*)?git\+)")
_MORE_HASHES = re.compile(r"\s*(?:--hash\b|#|$)")
_COMMENT = re.compile(r"(^|\s)#.*$")
_OPTION = re.compile(r"(--?[A-Za-z][\w-]*)(?:\s*=\s*|\s+|$)(.*)")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_HASH = re.compile(r"\s--hash[= ]")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\s*(\[[^\]]*\])?")
_AFTER = re.compile(r"\s+(;|--).*$|;\s.*$")
_EXTRAS = re.compile(r"\[[^\]]*\]$")


class Named(NamedTuple):
    """What was found."""

    files: tuple[Path, ...]
    """Files of requirements and constraints, the first one included."""
    packages: tuple[Path, ...]
    """Folders, wheels and archives."""
    links: tuple[Path, ...]
    """Where `--find-links` looks, whether it is there or not. What is in it is no part of a build, as with an index."""
    hashed: bool
    indexed: bool
    """They say themselves which index is the default one, or that there is none."""
    variables: frozenset[str]
    """The environment's that the tool fills in."""
    secrets: tuple[str, ...]
    """Passwords and tokens within URLs."""
    options: tuple[str, ...]
    """Indexes that stand in files of constraints, as uv takes them: there it would not see them."""


def of_file(file: Path) -> Named:
    """Return what a file names, and what those name that it includes. Packages begin at the file's own folder.

    Raises:
        Quarantine: something is not there.
    """
    reader = _Reader(file.parent)
    reader.file(file)
    return reader.named()


def of_texts(texts: Iterable[str], folder: Path) -> Named:
    """Return what the lines of a list name. Paths begin at `folder`.

    Raises:
        Quarantine: something is not there.
    """
    reader = _Reader(folder)
    reader.text("\n".join(texts), folder)
    return reader.named()


def lines_for_uv(file: Path) -> tuple[str, ...] | None:
    """Return the lines of a file that uv would refuse and pip takes, written as uv reads them; None: it can read it.

    uv goes on at a line's end for hashes alone, and has nobody edit in the clone of a repository.
    """
    if file.name in projects.BUILT_OF or file.suffix == ".toml":
        return None
    physical = list(_logical(_text_of(file)))
    if all(_can_read(*line) for line in physical):
        return None
    return tuple(_REPOSITORY.sub("", "".join(parts)) for parts in physical)


def _can_read(*parts: str) -> bool:
    return all(_MORE_HASHES.match(part) for part in parts[1:]) and not _REPOSITORY.match(parts[0].strip())


def secrets_of(text: str) -> tuple[str, ...]:
    """Return the passwords and tokens within the URLs of a text."""
    return tuple(secret for line in text.splitlines() if "://" in line for secret in secrets_within(line) if secret)


def is_requirement(text: str) -> bool:
    """Tell whether a text that names no file is meant as a requirement."""
    name = _NAME.match(text)
    if name is None or text.endswith(_LISTS):
        return False
    rest = text[name.end() :].strip()
    return not rest or rest[0] in "<>=!~@;("


def is_path(text: str) -> bool:
    """Tell whether a requirement is a path, as pip does: it holds a slash, or is a dot, or an archive."""
    path = _path(text)
    return path in {".", ".."} or "/" in path or path.endswith(ARCHIVES)


class _Reader:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, None] = {}
        self._packages: dict[Path, None] = {}
        self._links: dict[Path, None] = {}
        self._hashed = False
        self._indexed = False
        self._variables: set[str] = set()
        self._secrets: dict[str, None] = {}
        self._options: list[str] = []

    def named(self) -> Named:
        found = (tuple(self._files), tuple(self._packages), tuple(self._links))
        variables = frozenset(self._variables)
        return Named(*found, self._hashed, self._indexed, variables, tuple(self._secrets), tuple(self._options))

    def file(self, file: Path, *, constrains: bool = False) -> None:
        if file in self._files:
            return
        self._files[must_exist(file, KEY)] = None
        if file.name in projects.BUILT_OF:
            project = projects.read(file.parent)
            self._project(project)
            if file.name != projects.FILE or project.is_dynamic:
                self._packages[file.parent] = None
        elif projects.is_lock(file):
            self._hashed = True
            self._take_all(projects.locked(file))
        elif file.suffix != ".toml":  # of any other kind, which is the tool's to judge
            self.text(_text_of(file), file.parent, constrains=constrains)

    def text(self, text: str, folder: Path, *, constrains: bool = False) -> None:
        self._secrets.update(dict.fromkeys(secrets_of(text)))
        for line in _lines(text):
            self._hashed = self._hashed or _HASH.search(line) is not None
            self._variables.update(_VARIABLE.findall(line))
            option = _OPTION.match(line) if line.startswith("-") else None
            if option is None:
                self._package(_target(line))
            elif option[1] in _FILES:
                if _is_here(option[2]):
                    named = _below(folder, _unquoted(option[2]))
                    self.file(named, constrains=constrains or option[1] in _CONSTRAINTS)
            elif option[1] in _INDEXES:
                self._indexed = self._indexed or option[1] in _INDEX
                if constrains:
                    self._options += [option[1], *filter(None, [_unquoted(option[2])])]
            elif option[1] in _LINKS:
                self._look(_path(_unquoted(option[2])), folder)
            elif option[1] in _PACKAGES:
                self._package(_path(_unquoted(option[2])))

    def _look(self, path: str, folder: Path) -> None:
        """Take a folder of wheels: below the file that names it, or else where all paths begin."""
        if _is_here(path):
            near, far = _below(folder, path), _below(self._folder, path)
            self._links[near if near.exists() else far] = None

    def _package(self, path: str | None) -> None:
        if path and _is_here(path):
            self._take(must_exist(_below(self._folder, path), KEY))

    def _take(self, path: Path) -> None:
        if path not in self._packages:
            self._packages[path] = None
            if path.is_dir():
                self._project(projects.read(path))

    def _project(self, project: projects.Project) -> None:
        said = (_target(line) for line in project.requirements())
        self._take_all(_below(project.folder, path) for path in said if path and _is_here(path))
        self._take_all(project.paths())

    def _take_all(self, paths: Iterable[Path]) -> None:
        """Take those that are here; others may be for another machine."""
        for path in paths:
            if path.exists():
                self._take(path)


def _text_of(file: Path) -> str:
    """Return what a file says, in the encodings that the tools know."""
    data = read_file(file)
    encoding = next((one for mark, one in _MARKS.items() if data.startswith(mark)), "utf-8")
    return data.decode(encoding, "replace").replace("\r\n", "\n").replace("\r", "\n")


def _logical(text: str) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a text, each with those that go on with it; a comment ends with its line."""
    parts: list[str] = []
    for line in text.split("\n"):
        comment = line.lstrip().startswith("#")
        goes_on = line.endswith("\\") and not comment
        parts.append(line[:-1] if goes_on else f" {line}" if comment and parts else line)
        if not goes_on:
            yield tuple(parts)
            parts = []
    if parts:
        yield tuple(parts)


def _lines(text: str) -> Iterator[str]:
    """Yield what is said, without comments."""
    for parts in _logical(text):
        said = _COMMENT.sub("", "".join(parts)).strip()
        if said:
            yield said


def _target(line: str) -> str | None:
    """Return the path that a requirement names, None when it names a package of an index."""
    name = _NAME.match(line)
    rest = line[name.end() :].lstrip() if name else ""
    if rest.startswith("@"):
        return _path(_unquoted(rest[1:].strip()))
    return _path(line) if is_path(line) else None


def _path(text: str) -> str:
    """Return a path without what may stand around it: markers, options, extras, a scheme."""
    path = _EXTRAS.sub("", _AFTER.sub("", text).strip())
    if path.startswith("file:"):
        path = unquote(path.partition("#")[0].removeprefix("file:"))
        path = path.removeprefix("//localhost").removeprefix("//")
    return path


def _is_here(path: str) -> bool:
    """Tell whether a path means this machine, and can be known: the tool fills in variables."""
    return "://" not in path and not path.startswith("git+") and "${" not in path


def _below(folder: Path, path: str) -> Path:
    return Path(os.path.normpath(folder / path))


def _unquoted(text: str) -> str:
    return text.strip().strip("\"'")
