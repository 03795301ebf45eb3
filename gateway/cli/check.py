"""The verb `gateway check`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

import click
import msgspec

from gateway.cli.common import config_option, escaped, handled, opened, out, run
from gateway.pool.base import keeps
from gateway.registry.snapshot import State, Status

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.registry.definition import Connector


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@handled
def check(config: Path | None, *, as_json: bool) -> None:
    """Check the configuration and every connector: decode, describe, show limits, and say what to mend.

    Exit status 1 when a connector is bad, 2 when the configuration as a whole cannot be used.
    """
    run(_check(config, as_json=as_json))


async def _check(config: Path | None, *, as_json: bool) -> int:
    async with opened(config) as gateway:
        findings = [_finding(status) for status in gateway.registry.snapshot.statuses.values()]
        bad = [one for one in findings if not one["ok"]]
        if as_json:
            click.echo(msgspec.json.format(msgspec.json.encode({"ok": not bad, "connectors": findings}), indent=2))
            return 1 if bad else 0
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(gateway.warden.ready.wait(), 5)
        out.print(f"configuration [bold]{escaped(str(gateway.settings.file))}[/]")
        containment = "control groups" if gateway.warden.cgroup else "process sweep (no writable cgroup v2 tree here)"
        out.print(f"containment   {containment}; memory is watched\n")
        for one in findings:
            _print(one)
        total = f"{len(findings) - len(bad)} of {len(findings)} connectors can be served"
        out.print(f"[bold {'red' if bad else 'green'}]{total}[/]")
        return 1 if bad else 0


def _finding(status: Status) -> dict[str, Any]:
    connector = status.connector
    problem = status.reason
    if status.state is State.READY and connector is not None:
        problem = _start_problem(connector)
    return {
        "name": status.name,
        "ok": problem is None,
        "state": status.state.value,
        "problem": problem,
        "notices": list(connector.notices) if connector else [],
        "runtime": connector.runtime if connector else None,
        "run": list(connector.launch.argv) if connector else None,
        "mode": connector.launch.mode if connector else None,
        "keeps": keeps(connector.launch) if connector else None,
        "limits": {k: str(v) for k, v in msgspec.structs.asdict(connector.limits).items()} if connector else None,
        "commands": {
            command.name: {
                "timeout": f"{command.timeout:g}s",
                "parameters": [msgspec.to_builtins(one) for one in command.signature.parameters],
            }
            for command in ((connector.commands or {}) if connector else {}).values()
        },
    }


def _start_problem(connector: Connector) -> str | None:
    """Say why a connector whose commands are declared, and which therefore is listed, could not be started."""
    program = connector.launch.argv[0]
    if not os.path.exists(program):
        return f"{program} does not exist: calls answer connector_start_failed"
    if not os.access(program, os.X_OK) or os.path.isdir(program):
        return f"{program} is not executable: chmod +x {program}"
    return None


def _print(one: dict[str, Any]) -> None:
    mark = "[green]ok [/]" if one["ok"] else "[bold red]BAD[/]"
    out.print(f"{mark} [bold]{escaped(one['name'])}[/]  [dim]{one['runtime'] or ''} {one['state']}[/]")
    if one["problem"]:
        out.print(f"    [red]{escaped(one['problem'])}[/]")
    for notice in one["notices"]:
        out.print(f"    [yellow]{escaped(notice)}[/]")
    if one["limits"]:
        limits = "  ".join(f"{name} {value}" for name, value in one["limits"].items())
        out.print(f"    [dim]{limits}[/]")
        out.print(f"    mode {one['mode']}, keeps {one['keeps']}")
    for name, command in one["commands"].items():
        parameters = ", ".join(
            f"{p['id']}: {p['type']}{'' if p['required'] else ' (optional)'}" for p in command["parameters"]
        )
        out.print(f"    [cyan]{escaped(name)}[/]({escaped(parameters)})  [dim]timeout {command['timeout']}[/]")
    out.print()
