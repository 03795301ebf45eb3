"""The verb `gateway list`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.table import Table

from gateway.cli.common import client_option, config_option, err, escaped, handled, opened, out, run, seen_by
from gateway.connectors.snapshot import ConnectorState
from gateway.jobs.notices import of_command

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.connectors.parameters import Parameter


@click.command("list")
@config_option
@client_option
@click.option("--json", "as_json", is_flag=True, help="Print what /v1/commands answers.")
@handled
def list_(config: Path | None, client: str | None, *, as_json: bool) -> None:
    """List every command that can be called, with its parameters."""
    run(_list(config, client, as_json=as_json))


async def _list(config: Path | None, client: str | None, *, as_json: bool) -> int:
    async with opened(config) as gateway:
        snapshot = seen_by(gateway, client)
        if as_json:
            click.echo(snapshot.commands)
            return 0
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("command", "parameters", "timeout", "as a job", "description"):
            table.add_column(title, overflow="fold")
        for connector in snapshot.ready():
            for command in (connector.commands or {}).values():
                parameters = " ".join(_shown(one) for one in command.signature.parameters)
                table.add_row(
                    f"[cyan]{connector.called}/{command.name}[/]",
                    escaped(parameters),
                    f"{command.timeout:g}s",
                    escaped(of_command(command, connector, gateway.destinations(connector)) or ""),
                    escaped(command.description or ""),
                )
        out.print(table)
        bad = [name for name, one in snapshot.statuses.items() if one.state is not ConnectorState.READY]
        if bad:
            err.print(f"[yellow]{len(bad)} more cannot be served ({', '.join(bad)}): gateway check says why[/]")
    return 0


def _shown(parameter: Parameter) -> str:
    text = f"{parameter.id}:{parameter.type}"
    return text if parameter.required else f"[{text}]"
