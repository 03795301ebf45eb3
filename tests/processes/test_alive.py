"""Which processes serve a connector, as the console tells it: what each does, and what it has taken."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from typing import Any, NamedTuple

import pytest

from gateway.processes.alive import Leader, Occupied, alive
from tests.http.test_console import Browser
from tests.support import Gate, Site, eventually, served
from tests.waiting import until

MODES = ("spawn", "standby", "fork", "persistent")
ACT = """
import os, subprocess
def Do(gate: str):
    if gate:
        process = subprocess.Popen(["sleep", "1000"])
        os.read(os.open(gate, os.O_RDONLY), 1)
        process.kill()
        process.wait()
    return os.getpid()
"""
ROW = re.compile(
    r'<tr><th scope="row" class="number">(\d+)</th><td>([^<]*)</td><td class="number">([^<]+)</td>'
    r'<td class="number">([^<]+)</td><td class="number">([^<]+)</td><td class="number">(\d*)</td>'
    r'<td class="number">([^<]*)</td></tr>'
)


class Row(NamedTuple):
    """A row of the table."""

    pid: int
    does: str
    age: str
    memory: str
    processor: str
    calls: str
    more: str


async def shown(browser: Browser, mode: str) -> list[Row]:
    page = await browser.page(f"/console/connectors/act-{mode}")
    return [Row(int(pid), *rest) for pid, *rest in ROW.findall(page)]


@pytest.mark.parametrize("level", ["off", "standard"])
async def test_processes_are_shown_with_what_they_do(site: Site, gate: Gate, level: str) -> None:
    site.level = level
    (site.folder / "act.py").write_text(ACT)
    lines = [f"act-{mode}: {{runtime: python, module: ./act.py, mode: {mode}, timeout: 60s}}" for mode in MODES]
    site.configure("\n".join(lines), defaults="warm: 1")
    async with served(site) as server:
        browser = Browser(server)
        for mode in MODES:
            assert (await server.do(f"act-{mode}/Do", {"gate": ""})).status == 200
        calls = [
            asyncio.create_task(
                server.do(f"act-{mode}/Do", {"gate": str(gate.path)}, headers={"X-Request-Id": f"long-{mode}"})
            )
            for mode in MODES
        ]
        waits = {
            "spawn": [],
            "standby": ["started ahead, waits for a call"],
            "fork": ["forked ahead, waits for a call", "host, forks for each call"],
            "persistent": [],
        }
        for mode in MODES:

            async def there(mode: str = mode) -> list[Row] | None:
                rows = await shown(browser, mode)
                does = sorted(one.does for one in rows)
                at_work = [one for one in rows if one.does == "runs a call" and one.more == "1 more"]
                return rows if does == sorted([*waits[mode], "runs a call"]) and at_work else None

            rows = await eventually(there)
            assert {one.pid for one in rows} <= server.connectors()
            for one in rows:
                assert re.fullmatch(r"\d+(\.\d+)? (ms|s)|\d+ min \d+ s", one.age), one
                assert re.fullmatch(r"[\d.]+(KiB|MiB)", one.memory), one
                assert one.more in {"", "1 more"}
            told = {one.does: one.calls for one in rows}
            assert told["runs a call"] == ("2" if mode == "persistent" else "")
            assert told.get("host, forks for each call", "2") == "2"
            page = await browser.page(f"/console/connectors/act-{mode}")
            assert re.search(rf'<th scope="row"><code>long-{mode}</code></th><td>Do</td>', page)
        gate.let(len(MODES))
        assert {one.status for one in await asyncio.gather(*calls)} == {200}

        async def over() -> bool:
            pages = [await browser.page(f"/console/connectors/act-{mode}") for mode in MODES]
            return not any("<td>runs a call</td>" in page or "long-" in _going(page) for page in pages)

        await eventually(over)
        assert "None is there now." in await browser.page("/console/connectors/act-spawn")


def _going(page: str) -> str:
    return page.partition('id="going-heading"')[2].partition("</section>")[0]


async def test_what_has_ended_is_left_out_and_all_below_a_leader_is_counted() -> None:
    below = "import subprocess, time; subprocess.Popen(['sleep', '1000']); time.sleep(1000)"
    cell = f"import subprocess, sys; subprocess.run([sys.executable, '-IS', '-c', {below!r}])"
    process = subprocess.Popen([sys.executable, "-IS", "-c", cell], start_new_session=True)
    try:
        leader = Leader(0, "runs a call", None)
        assert await asyncio.to_thread(until, lambda: [one.processes for one in _of(process.pid, leader)] == [2], 20)
        [one] = _of(process.pid, leader)
        assert one.resident > 1 << 20
        assert _of(process.pid, leader._replace(pid=one.pid))[0].pid == one.pid
        assert _of(process.pid, leader._replace(pid=1 << 30)) == []
        assert alive([Occupied(process.pid, (leader,))], most=1) == []
    finally:
        subprocess.run(["kill", "-9", "--", f"-{process.pid}"], check=True)
        process.wait()
    assert _of(process.pid, leader) == []


def _of(pid: int, *leaders: Leader) -> list[Any]:
    return alive([Occupied(pid, leaders)])


async def test_a_connector_that_is_asked_what_it_can_do_runs_no_call(site: Site, gate: Gate) -> None:
    site.script("act.sh", f"read -r request\nhead -c 1 {gate.path} >/dev/null\necho '{{\"commands\": []}}'\n")
    site.configure("act-spawn: {run: [./act.sh]}")
    async with served(site, ready=False) as server:
        browser = Browser(server)

        async def asked() -> bool:
            return [one.does for one in await shown(browser, "spawn")] == ["is asked what it can do"]

        await eventually(asked)
        gate.let()
