"""The verb `gateway status`: what is wrong with a running gateway, and what it does."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gateway.cli.common import err, escaped, out, run
from gateway.cli.rates import NO_CALLS, Scrape, between, scrape
from gateway.cli.remote import NoGateway, Where, asked, complain, print_table, read, remote, target_of
from gateway.health import Severity
from gateway.units import Duration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gateway.cli.rates import Rates
    from gateway.cli.remote import Target

PAUSE = 2.0  # seconds between two looks
SPARING = 4  # times what a look took is the pause at least: of a thousand connectors it is work for the gateway, too
AROUND = 4  # lines of a screen that are neither its head, nor problems, nor connectors
LOOKS = 16  # that are kept: rates are those of the last half minute
_COLORS = {Severity.ERROR.value: "bold red", Severity.WARNING.value: "yellow", Severity.NOTICE.value: "dim"}
_terminal = Console(highlight=False, emoji=False)
_STATES = {"ready": "green", "describing": "yellow", "quarantined": "red"}


class Overview(NamedTuple):
    """What a gateway says of itself at one moment."""

    status: dict[str, Any]
    rates: dict[str, Rates]
    seconds: float | None
    """The time that the rates are of; None: all since the start."""

    @property
    def wrong(self) -> bool:
        """Whether anything has to be mended."""
        return any(one["severity"] != Severity.NOTICE.value for one in self.status["problems"])


@click.command()
@click.option(
    "--watch", "-w", is_flag=True, help="Overview again every two seconds, until ^C; as much of it as has room."
)
@remote
def status(where: Where, *, watch: bool, as_json: bool) -> None:
    """Say what is wrong with a running gateway and what to do, and show its connectors at work.

    Exit status 1 when something is wrong, 2 when no gateway answers or it refuses.
    """
    target = target_of(where)
    run(_watch(target, as_json=as_json) if watch else _once(target, as_json=as_json))


async def _once(target: Target, *, as_json: bool) -> int:
    try:
        look = await _Watcher(target).look()
    except (NoGateway, _Denied) as problem:
        return _said(target, problem)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(_told(look)), indent=2))
    elif out.is_terminal:
        _terminal.print(_shown(look))
    else:
        print_table(_shown(look))
    return 1 if look.wrong else 0


async def _watch(target: Target, *, as_json: bool) -> int:
    """Show one look after the other; a gateway that is away is waited for."""
    watcher = _Watcher(target)
    try:
        with Live(console=_terminal, auto_refresh=False, screen=out.is_terminal and not as_json) as live:
            while True:
                begun = time.monotonic()
                frame: RenderableType
                try:
                    look = await watcher.look()
                    told, frame = _told(look), _fitted(look, live.console) if out.is_terminal else _shown(look)
                except NoGateway as problem:
                    told, frame = {"ok": False, "problem": str(problem)}, _away(problem)
                if as_json:
                    click.echo(msgspec.json.encode(told))
                elif out.is_terminal:
                    live.update(frame, refresh=True)
                else:
                    out.print(frame)
                await asyncio.sleep(max(PAUSE, SPARING * (time.monotonic() - begun)))
    except _Denied as problem:  # it is told when the screen is again what it was
        return _said(target, problem)


class _Denied(Exception):
    """The gateway has answered that it will not: its status, and what it said."""

    def __init__(self, code: int, answer: dict[str, Any]) -> None:
        super().__init__(code)
        self.code = code
        self.answer = answer


def _said(target: Target, problem: NoGateway | _Denied) -> int:
    """Say why there is nothing to show; return the exit status."""
    if isinstance(problem, _Denied):
        complain(target.shown, problem.code, problem.answer)
    else:
        err.print(f"[bold red]error:[/] {escaped(str(problem))}")
    return 2


class _Watcher:
    """Asks a gateway, and knows what it said before."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._scrapes: deque[Scrape] = deque(maxlen=LOOKS)

    async def look(self) -> Overview:
        """Return what it says.

        Raises:
            NoGateway: none answers.
            _Denied: it wants another key, say.
        """
        code, body = await asked(self._target, "GET", "/v1/status", {})
        status = read(self._target, code, body)
        if code >= 400:
            raise _Denied(code, status)
        if "problems" not in status:
            raise NoGateway(f"what answers at {self._target.shown} is a gateway of an earlier version, or none")
        code, body = await asked(self._target, "GET", "/metrics", {})
        if code >= 400:
            raise _Denied(code, read(self._target, code, body))
        now = scrape(body.decode(errors="replace"), time.monotonic(), one_client="client" in status)
        before = self._scrapes[0] if self._scrapes else None
        self._scrapes.append(now)
        return Overview(status, between(before, now), None if before is None else now.at - before.at)


# --- as JSON


def _told(look: Overview) -> dict[str, Any]:
    status = look.status
    return {
        "ok": not look.wrong,
        "version": status["version"],
        "state": status["state"],
        "seconds": look.seconds,
        "problems": status["problems"],
        "connectors": {
            name: {
                "state": one["state"],
                **look.rates.get(name, NO_CALLS)._asdict(),
                "in_flight": one["in_flight"],
                "queued": one["queued"],
            }
            for name, one in status["connectors"].items()
        },
    }


# --- for people


def _shown(look: Overview) -> RenderableType:
    """Return all that there is."""
    return Group(_head(look.status), "", *_problems(look.status["problems"]), "", _connectors(look, None))


def _fitted(look: Overview, console: Console) -> RenderableType:
    """Return what has room on a screen: problems have the half of it, or what connectors leave."""

    def tall(part: RenderableType) -> int:
        return len(console.render_lines(part))

    head, problems = _head(look.status), _problems(look.status["problems"])
    room = console.size.height - tall(head) - AROUND
    most, used = max(room // 2, room - len(look.status["connectors"])), 0
    shown: list[RenderableType] = []
    for number, one in enumerate(problems, 1):
        height, more = tall(one), number < len(problems)
        if shown and used + height + more > most:
            shown.append(Text(f"and {len(problems) - len(shown)} more: without --watch all are told", style="dim"))
            used += 1
            break
        shown.append(one)
        used += height
    return Group(head, "", *shown, "", _connectors(look, max(1, room - used)))


def _away(problem: NoGateway) -> RenderableType:
    return Group(Text(str(problem), style="bold red"), Text("it is waited for, until ^C", style="dim"))


def _head(status: dict[str, Any]) -> RenderableType:
    connectors = status["connectors"].values()
    running, queued = (sum(one[key] for one in connectors) for key in ("in_flight", "queued"))
    parts = [f"connectors {len(connectors)}", f"in flight {running}", f"queued {queued}"]
    jobs = status.get("jobs")
    if jobs is not None and jobs["open"] is not None:
        parts.append(f"open jobs {jobs['open']}")
    told = f"gateway {status['version']} is {status['state']}"
    return Text.assemble((told, "bold"), f"   {', '.join(parts)}")


def _problems(problems: list[dict[str, Any]]) -> list[RenderableType]:
    if not problems:
        return [Text("nothing is wrong", style="green")]
    return [_problem(one) for one in problems]


def _problem(one: dict[str, Any]) -> RenderableType:
    text = Text.assemble(
        (one["severity"], _COLORS[one["severity"]]), " ", (one["subject"], "bold"), f": {_plain(one['text'])}"
    )
    remedy = Padding(Text(_plain(one["remedy"]), style="cyan"), (0, 0, 0, 4), expand=False)
    return Group(text, remedy) if one["remedy"] else text


def _connectors(look: Overview, most: int | None) -> RenderableType:
    """Return a table of so many, those that are called most; a long name gives way to numbers."""
    each = look.seconds is None
    table = Table(box=None, pad_edge=False, header_style="bold")
    calls = ("calls", "failed") if each else ("calls/s", "failed/s")
    table.add_column("connector", overflow="ellipsis")
    table.add_column("state", no_wrap=True)
    for title in (*calls, "p50", "p95", "in flight", "queued"):
        table.add_column(title, no_wrap=True, justify="right")
    rates = {name: look.rates.get(name, NO_CALLS) for name in look.status["connectors"]}
    for name in sorted(rates, key=lambda name: (-rates[name].calls, name))[:most]:
        one, rate = look.status["connectors"][name], rates[name]
        state = "circuit open" if one.get("circuit", "closed") != "closed" else one["state"]
        table.add_row(
            escaped(name),
            Text(state, style=_STATES.get(state, "red")),
            _number(rate.calls, look.seconds),
            Text(_number(rate.failed, look.seconds), style="red" if rate.failed else ""),
            _time(rate.p50),
            _time(rate.p95),
            str(one["in_flight"]),
            str(one["queued"]),
        )
    of = "since the start" if look.seconds is None else f"of the last {look.seconds:.0f} s"
    left = len(rates) - table.row_count
    more = f"; {left} more connectors" if left else ""
    return Group(table, Text(f"calls, failures and times {of}{more}", style="dim"))


def _number(count: float, seconds: float | None) -> str:
    return f"{count:.0f}" if seconds is None else f"{count / max(seconds, 0.001):.1f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f}ms" if seconds < 1 else str(Duration(round(seconds, 1)))


def _plain(text: str) -> str:
    """Return a text in one line: what a connector has said may hold anything."""
    return "".join(one if one.isprintable() else " " for one in text)
