"""The verb `gateway serve`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

import click

from gateway import logs
from gateway.cli.common import config_option, fail, handled
from gateway.config import find_file, read_settings
from gateway.events import Bus

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@config_option
@click.option("--listen", "-l", metavar="HOST:PORT", help="Where to listen; overrides gateway.listen.")
@click.option(
    "--log-format", type=click.Choice(["json", "human"]), default="human", show_default=True, help="Form of the log."
)
@handled
def serve(config: Path | None, listen: str | None, log_format: Literal["json", "human"]) -> None:
    """Serve the connectors over HTTP.

    SIGTERM or ^C finishes what is in flight (at most gateway.drain) and ends with status 0; a second one stops at
    once. SIGHUP reads the files again; they are watched anyway.
    """
    from gateway.server import serve as run_server  # noqa: PLC0415 - the other verbs need no server

    settings, _ = read_settings(find_file(config), listen=listen)
    logs.configure(log_format)
    bus = Bus()
    bus.listen(logs.EventLog())
    try:
        asyncio.run(run_server(settings, bus))
    except OSError as problem:
        fail(f"cannot listen on {settings.host or '*'}:{settings.port}: {problem.strerror or problem}")
