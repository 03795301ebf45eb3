"""The verb `gateway serve`."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Literal

import click

from gateway import logs
from gateway.cli.common import config_option, fail, handled
from gateway.config import find_file, read_settings
from gateway.errors import ConfigError
from gateway.events import Bus

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@config_option
@click.option("--listen", "-l", metavar="HOST:PORT", help="Where to listen; overrides gateway.listen.")
@click.option(
    "--log-format", type=click.Choice(["json", "human"]), default="human", show_default=True, help="Form of the log."
)
@click.option(
    "--workers",
    "-w",
    metavar="N",
    help="Processes that serve the port together: a number, or auto; overrides gateway.workers.",
)
@click.option("--team", hidden=True, help="What a master tells its workers.")
@handled
def serve(
    config: Path | None,
    listen: str | None,
    log_format: Literal["json", "human"],
    workers: str | None,
    team: str | None,
) -> None:
    """Serve the connectors over HTTP.

    SIGTERM or ^C finishes what is in flight (at most gateway.drain) and ends with status 0; a second one stops at
    once. SIGHUP reads the files again; they are watched anyway.
    """
    import uvloop  # noqa: PLC0415

    from gateway.master import Master  # noqa: PLC0415 - the other verbs need no server
    from gateway.server import serve as run_server  # noqa: PLC0415
    from gateway.team import Team  # noqa: PLC0415

    file = find_file(config)
    settings, _ = read_settings(file, listen=listen, workers=_workers(workers))
    logs.configure(log_format)
    try:
        if settings.workers > 1 and team is None:
            status = asyncio.run(Master(settings, ["--config", str(file), "--log-format", log_format]).run())
            if status:
                raise SystemExit(status)
            return
        bus = Bus()
        bus.listen(logs.EventLog())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            ended = runner.run(run_server(settings, bus, Team.from_text(team) if team else None))
        if not ended:
            os._exit(0)  # everything is closed but threads that wait for a database
    except OSError as problem:
        fail(f"cannot listen on {settings.host or '*'}:{settings.port}: {problem.strerror or problem}")


def _workers(text: str | None) -> int | None:
    if text is None:
        return None
    if text == "auto":
        return os.cpu_count() or 1
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise ConfigError(f"--workers: {text!r} is neither a number of processes nor auto")
