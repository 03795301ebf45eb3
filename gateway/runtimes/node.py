"""`runtime: node`: a module whose exported functions are commands, run by the host in `runners/node`."""

from __future__ import annotations

import functools
import shutil
from typing import TYPE_CHECKING

import msgspec

from gateway.files import read_text
from gateway.runners import RUNNERS
from gateway.runtimes.base import (
    Build,
    CommandLine,
    Home,
    Tools,
    built,
    digest,
    find_program,
    must_exist,
    sources,
)

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.settings import Mode

HOST = RUNNERS / "node" / "host.mjs"
PACKAGE, PACKAGE_LOCK = "package.json", "package-lock.json"


class NodeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`module:` is an ES module or CommonJS; a package.json beside it is installed."""

    module: str
    node: list[str] = []
    """Options for node."""


class Node:
    """Starts `node`."""

    options = NodeOptions
    mode: Mode = "standby"

    def command_line(self, options: NodeOptions, place: Home) -> CommandLine:
        """Run the module where its packages are: links to its files lie beside node_modules in the build."""
        node = find_program("node", place.path)
        module = must_exist(place.resolve(options.module, "module"), "module")
        build = self.build(options, place)
        flags: tuple[str, ...] = ()
        files = [node, module, HOST, *sources(module.parent, ".mjs", ".js", ".cjs", left_out=place.state_dir)]
        notice = None
        target = module
        if build is not None:
            folder, notice = built(place, build)
            target = folder / module.name
            flags = ("--preserve-symlinks", "--preserve-symlinks-main")
            files.append(place.builds / "current" / PACKAGE)
        host = (str(node), *flags, *options.node, str(HOST))
        return CommandLine(
            argv=(*host, "--fd3", str(target)),
            resident={"persistent": (*host, "--lines", str(target))},
            files=tuple(files),
            code=(module, place.builds),
            needs=(HOST.parent, *(folder for above in module.parents if (folder := above / "node_modules").is_dir())),
            result_on_fd3=True,
            result_in_line=True,
            notice=notice,
        )

    def build(self, options: NodeOptions, place: Home) -> Build | None:
        """The packages that package.json names."""
        source = place.resolve(options.module, "module").parent
        if not (source / PACKAGE).exists():
            return None
        names = sorted(entry.name for entry in source.iterdir())
        texts = [read_text(source / name) for name in (PACKAGE, PACKAGE_LOCK) if (source / name).exists()]
        inputs = digest([str(source), names, texts])
        return Build(inputs=lambda: inputs, make=functools.partial(_make, source=source, place=place))


async def _make(folder: Path, tools: Tools, *, source: Path, place: Home) -> None:
    npm = find_program("npm", place.path)
    for entry in source.iterdir():
        if entry.name in {PACKAGE, PACKAGE_LOCK}:
            shutil.copyfile(entry, folder / entry.name)
        elif entry.name != "node_modules" and not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    await tools.run(
        str(npm), "ci" if (folder / PACKAGE_LOCK).exists() else "install", "--prefix", str(folder), "--omit=dev",
        "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", *(["--offline"] if tools.offline else []),
    )  # fmt: skip
