"""`runtime: node`: a module whose exported functions are commands, run by the host in `runners/node`."""

from __future__ import annotations

import functools
import itertools
import re
from typing import TYPE_CHECKING

import msgspec

from gateway.errors import Quarantine
from gateway.runners import RUNNERS
from gateway.runtimes.base import (
    Build,
    CommandLine,
    Home,
    Tools,
    built,
    digest,
    heap,
    installation,
    must_exist,
    sources,
)
from gateway.runtimes.node_packages import APP, Packages, package_above
from gateway.runtimes.node_workspaces import PACKAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.sections import Mode

HOST = RUNNERS / "node" / "host.mjs"
CODE = (".mjs", ".js", ".cjs", ".ts", ".mts", ".cts")
BESIDE = 128 << 20  # bytes that node needs beside its heap: itself, young objects, compiled code, buffers
HEAP_FULL = "JavaScript heap out of memory"
_HEAP = re.compile(r"--max[-_](?:old[-_]space|heap)[-_]size")
"""What says how large the heap may be."""
_PRELOADED = re.compile(r"(--import|--require|-r)(?:=(.+))?")
"""What names a module that is loaded ahead of the connector's."""
_ADDRESS = re.compile(r"/|[a-z]+:|#")
"""How names of modules begin that mean the same wherever they are said."""


class NodeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`module:` is an ES module, CommonJS, or what a loader makes one of; a package.json beside or above it counts."""

    module: str
    node: list[str] | str = []
    """Options for node. A first word that is none chooses the installation: its home, or the executable."""
    allow_scripts: list[str] | None = None
    """The packages whose install scripts may run."""

    @property
    def installation(self) -> str | None:
        """What was said of node's installation."""
        words = self.words
        return words[0] if words and not words[0].startswith("-") else None

    @property
    def flags(self) -> list[str]:
        """The options for node."""
        return self.words[0 if self.installation is None else 1 :]

    @property
    def words(self) -> list[str]:
        """All that was said of node."""
        return [self.node] if isinstance(self.node, str) else self.node


class Node:
    """Starts `node`."""

    options = NodeOptions
    mode: Mode = "standby"

    def command_line(self, options: NodeOptions, place: Home) -> CommandLine:
        """Run the module where its packages are: links to its files lie beside node_modules in the build."""
        node = installation(options.installation, "node", place)
        module = must_exist(place.resolve(options.module, "module"), "module")
        packages = self._packages(options, place)
        source = module.parent if packages is None else packages.source
        files = [node, module, HOST, *sources(source, *CODE, left_out=place.state_dir)]
        code = [module, place.builds]
        notice, target, app = None, module, None
        if packages is not None:
            folder, notice = built(place, self._build(options, packages, place))
            app = (folder / APP).resolve()
            if not app.exists():
                raise Quarantine(f"built by an earlier version: run gateway install {place.name}")
            target = app / module.relative_to(source)
            files.append(place.builds / "current" / APP / PACKAGE)
            code.append(source)
        host = _host(options, place, node, app)
        return CommandLine(
            argv=(*host, "--fd3", str(target)),
            resident={"persistent": (*host, "--lines", str(target))},
            files=tuple(files),
            code=tuple(code),
            needs=(HOST.parent, *(folder for above in module.parents if (folder := above / "node_modules").is_dir())),
            result_on_fd3=True,
            result_in_line=True,
            heap_full=HEAP_FULL,
            notice=notice,
        )

    def build(self, options: NodeOptions, place: Home) -> Build | None:
        """The packages that package.json names."""
        packages = self._packages(options, place)
        return None if packages is None else self._build(options, packages, place)

    @staticmethod
    def _packages(options: NodeOptions, place: Home) -> Packages | None:
        source = package_above(place.resolve(options.module, "module"), place)
        if source is None:
            return None
        return Packages(source, place, installation(options.installation, "node", place), options.allow_scripts)

    @staticmethod
    def _build(options: NodeOptions, packages: Packages, place: Home) -> Build:
        preloads = list(_preloads(options))
        inputs = digest([packages.inputs(), preloads])
        make = functools.partial(_make, options=options, place=place, packages=packages)
        return Build(inputs=lambda: inputs, make=make, secrets=packages.secrets())


async def _make(folder: Path, tools: Tools, *, options: NodeOptions, place: Home, packages: Packages) -> None:
    await packages.make(folder, tools)
    app = (folder / APP).resolve()  # in a workspace packages lie above it
    for index, option, name in _preloads(options):
        quoted = msgspec.json.encode(name).decode()
        text = f"import {quoted};\n" if option == "--import" else f"require({quoted});\n"
        _preload(app, index, option).write_text(text)
    module = must_exist(place.resolve(options.module, "module"), "module")
    node = installation(options.installation, "node", place)
    await tools.try_out(*_host(options, place, node, app), str(app / module.relative_to(packages.source)))


def _host(options: NodeOptions, place: Home, node: Path, app: Path | None) -> tuple[str, ...]:
    """Return how the host is started; with a build the links in `app` are where its files are."""
    shown = [] if app is None else ["--preserve-symlinks", "--preserve-symlinks-main"]
    return (str(node), *shown, *_bound(options, place), *_resolved(options, place, app), str(HOST))


def _bound(options: NodeOptions, place: Home) -> tuple[str, ...]:
    """Return the option that tells V8 of `max_memory`; none where the operator has said what its heap may take."""
    said = " ".join([*options.flags, place.variable("NODE_OPTIONS")])
    if not place.memory or _HEAP.search(said):
        return ()
    return (f"--max-old-space-size={max(1, heap(place.memory, beside=BESIDE) >> 20)}",)


def _preload(app: Path, index: int, option: str) -> Path:
    """Return the file that loads a package from where it is installed: node looks for it in its working directory."""
    return app / f".preload-{index}.{'mjs' if option == '--import' else 'cjs'}"


def _preloads(options: NodeOptions) -> Iterator[tuple[int, str, str]]:
    """Yield the packages that are loaded ahead of the module: where in the options, by which, and the name."""
    for index, option, name in _named(options):
        if not name.startswith(".") and not _ADDRESS.match(name):
            yield index, option, name


def _named(options: NodeOptions) -> Iterator[tuple[int, str, str]]:
    flags = options.flags
    for index, (word, after) in enumerate(itertools.pairwise([*flags, ""])):
        found = _PRELOADED.fullmatch(word)
        name = found and (found[2] or after)
        if found and name:
            yield index, found[1], name


def _resolved(options: NodeOptions, place: Home, app: Path | None) -> tuple[str, ...]:
    """Return the options with modules that are loaded ahead named by their paths, wherever node is started."""
    flags = list(options.flags)
    before = len(options.words) - len(flags)
    own = {index for index, *_ in _preloads(options)} if app is not None else set()
    for index, option, name in _named(options):
        separate = flags[index] == option
        at = index + 1 if separate else index
        if name.startswith("."):
            path = must_exist(place.resolve(name, "node", before + at), "node")
        elif index in own and app is not None:
            path = _preload(app, index, option)
        else:
            continue
        flags[at] = str(path) if separate else f"{option}={path}"
    return tuple(flags)
