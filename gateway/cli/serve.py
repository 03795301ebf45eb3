"""The verb `gateway serve`."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Literal

import click
import msgspec

from gateway.cli.common import config_option, handled
from gateway.errors import ConfigError
from gateway.observe import logs
from gateway.observe.events import Bus
from gateway.settings import Settings, find_file, read_settings

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.team import Team


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
    if team is not None:
        _work(team, log_format)
        return
    settings, _ = read_settings(find_file(config), listen=listen, workers=_workers(workers))
    if settings.workers > 1:
        from gateway.master import Master  # noqa: PLC0415 - the other verbs need no server

        try:
            status = asyncio.run(Master(settings, log_format).run())
        except OSError as problem:
            raise _cannot_listen(settings, problem) from problem
        if status:
            raise SystemExit(status)
    else:
        logs.configure(log_format)
        _serve(settings, None)


def _work(text: str, log_format: Literal["json", "human"]) -> None:
    """Be one of several workers, as the master says; what is wrong is for the master to say, once."""
    from gateway.team import Team, follow, tell  # noqa: PLC0415 - the other verbs need none

    follow()
    team = Team.from_text(text)
    logs.configure(log_format, worker=team.worker, lock=team.log_lock)
    try:
        settings = Settings.borrow(team.settings)
        _serve(settings, msgspec.structs.replace(team, key=settings.team_key))
    except ConfigError as problem:
        tell(str(problem))
        raise SystemExit(2) from problem


def _serve(settings: Settings, team: Team | None) -> None:
    import uvloop  # noqa: PLC0415

    from gateway.server import serve as run_server  # noqa: PLC0415

    bus = Bus()
    bus.listen(logs.EventLog())
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            ended = runner.run(run_server(settings, bus, team))
    except OSError as problem:
        raise _cannot_listen(settings, problem) from problem
    if not ended:
        os._exit(0)  # everything is closed but threads that wait for a database


def _cannot_listen(settings: Settings, problem: OSError) -> ConfigError:
    return ConfigError(f"cannot listen on {settings.host or '*'}:{settings.port}: {problem.strerror or problem}")


def _workers(text: str | None) -> int | None:
    if text is None:
        return None
    if text == "auto":
        return os.cpu_count() or 1
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise ConfigError(f"--workers: {text!r} is neither a number of processes nor auto")
