"""The verb `gateway serve`."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Literal

import click
import msgspec
import structlog

from gateway.cells import orphans
from gateway.cli.common import config_option, handled, refuse_strangers
from gateway.errors import ConfigError
from gateway.observe import logs
from gateway.observe.events import Bus
from gateway.observe.redact import Redactor
from gateway.settings import find_file, read_settings

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.settings import Settings


@click.command()
@config_option
@click.option(
    "--listen",
    "-l",
    metavar="ADDRESS",
    multiple=True,
    help="Where to listen, HOST:PORT or unix:PATH; overrides gateway.listen. Can be repeated.",
)
@click.option(
    "--log-format", type=click.Choice(["json", "human"]), default="human", show_default=True, help="Form of the log."
)
@click.option(
    "--restart/--no-restart",
    default=None,
    help="Start the gateway again when it crashes or hangs; overrides gateway.restart.",
)
@click.option("--fd", "fds", type=int, multiple=True, help="Listen at this descriptor, a socket; can be repeated.")
@click.option("--workers", "-w", hidden=True, help="Of former times: more than one means --restart.")
@click.option("--keeper", type=int, hidden=True, help="The process that keeps this one.")
@handled
def serve(
    *,
    config: Path | None,
    listen: tuple[str, ...],
    log_format: Literal["json", "human"],
    fds: tuple[int, ...],
    workers: str | None,
    keeper: int | None,
    restart: bool | None,
) -> None:
    """Serve the connectors over HTTP.

    SIGTERM or ^C finishes what is in flight (at most gateway.drain) and ends with status 0; a second one stops at
    once. SIGHUP reads the files again; they are watched anyway.
    """
    if keeper is not None:
        orphans.die_with_parent()
        if os.getppid() != keeper:  # it is gone already
            raise SystemExit(1)
    file = find_file(config)
    settings, _ = read_settings(file, listen=listen)
    if fds:
        settings = msgspec.structs.replace(settings, service=settings.service._replace(fds=fds))
    refuse_strangers(settings)
    logs.configure(log_format, redact=Redactor(settings.secrets))
    several = settings.workers if workers is None else _several(workers)
    if several and keeper is None:
        structlog.get_logger().warning("workers_ignored", hint="the gateway is one process: say restart instead")
    if keeper is None and (settings.restart or several if restart is None else restart):
        from gateway.keeper import Keeper  # noqa: PLC0415 - the other verbs need none

        said = [word for one in listen for word in ("--listen", one)]
        arguments = ["--config", str(file), "--log-format", log_format, *said]
        raise SystemExit(asyncio.run(Keeper(settings, arguments).run()))
    _serve(settings, log_format)


def _serve(settings: Settings, log_format: logs.Format) -> None:
    import uvloop  # noqa: PLC0415

    from gateway.server import serve as run_server  # noqa: PLC0415

    bus = Bus()
    bus.listen(logs.EventLog(log_format, Redactor(settings.secrets)), called="log")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_server(settings, bus))
    finally:
        logs.close()


def _several(text: str) -> bool:
    if text == "auto" or (text.isascii() and text.isdigit() and int(text) > 0):
        return text != "1"
    raise ConfigError(f"--workers: {text!r} is neither a number of processes nor auto")
