"""What package.json names, put beside links to the files of a module: by npm, or by the tool whose lock lies there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import Quarantine
from gateway.files import read_file, read_text
from gateway.observe.telling import secrets_in
from gateway.runtimes.base import BuildFailed, Home, Tools, digest, find_program, must_exist, tree_facts
from gateway.runtimes.node_workspaces import PACKAGE, PNPM, manifest, read_json, read_yaml, workspace_of

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = "app"
"""In a build, a link to the folder of package.json."""
LOCKS = {
    "npm-shrinkwrap.json": "npm",
    "package-lock.json": "npm",
    "yarn.lock": "yarn",
    "pnpm-lock.yaml": "pnpm",
    "bun.lock": "bun",
    "bun.lockb": "bun",
}
"""The locks, those of npm first, and whose they are."""
SETTINGS = (".npmrc", ".yarnrc", ".yarnrc.yml", ".pnpmfile.cjs")
"""What tells those tools where packages are. It is there while they run, and no longer."""
_TREE = "tree"
_YARNS = ("patches", "plugins", "releases")
"""What lies in .yarn that installing needs."""
_LATER = {
    "YARN_ENABLE_SCRIPTS": "false",
    "YARN_NODE_LINKER": "node-modules",
    "YARN_IGNORE_PATH": "1",
    "YARN_ENABLE_TELEMETRY": "false",
}
"""For yarn 2 or later."""
_DEPENDENCIES = ("dependencies", "optionalDependencies", "devDependencies")
_SCRIPTS = ("preinstall", "install", "postinstall")
_LOCAL = ("file:", "link:", "portal:")


class Packages:
    """The packages of one module."""

    def __init__(self, source: Path, place: Home, node: Path, allowed: list[str] | None) -> None:
        """`source`: the folder of package.json. `allowed`: the packages whose install scripts may run.

        Raises:
            Quarantine: a local package is not there.
        """
        self.source = source
        self._place = place
        self._path = f"{node.parent}{os.pathsep}{place.path}"
        self._allowed = allowed
        workspace = workspace_of(source)
        if workspace is not None and workspace.root != source and _lock(source):
            workspace = None  # it is kept to its own lock
        self._root = source if workspace is None else workspace.root
        """Where its lock and the settings of tools are."""
        self._members = frozenset[Path]() if workspace is None else workspace.members - {source}
        self._alone = workspace is None
        local = set(self._members).union(*map(_local, {source, self._root, *self._members})) - {source, self._root}
        self._local = sorted(path for path in local if not any(path.is_relative_to(one) for one in local - {path}))
        # They find each other by relative paths, and so does a lock: in a build they lie as they do outside.
        self._common = Path(os.path.commonpath([source, self._root, *self._local]))

    def inputs(self) -> str:
        """Return a hash of what they are made from."""
        names = sorted(entry.name for entry in self.source.iterdir())
        told = [self._root / name for name in (PACKAGE, PNPM, *LOCKS, *SETTINGS) if (self._root / name).exists()]
        return digest(
            [
                str(self.source),
                names,
                str(self._root),
                [(file.name, read_file(file)) for file in (self.source / PACKAGE, *told)],
                [tree_facts(path, left_out=_is_left_out) for path in self._local],
                self._path.partition(os.pathsep)[0],
                self._allowed,
            ]
        )

    def secrets(self) -> tuple[str, ...]:
        """Return the secrets in the settings of npm."""
        file = self._root / ".npmrc"
        lines = [line.partition("=") for line in read_text(file, "replace").splitlines()] if file.exists() else []
        said = [{key.strip().rpartition(":")[2].lstrip("_"): value.strip().strip("\"'")} for key, _, value in lines]
        values = {one["auth"] for one in said if "auth" in one}
        return (*(value for value in values if value), *secrets_in(said))

    async def make(self, folder: Path, tools: Tools) -> None:
        """Lay the files out, install, and have those scripts run that may.

        Raises:
            BuildFailed: a package is not to be had, or would not work.
        """
        root = self._laid_out(folder)
        lock = _lock(root)
        self._check_protocol(lock)
        env = {"PATH": self._path}
        argv, more = await self._command(root, lock, tools)
        await tools.run(*argv, env={**env, **more})
        if lock and _has_links(root / lock):  # what lies outside has packages of its own, which no lock of npm holds
            for outside in self._outside(folder):
                argv, _ = await self._command(outside, _lock(outside), tools)
                await tools.run(*argv, env=env)
        app = folder / _TREE / self.source.relative_to(self._common)
        found = {**dict(_packages(root / "node_modules")), **dict(_packages(app / "node_modules"))}
        names = set(found.values())
        unknown = [name for name in self._allowed or () if name not in names]
        if unknown:
            raise BuildFailed(f"allow_scripts: there is no package {unknown[0]} among those that {PACKAGE} comes to")
        if self._allowed:
            await tools.run(
                str(self._program("npm")), "rebuild", "--prefix", str(root), "--ignore-scripts=false",
                "--loglevel=error", *self._allowed, env=env,
            )  # fmt: skip
        self._judge(root, found, tools)
        for name in SETTINGS:
            (root / name).unlink(missing_ok=True)

    # --- private

    def _laid_out(self, folder: Path) -> Path:
        root = folder / _TREE / self._root.relative_to(self._common)
        outside = [path for path in self._local if not path.is_relative_to(self._root)]
        for path in outside:
            _copy(path, folder / _TREE / path.relative_to(self._common), without=self.source)
        root.mkdir(parents=True, exist_ok=True)
        copies = {path for path in self._local if path not in outside and not self.source.is_relative_to(path)}
        _lay(self._root, root, copies, self.source, without={self._place.state_dir})
        for name in SETTINGS:
            if (self._root / name).exists():
                (root / name).symlink_to(self._root / name)
        for name in _YARNS:
            if (self._root / ".yarn" / name).exists():
                (root / ".yarn").mkdir(exist_ok=True)
                (root / ".yarn" / name).symlink_to(self._root / ".yarn" / name)
        (folder / APP).symlink_to(Path(_TREE) / self.source.relative_to(self._common))
        return root

    def _check_protocol(self, lock: str | None) -> None:
        """`workspace:` is for pnpm and yarn, and what it names has to be found.

        Raises:
            BuildFailed: that cannot be.
        """
        for name, said in _named(self.source).items():
            if said.startswith("workspace:") and (self._alone or lock is None or LOCKS[lock] == "npm"):
                where = "above it there is no workspace" if self._alone else f"in {self._root} there is none"
                raise BuildFailed(
                    f"{self.source / PACKAGE}: {name}: {said} takes a workspace with a lock of pnpm or yarn, and"
                    f" {where}: make one (pnpm install), or name its folder (file:../...)"
                )

    def _outside(self, folder: Path) -> list[Path]:
        """Return the folders of local packages that lie outside, as they lie in a build, with packages of their own."""
        found = [path for path in self._local if path.is_dir() and not path.is_relative_to(self._root)]
        return [folder / _TREE / path.relative_to(self._common) for path in found if _named(path)]

    async def _command(self, app: Path, lock: str | None, tools: Tools) -> tuple[list[str], dict[str, str]]:
        """Return the command line that installs, and what it needs in the environment."""
        whose = LOCKS[lock] if lock else "npm"
        without = ["--offline"] if tools.offline else []
        later = whose == "yarn" and "# yarn lockfile v1" not in read_text(app / "yarn.lock")[:500]
        if later and (said := read_yaml(self._root / ".yarnrc.yml").get("yarnPath")):
            yarn = must_exist(self._root / str(said), f"{self._root / '.yarnrc.yml'}: yarnPath")
            return [str(self._program("node")), str(yarn), "--cwd", str(app), "install", "--immutable"], _LATER
        if whose == "bun":
            raise BuildFailed(f"{lock}: locks of bun are not used: make another one, with npm install")
        try:
            tool = str(self._program(whose))
        except Quarantine as missing:
            cure = f", or make a lock of npm instead of {lock}: npm install" if whose != "npm" else ""
            raise BuildFailed(f"{missing}{cure}") from missing
        if whose == "npm":
            verb = "ci" if lock else "install"
            quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
            links = () if lock and _has_links(app / lock) else ("--install-links",)
            return [tool, verb, "--prefix", str(app), "--omit=dev", *quiet, *links, *without], {}
        if whose == "pnpm":
            # Its own way to lay packages out rests on links that are followed, which ours to the module are not.
            how = ["--frozen-lockfile", "--prod", "--ignore-scripts", "--config.node-linker=hoisted"]
            how += ["--ignore-workspace"] if self._alone else []
            return [tool, "--dir", str(app), "install", *how, *without], {}
        if not later:
            how = ["--frozen-lockfile", "--production", "--ignore-scripts", "--non-interactive", "--no-progress"]
            return [tool, "--cwd", str(app), "install", *how, *without], {"YARN_IGNORE_PATH": "1"}
        version = await tools.run(tool, "--version", env={"PATH": self._path, **_LATER})
        if version.startswith(("0.", "1.")):
            raise BuildFailed(
                f"yarn.lock was made by yarn 2 or later, and yarn is {version.strip()} here: put a later one on PATH,"
                " or among the sources (yarnPath in .yarnrc.yml), or make a lock of npm instead: npm install"
            )
        return [tool, "--cwd", str(app), "install", "--immutable"], _LATER

    def _program(self, name: str) -> Path:
        return find_program(name, self._path)

    def _judge(self, root: Path, found: dict[Path, str], tools: Tools) -> None:
        """Tell of packages whose install scripts were not run; those that cannot work without are a failure."""
        skipped = {path: name for path, name in found.items() if name not in (self._allowed or ())}
        skipped = {path: name for path, name in skipped.items() if _has_scripts(path)}
        optional = _optional(root)
        for path, name in skipped.items():
            if (path / "binding.gyp").exists() and not any(path.rglob("*.node")) and path not in optional:
                raise BuildFailed(
                    f"{name} is made of native code that only its install script builds, and no script is run that is"
                    f" not allowed: say allow_scripts: [{name}], or do without it"
                )
        if skipped and self._allowed is None:
            names = ", ".join(sorted(set(skipped.values())))
            tools.note(f"the install scripts of {names} were not run: allow_scripts names those that may, [] none")


def package_above(module: Path, place: Home) -> Path | None:
    """Return the folder whose package.json is the module's: the nearest that names packages, or else the nearest.

    It is looked for up to the folder that the connector is defined in.
    """
    top = place.folder if module.is_relative_to(place.folder) else module.parent
    found = [one for one in module.parents if one.is_relative_to(top) and (one / PACKAGE).exists()]
    return next((one for one in found if _named(one)), found[0] if found else None)


def _named(folder: Path) -> dict[str, str]:
    """Return the packages that package.json names, with what it says of each; none where it cannot be read."""
    told = manifest(folder)
    parts = [told.get(key) for key in _DEPENDENCIES]
    return {name: str(said) for part in parts if isinstance(part, dict) for name, said in part.items()}


def _local(source: Path) -> set[Path]:
    """Return the files and folders that are named as packages, also by those folders in turn.

    Raises:
        Quarantine: one is not there.
    """
    found: set[Path] = set()
    todo = [source]
    while todo:
        folder = todo.pop()
        for name, said in _named(folder).items():
            kind = next((one for one in _LOCAL if said.startswith(one)), "")
            text = said.removeprefix(kind)
            if not kind and not text.startswith(("./", "../", "/", "~/")):
                continue
            path = Path(os.path.normpath(folder / os.path.expanduser(text)))
            must_exist(path, f"{folder / PACKAGE}: {name}")
            if path not in found and path != source:
                found.add(path)
                todo.append(path)
    return {path for path in found if not any(path.is_relative_to(other) for other in found - {path})}


def _lock(folder: Path) -> str | None:
    return next((name for name in LOCKS if (folder / name).exists()), None)


def _has_links(lock: Path) -> bool:
    """Tell whether a lock of npm has local packages as links, and not as copies (`install-links`)."""
    packages = read_json(lock).get("packages", {}) if LOCKS[lock.name] == "npm" else {}
    return any(facts.get("link") for facts in packages.values())


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name == "node_modules"


def _copy(path: Path, target: Path, *, without: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        shutil.copyfile(path, target)
        return

    def ignored(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if _is_left_out(name) or Path(folder, name) == without]

    shutil.copytree(path, target, ignore=ignored, dirs_exist_ok=True)


def _lay(source: Path, target: Path, copies: set[Path], app: Path, without: set[Path]) -> None:
    """Link a folder's files and folders, and those of `app` in it; what tools write and install is copied instead."""
    for entry in source.iterdir():
        place = target / entry.name
        if entry.name in {PACKAGE, *LOCKS}:
            shutil.copyfile(entry, place)
        elif _is_left_out(entry.name) or entry in without:
            continue
        elif entry in copies:
            _copy(entry, place, without=app)
        elif any(path.is_relative_to(entry) for path in (*copies, app)):
            place.mkdir(exist_ok=True)
            _lay(entry, place, copies, app, without)
        else:
            place.symlink_to(entry)


def _packages(modules: Path, seen: set[Path] | None = None) -> Iterator[tuple[Path, str]]:
    """Yield the folder and the name of each package that is installed."""
    seen = set() if seen is None else seen
    if not modules.is_dir() or modules.resolve() in seen:
        return
    seen.add(modules.resolve())
    for entry in sorted(modules.iterdir()):
        if entry.name.startswith("."):
            continue
        for path in sorted(entry.iterdir()) if entry.name.startswith("@") else [entry]:
            if path.is_dir():
                yield path, str(path.relative_to(modules))
                yield from _packages(path / "node_modules", seen)


def _has_scripts(package: Path) -> bool:
    """Tell whether npm would run something of a package, or build it, when it is installed."""
    told = manifest(package)
    scripts = told.get("scripts")
    if isinstance(scripts, dict) and any(scripts.get(name) for name in _SCRIPTS):
        return True
    return (package / "binding.gyp").exists() and told.get("gypfile") is not False


def _optional(app: Path) -> set[Path]:
    """Return the packages that nobody needs: npm says so, other tools do not, and then it is all of them."""
    lock = app / "node_modules" / ".package-lock.json"
    if not lock.exists():
        return {path for path, _ in _packages(app / "node_modules")}
    packages = read_json(lock).get("packages", {})
    return {app / name for name, facts in packages.items() if facts.get("optional") or facts.get("devOptional")}
