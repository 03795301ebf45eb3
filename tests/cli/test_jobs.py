"""`gateway jobs`, before a gateway that runs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.http.test_tls import MUTUAL, install, trust, trusting
from tests.jobs.support import Backend, caller
from tests.support import Server, Site, cli, eventually, served

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator

KEY = {"CONNECTOR_PROXY_API_KEY": "sesame"}
HEADERS = {"Authorization": "Bearer sesame"}


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    async with caller() as made:
        yield made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_jobs_are_listed_shown_cancelled_delivered_again_and_removed(site: Site, backend: Backend) -> None:
    site.script("fax.sh", """case $(cat) in *'"hang"'*) sleep 1000 ;; *) echo '{"sent": true}' ;; esac""")
    commands = "commands: {Send: {async: true, additional_parameters: true}}"
    port = free_port()
    site.configure(
        f"fax: {{run: [./fax.sh], {commands}}}\nother: {{run: [./fax.sh], {commands}}}",
        gateway=f"listen: 127.0.0.1:{port}\ndrain: 1s\ncallbacks: {{first_delay: 50ms, hosts: {{127.0.0.1: {{}}}}}}",
    )

    async def jobs(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = await asyncio.to_thread(cli, site, "jobs", *arguments, env=KEY)
        assert done.returncode == status, done
        return done

    async def begun(gateway: Server, target: str, what: str) -> str:
        params = {"what": what, "spiff__callback_url": backend.url}
        return str((await gateway.do(target, params, headers=HEADERS)).body["job_id"])

    async def is_in(gateway: Server, job: str, state: str) -> None:
        async def look() -> bool:
            return (await gateway.get(f"/v1/jobs/{job}", headers=HEADERS)).json["state"] == state

        await eventually(look)

    async with served(site, "--listen", f"127.0.0.1:{port}", env=KEY) as gateway:
        assert (await jobs("list")).stdout.split() == [
            "job", "command", "state", "process", "accepted", "took", "runs", "cut", "why",
        ]  # fmt: skip
        backend.answers = [401]
        dead = await begun(gateway, "fax/Send", "send")
        await is_in(gateway, dead, "dead")
        backend.answers = [200]
        running = await begun(gateway, "other/Send", "hang")
        await is_in(gateway, running, "running")

        listed = (await jobs("list")).stdout.splitlines()
        assert [line.split()[:3] for line in listed[1:]] == [
            [running, "other/Send", "running"], [dead, "fax/Send", "dead"],
        ]  # fmt: skip
        assert "credentials" in listed[2]
        assert [one["id"] for one in json.loads((await jobs("list", "--json", "--limit", "1")).stdout)["jobs"]] == [
            running
        ]
        for filters in (("--state", "dead"), ("--connector", "fax"), ("--offset", "1")):
            found = json.loads((await jobs("list", "--json", *filters)).stdout)["jobs"]
            assert [one["id"] for one in found] == [dead], filters

        details = (await jobs("show", dead)).stdout
        assert re.search(r"command +fax/Send +\n", details)
        assert re.search(r" 401 +dead +the caller answered 401", details)
        assert '"sent": true' in details
        assert json.loads((await jobs("show", dead, "--json")).stdout)["outcome"]["status"] == 200

        assert f"{dead} fax/Send is" in (await jobs("retry", dead)).stdout
        await is_in(gateway, dead, "delivered")
        again = json.loads((await jobs("retry", dead, "--run", "--json")).stdout)["id"]
        assert again != dead
        await is_in(gateway, again, "delivered")
        assert (await jobs("cancel", running)).stdout == f"{running} other/Send is cancelled\n"

        assert "job_not_found" in (await jobs("show", "no/such", status=1)).stderr
        assert "job_conflict" in (await jobs("cancel", dead, status=1)).stderr
        assert (await jobs("purge", "--older-than", "7d")).stdout == "removed 0 jobs\n"
        assert (await jobs("purge", "--older-than", "0s", "--state", "delivered")).stdout == "removed 2 jobs\n"
        assert json.loads((await jobs("purge", "--older-than", "0s", "--json")).stdout) == {"removed": 1}
        assert "7 days" in (await jobs("purge", "--older-than", "7 days", status=2)).stderr

        wrong = await asyncio.to_thread(cli, site, "jobs", "list")
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert "CONNECTOR_PROXY_API_KEY" in wrong.stderr
        site.file.unlink()  # with a URL there need be none
        assert (await jobs("list", "--url", f"{gateway.url}/")).stdout.startswith("job")


def test_that_no_gateway_answers_is_said_in_a_line(site: Site) -> None:
    port = free_port()
    site.configure(gateway=f"listen: :{port}")
    done = cli(site, "jobs", "list")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: no gateway answers at http://127.0.0.1:{port}: Connect")


def test_what_cannot_be_asked_is_status_2(site: Site) -> None:
    for arguments in (("list",), ("show", "x", "--url", "nonsense"), ("list", "--state", "gone"), ("purge",)):
        assert cli(site, "jobs", *arguments).returncode == 2, arguments
    site.configure(gateway="listen: 127.0.0.1:0")
    assert "--url" in cli(site, "jobs", "list").stderr


NO_TEXT = os.fsdecode(b"x\xff")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        *((("list", f"--{name}", NO_TEXT), "it is not UTF-8") for name in ("task", "client", "connector")),
        (("list", "--process-instance", NO_TEXT), "it is not UTF-8"),
        *(((verb, NO_TEXT), "it is not UTF-8") for verb in ("show", "cancel", "retry")),
        (("list", "--limit", "9" * 5000), "'--limit' / '-n': it has more than 15 digits"),
        (("list", "--offset", "9" * 20), "'--offset': it has more than 15 digits"),
        (("purge", "--older-than", "9" * 5000 + "d"), "is not a duration"),
        (("purge", "--older-than", NO_TEXT), "is not a duration"),
    ],
)
def test_what_cannot_be_asked_for_is_told_in_short(site: Site, arguments: tuple[str, ...], said: str) -> None:
    done = cli(site, "jobs", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 500


async def test_an_age_beyond_the_calendar_is_told_by_the_gateway(site: Site) -> None:
    site.configure()
    async with served(site) as gateway:
        for age in ("37000d", "9" * 15 + "d"):
            done = await asyncio.to_thread(cli, site, "jobs", "purge", "--older-than", age, "--url", gateway.url)
            assert (done.returncode, done.stderr) == (1, "invalid_request: older_than is more than 100 years\n")


async def test_a_unix_socket_is_asked_first(short_site: Site) -> None:
    path = short_site.folder / "gw.sock"
    short_site.configure(gateway="listen: ['127.0.0.1:1', 'unix:gw.sock']")
    async with served(short_site, "--listen", f"unix:{path}", env=KEY):
        for where in ((), ("--url", f"unix:{path}")):
            done = await asyncio.to_thread(cli, short_site, "jobs", "list", "--json", *where, env=KEY)
            assert (done.returncode, json.loads(done.stdout)["jobs"]) == (0, [])
    done = cli(short_site, "jobs", "list", env=KEY)
    assert (done.returncode, done.stderr) == (
        1, f"error: no gateway answers at unix:{path}: No such file or directory\n",
    )  # fmt: skip


async def test_with_tls_the_gateway_beside_the_configuration_is_believed_by_its_certificate(site: Site) -> None:
    authority, port = trustme.CA(), free_port()
    install(site, authority.issue_cert("gateway.example"))
    site.configure(gateway=f"listen: 127.0.0.1:{port}\ntls: {{cert: tls.crt, key: tls.key}}")
    careless = ssl.create_default_context()
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    async with served(site, "--listen", f"127.0.0.1:{port}", env=KEY, tls=careless):
        done = await asyncio.to_thread(cli, site, "jobs", "list", "--json", env=KEY)
        assert (done.returncode, json.loads(done.stdout)["jobs"]) == (0, [])
        refused = await asyncio.to_thread(cli, site, "jobs", "list", "--url", f"https://127.0.0.1:{port}", env=KEY)
        assert refused.returncode == 1
        assert "certificate" in refused.stderr


@pytest.mark.parametrize("how", ["--cacert", "SSL_CERT_FILE"])
async def test_with_a_url_authorities_are_named_and_a_certificate_is_shown(site: Site, how: str) -> None:
    authority, clients = trustme.CA(), trustme.CA()
    install(site, authority.issue_cert("127.0.0.1"))
    trust(site, clients)
    site.configure(gateway=MUTUAL % "required")
    mine = clients.issue_cert(common_name="operator")
    (site.folder / "me.pem").write_bytes(mine.private_key_and_cert_chain_pem.bytes())
    (site.folder / "roots.pem").write_bytes(authority.cert_pem.bytes())
    trusted: tuple[str, ...] = ("--cacert", "roots.pem") if how == "--cacert" else ()
    env = KEY if trusted else {**KEY, how: str(site.folder / "roots.pem")}
    async with served(site, env=KEY, tls=trusting(authority, mine)) as gateway:
        where = "--url", gateway.url, *trusted
        done = await asyncio.to_thread(cli, site, "jobs", "list", "--json", *where, "--cert", "me.pem", env=env)
        assert (done.returncode, json.loads(done.stdout)["jobs"]) == (0, [])
        assert (await asyncio.to_thread(cli, site, "jobs", "list", *where, env=env)).returncode == 1
        bad = await asyncio.to_thread(cli, site, "jobs", "list", *where, "--cert", "none.pem", env=env)
        assert (bad.returncode, bad.stderr) == (2, "error: none.pem: No such file or directory\n")
