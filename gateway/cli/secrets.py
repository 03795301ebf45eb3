"""The verb `gateway secrets`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
import msgspec
from rich.table import Table

from gateway.cli.common import config_option, escaped, handled, out
from gateway.connectors.clients import secrets_of_clients
from gateway.connectors.definition import with_secrets
from gateway.connectors.sources import read_sources
from gateway.errors import Quarantine
from gateway.secrets import NoSecret
from gateway.settings import find_file, of_gateway, read_settings
from gateway.units import Duration

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.secrets import Looked, Secrets, Use
    from gateway.settings import Settings
    from gateway.yaml_document import YamlNode


class _Shown(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a secret: never its value."""

    name: str
    ok: bool
    source: str | None
    """A file's path, `variable NAME` or `command NAME`."""
    age: float | None
    """Seconds since the file was changed, or the command asked."""
    users: tuple[str, ...]
    """Keys of the gateway, connectors, and clients."""
    problem: str | None = None


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@handled
def secrets(config: Path | None, *, as_json: bool) -> None:
    """List the secrets that the files name: where each is, how old, and who uses it. No value is shown.

    Exit status 1 when one is missing.
    """
    settings, document = read_settings(find_file(config), lenient=True)
    users: dict[tuple[str, bool], list[str]] = {}
    with settings.lookup.round():
        for use, user in _uses(settings, document):
            users.setdefault((use.name, use.is_variable), []).append(user)
        rows = [_row(name, settings.lookup, users[name, only], only=only) for name, only in sorted(users)]
    settings.lookup.close()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
    else:
        _print(rows)
    if not all(one.ok for one in rows):
        raise SystemExit(1)


def _uses(settings: Settings, document: YamlNode) -> Iterator[tuple[Use, str]]:
    """Yield each place that names a secret, with what it is called."""
    for use in of_gateway(document, settings.lookup, lenient=True)[1]:
        yield use, ".".join(map(str, use.keys))
    yield from secrets_of_clients(settings)
    for entry in read_sources(settings).entries:
        try:
            _, uses = with_secrets(entry, settings, lenient=True)
        except Quarantine:  # `gateway check` says what is wrong with it
            continue
        for use in uses:
            yield use, entry.name


def _row(name: str, lookup: Secrets, users: list[str], *, only: bool) -> _Shown:
    """Tell of one secret; `only`: it is a variable, and nothing else is looked at."""
    found: Looked | None = None
    origin, problem = None, None
    try:
        if only:
            lookup.variable(name)
            origin = f"variable {name}"
        else:
            found = lookup.find(name)
            origin = found.origin
    except NoSecret as missing:
        problem = str(missing)
    age = None if found is None or found.since is None else max(0.0, time.time() - found.since)
    return _Shown(
        name=name, ok=problem is None, source=origin, age=age, users=tuple(dict.fromkeys(users)), problem=problem
    )


def _print(rows: list[_Shown]) -> None:
    if not rows:
        out.print("no file names a secret")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "secret", "source", "age", "used by"):
        table.add_column(title, overflow="fold")
    for one in rows:
        age = "" if one.age is None else str(Duration(round(one.age)))
        mark = "[green]ok[/]" if one.ok else "[bold red]missing[/]"
        table.add_row(mark, escaped(one.name), escaped(one.source or ""), age, escaped(", ".join(one.users)))
    out.print(table)
    for one in rows:
        if one.problem:
            out.print(f"[bold red]missing[/] [bold]{escaped(one.name)}[/]: {escaped(one.problem)}")
