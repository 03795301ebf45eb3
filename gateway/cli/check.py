"""The verb `gateway check`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

import click
import msgspec

from gateway.cli.common import config_option, escaped, handled, opened, out, run
from gateway.jobs.notices import of_callbacks, of_command
from gateway.pool.base import counts, keeps
from gateway.registry.snapshot import State, Status

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gateway.core import Gateway
    from gateway.registry.definition import Connector

MIB = 1 << 20


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
        findings = [_finding(status, gateway) for status in gateway.registry.snapshot.statuses.values()]
        bad = [one for one in findings if not one["ok"]]
        memory = _sum([one["memory"] for one in findings if one["memory"]])
        if as_json:
            notice = of_callbacks(gateway.destinations)
            told = {"ok": not bad, "callbacks": notice, "memory": memory, "connectors": findings}
            click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2))
            return 1 if bad else 0
        out.print(f"configuration [bold]{escaped(str(gateway.settings.file))}[/]")
        containment = "control groups" if gateway.cells.cgroup else "process sweep (no writable cgroup v2 tree here)"
        out.print(f"containment   {containment}; memory is watched")
        out.print(f"callbacks     {escaped(of_callbacks(gateway.destinations) or 'have credentials')}\n")
        for one in findings:
            _print(one)
        out.print(f"memory that is kept, estimated: {_said(memory)}{_unmeasured(memory)}")
        total = f"{len(findings) - len(bad)} of {len(findings)} connectors can be served"
        out.print(f"[bold {'red' if bad else 'green'}]{total}[/]")
        return 1 if bad else 0


def _finding(status: Status, gateway: Gateway) -> dict[str, Any]:
    connector = status.connector
    problem = status.reason
    if status.state is State.READY and connector is not None:
        problem = _start_problem(connector)
    return {
        "name": status.name,
        "ok": problem is None,
        "state": status.state.value,
        "problem": problem,
        "notices": gateway.notices(status.name),
        "runtime": connector.runtime if connector else None,
        "run": list(connector.launch.argv) if connector else None,
        "mode": connector.launch.mode if connector else None,
        "keeps": keeps(connector.launch, gateway.settings.workers) if connector else None,
        "memory": _memory(connector, gateway) if connector else None,
        "limits": {k: str(v) for k, v in msgspec.structs.asdict(connector.limits).items()} if connector else None,
        "commands": {
            command.name: {
                "timeout": f"{command.timeout:g}s",
                "job": of_command(command, connector, gateway.destinations) if connector else None,
                "parameters": [msgspec.to_builtins(one) for one in command.signature.parameters],
            }
            for command in ((connector.commands or {}) if connector else {}).values()
        },
    }


def _memory(connector: Connector, gateway: Gateway) -> dict[str, int | None]:
    """Estimate the MiB of what is kept: its processes are taken for as large as the one that described itself."""
    start, most = counts(connector.launch, gateway.settings.workers)
    size = gateway.describer.peak_rss(connector)
    process = None if size is None else max(1, round(size / MIB))
    if most == 0:
        return {"process_mib": process, "start_mib": 0, "most_mib": 0}
    if process is None:
        return {"process_mib": None, "start_mib": None, "most_mib": None}
    return {"process_mib": process, "start_mib": start * process, "most_mib": most * process}


def _sum(memories: list[dict[str, int | None]]) -> dict[str, int]:
    return {
        "start_mib": sum(one["start_mib"] or 0 for one in memories),
        "most_mib": sum(one["most_mib"] or 0 for one in memories),
        "not_measured": sum(one["most_mib"] is None for one in memories),
    }


def _said(memory: Mapping[str, int | None]) -> str:
    if memory["most_mib"] is None:
        return "not measured (its commands are declared, so it was not run)"
    more = f", up to {memory['most_mib']} MiB once there are calls" if memory["most_mib"] != memory["start_mib"] else ""
    return f"{memory['start_mib']} MiB{more}"


def _unmeasured(memory: Mapping[str, int]) -> str:
    return f" ({memory['not_measured']} not measured)" if memory["not_measured"] else ""


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
        if one["memory"]["most_mib"] != 0:
            out.print(f"    memory that is kept, estimated: {_said(one['memory'])}")
    for name, command in one["commands"].items():
        parameters = ", ".join(
            f"{p['id']}: {p['type']}{'' if p['required'] else ' (optional)'}" for p in command["parameters"]
        )
        job = f", {command['job']}" if command["job"] else ""
        out.print(f"    [cyan]{escaped(name)}[/]({escaped(parameters)})  [dim]timeout {command['timeout']}{job}[/]")
    out.print()
