"""The verb `gateway install`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click

from gateway.cli.common import config_option, err, escaped, fail, handled, opened, out, run
from gateway.connectors.install import Installed, Installer
from gateway.connectors.sources import read_sources
from gateway.settings import building_environment

if TYPE_CHECKING:
    from pathlib import Path

_MARKS = {"built": "[green]built[/]", "unchanged": "[dim]unchanged[/]", "nothing to build": "[dim]nothing to build[/]"}


@click.command()
@config_option
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--offline", is_flag=True, help="Fetch nothing: use what is in the caches of uv, Maven and npm.")
@click.option("--wheels-only", is_flag=True, help="Build no Python package from its sources: none of its code runs.")
@click.option("--upgrade", is_flag=True, help="Take newer versions of Python packages, and where branches are now.")
@click.option("--env", multiple=True, metavar="NAME", help="A variable that builds get besides; may be repeated.")
@click.option("--index-url", metavar="URL", help="The Python package index, instead of PyPI.")
@click.option("--extra-index-url", multiple=True, metavar="URL", help="One more Python package index; may be repeated.")
@click.option("--find-links", multiple=True, metavar="PATH", help="A folder or page of wheels; may be repeated.")
@handled
def install(
    config: Path | None,
    names: tuple[str, ...],
    index_url: str | None,
    extra_index_url: tuple[str, ...],
    find_links: tuple[str, ...],
    *,
    env: tuple[str, ...],
    offline: bool,
    wheels_only: bool,
    upgrade: bool,
) -> None:
    """Build what connectors need: a venv, jars, node_modules; of all of them, or of those that are named.

    What is built already is left alone. A build that fails leaves the old one serving; a running gateway notices a new
    one by itself. Exit status 1 when a build failed.
    """
    index = [("--index-url", index_url)] if index_url else []
    index += [("--extra-index-url", url) for url in extra_index_url]
    # Builds run in folders of their own, so a path is made independent of this one.
    index += [("--find-links", place if "://" in place else os.path.abspath(place)) for place in find_links]
    run(
        _install(
            config,
            names,
            building_environment(env),
            offline=offline,
            wheels_only=wheels_only,
            upgrade=upgrade,
            index=tuple(word for pair in index for word in pair),
        )
    )


async def _install(
    config: Path | None,
    names: tuple[str, ...],
    environ: dict[str, str],
    *,
    offline: bool,
    wheels_only: bool,
    upgrade: bool,
    index: tuple[str, ...],
) -> int:
    begun = time.monotonic()

    def progress(name: str, what: str) -> None:
        err.print(f"[dim]{time.monotonic() - begun:6.1f} s[/]  [bold]{escaped(name)}[/]  {escaped(what)}")

    async with opened(config, registry=False) as gateway:
        installer = Installer(
            gateway.settings,
            gateway.pools.spawn,
            environ,
            offline=offline,
            wheels_only=wheels_only,
            upgrade=upgrade,
            index=index,
        )
        results = await installer.install(read_sources(gateway.settings), names, progress)
    if not results:
        fail("no connector is registered")
    for one in results:
        _print(one, named=bool(names))
    return 1 if any(one.state == "failed" for one in results) else 0


def _print(one: Installed, *, named: bool) -> None:
    if one.problem is not None:
        out.print(f"[bold red]failed[/]  [bold]{escaped(one.name)}[/]  [red]{escaped(one.problem)}[/]")
    elif named or one.state != "nothing to build":
        notices = f"  [yellow]{escaped('; '.join(one.notices))}[/]" if one.notices else ""
        out.print(f"{_MARKS[one.state]}  [bold]{escaped(one.name)}[/]{notices}")
