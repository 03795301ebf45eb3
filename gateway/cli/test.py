"""The verb `gateway test`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from gateway.cli.common import client_option, config_option, escaped, fail, handled, opened, out, run
from gateway.conformance.kit import Finding, Grade, Kit
from gateway.connectors.definition import define
from gateway.connectors.examples import find_examples, read_examples
from gateway.connectors.sources import read_sources
from gateway.errors import ConfigError, Quarantine
from gateway.identity import DEFAULT, called, owner_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.connectors.sources import Entry, Sources
    from gateway.gateway import Gateway

_MARKS = {
    Grade.OK: "[green]ok[/]     ",
    Grade.WARNING: "[yellow]warning[/]",
    Grade.FAILED: "[bold red]FAIL[/]   ",
    Grade.SKIPPED: "[dim]skipped[/]",
}


@click.command()
@config_option
@client_option
@click.argument("name")
@click.option("--command", metavar="COMMAND", help="Run this command alone.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@handled
def test(config: Path | None, client: str | None, name: str, command: str | None, *, as_json: bool) -> None:
    """Check that a connector keeps the contract: describe it, run its commands, and say what to mend.

    The commands are really run, a few times each, with the examples in tests.yaml beside connector.yaml, or else with
    parameters that are made up. Exit status 1 when a check failed.
    """
    run(_test(config, client, name, command, as_json=as_json))


async def _test(config: Path | None, client: str | None, name: str, command: str | None, *, as_json: bool) -> int:
    found = []
    async with opened(config, registry=False) as gateway:
        async for finding in findings(gateway, name, command, client):
            found.append(finding)
            if not as_json:
                _print(finding)
    bad = sum(one.outcome is Grade.FAILED for one in found)
    if as_json:
        report = {"connector": name, "ok": not bad, "checks": found}
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    elif bad:
        out.print(f"\n[bold red]{bad} of {len(found)} checks failed[/]")
    else:
        out.print(f"\n[bold green]{escaped(name)} keeps the contract[/]")
    return 1 if bad else 0


async def findings(
    gateway: Gateway, name: str, command: str | None, client: str | None = None
) -> AsyncIterator[Finding]:
    """Yield what is found of one connector, as a client calls it; the gateway needs no registry."""
    sources = read_sources(gateway.settings)
    seen = _seen(sources, client)
    entry = seen.get(name)
    if entry is None:
        known = ", ".join(seen) or "none"
        fail(f"there is no connector {name!r} (there are: {known})")
    try:
        connector = define(entry, sources.defaults, gateway.settings)
        file = find_examples(name, entry.folder)
        examples = read_examples(file) if file is not None else ()
    except (Quarantine, ConfigError) as problem:
        yield Finding(check="definition", outcome=Grade.FAILED, message=str(problem), fix="See gateway check.")
        return
    if connector is None:
        fail(f"{name} is switched off (enabled: false)")
    async for finding in Kit(gateway, connector, examples).check(command):
        yield finding


def _seen(sources: Sources, client: str | None) -> dict[str, Entry]:
    """Return the entries that there are for a client, by the names that it calls them by."""
    entries = {entry.name: entry for entry in sources.entries}
    clients = sources.clients or {}
    if client is not None and client not in clients:
        fail(f"there is no client {client!r} (there are: {', '.join(clients) or 'none'})")
    if not clients:
        return entries
    known = clients[client or DEFAULT].client
    if known.problem is not None:
        fail(known.problem)
    common = {name: entry for name, entry in entries.items() if not owner_of(name) and known.shares(name)}
    return common | {called(name): entry for name, entry in entries.items() if owner_of(name) == known.name}


def _print(one: Finding) -> None:
    what = f"{one.check} {one.command}" if one.command else one.check
    out.print(f"{_MARKS[one.outcome]}  [bold]{escaped(what)}[/]  {escaped(one.message)}")
    if one.fix:
        out.print(f"         [yellow]{escaped(one.fix)}[/]")
