"""What the verbs share: the options, the outermost error handler, a gateway for the length of one command."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec

import click
from rich.console import Console
from rich.markup import escape

from gateway.connectors.clients import has_clients
from gateway.errors import ConfigError
from gateway.gateway import Gateway
from gateway.observe.audit import Audit
from gateway.observe.events import Bus
from gateway.service import strangers_reach
from gateway.settings import find_file, read_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from gateway.connectors.snapshot import Snapshot
    from gateway.settings import Settings

P = ParamSpec("P")

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

config_option = click.option(
    "--config",
    "-c",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration file [default: connectors.yaml in this folder].",
)

client_option = click.option("--client", metavar="NAME", help="Of one client: what it sees, under its names.")


def handled(function: Callable[P, None]) -> Callable[P, None]:
    """Turn a configuration that cannot be used into one clear line and exit status 2."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        if sys.platform != "linux":
            fail("the gateway runs on Linux only (kernel 5.4 or later: pidfd, /proc)")
        try:
            function(*args, **kwargs)
        except ConfigError as problem:
            fail(str(problem))

    return wrapper


def fail(message: str) -> NoReturn:
    """Say what is wrong and leave with exit status 2."""
    err.print(f"[bold red]error:[/] {escaped(message)}")
    raise SystemExit(2)


def run(main: Coroutine[Any, Any, int]) -> None:
    """Run a verb's coroutine; SIGINT and SIGTERM cancel it, and its processes end with it. Leave with its status."""

    async def cancellable() -> int:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await main

    try:
        status = asyncio.run(cancellable())
    except asyncio.CancelledError:
        status = 130
    if status:
        raise SystemExit(status)


@contextlib.asynccontextmanager
async def opened(
    config: Path | None, bus: Bus | None = None, *, registry: bool = True, described: bool = True
) -> AsyncIterator[Gateway]:
    """Have a gateway that serves nothing, with or without its registry loaded and all of its connectors `described`.

    Without its registry it needs none of its own secrets.
    """
    settings, _ = read_settings(find_file(config), lenient=not registry)
    gateway = Gateway(settings, bus or Bus())
    await gateway.open(registry=registry, watch=False)
    try:
        if described:
            await gateway.registry.described()
        yield gateway
    finally:
        await gateway.close()


def seen_by(gateway: Gateway, client: str | None) -> Snapshot:
    """Return what a client sees; without a name, what whoever has the single key does."""
    clients = gateway.registry.clients or {}
    if client is not None and client not in clients:
        fail(f"there is no client {client!r} (there are: {', '.join(clients) or 'none'})")
    if client is not None and clients[client].problem is not None:
        fail(str(clients[client].problem))
    return gateway.registry.world(client)


@contextlib.contextmanager
def audited(config: Path | None) -> Iterator[Audit | None]:
    """Have the audit, for what is done here without a server; None where there is none.

    What cannot be told is not done where it has to be told; elsewhere there is a warning.
    """
    settings, _ = read_settings(find_file(config))
    if settings.audit is None:
        yield None
        return
    audit = Audit(settings.audit.file, Bus(), required=settings.audit.required)
    audit.open()
    try:
        if audit.refuses:
            fail(f"the audit cannot be written (gateway.audit): {audit.problem}")
        yield audit
        if audit.problem is not None:
            err.print(f"[yellow]warning:[/] the audit cannot be written (gateway.audit): {escaped(audit.problem)}")
    finally:
        audit.close()


def refuse_strangers(settings: Settings) -> None:
    """Without a key only this machine may call, unless somebody has said that others may.

    Raises:
        ConfigError: others could, or the address cannot be listened on.
    """
    if settings.api_key is not None or settings.open or has_clients(settings):
        return
    found = strangers_reach(settings.service, settings.listen)
    if found:
        raise ConfigError(
            f"other machines reach {', '.join(found)}, and there is no key: set CONNECTOR_PROXY_API_KEY, or listen on"
            " 127.0.0.1, or say gateway.open: true if whoever reaches it may call everything"
        )


def escaped(text: str) -> str:
    """Return a text that rich prints as it is; what would steer a terminal is shown instead of done."""
    return escape(text.translate(_CONTROLS))
