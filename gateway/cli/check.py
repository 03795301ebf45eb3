"""The verb `gateway check`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from gateway.cells import machine
from gateway.cli import levels
from gateway.cli.common import (
    client_option,
    config_option,
    escaped,
    handled,
    opened,
    out,
    refuse_strangers,
    run,
    seen_by,
)
from gateway.connectors.clients import has_clients
from gateway.connectors.snapshot import ConnectorState, Status
from gateway.errors import ConfigError
from gateway.http.keys import SINGLE
from gateway.http.tls import Encryption
from gateway.identity import DEFAULT, Role
from gateway.jobs.notices import of_callbacks, of_command
from gateway.observe.audit import obstacle
from gateway.processes.pools import MODES
from gateway.runtimes.base import start_problem
from gateway.sandbox import STANDARD, STRICT, given, names
from gateway.units import Size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.connectors.caches import Cache
    from gateway.connectors.clients import Client
    from gateway.connectors.definition import Connector
    from gateway.gateway import Gateway
    from gateway.settings import Settings

MIB = 1 << 20
SANDBOX = {"sandbox", "network", "read", "write", "user"}
"""The keys of limits that are no bounds."""


@click.command()
@config_option
@client_option
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--sandbox", is_flag=True, help="Show what each level of the sandbox gives on this machine instead.")
@handled
def check(config: Path | None, client: str | None, *, as_json: bool, sandbox: bool) -> None:
    """Check the configuration and every connector: decode, describe, show limits, and say what to mend.

    Exit status 1 when a connector is bad, or others can change what is run, 2 when the configuration as a whole cannot
    be used.
    """
    if sandbox:
        _sandbox(as_json=as_json)
    else:
        run(_check(config, client, as_json=as_json))


def _sandbox(*, as_json: bool) -> None:
    found = levels.findings(machine.look())
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    else:
        levels.show(found)
    if found["problem"]:
        raise SystemExit(1)


async def _check(config: Path | None, client: str | None, *, as_json: bool) -> int:
    async with opened(config) as gateway:
        seen = gateway.registry.snapshot if client is None else seen_by(gateway, client)
        findings = [_finding(status, gateway) for status in seen.statuses.values()]
        bad = [one for one in findings if not one["ok"]]
        known = gateway.registry.clients or {}
        clients = [_of_client(one, gateway) for name, one in known.items() if client in {None, name}]
        audit = gateway.settings.audit
        unaudited = obstacle(audit.file) if audit is not None and audit.file is not None else None
        faults = bool(bad or gateway.registry.exposed or unaudited or any(one["problem"] for one in clients))
        memory = _sum([one["memory"] for one in findings if one["memory"]])
        callers, tls = _callers(gateway.settings), Encryption(gateway.settings)
        if as_json:
            notice = of_callbacks(gateway.callbacks.of(None))
            told = {
                "ok": not faults,
                "exposed": gateway.registry.exposed,
                "passed_over": gateway.registry.passed_over,
                "callers": callers,
                "tls": tls.facts(),
                "audit": {"problem": unaudited} if audit is not None else None,
                "callbacks": notice,
                "memory": memory,
                "sandbox": names(gateway.registry.machine.steps),
                "clients": clients,
                "connectors": findings,
            }
            click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2))
            return 1 if faults else 0
        out.print(f"configuration [bold]{escaped(str(gateway.settings.file))}[/]")
        out.print(f"callers       {escaped(callers)}")
        out.print(f"tls           {escaped(tls.summary())}")
        for notice in tls.notices():
            out.print(f"              [yellow]{escaped(notice)}[/]")
        if audit is not None:
            out.print(f"audit         {escaped(str(audit.file or 'standard output'))}")
        if unaudited is not None:
            out.print(f"              [bold red]BAD[/] {escaped(unaudited)} (gateway.audit)")
        out.print(f"sandbox       {escaped(levels.summary(gateway.registry.machine))}")
        out.print(f"callbacks     {escaped(of_callbacks(gateway.callbacks.of(None)) or 'have credentials')}\n")
        for told in clients:
            _print_client(told)
        if clients:
            out.print()
        for one in findings:
            _print(one)
        for problem in gateway.registry.exposed:
            out.print(f"[bold red]BAD[/] {escaped(problem)}")
        for passed in gateway.registry.passed_over:
            out.print(f"[dim]passed over[/] {escaped(passed)}")
        out.print(f"memory that is kept, estimated: {_said(memory)}{_unmeasured(memory)}")
        total = f"{len(findings) - len(bad)} of {len(findings)} connectors can be served"
        out.print(f"[bold {'red' if bad else 'green'}]{total}[/]")
        return 1 if faults else 0


def _of_client(client: Client, gateway: Gateway) -> dict[str, Any]:
    facts = client.facts(time.time())
    if client.name == DEFAULT and gateway.settings.api_key is not None:
        facts["keys"].insert(0, {"id": SINGLE, "role": Role.OPERATOR.value, "until": None})
    return {"name": client.name, **facts, "sees": list(gateway.registry.world(client.name).statuses)}


def _print_client(one: dict[str, Any]) -> None:
    mark = "[bold red]BAD[/]" if one["problem"] else "[green]ok [/]"
    seen = [f"{name} (its own)" if name in one["own"] else name for name in one["sees"]]
    keys = [f"{key['id']} ({key['role']}{', until ' + key['until'] if key['until'] else ''})" for key in one["keys"]]
    out.print(f"{mark} client [bold]{escaped(one['name'])}[/]")
    out.print(f"    [dim]sees {escaped(', '.join(seen) or 'nothing')}[/]")
    out.print(f"    [dim]keys {escaped(', '.join(keys) or 'none')}[/]")
    for text in (one["problem"], *one["notices"]):
        if text:
            out.print(f"    [yellow]{escaped(text)}[/]")


def _callers(settings: Settings) -> str:
    """Say who may call, or that nobody can since there is no key here: `gateway serve` may well have one."""
    try:
        refuse_strangers(settings)
    except ConfigError as problem:
        return f"none, `gateway serve` would not start like this: {problem}"
    if has_clients(settings):
        certified = settings.tls is not None and settings.tls.client_ca is not None
        single = ", or the single key" if settings.api_key is not None else ""
        return f"who has a key of a client{', or a certificate that names one' if certified else ''}{single}"
    if settings.api_key is not None:
        return "who has the key"
    return "whoever reaches the address" if settings.open else "whoever is on this machine"


def _finding(status: Status, gateway: Gateway) -> dict[str, Any]:
    connector = status.connector
    problem = status.reason
    if status.state is ConnectorState.READY and connector is not None:
        problem = _start_problem(connector)
    return {
        "name": status.name,
        "ok": problem is None,
        "state": status.state.value,
        "problem": problem,
        "notices": gateway.notices(status.name),
        "runtime": connector.runtime if connector else None,
        "run": [connector.redact(word) for word in connector.launch.argv] if connector else None,
        "mode": connector.launch.mode if connector else None,
        "keeps": MODES[connector.launch.mode].keeps(connector.launch.keep) if connector else None,
        "memory": _memory(connector, gateway) if connector else None,
        "limits": _limits(connector) if connector else None,
        "sandbox": _of_sandbox(connector, gateway) if connector else None,
        "cache": _of_cache(connector.cache) if connector and connector.cache else None,
        "commands": {
            command.name: {
                "timeout": f"{command.timeout:g}s",
                "job": of_command(command, connector, gateway.destinations(connector)) if connector else None,
                "parameters": [msgspec.to_builtins(one) for one in command.signature.parameters],
            }
            for command in ((connector.commands or {}) if connector else {}).values()
        },
    }


def _limits(connector: Connector) -> dict[str, str]:
    limits = msgspec.structs.asdict(connector.limits)
    return {name: str(value) for name, value in limits.items() if name not in SANDBOX}


def _of_sandbox(connector: Connector, gateway: Gateway) -> dict[str, Any]:
    """Tell a connector's sandbox, with what is missing of it here."""
    sandbox = connector.launch.sandbox
    return {
        **msgspec.to_builtins(given(sandbox, gateway.registry.machine.steps)),
        **{key: msgspec.to_builtins(getattr(sandbox, key)) for key in ("user", "hide", "show", "read", "write")},
    }


def _memory(connector: Connector, gateway: Gateway) -> dict[str, int | None]:
    """Estimate the MiB of what is kept: its processes are taken for as large as the one that described itself."""
    start, most = MODES[connector.launch.mode].counts(connector.launch.keep)
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
    problem = start_problem(Path(connector.launch.argv[0]), connector.launch.env["PATH"])
    return f"{problem}: calls answer connector_start_failed" if problem else None


def _sandbox_said(sandbox: dict[str, Any]) -> str:
    """Say what is not as it is by default."""
    told = [sandbox["level"]] if sandbox["level"] != STANDARD else []
    if sandbox["network"] == "none" and sandbox["level"] == STANDARD:
        told.append("no network")
    if sandbox["network"] == "host" and sandbox["level"] == STRICT:
        told.append("with the network")
    if sandbox["user"] is not None:
        told.append(f"as user {sandbox['user'][0]}")
    return ", ".join(told)


def _of_cache(cache: Cache) -> dict[str, Any]:
    return {"folder": str(cache.folder), "size": int(cache.size), "held": cache.held()}


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
        told = _sandbox_said(one["sandbox"])
        if told:
            out.print(f"    sandbox {escaped(told)}")
        if one["cache"]:
            held, size = (Size(one["cache"][key]) for key in ("held", "size"))
            out.print(f"    cache {escaped(one['cache']['folder'])}, holds {held} of {size}")
        if one["memory"]["most_mib"] != 0:
            out.print(f"    memory that is kept, estimated: {_said(one['memory'])}")
    for name, command in one["commands"].items():
        parameters = ", ".join(
            f"{p['id']}: {p['type']}{'' if p['required'] else ' (optional)'}" for p in command["parameters"]
        )
        job = f", {command['job']}" if command["job"] else ""
        out.print(f"    [cyan]{escaped(name)}[/]({escaped(parameters)})  [dim]timeout {command['timeout']}{job}[/]")
    out.print()
