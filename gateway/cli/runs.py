"""The verbs `gateway runs ...`: they ask a running gateway for what it has run."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
import msgspec

from gateway.cli.common import err, escaped, out, run
from gateway.cli.remote import (
    NoGateway,
    Number,
    Text,
    ask,
    asked,
    at,
    complain,
    fetch,
    print_facts,
    print_table,
    read,
    remote,
    table,
    target_of,
)
from gateway.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.cli.remote import Where

UNAVAILABLE = 503
LOOK = 1.0  # seconds between two looks for new ones
PAGE = 500  # runs that are asked for at most
NAME = 60  # characters of a command in a list: it may be whatever a caller has typed
WHY = 300  # of a message there
_FACTS = ("command", "outcome", "ended", "ran", "waited", "client", "task", "request")


@click.group()
def runs() -> None:
    """Look at the latest runs of a running gateway, and repeat one.

    Exit status 1 when there is no such run, it cannot be repeated or fails, or no gateway answers.
    """


def filters(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which runs are meant."""
    for name, value, text in reversed(
        (
            ("connector", "NAME", "Those of this connector alone."),
            ("command", "NAME", "Those of this command alone."),
            ("outcome", "CODE", "Those that ended so alone: ok, an error code, or failed for all but ok."),
            ("process-instance", "ID", "Those of this process instance alone."),
            ("task", "ID", "Those of this task alone."),
            ("job", "ID", "Those of this job alone."),
            ("client", "NAME", "Those of this client alone."),
        )
    ):
        function = click.option(f"--{name}", metavar=value, type=Text(), help=text)(function)
    return function


@runs.command("list")
@filters
@click.option("--since", metavar="TIME", type=Text(), help="Those that ended later: 1h ago, or 2026-11-30T08:00Z.")
@click.option("--until", metavar="TIME", type=Text(), help="Those that ended before.")
@click.option("--limit", "-n", type=Number(1, PAGE), default=50, show_default=True, help="How many.")
@click.option("--offset", type=Number(0), default=0, help="How many to leave out.")
@remote
def list_(where: Where, *, as_json: bool, **query: Any) -> None:
    """List runs, the latest first."""

    def show(answer: Any) -> None:
        rows = table("run", *_FACTS, "why")
        for one in answer["runs"]:
            rows.add_row(one["id"], *_row(one), escaped(_cut(one["message"] or "", WHY)))
        print_table(rows)

    run(ask(where, "GET", "/v1/runs", query, None if as_json else show))


@runs.command()
@click.argument("name", metavar="RUN", type=Text())
@remote
def show(where: Where, name: str, *, as_json: bool) -> None:
    """Show one run: what it took, the end of its log, and what was kept of its parameters and result."""
    run(ask(where, "GET", _path(name), {}, None if as_json else _show))


@runs.command()
@filters
@click.option("--limit", "-n", type=Number(0, PAGE), default=10, show_default=True, help="How many to begin with.")
@remote
def tail(where: Where, *, as_json: bool, limit: int, **query: Any) -> None:
    """Print runs as they end, one a line, until ^C. A gateway that goes away meanwhile is waited for."""
    run(_follow(where, query, limit, _print_json if as_json else _print_line))


@runs.command()
@click.argument("name", metavar="RUN", type=Text())
@remote
def replay(where: Where, name: str, *, as_json: bool) -> None:
    """Call again with what was kept of a run, and print what is answered."""
    run(_replay(where, name, as_json=as_json))


# --- private


async def _follow(where: Where, query: dict[str, Any], limit: int, tell: Callable[[Any], None]) -> int:
    found = await fetch(where, "GET", "/v1/runs", {**query, "limit": max(1, limit)})
    if found is None:
        return 1
    latest, waits = found.json["runs"], False
    last, news = latest[0]["id"] if latest else None, latest[:limit]
    while True:
        for one in reversed(news):
            tell(one)
        last = news[0]["id"] if news else last
        await asyncio.sleep(LOOK)
        try:
            later = await _after(where, query, last)
        except NoGateway as problem:
            if not waits:
                err.print(f"[bold red]waiting:[/] {escaped(str(problem))}")
            news, waits = [], True
            continue
        if later is None:
            return 1
        news, waits = later, False


async def _after(where: Where, query: dict[str, Any], last: str | None) -> list[Any] | None:
    """Return all runs that were written after one, the latest first; None where the gateway refuses, which is told.

    Raises:
        NoGateway: none answers, or it cannot tell at the moment.
    """
    target = target_of(where)
    found: dict[str, Any] = {}
    for offset in itertools.count(step=PAGE):  # what comes meanwhile moves others to a later page, where they are again
        page = {**query, "after": last, "limit": PAGE, "offset": offset}
        status, body = await asked(target, "GET", "/v1/runs", page)
        answer = read(target, status, body)
        if status == UNAVAILABLE:
            raise NoGateway(str(answer["error"]["message"]))
        if status >= 400:
            complain(target.shown, status, answer)
            return None
        found |= {one["id"]: one for one in answer["runs"] if one["id"] not in found}
        if len(answer["runs"]) < PAGE:
            break
    return sorted(found.values(), key=lambda one: -one["finished"])


async def _replay(where: Where, name: str, *, as_json: bool) -> int:
    found = await fetch(where, "POST", f"{_path(name)}/replay", {}, of_command=True)
    if found is None:
        return 1
    if as_json or found.json is None:
        click.echo(found.body)
    else:
        out.print_json(data=found.json)
    told = found.json.get("error") if isinstance(found.json, dict) else None
    if isinstance(told, dict) and "error_code" in told:
        err.print(f"[bold red]{escaped(str(told['error_code']))}[/]: {escaped(str(told.get('message')))}")
        return 1
    return 0


def _path(name: str) -> str:
    return f"/v1/runs/{quote(name, safe='')}"


def _print_json(one: Any) -> None:
    click.echo(msgspec.json.encode(one))


def _print_line(one: Any) -> None:
    ended, command, outcome = at(one["finished"]), _called(one), _outcome(one)
    out.print(f"{ended} {one['id']} [cyan]{escaped(command)}[/] {outcome} {_seconds(one['wall'])}"
              f" {escaped(' '.join((one['message'] or '').splitlines()))}".rstrip())  # fmt: skip


def _row(one: Any) -> tuple[str, ...]:
    return (
        f"[cyan]{escaped(_cut(_called(one), NAME))}[/]", _outcome(one), at(one["finished"]),
        _seconds(one["wall"]), _seconds(one["queue_wait"]), escaped(one["client"] or ""),
        escaped(one["task_id"] or ""), escaped(one["request_id"]),
    )  # fmt: skip


def _show(one: dict[str, Any]) -> None:
    facts = {
        "run": one["id"],
        "command": _called(one),
        "code": one["error_code"] if one["error_code"] != one["outcome"] else None,
        "why": one["message"],
        "called": at(one["began"]),
        "waited": _seconds(one["queue_wait"]),
        "ran": _seconds(one["wall"]) if one["started"] is not None else None,
        "ended": at(one["finished"]),
        "processor": _seconds(one["cpu_user"] + one["cpu_system"]) if one["started"] is not None else None,
        "memory": Size(one["peak_rss"]) if one["peak_rss"] else None,
        "exit": one["signal"] or one["status"],
        "request": one["request_id"],
        "client": " ".join(part for part in (one["client"], one["key_id"]) if part),
        "process": " ".join(
            str(part) for part in (one["process_model_identifier"], one["process_instance_id"]) if part
        ),
        "task": one["task_id"],
        "job": one["job"],
        "repeats": one["replay_of"],
        "gateway": one.get("node"),
    }
    print_facts("outcome", _outcome(one), facts)
    if one["log"]:
        out.print("[bold]log[/]")
        out.print(escaped(one["log"]))
    for name in ("params", "result"):
        if one[name] is not None:
            out.print(f"[bold]{name}[/]")
            out.print_json(data=one[name])


def _called(one: Any) -> str:
    return f"{one['connector']}/{one['command']}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _outcome(one: Any) -> str:
    color = "green" if one["outcome"] == "ok" else "red"
    return f"[{color}]{escaped(one['outcome'])}[/]"


def _seconds(seconds: float) -> str:
    return str(Duration(round(seconds, 3)))
