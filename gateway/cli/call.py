"""The verb `gateway call`."""

from __future__ import annotations

import functools
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from gateway.calls.call import Call
from gateway.cli.common import (
    audited,
    client_option,
    config_option,
    err,
    escaped,
    fail,
    handled,
    opened,
    out,
    run,
    seen_by,
)
from gateway.errors import GatewayError
from gateway.identity import DEFAULT
from gateway.observe.audit import AuditLine, now, shown
from gateway.observe.events import Bus, ConnectorLine, ConnectorWarning, Event, RunFinished
from gateway.protocol.document import Object, read_object
from gateway.protocol.envelope import JSON
from gateway.protocol.request import Caller
from gateway.units import Size

if TYPE_CHECKING:
    from gateway.calls.reply import Reply
    from gateway.observe.audit import Audit


@click.command()
@config_option
@client_option
@click.argument("target", metavar="CONNECTOR/COMMAND")
@click.argument("arguments", nargs=-1, metavar="[key=text | key:=json | @file]...")
@click.option("--timeout", "-t", type=float, metavar="SECONDS", help="Shorten the command's timeout.")
@click.option("--quiet", "-q", is_flag=True, help="Print the result alone.")
@handled
def call(
    config: Path | None,
    client: str | None,
    target: str,
    arguments: tuple[str, ...],
    timeout: float | None,
    *,
    quiet: bool,
) -> None:
    """Run one command the way the server would, and show its result, log, times and resources.

    \b
    key=text      a parameter that is text
    key:=json     any other: pages:=2  urgent:=true  to:='["a", "b"]'
    @file         a JSON file with an object of parameters; @- reads stdin

    The result goes to stdout, everything else to stderr. Exit status 1 when the command failed.
    """
    if timeout is not None and not 0 < timeout < float("inf"):
        fail(f"--timeout: {timeout:g} is not a number of seconds, for example 2.5")
    connector, slash, command = target.partition("/")
    if not slash or not connector or not command:
        fail(f"{target!r} is not CONNECTOR/COMMAND: gateway list shows what there is")
    request = Call(
        connector=connector,
        command=command,
        params=_parameters(arguments),
        caller=Caller(request_id=uuid.uuid4().hex, client=client),
        timeout=timeout,
    )
    bus = Bus()
    with audited(config) as audit:
        if audit is not None:
            bus.listen(functools.partial(_tell, audit), RunFinished, called="audit")
        run(_call(config, request, bus, quiet=quiet))


async def _call(config: Path | None, request: Call, bus: Bus, *, quiet: bool) -> int:
    if not quiet:
        bus.listen(_show, called="command line")
    async with opened(config, bus, described=False) as gateway:
        seen_by(gateway, request.caller.client)
        try:
            reply = await gateway.invoker.invoke(request)
        except GatewayError as problem:
            err.print(f"[bold red]{problem.code}[/]: {escaped(problem.message)}")
            return 1
    return _print(reply)


def _print(reply: Reply) -> int:
    result = reply.result
    body = result.content
    if result.mimetype.split(";")[0] == JSON and sys.stdout.isatty():
        out.print_json(data=msgspec.json.decode(body))
    else:
        click.echo(body)
    if result.error is not None:
        err.print(f"[bold red]{escaped(result.error.error_code)}[/]: {escaped(result.error.message)}")
        return 1
    if result.status is not None and result.status >= 400:
        err.print(f"[bold red]the connector answered with status {result.status}[/]")
        return 1
    return 0


def _tell(audit: Audit, event: Event) -> None:
    assert isinstance(event, RunFinished)
    audit.put(
        AuditLine(
            time=now(),
            event="call",
            client=event.client or DEFAULT,
            request_id=event.request_id,
            connector=shown(event.connector),
            command=shown(event.command),
            outcome=event.outcome,
        )
    )


def _show(event: Event) -> None:
    if isinstance(event, ConnectorLine):
        err.print(f"[dim]{event.stream} |[/] {escaped(event.line)}")
    elif isinstance(event, ConnectorWarning) and event.request_id:
        err.print(f"[yellow]warning:[/] {escaped(event.message)}")
    elif isinstance(event, RunFinished):
        end = event.signal or (f"exit {event.status}" if event.status is not None else "not started")
        err.print(
            f"[dim]{event.outcome}, {end}, pid {event.pid}: {event.wall * 1000:.0f} ms, "
            f"cpu {event.cpu_user * 1000:.0f}+{event.cpu_system * 1000:.0f} ms, "
            f"peak {Size(event.peak_rss)}, result {Size(event.result_bytes)}[/]"
        )


def _parameters(arguments: tuple[str, ...]) -> Object:
    parameters: Object = {}
    for argument in arguments:
        if argument.startswith("@"):
            parameters.update(_from_file(argument[1:]))
            continue
        key, mark, value = argument.partition("=")
        if not mark or not key.rstrip(":"):
            fail(f"{argument!r} is none of key=text, key:=json, @file")
        if key.endswith(":"):
            try:
                parameters[key[:-1]] = msgspec.json.decode(value.encode(), type=msgspec.Raw)
            except msgspec.DecodeError as problem:
                fail(f"{key + mark!r}: {problem}")
        else:
            parameters[key] = msgspec.Raw(msgspec.json.encode(value))
    return parameters


def _from_file(name: str) -> Object:
    try:
        return read_object(sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes())
    except OSError as problem:
        fail(f"@{name}: {problem.strerror}")
    except (ValueError, msgspec.DecodeError) as problem:
        fail(f"@{name}: {problem}")
