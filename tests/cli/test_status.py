"""`gateway status`, before a gateway that runs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from gateway.cli.rates import Rates, between, scrape
from gateway.cli.status import Overview, _fitted, _shown
from tests.support import Server, Site, cli, eventually, served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

KEY = {"CONNECTOR_PROXY_API_KEY": "sesame"}
HEADERS = {"Authorization": "Bearer sesame"}
ANY = "commands: {Go: {additional_parameters: true}}"


async def status(site: Site, gateway: Server, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(cli, site, "status", "--url", gateway.url, *arguments, env={**KEY, **env})


async def test_what_is_wrong_comes_first_in_words_with_what_to_do(site: Site) -> None:
    site.script("crash.sh", "kill -9 $$")
    site.script("told.sh", """echo '{"error": {"error_code": "Unauthorized", "message": "bad password"}}'""")
    site.configure(
        f"""
        works: {{run: [cat], {ANY}}}
        crash: {{run: [./crash.sh], {ANY}}}
        told: {{run: [./told.sh], {ANY}}}
        gone: {{run: [no-such-program]}}
        """
    )
    async with served(site, env=KEY) as gateway:
        for target in ("works/Go", "crash/Go", "told/Go"):
            for _ in range(5):
                await gateway.do(target, headers=HEADERS)
        done = await status(site, gateway)
        told = json.loads((await status(site, gateway, "--json")).stdout)
    assert (done.returncode, done.stderr) == (1, "")
    [head, *lines] = done.stdout.splitlines()
    assert head.startswith("gateway ")
    assert " is serving " in head
    for wanted in (
        r"error crash: .* again and again, .*: died of SIGKILL \(request .*\)",
        r"error gone: it cannot be served: no-such-program not found.*",
        r"error told: a service refuses it, perhaps for a wrong secret: 5 of its latest 5 calls ended with error \(Unauthorized\), the last .*: bad password \(request .*",
    ):
        [at] = [number for number, line in enumerate(lines) if re.fullmatch(wanted, line)]
        assert lines[at + 1].startswith("    "), wanted
    start = next(number for number, line in enumerate(lines) if line.startswith("connector "))
    rows = {line.split()[0]: line.split()[1:] for line in lines[start + 1 : -1]}
    assert list(rows) == ["crash", "told", "works", "gone"]  # those that are called most, then by name
    assert rows["works"][:3] == ["ready", "5", "0"]
    assert rows["crash"][:4] == ["circuit", "open", "5", "5"]
    assert rows["gone"] == ["quarantined", "0", "0", "-", "-", "0", "0"]
    assert told["ok"] is False
    assert {(one["kind"], one["subject"]) for one in told["problems"]} >= {
        ("circuit_open", "crash"), ("quarantined", "gone"), ("failing", "told"),
    }  # fmt: skip
    works = told["connectors"]["works"]
    assert (works["calls"], works["failed"], works["in_flight"]) == (5, 0, 0)
    assert 0 < works["p50"] <= works["p95"]


async def test_where_nothing_is_wrong_the_status_is_0(site: Site) -> None:
    site.level = "off"  # this machine may not give all of the others
    site.configure(f"works: {{run: [cat], {ANY}}}")
    async with served(site, env=KEY) as gateway:
        done = await status(site, gateway)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing is wrong" in done.stdout


async def test_whoever_cannot_be_asked_is_status_2(site: Site) -> None:
    site.configure()
    async with served(site, env=KEY) as gateway:
        wrong = await status(site, gateway, CONNECTOR_PROXY_API_KEY="guess")
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert "CONNECTOR_PROXY_API_KEY" in wrong.stderr
    away = await status(site, gateway)
    assert (away.returncode, away.stdout) == (2, "")
    assert away.stderr == f"error: no gateway answers at {gateway.url}: Connection refused\n"
    assert cli(site, "status", "--config", "none.yaml").returncode == 2


async def test_a_unix_socket_is_asked(short_site: Site) -> None:
    path = short_site.folder / "gw.sock"
    short_site.configure(
        f"works: {{run: [cat], sandbox: off, {ANY}}}", gateway="listen: ['127.0.0.1:1', 'unix:gw.sock']"
    )
    async with served(short_site, "--listen", f"unix:{path}", env=KEY):
        done = await asyncio.to_thread(cli, short_site, "status", "--json", env=KEY)
        assert json.loads(done.stdout)["state"] == "serving", done


async def test_a_clients_key_shows_its_world_alone(site: Site) -> None:
    site.script("crash.sh", "kill -9 $$")
    site.configure(f"shared: {{run: [cat], {ANY}}}\nhidden: {{run: [no-such-program]}}")
    (site.folder / "clients.d").mkdir()
    for name, own in (("acme", "mine"), ("other", "theirs")):
        (site.folder / f"clients.d/{name}.yaml").write_text(
            f"keys: [{{key: {name}-key}}]\nallow: [shared]\n"
            f"connectors: {{{own}: {{run: [{site.folder}/crash.sh], {ANY}}}}}\n"
        )
    async with served(site, env=KEY) as gateway:
        for name, own in (("acme", "mine"), ("other", "theirs")):
            for _ in range(5):
                await gateway.do(f"{own}/Go", headers={"Authorization": f"Bearer {name}-key"})
        seen = await status(site, gateway, "--json", CONNECTOR_PROXY_API_KEY="acme-key")
        answer = json.loads((await status(site, gateway, "--json")).stdout)
    assert not {"theirs", "hidden", "other"} & set(re.findall(r"\w+", seen.stdout))
    told = json.loads(seen.stdout)
    assert set(told["connectors"]) == {"shared", "mine"}
    assert told["connectors"]["mine"]["failed"] == 5
    assert [(one["kind"], one["subject"]) for one in told["problems"] if one["severity"] == "error"] == [
        ("circuit_open", "mine")
    ]
    assert {one["subject"] for one in answer["problems"]} >= {"mine@acme", "theirs@other", "hidden"}


async def test_watching_shows_rates_of_what_comes_meanwhile_and_waits_for_a_gateway_that_is_away(site: Site) -> None:
    site.configure(f"works: {{run: [cat], {ANY}}}")
    async with served(site, env=KEY) as gateway:
        await gateway.do("works/Go", headers=HEADERS)
        watching = subprocess.Popen(
            [sys.executable, "-m", "gateway", "status", "--watch", "--json", "--url", gateway.url],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd=site.folder,
            env={**os.environ, **KEY, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
        )  # fmt: skip
        try:
            assert watching.stdout is not None

            async def line() -> Any:
                assert watching.stdout is not None
                return json.loads(await asyncio.wait_for(asyncio.to_thread(watching.stdout.readline), 60))

            first = await line()
            assert first["seconds"] is None
            assert first["connectors"]["works"]["calls"] == 1
            await gateway.do("works/Go", headers=HEADERS)

            async def later() -> bool:
                told = await line()
                return told["seconds"] > 0 and told["connectors"]["works"]["calls"] == 1

            await eventually(later, 60)
            gateway.signal(signal.SIGKILL)

            async def away() -> bool:
                return "problem" in await line()

            await eventually(away, 60)
        finally:
            watching.send_signal(signal.SIGINT)
            with watching:
                ended = await asyncio.to_thread(watching.wait, 60)
    assert ended == 130


# --- on a terminal

LONG = "a-connector-with-a-rather-long-name-that-somebody-has-given-it"


def overview(connectors: int, problems: int) -> Overview:
    """Return what a gateway might say: of each connector there are calls, of the first ones it is wrong, at length."""
    names = [f"{LONG}-{number}" for number in range(connectors)]
    told = {
        "version": "1.2", "state": "serving", "jobs": {"open": 123},
        "problems": [
            {"severity": "error", "kind": "quarantined", "subject": f"broken{number}", "remedy": "mend that " * 12,
             "text": f"it cannot be served: {'because of this and that, ' * 4}which is the end"}
            for number in range(problems)
        ],
        "connectors": {
            name: {"state": "quarantined", "in_flight": 1234, "queued": 5678, "circuit": "open"} for name in names
        },
    }  # fmt: skip
    rates = {name: Rates(2e6 + number, 4321.0, 0.123, 67.8) for number, name in enumerate(names)}
    return Overview(told, rates, 30.0)


def drawn(made: RenderableType, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), highlight=False, emoji=False, force_terminal=True)
    with console.capture() as captured:
        console.print(made)
    return re.sub(r"\x1b\[[\d;]*m", "", captured.get()).splitlines()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_numbers_and_reasons_are_never_cut_off_on_a_terminal(width: int) -> None:
    lines = drawn(_shown(overview(3, 2)), width, 24)
    assert max(map(len, lines)) <= width
    whole = " ".join(line.strip() for line in lines)
    assert whole.count("which is the end") == 2
    rows = [line for line in lines if line.startswith("a-conn")]
    assert [row.split()[1:] for row in rows] == [
        ["circuit", "open", f"{(2e6 + number) / 30:.1f}", "144.0", "123ms", "67.8s", "1234", "5678"]
        for number in (2, 1, 0)
    ]


@pytest.mark.parametrize("size", [(80, 24), (200, 50), (76, 20)])
@pytest.mark.parametrize(("connectors", "problems"), [(0, 0), (1, 0), (3, 1), (5, 40), (1000, 1), (1000, 300)])
def test_what_is_watched_fits_the_screen(size: tuple[int, int], connectors: int, problems: int) -> None:
    look, (width, height) = overview(connectors, problems), size
    lines = drawn(_fitted(look, Console(width=width, height=height, force_terminal=True)), width, height)
    assert len(lines) <= height
    assert lines[0].startswith("gateway 1.2 is serving")
    rows = sum(line.startswith("a") and "circuit open" in line for line in lines)
    shown = sum(line.startswith("error broken") for line in lines)
    assert rows >= min(connectors, 1)
    assert shown >= min(problems, 1)
    said = " ".join(line.strip() for line in lines)
    assert (f"and {problems - shown} more: " in said) == (shown < problems)
    assert (f"; {connectors - rows} more connectors" in said) == (rows < connectors)


async def test_a_refusal_is_told_where_it_can_be_read_when_the_screen_is_back(site: Site) -> None:
    site.configure()
    async with served(site, env=KEY) as gateway:
        ours, its = pty.openpty()
        try:
            watching = subprocess.Popen(
                [sys.executable, "-m", "gateway", "status", "--watch", "--url", gateway.url],
                stdin=its, stdout=its, stderr=its, cwd=site.folder,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent),
                     "CONNECTOR_PROXY_API_KEY": "guess", "TERM": "xterm"},
            )  # fmt: skip
            os.close(its)
            told = await asyncio.to_thread(read_all, ours)
            assert await asyncio.to_thread(watching.wait, 60) == 2
        finally:
            os.close(ours)
    screen, _, after = told.rpartition("\x1b[?1049l")
    assert "\x1b[?1049h" in screen
    assert "the gateway wants another API key" in after


def read_all(descriptor: int) -> str:
    """Return what is written to a terminal until nobody has it any more."""
    found = b""
    with contextlib.suppress(OSError):
        while more := os.read(descriptor, 1 << 16):
            found += more
    return found.decode()


# --- rates


def text(calls: int, buckets: tuple[int, int, int], *, started: float = 7.0) -> str:
    def lines() -> Iterator[str]:
        yield f"process_start_time_seconds {started}"
        yield f'gateway_runs_total{{connector="fax@acme",command="A",outcome="ok"}} {calls - 1}'
        yield 'gateway_runs_total{connector="fax@acme",command="B",outcome="connector_failed"} 1'
        for bound, count in zip(("0.1", "1.0", "+Inf"), buckets, strict=True):
            yield f'gateway_call_duration_seconds_bucket{{connector="fax@acme",command="A",le="{bound}"}} {count}'

    return "\n".join(lines()) + "\n"


def test_rates_are_those_between_two_scrapes() -> None:
    first = scrape(text(11, (10, 10, 10)), 1.0, one_client=True)
    second = scrape(text(21, (10, 20, 20)), 3.0, one_client=True)
    [(name, rates)] = between(first, second).items()
    assert name == "fax"
    assert (rates.calls, rates.failed) == (10, 0)
    assert rates.p50 == pytest.approx(0.55)
    assert between(None, second)["fax"].failed == 1


def test_after_a_restart_all_counts_since_it() -> None:
    first = scrape(text(11, (10, 10, 10)), 1.0, one_client=False)
    second = scrape(text(3, (1, 2, 2), started=8.0), 3.0, one_client=False)
    assert between(first, second)["fax@acme"].calls == 3
