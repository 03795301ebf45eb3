"""What the verbs share that ask a running gateway: which one, how it is believed, and tables of what it answers."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import click
import msgspec
from rich.console import Console
from rich.table import Table

from gateway.cli.common import config_option, err, escaped, fail, handled, out
from gateway.errors import ConfigError
from gateway.http.tls import fingerprint
from gateway.service import Local, Tcp
from gateway.settings import find_file, key_of_environment, read_settings
from gateway.units import Duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

PATIENCE = 30.0  # seconds for an answer
DIGITS = 15  # of a number
HERE = "http://localhost"  # what a Unix socket is called
_WIDE = 1000  # characters
_EVERYWHERE = {None: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what is listened on, seen from here


class Text(click.types.StringParamType):
    """What can be asked for: an argument of the command line is bytes, which need not be text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse what is no text."""
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail("it is not UTF-8", param, ctx)
        return super().convert(value, param, ctx)


class Number(click.IntRange):
    """A number that is told without its thousand digits when it is out of range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse what is too long."""
        if len(str(value)) > DIGITS:
            self.fail(f"it has more than {DIGITS} digits", param, ctx)
        return super().convert(value, param, ctx)


def remote(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which gateway is asked; they come as one `Where`."""

    @config_option
    @click.option("--url", "-u", metavar="URL", help="The gateway, or unix:PATH [default: where gateway.listen is].")
    @click.option("--cacert", type=click.Path(path_type=Path), help="Believe the authorities in this PEM file alone.")
    @click.option("--cert", type=click.Path(path_type=Path), help="Show the certificate in this PEM file with its key.")
    @click.option("--json", "as_json", is_flag=True, help="Print what the gateway answers.")
    @handled
    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> None:
        function(Where(*(options.pop(name) for name in Where._fields)), *args, **options)

    return wrapper


class NoGateway(Exception):
    """No gateway answers; the text says which, and why."""


class Where(NamedTuple):
    """Which gateway, and how it is believed."""

    config: Path | None
    url: str | None
    cacert: Path | None
    cert: Path | None


class Target(NamedTuple):
    """Where a gateway is."""

    url: str
    key: str | None
    socket: str | None = None
    """The path of its Unix socket."""
    tls: ssl.SSLContext | aiohttp.Fingerprint | bool = True

    @property
    def shown(self) -> str:
        """What it is called in a message."""
        return f"unix:{self.socket}" if self.socket is not None else self.url

    def connector(self) -> aiohttp.BaseConnector:
        """Make what connects to it."""
        return aiohttp.UnixConnector(self.socket) if self.socket is not None else aiohttp.TCPConnector(ssl=self.tls)


async def ask(where: Where, method: str, path: str, query: dict[str, Any], show: Callable[[Any], None] | None) -> int:
    """Ask for JSON and `show` it, or print it as it is; return the exit status."""
    found = await fetch(where, method, path, query)
    if found is None:
        return 1
    if show is None:
        click.echo(found.body)
    else:
        show(found.json)
    return 0


class Fetched(NamedTuple):
    """What a gateway has answered."""

    body: bytes
    json: Any
    """None where it is no JSON."""


async def fetch(
    where: Where, method: str, path: str, query: dict[str, Any], *, of_command: bool = False
) -> Fetched | None:
    """Return what a gateway answers; None where it refuses, or is none, which is told.

    `of_command`: it may be anything, since a connector says it.
    """
    target = target_of(where)
    answer: Any = None
    try:
        status, body = await asked(target, method, path, query, patience=None if of_command else PATIENCE)
        if not of_command:
            answer = read(target, status, body)
    except NoGateway as problem:
        err.print(f"[bold red]error:[/] {escaped(str(problem))}")
        return None
    if of_command:
        with contextlib.suppress(ValueError):
            answer = msgspec.json.decode(body)
    if status >= 400 and isinstance(answer, dict):
        complain(target.shown, status, answer)
        return None
    return Fetched(body, answer)


async def asked(
    target: Target, method: str, path: str, query: dict[str, Any], *, patience: float | None = PATIENCE
) -> tuple[int, bytes]:
    """Send a request and return its status and body. `patience`: seconds for an answer; None: as long as it takes.

    Raises:
        NoGateway: nobody answers.
    """
    url = target.shown
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    query = {name: str(value) for name, value in query.items() if value is not None}
    try:
        async with (
            aiohttp.ClientSession(
                connector=target.connector(), timeout=aiohttp.ClientTimeout(total=patience)
            ) as session,
            session.request(method, f"{target.url}{path}", params=query, headers=headers) as response,
        ):
            return response.status, await response.read()
    except (aiohttp.ClientError, OSError, ValueError) as problem:
        if isinstance(problem, aiohttp.InvalidURL):
            fail(f"--url: {url!r} is not an http or https URL")
        raise NoGateway(f"no gateway answers at {url}: {_why(problem)}") from problem


def _why(problem: Exception) -> str:
    """Say why a connection could not be had; of an error of the system what that calls it."""
    cause = getattr(problem, "os_error", None)
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and (cause.errno or 0) > 0:
        return os.strerror(cause.errno or 0)
    return getattr(cause, "strerror", None) or str(problem) or type(problem).__name__


def read(target: Target, status: int, body: bytes) -> dict[str, Any]:
    """Read the object that a gateway has answered.

    Raises:
        NoGateway: it is none.
    """
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise NoGateway(f"what answers at {target.shown} is no gateway (status {status})") from None


def target_of(where: Where) -> Target:
    """Find the gateway and its API key; with a URL there need be no configuration file here.

    Raises:
        ConfigError: there has to be one, and it cannot be used.
    """
    try:
        settings, _ = read_settings(find_file(where.config))
    except ConfigError:
        if where.config is not None or where.url is None:
            raise
        return _told(where.url, key_of_environment(), where)
    if where.url is not None:
        return _told(where.url, settings.api_key, where)
    address = next((one for one in settings.listen if isinstance(one, Local)), settings.listen[0])
    if isinstance(address, Local):
        return Target(HERE, settings.api_key, address.path)
    if address.port == 0:
        fail("gateway.listen leaves the port to the system: say with --url where the gateway is")
    here = Tcp(_EVERYWHERE.get(address.host, address.host), address.port)
    if settings.tls is None:
        return Target(f"http://{here}", settings.api_key)
    tls = _context(where)
    if where.cacert is None and where.cert is None:  # whatever name it has, it is the one beside this
        tls = aiohttp.Fingerprint(fingerprint(settings.tls))
    return Target(f"https://{here}", settings.api_key, tls=tls)


def _told(url: str, key: str | None, where: Where) -> Target:
    if url.startswith("unix:"):
        return Target(HERE, key, url.removeprefix("unix:"))
    return Target(url.rstrip("/"), key, tls=_context(where))


def _context(where: Where) -> ssl.SSLContext | aiohttp.Fingerprint | bool:
    """Make what --cacert and --cert ask for; without them, authorities are the machine's, or those of SSL_CERT_FILE."""
    if where.cacert is None and where.cert is None:
        return True
    named = where.cacert
    try:
        context = ssl.create_default_context(cafile=where.cacert)
        named = where.cert
        if where.cert is not None:
            context.load_cert_chain(where.cert)
    except OSError as problem:
        fail(f"{named}: {problem.strerror or problem}")
    return context


def complain(url: str, status: int, answer: dict[str, Any]) -> None:
    """Say why a gateway has refused, or that what answers is none."""
    error = answer.get("error")
    if isinstance(error, dict):
        err.print(f"[bold red]{escaped(str(error.get('error_code')))}[/]: {escaped(str(error.get('message')))}")
    elif status == 401:
        err.print(
            "[bold red]error:[/] the gateway wants another API key: set CONNECTOR_PROXY_API_KEY to the one it has"
        )
    else:
        err.print(f"[bold red]error:[/] what answers at {escaped(url)} is no gateway (status {status})")


def table(*titles: str) -> Table:
    """Begin a table."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        last = title == titles[-1]
        made.add_column(title, no_wrap=not last, overflow="fold")
    return made


def print_facts(first: str, shown: str, facts: dict[str, Any]) -> None:
    """Print what is known of one thing, a line each, those without a value left out; the first may have markup."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_row(f"[bold]{first}[/]", shown)
    for name, value in facts.items():
        if value:
            made.add_row(f"[bold]{name}[/]", escaped(str(value)))
    print_table(made)


def print_table(made: RenderableType) -> None:
    """Print a table, or some of them: for whoever reads it with a program, a line a row."""
    (out if out.is_terminal else Console(width=_WIDE, highlight=False, emoji=False)).print(made)


def at(seconds: float) -> str:
    """Return a moment, in seconds since 1970, as people here write it."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def took(begun: float, ended: float | None) -> str:
    """Return how long something has taken; nothing where it has not ended."""
    if ended is None or ended < begun:  # the clock was set back in between
        return ""
    return str(Duration(round(ended - begun, 1)))
