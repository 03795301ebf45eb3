"""The verbs `gateway keys ...`."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

import click

from gateway.cli.common import audited, config_option, err, escaped, fail, handled
from gateway.connectors.clients import SHOWN, SUFFIXES, digest_of
from gateway.identity import DEFAULT, Role
from gateway.observe.audit import AuditLine, now
from gateway.settings import NAME, find_file, read_settings

if TYPE_CHECKING:
    from pathlib import Path

BYTES = 32  # of chance in a key
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@click.group()
def keys() -> None:
    """Make keys for clients."""


@keys.command()
@config_option
@click.argument("client")
@click.option("--role", type=click.Choice([role.value for role in Role]), default=Role.CALLER.value, show_default=True)
@click.option("--until", metavar="DATE", help="The last day (UTC) on which it counts, for example 2027-03-01.")
@handled
def new(config: Path | None, client: str, role: str, until: str | None) -> None:
    """Make a key for CLIENT, print it once, and say what to add to the client's file.

    The key alone goes to stdout. The gateway keeps its SHA-256, from which nobody gets the key.
    """
    if not NAME.fullmatch(client):
        fail(f"{client!r} cannot be a client's name: letters, digits, _ - and . make one")
    if until is not None and not _DAY.fullmatch(until):
        fail(f"--until: {until!r} is no date such as 2027-03-01")
    settings, _ = read_settings(find_file(config))
    folder = settings.clients_dir
    if folder is None:
        fail("gateway.clients_dir is null: without a folder of clients there is one key alone, gateway.api_key")
    key = f"{client}_{secrets.token_urlsafe(BYTES)}"
    digest = digest_of(key).hex()
    with audited(config) as audit:
        if audit is not None:
            audit.put(AuditLine(time=now(), event="keys", client=client, key_id=digest[:SHOWN], outcome="ok"))
    entry = [f'sha256: "{digest}"']
    entry += [f"role: {role}"] if role != Role.CALLER.value else []
    entry += [f"until: {until}"] if until is not None else []
    file = next((path for path in (folder / f"{client}{suffix}" for suffix in SUFFIXES) if path.exists()), None)
    err.print("[dim]the key, which is shown this once:[/]")
    click.echo(key)
    err.print(
        f"\nadd this to {escaped(str(file or folder / f'{client}{SUFFIXES[0]}'))}{'' if file else ' (a new file)'}:\n"
    )
    err.print(escaped(f"keys:\n  - {{{', '.join(entry)}}}"))
    if client == DEFAULT:
        err.print("\n[dim]the client default is whoever has gateway.api_key, too[/]")
