"""The verbs `gateway jobs ...`: they ask a running gateway."""

from __future__ import annotations

import datetime
import functools
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import aiohttp
import click
import msgspec
from rich.console import Console
from rich.table import Table

from gateway.cli.common import config_option, err, escaped, fail, handled, out, run
from gateway.errors import ConfigError
from gateway.http.tls import fingerprint
from gateway.jobs.contract import ENDS, JobState
from gateway.service import Local, Tcp
from gateway.settings import find_file, key_of_environment, read_settings
from gateway.units import Duration

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 30.0  # seconds for an answer
DIGITS = 15  # of a number
HERE = "http://localhost"  # what a Unix socket is called
_WIDE = 1000  # characters
_EVERYWHERE = {None: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what is listened on, seen from here
_COLORS = {"delivered": "green", "kept": "green", "dead": "red", "cancelled": "yellow"}


class _Text(click.types.StringParamType):
    """What can be asked for: an argument of the command line is bytes, which need not be text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail("it is not UTF-8", param, ctx)
        return super().convert(value, param, ctx)


class _Number(click.IntRange):
    """A number that is told without its thousand digits when it is out of range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if len(str(value)) > DIGITS:
            self.fail(f"it has more than {DIGITS} digits", param, ctx)
        return super().convert(value, param, ctx)


@click.group()
def jobs() -> None:
    """Look at the durable jobs of a running gateway, cancel them, deliver them again, remove them.

    Exit status 1 when there is no such job, it is not in a state that allows this, or no gateway answers.
    """


def remote(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which gateway is asked; they come as one `_Where`."""

    @config_option
    @click.option("--url", "-u", metavar="URL", help="The gateway, or unix:PATH [default: where gateway.listen is].")
    @click.option("--cacert", type=click.Path(path_type=Path), help="Believe the authorities in this PEM file alone.")
    @click.option("--cert", type=click.Path(path_type=Path), help="Show the certificate in this PEM file with its key.")
    @click.option("--json", "as_json", is_flag=True, help="Print what the gateway answers.")
    @handled
    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> None:
        function(_Where(*(options.pop(name) for name in _Where._fields)), *args, **options)

    return wrapper


@jobs.command("list")
@click.option("--state", "-s", type=click.Choice([one.value for one in JobState]), help="Those in this state alone.")
@click.option("--connector", metavar="NAME", type=_Text(), help="Those of this connector alone.")
@click.option("--process-instance", metavar="ID", type=_Text(), help="Those of this process instance alone.")
@click.option("--task", metavar="ID", type=_Text(), help="Those of this task alone.")
@click.option("--client", metavar="NAME", type=_Text(), help="Those of this client alone.")
@click.option("--limit", "-n", type=_Number(1, 500), default=50, show_default=True, help="How many.")
@click.option("--offset", type=_Number(0), default=0, help="How many to leave out.")
@remote
def list_(where: _Where, *, as_json: bool, **query: Any) -> None:
    """List jobs, the latest first."""

    def show(answer: Any) -> None:
        table = _table("job", "command", "state", "process", "accepted", "took", "runs cut", "why")
        for one in answer["jobs"]:
            table.add_row(
                one["id"], f"[cyan]{escaped(one['connector'])}/{escaped(one['command'])}[/]",
                _state(one["state"]), escaped(str(one["process_instance_id"] or "")), _at(one["accepted"]),
                _took(one["accepted"], one["finished"]), str(one["interrupted"] or ""), escaped(one["reason"]),
            )  # fmt: skip
        _print(table)

    run(_ask(where, "GET", "", query, None if as_json else show))


@jobs.command()
@click.argument("job", type=_Text())
@remote
def show(where: _Where, job: str, *, as_json: bool) -> None:
    """Show one job: where it is, each try to deliver it, and what it came to."""
    run(_ask(where, "GET", f"/{quote(job, safe='')}", {}, None if as_json else _show))


@jobs.command()
@click.argument("job", type=_Text())
@remote
def cancel(where: _Where, job: str, *, as_json: bool) -> None:
    """Cancel an open job: kill what it runs, or end its delivery. Its caller is told."""
    run(_ask(where, "POST", f"/{quote(job, safe='')}/cancel", {}, None if as_json else _summarize))


@jobs.command()
@click.argument("job", type=_Text())
@click.option("--run", "again", is_flag=True, help="Run the command again, as a new job.")
@remote
def retry(where: _Where, job: str, *, again: bool, as_json: bool) -> None:
    """Deliver again, now, what a job came to."""
    query = {"run": "true"} if again else {}
    run(_ask(where, "POST", f"/{quote(job, safe='')}/retry", query, None if as_json else _summarize))


@jobs.command()
@click.option("--older-than", required=True, metavar="TIME", help="Those that ended longer ago, for example 7d.")
@click.option("--state", "-s", type=click.Choice([one.value for one in ENDS]), help="Those that ended so alone.")
@remote
def purge(where: _Where, *, as_json: bool, **query: Any) -> None:
    """Remove jobs that have ended."""
    try:
        Duration.parse(query["older_than"])
    except ValueError as problem:
        fail(f"--older-than: {problem}")

    def show(answer: Any) -> None:
        out.print(f"removed {answer['removed']} jobs")

    run(_ask(where, "POST", "/purge", query, None if as_json else show))


class _Where(NamedTuple):
    """Which gateway, and how it is believed."""

    config: Path | None
    url: str | None
    cacert: Path | None
    cert: Path | None


class _Target(NamedTuple):
    """Where a gateway is."""

    url: str
    key: str | None
    socket: str | None = None
    """The path of its Unix socket."""
    tls: ssl.SSLContext | aiohttp.Fingerprint | bool = True

    @property
    def shown(self) -> str:
        return f"unix:{self.socket}" if self.socket is not None else self.url

    def connector(self) -> aiohttp.BaseConnector:
        """Make what connects to it."""
        return aiohttp.UnixConnector(self.socket) if self.socket is not None else aiohttp.TCPConnector(ssl=self.tls)


async def _ask(where: _Where, method: str, path: str, query: dict[str, Any], show: Callable[[Any], None] | None) -> int:
    target = _target(where)
    url = target.shown
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    query = {name: str(value) for name, value in query.items() if value is not None}
    try:
        async with (
            aiohttp.ClientSession(
                connector=target.connector(), timeout=aiohttp.ClientTimeout(total=PATIENCE)
            ) as session,
            session.request(method, f"{target.url}/v1/jobs{path}", params=query, headers=headers) as response,
        ):
            body = await response.read()
    except (aiohttp.ClientError, OSError, ValueError) as problem:
        if isinstance(problem, aiohttp.InvalidURL):
            fail(f"--url: {url!r} is not an http or https URL")
        said = getattr(getattr(problem, "os_error", None), "strerror", None) or str(problem) or type(problem).__name__
        err.print(f"[bold red]error:[/] no gateway answers at {escaped(url)}: {escaped(said)}")
        return 1
    try:
        answer = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        err.print(f"[bold red]error:[/] what answers at {escaped(url)} is no gateway (status {response.status})")
        return 1
    if response.status >= 400:
        _complain(url, response.status, answer)
        return 1
    if show is None:
        click.echo(body)
    else:
        show(answer)
    return 0


def _target(where: _Where) -> _Target:
    """Find the gateway and its API key; with a URL there need be no configuration file here."""
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
        return _Target(HERE, settings.api_key, address.path)
    if address.port == 0:
        fail("gateway.listen leaves the port to the system: say with --url where the gateway is")
    here = Tcp(_EVERYWHERE.get(address.host, address.host), address.port)
    if settings.tls is None:
        return _Target(f"http://{here}", settings.api_key)
    tls = _context(where)
    if where.cacert is None and where.cert is None:  # whatever name it has, it is the one beside this
        tls = aiohttp.Fingerprint(fingerprint(settings.tls))
    return _Target(f"https://{here}", settings.api_key, tls=tls)


def _told(url: str, key: str | None, where: _Where) -> _Target:
    if url.startswith("unix:"):
        return _Target(HERE, key, url.removeprefix("unix:"))
    return _Target(url.rstrip("/"), key, tls=_context(where))


def _context(where: _Where) -> ssl.SSLContext | aiohttp.Fingerprint | bool:
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


def _complain(url: str, status: int, answer: dict[str, Any]) -> None:
    error = answer.get("error")
    if isinstance(error, dict):
        err.print(f"[bold red]{escaped(str(error.get('error_code')))}[/]: {escaped(str(error.get('message')))}")
    elif status == 401:
        err.print(
            "[bold red]error:[/] the gateway wants another API key: set CONNECTOR_PROXY_API_KEY to the one it has"
        )
    else:
        err.print(f"[bold red]error:[/] what answers at {escaped(url)} is no gateway (status {status})")


def _show(job: dict[str, Any]) -> None:
    facts = {
        "job": job["id"],
        "command": f"{job['connector']}/{job['command']}",
        "accepted": _at(job["accepted"]),
        "ended": _ended(job["accepted"], job["finished"]),
        "request": job["request_id"],
        "client": job["client"],
        "process": " ".join(str(one) for one in (job["process_model_identifier"], job["process_instance_id"]) if one),
        "task": job["task_id"],
        "gateway": job["node"],
        "runs cut short": job["interrupted"],
        "why": job["reason"],
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("[bold]state[/]", _state(job["state"]))
    for name, value in facts.items():
        if value:
            table.add_row(f"[bold]{name}[/]", escaped(str(value)))
    _print(table)
    if job["attempts"]:
        tries = _table("callback", "took", "answer", "led to", "why")
        for one in job["attempts"]:
            tries.add_row(
                _at(one["at"]), f"{one['took'] * 1000:.0f} ms", str(one.get("status", "")), one["verdict"],
                escaped(one.get("reason", "")),
            )  # fmt: skip
        _print(tries)
    if job["outcome"] is not None:
        out.print(f"[bold]outcome[/] (status {job['outcome']['status']})")
        out.print_json(data=job["outcome"]["body"])


def _summarize(job: dict[str, Any]) -> None:
    out.print(f"{job['id']} {escaped(job['connector'])}/{escaped(job['command'])} is {_state(job['state'])}")


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        last = title == titles[-1]
        table.add_column(title, no_wrap=not last, overflow="fold")
    return table


def _print(table: Table) -> None:
    # A line a row for whoever reads it with a program.
    (out if out.is_terminal else Console(width=_WIDE, highlight=False, emoji=False)).print(table)


def _state(state: str) -> str:
    color = _COLORS.get(state)
    return f"[{color}]{state}[/]" if color else state


def _at(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _ended(begun: float, ended: float | None) -> str:
    took = _took(begun, ended)
    return "" if ended is None else f"{_at(ended)} (after {took})" if took else _at(ended)


def _took(begun: float, ended: float | None) -> str:
    if ended is None or ended < begun:  # the clock was set back in between
        return ""
    return str(Duration(round(ended - begun, 1)))
