"""`gateway runs`: look at what a running gateway has run, and repeat it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.cli.test_jobs import free_port
from tests.support import Server, Site, cli, served

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
