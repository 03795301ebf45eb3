"""`gateway runs`: look at what a running gateway has run, and repeat it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli import runs as module
from gateway.cli.remote import Where
from tests.cli.test_jobs import free_port
from tests.support import Server, Site, cli, eventually, served

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parent.parent.parent


async def test_runs_are_listed_shown_followed_and_repeated(site: Site) -> None:
    site.script(
        "fax.sh", """case $(cat) in *'"fail"'*) echo "no [line]" >&2; exit 3 ;; *) echo '{"sent": true}' ;; esac"""
    )
    site.script(
        "page.sh", """cat >/dev/null; echo '{"response": "<p>hi</p>", "mimetype": "text/html", "status": 200}'"""
    )
    port = free_port()
    commands = "commands: {Send: {additional_parameters: true}}"
    site.configure(
        f"fax: {{run: [./fax.sh], {commands}}}\npage: {{run: [./page.sh], {commands}}}",
        gateway=f"listen: 127.0.0.1:{port}\njournal: {{payloads: all}}",
    )

    async def runs(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = await asyncio.to_thread(cli, site, "runs", *arguments)
        assert done.returncode == status, done
        return done

    async def latest(server: Server) -> str:
        return str((await server.get("/v1/runs?limit=1")).json["runs"][0]["id"])

    assert "no gateway answers" in (await runs("list", status=1)).stderr
    async with served(site, "--listen", f"127.0.0.1:{port}") as server:
        await server.do("fax/Send", {"what": "fail", "spiff__task_id": "t1"})
        failed = await latest(server)
        await server.do("page/Send")
        page = await latest(server)
        await server.do("fax/Send", {"pages": 2})
        good = await latest(server)

        lines = (await runs("list")).stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["run", good, page, failed]
        assert "fax/Send failed with exit status 3" in lines[3]
        assert (
            len((await runs("list", "--outcome", "failed", "--since", "1h", "--task", "t1")).stdout.splitlines()) == 2
        )
        assert json.loads((await runs("list", "--json", "-n", "1")).stdout)["runs"][0]["id"] == good
        assert "since" in (await runs("list", "--since", "x", status=1)).stderr

        shown = (await runs("show", failed)).stdout
        for part in ("connector_failed", "fax/Send", "t1", "no [line]", '"what": "fail"', "exit "):
            assert part in shown, part
        assert json.loads((await runs("show", good, "--json")).stdout)["params"] == {"pages": 2}
        assert "<p>hi</p>" in (await runs("show", page)).stdout
        assert "run_not_found" in (await runs("show", "none", status=1)).stderr

        assert '"sent": true' in (await runs("replay", good)).stdout
        assert (await runs("replay", page)).stdout == "<p>hi</p>\n"
        assert "connector_failed" in (await runs("replay", failed, status=1)).stderr

        with subprocess.Popen(
            [sys.executable, "-m", "gateway", "runs", "tail", "-n", "1", "--connector", "page"],
            cwd=site.folder, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        ) as following:  # fmt: skip
            lines_of = following.stdout
            assert lines_of is not None
            first = await asyncio.to_thread(lines_of.readline)
            assert "page/Send" in first
            await server.do("fax/Send")
            await server.do("page/Send")
            new = await latest(server)
            assert new in await asyncio.to_thread(lines_of.readline)
            following.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(following.wait, 20) == 130


async def test_a_tail_outlasts_its_gateway(site: Site) -> None:
    port = free_port()
    site.script("fax.sh", "cat > /dev/null; echo '{}'")
    site.configure("fax: {run: [./fax.sh], commands: {Send: {}}}", gateway="api_key: k3y")
    printed, key = site.folder / "tail", {"Authorization": "Bearer k3y"}

    async def follows(server: Server) -> None:
        await server.do("fax/Send", headers=key)
        new = (await server.get("/v1/runs?limit=1", headers=key)).json["runs"][0]["id"]
        await eventually(lambda: new in printed.read_text())

    tail = [sys.executable, "-m", "gateway", "runs", "tail", "--json", "--url", f"http://127.0.0.1:{port}"]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    with contextlib.ExitStack() as stack:
        async with served(site, "--listen", f"127.0.0.1:{port}") as server:
            await server.do("fax/Send", headers=key)
            out = stack.enter_context(printed.open("wb"))
            following = stack.enter_context(
                subprocess.Popen(tail, cwd=site.folder, stdout=out, stderr=subprocess.PIPE, text=True, env=env)
            )
            await eventually(printed.read_bytes)
            await follows(server)
        told = following.stderr
        assert told is not None
        assert "waiting: no gateway answers" in await asyncio.to_thread(told.readline)
        async with served(site, "--listen", f"127.0.0.1:{port}") as server:
            await follows(server)
        following.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(following.wait, 20) == 130
    ids = [json.loads(line)["id"] for line in printed.read_text().splitlines()]
    assert len(ids) == len(set(ids)) == 3


async def test_more_runs_than_a_page_are_all_told(monkeypatch: pytest.MonkeyPatch) -> None:
    written = [{"id": str(number), "finished": number} for number in range(7)]

    async def answered(_target: Any, _method: str, _path: str, query: dict[str, Any]) -> tuple[int, bytes]:
        later = [one for one in reversed(written) if one["finished"] > int(query["after"])]
        found = later[query["offset"] : query["offset"] + query["limit"]]
        written.append({"id": str(len(written)), "finished": len(written)})  # one comes in between two pages
        return 200, json.dumps({"runs": found}).encode()

    monkeypatch.setattr(module, "PAGE", 3)
    monkeypatch.setattr(module, "asked", answered)
    where = Where(None, "http://127.0.0.1:1", None, None)
    found = await module._after(where, {}, "0") or []
    ids = [one["id"] for one in found]
    assert ids == sorted(ids, key=int, reverse=True)
    assert {str(number) for number in range(1, 7)} <= set(ids)


async def test_a_list_stays_readable_whatever_callers_type(site: Site) -> None:
    site.configure("fax: {run: [./none], commands: {Send: {}}}")
    async with served(site) as server:
        await server.do(f"fax/{'x' * 5000}")
        done = await asyncio.to_thread(cli, site, "runs", "list", "--url", server.url)
        assert max(map(len, done.stdout.splitlines())) < 600


async def test_nothing_that_callers_type_steers_a_terminal(site: Site) -> None:
    site.script("fax.sh", r"cat > /dev/null; printf 'a\033[31m\007log\r\n' >&2; exit 3")
    site.configure("fax: {run: [./fax.sh], commands: {Send: {}}}")
    async with served(site) as server:
        await server.do("fax/Send", {"spiff__task_id": "t\x1b[2J\x9b2J"})
        (one,) = (await server.get("/v1/runs")).json["runs"]
        for arguments in (["list"], ["show", one["id"]]):
            done = await asyncio.to_thread(cli, site, "runs", *arguments, "--url", server.url)
            assert done.returncode == 0
            assert not [char for char in done.stdout if not char.isprintable() and char not in "\n\t"]
            assert r"t\x1b[2J\x9b2J" in done.stdout
