"""What package.json names, put beside links to the files of a module: by npm, or by the tool whose lock lies there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import Quarantine
from gateway.files import read_file, read_text
from gateway.observe.telling import secrets_in
from gateway.runtimes.base import BuildFailed, Home, Tools, digest, find_program, must_exist, tree_facts

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "package.json"
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
        self._local = sorted(_local(source))
        # They find each other by relative paths, and so does a lock: in a build they lie as they do outside.
        self._common = Path(os.path.commonpath([source, *self._local]))

    def inputs(self) -> str:
        """Return a hash of what they are made from."""
        names = sorted(entry.name for entry in self.source.iterdir())
        told = [name for name in (PACKAGE, *LOCKS, *SETTINGS) if name in names]
        return digest(
            [
                str(self.source),
                names,
                [read_file(self.source / name) for name in told],
                [tree_facts(path, left_out=_is_left_out) for path in self._local],
                self._path.partition(os.pathsep)[0],
                self._allowed,
            ]
        )

    def secrets(self) -> tuple[str, ...]:
        """Return the secrets in the settings of npm."""
        file = self.source / ".npmrc"
        lines = [line.partition("=") for line in read_text(file, "replace").splitlines()] if file.exists() else []
        said = [{key.strip().rpartition(":")[2].lstrip("_"): value.strip().strip("\"'")} for key, _, value in lines]
        values = {one["auth"] for one in said if "auth" in one}
        return (*(value for value in values if value), *secrets_in(said))

    async def make(self, folder: Path, tools: Tools) -> None:
        """Lay the files out, install, and have those scripts run that may.

        Raises:
            BuildFailed: a package is not to be had, or would not work.
        """
        app = self._laid_out(folder)
        lock = _lock(app)
        env = {"PATH": self._path}
        argv, more = self._command(app, lock, offline=tools.offline)
        await tools.run(*argv, env={**env, **more})
        if lock and _has_links(app / lock):  # what lies outside has packages of its own, which no lock of npm holds
            for outside in self._outside(folder):
                argv, _ = self._command(outside, _lock(outside), offline=tools.offline)
                await tools.run(*argv, env=env)
        found = dict(_packages(app / "node_modules"))
        names = {name for _, name in found.items()}
        unknown = [name for name in self._allowed or () if name not in names]
        if unknown:
            raise BuildFailed(f"allow_scripts: there is no package {unknown[0]} among those that {PACKAGE} comes to")
        if self._allowed:
            await tools.run(
                str(self._program("npm")), "rebuild", "--prefix", str(app), "--ignore-scripts=false",
                "--loglevel=error", *self._allowed, env=env,
            )  # fmt: skip
        self._judge(app, found, tools)
        for name in SETTINGS:
            (app / name).unlink(missing_ok=True)

    # --- private

    def _laid_out(self, folder: Path) -> Path:
        app = folder / _TREE / self.source.relative_to(self._common)
        outside = [path for path in self._local if not path.is_relative_to(self.source)]
        for path in outside:
            _copy(path, folder / _TREE / path.relative_to(self._common), without=self.source)
        app.mkdir(parents=True, exist_ok=True)
        _lay(self.source, app, set(self._local) - set(outside), without={self._place.state_dir})
        for name in SETTINGS:
            if (self.source / name).exists():
                (app / name).symlink_to(self.source / name)
        (folder / APP).symlink_to(app.relative_to(folder))
        return app

    def _outside(self, folder: Path) -> list[Path]:
        """Return the folders of local packages that lie outside, as they lie in a build, with packages of their own."""
        found = [path for path in self._local if path.is_dir() and not path.is_relative_to(self.source)]
        return [folder / _TREE / path.relative_to(self._common) for path in found if _named(path)]

    def _command(self, app: Path, lock: str | None, *, offline: bool) -> tuple[list[str], dict[str, str]]:
        """Return the command line that installs, and what it needs in the environment."""
        whose = LOCKS[lock] if lock else "npm"
        without = ["--offline"] if offline else []
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
            return [tool, "--dir", str(app), "install", *how, *without], {}
        if "# yarn lockfile v1" in read_text(app / "yarn.lock")[:500]:
            how = ["--frozen-lockfile", "--production", "--ignore-scripts", "--non-interactive", "--no-progress"]
            return [tool, "--cwd", str(app), "install", *how, *without], {"YARN_IGNORE_PATH": "1"}
        env = {"YARN_ENABLE_SCRIPTS": "false", "YARN_NODE_LINKER": "node-modules", "YARN_IGNORE_PATH": "1"}
        return [tool, "--cwd", str(app), "install", "--immutable"], {**env, "YARN_ENABLE_TELEMETRY": "false"}

    def _program(self, name: str) -> Path:
        return find_program(name, self._path)

    def _judge(self, app: Path, found: dict[Path, str], tools: Tools) -> None:
        """Tell of packages whose install scripts were not run; those that cannot work without are a failure."""
        skipped = {path: name for path, name in found.items() if name not in (self._allowed or ())}
        skipped = {path: name for path, name in skipped.items() if _has_scripts(path)}
        optional = _optional(app)
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
    manifest = _read(folder / PACKAGE)
    parts = [manifest.get(key) for key in _DEPENDENCIES]
    return {name: str(said) for part in parts if isinstance(part, dict) for name, said in part.items()}


def _read(file: Path) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(read_file(file))
    except (OSError, msgspec.MsgspecError):
        return {}  # its tool says what is wrong with it
    return found if isinstance(found, dict) else {}


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
    packages = _read(lock).get("packages", {}) if LOCKS[lock.name] == "npm" else {}
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


def _lay(source: Path, target: Path, copies: set[Path], without: set[Path]) -> None:
    """Link a folder's files and folders; what tools write, and what they install, is copied instead."""
    for entry in source.iterdir():
        place = target / entry.name
        if entry.name in {PACKAGE, *LOCKS}:
            shutil.copyfile(entry, place)
        elif _is_left_out(entry.name) or entry in without:
            continue
        elif entry in copies:
            _copy(entry, place, without=source)
        elif any(path.is_relative_to(entry) for path in copies):
            place.mkdir(exist_ok=True)
            _lay(entry, place, copies, without)
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
    manifest = _read(package / PACKAGE)
    scripts = manifest.get("scripts")
    if isinstance(scripts, dict) and any(scripts.get(name) for name in _SCRIPTS):
        return True
    return (package / "binding.gyp").exists() and manifest.get("gypfile") is not False


def _optional(app: Path) -> set[Path]:
    """Return the packages that nobody needs: npm says so, other tools do not, and then it is all of them."""
    lock = app / "node_modules" / ".package-lock.json"
    if not lock.exists():
        return {path for path, _ in _packages(app / "node_modules")}
    packages = _read(lock).get("packages", {})
    return {app / name for name, facts in packages.items() if facts.get("optional") or facts.get("devOptional")}
