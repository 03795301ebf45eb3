"""Several clients behind one gateway: each sees, calls and is told of what is its own, and of nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.jobs.support import caller
from tests.support import Answer, Server, Site, cli, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.jobs.support import Backend

NAMES = {"acme": ("acme", "crm", "ledgeracme"), "beta": ("beta", "payroll", "ledgerbeta")}
"""What each client has of its own, and words that stand in nobody else's answers."""
FILES = ["clients.d/acme.yaml", "clients.d/beta/crm", "elsewhere/beta.yaml", "elsewhere/token"]
ECHO = """
read request
case $request in
*'"command":"Fail"'*) echo "no $0 today" >&2; exit 3 ;;
*'"command":"Wait"'*) while [ ! -e DIR/gate ]; do sleep 0.02; done ;;
esac
printf '%s' "$request"
"""
COMMANDS = """
    commands:
      Go: {additional_parameters: true}
      Fail: {additional_parameters: true}
      Wait: {async: true, additional_parameters: true}
"""


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def client(site: Site, name: str, text: str) -> None:
    """Write a client's file; `KEY(x)` in it is the digest of the key x."""
    folder = site.folder / "clients.d"
    folder.mkdir(exist_ok=True)
    text = re.sub(r"KEY\((\S+?)\)", lambda found: f'{{sha256: "{sha256(found[1])}"}}', text)
    draft = folder / f".{name}"
    draft.write_text(text)
    draft.replace(folder / f"{name}.yaml")


async def as_(server: Server, key: str | None, method: str, path: str, **options: Any) -> Answer:
    headers = {} if key is None else {"Spiff-Connector-Proxy-Api-Key": key}
    return await server.request(method, path, headers={**headers, **options.pop("headers", {})}, **options)


async def do(server: Server, key: str, target: str, params: Any = None, **options: Any) -> Answer:
    return await as_(server, key, "POST", f"/v1/do/{target}", json=params or {}, **options)


async def listed(server: Server, key: str) -> list[str]:
    return sorted({one["id"].partition("/")[0] for one in (await as_(server, key, "GET", "/v1/commands")).json})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return a site with three common connectors and two clients."""
    site = Site(tmp_path)
    site.script("echo.sh", ECHO.replace("DIR", str(tmp_path)))
    site.configure(
        "".join(
            f"{name}:\n    run: [./echo.sh]\n    config: {{who: common}}\n{COMMANDS}\n"
            for name in ("aws", "smtp", "text")
        ).replace("    commands", "    commands"),
        gateway="api_key: single\ncallbacks: {first_delay: 50ms, hosts: {127.0.0.1: {}}}",
    )
    for name, (_, own, ledger) in NAMES.items():
        client(
            site,
            name,
            f"keys: [KEY({name}-key), {{sha256: '{sha256(name + '-view')}', role: viewer}}]\n"
            f"allow: [smtp]\n"
            "connectors:\n"
            f"  aws: {{config: {{who: {name}}}}}\n"
            f"  {own}: {{run: [../echo.sh], commands: {{Go: {{additional_parameters: true}}, Fail: {{}}}}}}\n"
            f"  {ledger}: {{run: [./no-such-{name}-file], commands: {{Go: {{}}}}}}\n",
        )
    client(site, "ops", f"keys: [{{sha256: '{sha256('ops-key')}', role: operator}}]\nallow: []\n")
    return site


@pytest.fixture
async def server(site: Site) -> AsyncIterator[Server]:
    async with served(site, ready=False) as server:
        yield server


async def test_each_client_sees_and_calls_its_own_world(server: Server) -> None:
    assert await listed(server, "single") == ["aws", "smtp", "text"]
    assert await listed(server, "acme-key") == ["aws", "crm", "ledgeracme", "smtp"]
    assert await listed(server, "beta-key") == ["aws", "ledgerbeta", "payroll", "smtp"]
    assert await listed(server, "ops-key") == []
    for name in NAMES:
        assert (await do(server, f"{name}-key", "aws/Go")).body["config"] == {"who": name}
        answer = await do(server, f"{name}-key", "smtp/Go")
        assert answer.body["config"] == {"who": "common"}
        assert answer.body["context"]["client"] == name
        assert (await do(server, f"{name}-key", "text/Go")).status == 404
    assert (await do(server, "acme-key", "payroll/Go")).status == 404
    assert (await do(server, "acme-key", "aws@beta/Go")).status == 404
    assert (await do(server, "single", "aws@beta/Go")).status == 404


async def test_what_is_not_there_is_answered_as_what_never_was(server: Server) -> None:
    hidden, unknown = [await do(server, "acme-key", f"{name}/Go") for name in ("payroll", "nowhere")]
    assert hidden.status == unknown.status == 404
    assert hidden.json == json.loads(unknown.raw.replace(b"nowhere", b"payroll"))


@pytest.mark.parametrize("key", [None, "", "nobodys", "acme-key ", "ACME-KEY", sha256("acme-key"), "é"])
async def test_a_key_that_is_nobodys_is_no_key(server: Server, key: str | None) -> None:
    answer = await as_(server, key, "GET", "/v1/commands")
    expected = (
        200 if key is not None and key.strip() == "acme-key" else 401
    )  # blanks around a header's value are none of it
    assert answer.status == expected


async def test_a_key_counts_until_its_day_has_ended(site: Site) -> None:
    digest = sha256("late")
    for until, status in (("2020-03-01", 401), ("2999-03-01", 200), ("2020-03-01T10:00:00+02:00", 401)):
        client(site, "acme", f"keys: [{{sha256: '{digest}', until: {until}}}]\n")
        async with served(site, ready=False) as server:
            assert (await as_(server, "late", "GET", "/v1/commands")).status == status


async def test_a_key_that_two_clients_have_is_nobodys(site: Site) -> None:
    client(site, "beta", "keys: [KEY(acme-key), KEY(beta-key), KEY(single)]\n")
    async with served(site, ready=False) as server:
        assert (await as_(server, "acme-key", "GET", "/v1/commands")).status == 401
        assert (await as_(server, "single", "GET", "/v1/commands")).status == 401
        assert (await as_(server, "beta-key", "GET", "/v1/commands")).status == 200
    assert "is nobody's: acme, beta have the same" in cli(site, "check").stdout


async def test_a_key_that_two_clients_have_stays_nobodys_while_a_file_of_them_is_bad(site: Site) -> None:
    client(site, "acme", "keys: [KEY(acme-key), KEY(both)]\n")
    client(site, "beta", "keys: [KEY(beta-key), KEY(both)]\n")
    async with served(site, ready=False) as server:
        client(site, "acme", "keys: [KEY(acme-key)")
        for _ in range(2):
            assert (await as_(server, "single", "POST", "/v1/reload")).json["clients"]["acme"] is not None
            assert (await as_(server, "both", "GET", "/v1/commands")).status == 401
            assert (await as_(server, "acme-key", "GET", "/v1/commands")).status == 200
            acme = (await as_(server, "single", "GET", "/v1/status")).json["clients"]["acme"]
            assert len(acme["notices"]) == 1


async def test_roles(server: Server) -> None:
    for key, do_, purge, reload, status in (
        ("acme-key", 200, 403, 403, 200),
        ("acme-view", 403, 403, 403, 200),
        ("single", 200, 200, 200, 200),
        ("ops-key", 404, 200, 200, 200),
    ):
        assert (await do(server, key, "aws/Go")).status == do_
        purged = await as_(server, key, "POST", "/v1/jobs/purge?older_than=7d")
        assert purged.status == purge
        assert (await as_(server, key, "POST", "/v1/reload")).status == reload
        assert (await as_(server, key, "GET", "/v1/status")).status == status
        if purge == 403:
            assert purged.code == "forbidden"
            assert (await as_(server, key, "GET", "/v1/status?client=beta")).code == "forbidden"
            assert (await as_(server, key, "GET", "/v1/status?client=nobody")).code == "forbidden"
            assert (await as_(server, key, "GET", "/v1/jobs?client=beta")).code == "forbidden"
    whole = (await as_(server, "ops-key", "GET", "/v1/status")).json
    assert {"aws", "aws@acme", "aws@beta", "payroll@beta"} <= whole["connectors"].keys()
    assert whole["clients"]["acme"]["own"] == ["aws", "crm", "ledgeracme"]
    of_acme = (await as_(server, "ops-key", "GET", "/v1/status?client=acme")).json
    assert sorted(of_acme["connectors"]) == ["aws", "crm", "ledgeracme", "smtp"]


async def jobs_of_both(server: Server, backend: Backend) -> dict[str, str]:
    """Have each client's job end, and one call of each fail; return the jobs' ids."""
    found = {}
    for name in NAMES:
        params = {"word": f"{name}-word", "spiff__callback_url": backend.url, "spiff__task_id": f"task-{name}"}
        accepted = await do(server, f"{name}-key", "aws/Wait", params)
        assert accepted.status == 202
        found[name] = accepted.body["job_id"]
        assert (await do(server, f"{name}-key", f"{NAMES[name][1]}/Fail")).code == "connector_failed"
        assert (await do(server, f"{name}-key", "smtp/Fail", {}, headers={"X-Request-Id": f"id-{name}"})).status == 502
    return found


async def latest_run(server: Server, client: str) -> str:
    """Return the id of the latest run of a client's."""
    return str((await as_(server, "single", "GET", f"/v1/runs?client={client}")).json["runs"][0]["id"])


def requests_of(job: str, run: str) -> list[tuple[str, str]]:
    """Return every route, as methods and paths; a job's and a run's are those of one that may be another's."""
    paths = ["/", "/liveness", "/v1/liveness", "/v1/readiness", "/v1/status", "/metrics", "/v1/commands", "/v1/auths",
             "/openapi.json", "/docs", "/docs/docs.js", "/v1/jobs", f"/v1/jobs/{job}", "/v1/typeahead/people", "/v1/auth/crm/Sign", "/v1/auth/crm/Sign/callback",
             "/v1/jobs?limit=500", "/nowhere", "/v1/do/aws/Go", "/v1/do/payroll/Go", "/v1/do/crm/Go", "/v1/do/smtp/Fail",
             "/v1/runs", "/v1/runs?limit=500&outcome=failed", "/v1/runs?connector=smtp", f"/v1/runs/{run}", f"/v1/runs?after={run}"]  # fmt: skip
    acts = [f"/v1/runs/{run}/replay",
            f"/v1/jobs/{job}/cancel", f"/v1/jobs/{job}/retry", f"/v1/jobs/{job}/retry?run=true", "/v1/jobs/purge?older_than=0s",
            "/v1/reload", "/v1/do/aws/Go", "/v1/do/payroll/Go", "/v1/do/crm/Go", "/v1/do/smtp/Go"]  # fmt: skip
    return (
        [("GET", path) for path in paths]
        + [("POST", path) for path in acts]
        + [("HEAD", "/v1/status"), ("OPTIONS", "/v1/jobs")]
    )


async def test_no_byte_of_an_answer_names_what_is_anothers(server: Server, site: Site) -> None:
    async with caller() as backend:
        jobs = await jobs_of_both(server, backend)
        runs = {name: await latest_run(server, name) for name in NAMES}
        words = {
            name: [
                *NAMES[name],
                f"{name}-word",
                f"task-{name}",
                f"id-{name}",
                f"no-such-{name}-file",
                jobs[name],
                runs[name],
            ]
            for name in NAMES
        }
        routes = (await as_(server, "single", "GET", "/openapi.json")).json["paths"]
        walked = {path.partition("?")[0] for _, path in requests_of("job", "run")}
        for route in (path for path in routes if not path.startswith("/v1/do/")):
            assert any(re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route), path) for path in walked), f"{route} is new"
        for me, other in (("acme", "beta"), ("beta", "acme")):
            for key in (f"{me}-key", f"{me}-view", "nobodys", None):
                for prefix in ("", f"/clients/{me}", f"/clients/{other}"):
                    for method, path in requests_of(jobs[other], runs[other]):
                        if f"{prefix}{path}" == "/v1/readiness" or (key is None and prefix):
                            continue
                        answer = await as_(server, key, method, f"{prefix}{path}")
                        told = answer.raw.decode() + str(dict(answer.headers))
                        for asked in (prefix, path, *re.findall(r"[\w-]+", f"{prefix}{path}")):
                            told = told.replace(asked, "") if asked else told  # what it has said itself
                        if path.startswith("/v1/runs"):  # where the calls stand, too, that it has tried
                            told = told.replace("payroll", "").replace("crm", "")
                        leaked = [word for word in words[other] if word in told]
                        assert not leaked, (key, method, f"{prefix}{path}", leaked, told[:2000])
                        assert answer.status != 500, (method, path)
        (site.folder / "gate").touch()
        await eventually(lambda: len(backend.seen) >= 2)
        for name in NAMES:
            mine = (await as_(server, f"{name}-key", "GET", "/v1/jobs")).json["jobs"]
            assert [one["id"] for one in mine] == [jobs[name]]
            assert mine[0]["connector"] == "aws"
            assert (await as_(server, f"{name}-key", "GET", f"/v1/jobs/{jobs[name]}")).json["client"] == name
        everybodys = (await as_(server, "single", "GET", "/v1/jobs")).json["jobs"]
        assert {one["connector"] for one in everybodys} == {"aws@acme", "aws@beta"}


async def test_anothers_job_is_answered_as_one_that_never_was(server: Server, site: Site) -> None:
    async with caller() as backend:
        jobs = await jobs_of_both(server, backend)
        for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry"), ("POST", "/retry?run=true")):
            theirs, none = [
                await as_(server, "acme-key", method, f"/v1/jobs/{job}{path}") for job in (jobs["beta"], "0" * 32)
            ]
            assert theirs.status == none.status == 403
            assert theirs.json == none.json
        assert (await as_(server, "single", "GET", "/v1/jobs/none")).status == 404
        assert (await as_(server, "single", "POST", f"/v1/jobs/{jobs['beta']}/cancel")).status == 200
        assert (await as_(server, "acme-key", "POST", f"/v1/jobs/{jobs['acme']}/cancel")).status == 200
        await eventually(lambda: len(backend.seen) == 2)  # both are told


async def test_a_client_s_runs_are_its_own_and_anothers_is_answered_as_one_that_never_was(
    server: Server, site: Site
) -> None:
    for name in NAMES:
        assert (await do(server, f"{name}-key", "aws/Go", {"word": f"{name}-word"})).status == 200
        assert (await do(server, f"{name}-key", "smtp/Fail", {"word": f"{name}-word"})).status == 502
    runs = {name: await latest_run(server, name) for name in NAMES}
    for name in NAMES:
        for key in (f"{name}-key", f"{name}-view"):
            mine = (await as_(server, key, "GET", "/v1/runs")).json
            assert "node" not in mine
            assert [(one["connector"], one["client"], one["key_id"]) for one in mine["runs"]] == [
                ("smtp", name, mine["runs"][0]["key_id"]), ("aws", name, mine["runs"][0]["key_id"])
            ]  # fmt: skip
            assert (await as_(server, key, "GET", f"/v1/runs/{runs[name]}")).json["outcome"] == "connector_failed"
            aws = (await as_(server, key, "GET", "/v1/runs?connector=aws")).json["runs"]
            assert [one["connector"] for one in aws] == ["aws"]
            assert (await as_(server, key, "GET", "/v1/runs?connector=aws@beta")).json["runs"] == []
        assert (await as_(server, f"{name}-view", "POST", f"/v1/runs/{runs[name]}/replay")).code == "forbidden"
        assert (await as_(server, f"{name}-key", "POST", f"/v1/runs/{runs[name]}/replay")).code == "run_conflict"
    for method, path in (("GET", ""), ("POST", "/replay")):
        theirs, none = [
            await as_(server, "acme-key", method, f"/v1/runs/{run}{path}") for run in (runs["beta"], "0" * 20)
        ]
        assert theirs.status == none.status == 403
        assert theirs.json == none.json
    assert (await as_(server, "acme-key", "GET", "/v1/runs?client=beta")).code == "forbidden"
    assert (await as_(server, "single", "GET", "/v1/runs/none")).code == "run_not_found"
    assert (await do(server, "acme-key", "payroll/Go")).code == "command_not_found"
    (missed,) = (await as_(server, "acme-key", "GET", "/v1/runs?connector=payroll")).json["runs"]
    assert (missed["connector"], missed["outcome"]) == ("payroll", "command_not_found")
    everybodys = (await as_(server, "single", "GET", "/v1/runs")).json
    assert everybodys["node"]
    assert {one["connector"] for one in everybodys["runs"]} == {"aws@acme", "aws@beta", "payroll@acme", "smtp"}


async def test_a_bad_file_takes_nobody_with_it_and_widens_nothing(server: Server, site: Site) -> None:
    client(site, "acme", "keys: [KEY(acme-key), KEY(another)]\nallow: everything\n")
    refused = await eventually(lambda: server.events("client_refused", client="acme"))
    assert "allow" in refused[0]["reason"]
    assert await listed(server, "acme-key") == ["aws", "crm", "ledgeracme", "smtp"]  # as before
    assert (await as_(server, "another", "GET", "/v1/commands")).status == 401
    assert await listed(server, "beta-key") == ["aws", "ledgerbeta", "payroll", "smtp"]
    assert (await as_(server, "single", "GET", "/v1/status")).json["clients"]["acme"]["problem"] == refused[0]["reason"]
    found = cli(site, "check")
    assert found.returncode == 1
    assert "BAD client acme" in found.stdout
    client(site, "acme", "keys: [KEY(another)]\nallow: [smtp]\n")
    await eventually(lambda: _has(server, "another", ["smtp"]))
    assert (await as_(server, "acme-key", "GET", "/v1/commands")).status == 401


async def _has(server: Server, key: str, names: list[str]) -> bool:
    answer = await as_(server, key, "GET", "/v1/commands")
    return answer.status == 200 and await listed(server, key) == names


@pytest.mark.parametrize(
    "text",
    [
        "keys: [KEY(k)",
        "keys: KEY(k)",
        "keys: [{sha256: short}]",
        "keys: [{}]",
        "keys: [{sha256: null}]",
        "keys: [KEY(k)]\nallow: {smtp: true}",
        "keys: [KEY(k)]\nallow: ['']",
        "keys: [KEY(k)]\nalow: []",
        "keys: [KEY(k)]\ncallbacks: {allow: nowhere:at:all:x}",
        "keys: [KEY(k)]\ncallbacks: {headers: {A: b}}",
        "keys: [KEY(k)]\nlimits: {concurrency: 0}",
        f"keys: [KEY(k), {{sha256: '{sha256('')}'}}]",
        f"keys: [KEY(k), {{sha256: '{sha256('other')}', until: 9999-12-31}}]",
        "keys: [KEY(k)]\nconnectors: [aws]",
        "- a list",
        "",
    ],
)
async def test_a_client_whose_file_was_never_understood_has_nothing(site: Site, text: str) -> None:
    client(site, "acme", text)
    async with served(site, ready=False) as server:
        assert (await as_(server, "k", "GET", "/v1/commands")).status == 401
        assert (await as_(server, "acme-key", "GET", "/v1/commands")).status == 401
        assert (await as_(server, None, "GET", "/v1/commands")).status == 401
        assert await listed(server, "beta-key") == ["aws", "ledgerbeta", "payroll", "smtp"]
        assert (await as_(server, None, "GET", "/clients/acme/v1/auth/aws/x?redirect_url=http://a")).status == 404


async def test_outcomes_of_a_client_whose_file_was_never_understood_wait_for_its_own_credentials(site: Site) -> None:
    hosts = "hosts: {{127.0.0.1: {{headers: {{Authorization: {}}}}}}}"
    entry = "aws: {run: [./echo.sh], commands: {Wait: {async: true, additional_parameters: true}}}"
    site.configure(entry, gateway=f"api_key: single\ncallbacks: {{{hosts.format('commons')}}}")
    mine = f"keys: [KEY(acme-key)]\ncallbacks: {{first_delay: 50ms, {hosts.format('acmes')}}}\n"
    client(site, "acme", mine)
    (site.folder / "gate").touch()
    async with caller() as backend:
        backend.answers = [503]
        async with served(site, ready=False) as server:
            params = {"spiff__callback_url": backend.url}
            job = (await do(server, "acme-key", "aws/Wait", params)).body["job_id"]
            await eventually(lambda: backend.seen)
        client(site, "acme", "keys: [KEY(acme-key)")
        async with served(site, ready=False) as server:
            await eventually(lambda: server.events("callback_tried", id=job))
            assert "its file cannot be used" in server.events("callback_tried", id=job)[0]["reason"]
            asked = await as_(server, "single", "POST", "/clients/acme/v1/do/aws/Wait", json={})
            assert (asked.code, asked.headers["Retry-After"]) == ("connector_unavailable", "10")
            backend.answers = [200]
            client(site, "acme", mine)
            await eventually(lambda: _ended(server, job))
        assert {headers["Authorization"] for headers, _ in backend.seen} == {"acmes"}


async def _ended(server: Server, job: str) -> bool:
    state: str = (await as_(server, "single", "GET", f"/v1/jobs/{job}")).json["state"]
    return state == "delivered"


async def test_no_connector_reads_files_of_clients(site: Site) -> None:
    """Those of the folder, those that links lead to, secrets too, and what lies beside them of another client."""
    files = " ".join(str(site.folder / file) for file in FILES)
    site.script("read.sh", f'read request; printf \'{{"told": "%s"}}\' "$(cat {files} 2>&1 | tr -d \'\\n"\')"')
    site.configure("read: {run: [./read.sh], commands: {Go: {}}}", gateway="api_key: single")
    (site.folder / "elsewhere").mkdir()
    client(site, "acme", "keys: [KEY(acme-key)]\nconnectors: {read: {config: {who: acme}}}\n")
    for file in FILES[1:]:
        (site.folder / file).parent.mkdir(exist_ok=True)
        (site.folder / file).write_text("env: {TZ: Utopia}\n")
    (site.folder / "clients.d/beta.yaml").unlink()
    (site.folder / "clients.d/beta.yaml").symlink_to("../elsewhere/beta.yaml")
    (site.folder / "secrets").mkdir()
    (site.folder / "secrets/token").symlink_to("../elsewhere/token")
    site.file.write_text(site.file.read_text() + "secrets: {dir: secrets}\n")
    async with served(site, ready=False) as server:
        for key in ("acme-key", "single"):
            told = (await do(server, key, "read/Go")).body["told"]
            assert told.count("No such file") == 2  # those in the folder; what is hidden alone is empty
            assert "Utopia" not in told
            assert "keys:" not in told


async def test_the_audit_tells_whose_key_it_was_where_an_operator_calls_for_a_client(site: Site) -> None:
    site.file.write_text(
        site.file.read_text().replace("api_key: single", "api_key: single\n  audit: {file: audit.log}")
    )
    async with served(site, ready=False) as server:
        assert (await as_(server, "ops-key", "POST", "/clients/beta/v1/do/payroll/Go", json={})).status == 200
        assert (await as_(server, None, "GET", f"/clients/{'x' * 300}/v1/auth/a/b?redirect_url=http://a")).status == 404
        audit = [json.loads(line) for line in (site.folder / "audit.log").read_text().splitlines()]
    called, signed_in = audit
    assert (called["client"], called["connector"], called["outcome"]) == ("ops", "payroll", "ok")
    assert len(signed_in["client"]) == 128


async def test_a_client_does_not_wait_for_what_another_s_connectors_can_do(site: Site) -> None:
    """At a start the catalogue waits for connectors that are asked, a few seconds: for its own ones."""
    site.script("slow.sh", f"while [ ! -e {site.folder}/gate ]; do sleep 0.02; done; exit 1")
    client(site, "gamma", "keys: [KEY(gamma-key)]\nallow: []\nconnectors: {slow: {run: [../slow.sh]}}\n")
    async with served(site, ready=False) as server:
        calls = {key: asyncio.create_task(listed(server, key)) for key in ("gamma-key", "acme-key")}
        done, _ = await asyncio.wait(calls.values(), return_when=asyncio.FIRST_COMPLETED)
        assert calls["acme-key"] in done
        (site.folder / "gate").touch()
        assert await calls["gamma-key"] == []


async def test_files_whose_names_are_no_utf_8_are_told_and_harm_nobody(site: Site) -> None:
    for folder, name in (("clients.d", b"\xff.yaml"), ("connectors.d", b"\xff.sh")):
        with open(os.fsencode(site.folder / folder) + b"/" + name, "wb") as file:
            file.write(b"#!/bin/sh\n")
    async with served(site, ready=False) as server:
        for key in ("acme-key", "single"):
            for path in ("/v1/status", "/metrics", "/v1/commands", "/openapi.json"):
                assert (await as_(server, key, "GET", path)).status == 200
            assert (await do(server, key, "smtp/Go")).status == 200
        whole = (await as_(server, "single", "GET", "/v1/status")).json
        assert "a client's name is made of" in whole["clients"]["\\udcff"]["problem"]


async def test_clients_come_change_and_go_on_a_running_gateway(server: Server, site: Site) -> None:
    client(site, "gamma", "keys: [KEY(gamma-key)]\nallow: ['s*']\n")
    await eventually(lambda: _has(server, "gamma-key", ["smtp"]))
    client(site, "gamma", "keys: [KEY(gamma-key), KEY(gamma-new)]\nallow: [text]\n")
    await eventually(lambda: _has(server, "gamma-new", ["text"]))
    assert await listed(server, "gamma-key") == ["text"]
    (site.folder / "clients.d/gamma.yaml").unlink()
    await eventually(lambda: _refused(server, "gamma-key"))
    for file in (site.folder / "clients.d").iterdir():
        file.unlink()
    (site.folder / "clients.d").rmdir()
    await eventually(lambda: server.events("reload_failed"))
    assert (await as_(server, None, "GET", "/v1/commands")).status == 401  # nobody is let in for that
    assert await listed(server, "acme-key") == ["aws", "crm", "ledgeracme", "smtp"]


async def _refused(server: Server, key: str) -> bool:
    return (await as_(server, key, "GET", "/v1/commands")).status == 401


async def test_a_folder_of_clients_asks_for_a_key_also_where_there_is_no_single_one(site: Site) -> None:
    site.configure("aws: {run: [./echo.sh], commands: {Go: {}}}")
    async with served(site, ready=False) as server:
        assert (await as_(server, None, "GET", "/v1/commands")).status == 401
        assert not server.events("no_api_key")
        assert await listed(server, "ops-key") == []


async def test_a_key_is_changed_without_an_outage(server: Server, site: Site) -> None:
    """Callers with the old and the new key call all the time while the file changes three times."""
    failed: list[int] = []
    done = asyncio.Event()
    new = asyncio.Event()
    old_gone = asyncio.Event()

    async def calls() -> None:
        while not done.is_set():
            key = "gamma-new" if new.is_set() else "gamma-old"
            answer = await do(server, key, "smtp/Go")
            if answer.status != 200:
                failed.append(answer.status)

    client(site, "gamma", "keys: [KEY(gamma-old)]\n")
    await eventually(lambda: _has(server, "gamma-old", ["aws", "smtp", "text"]))
    callers = [asyncio.create_task(calls()) for _ in range(4)]
    client(site, "gamma", "keys: [KEY(gamma-old), KEY(gamma-new)]\n")
    await eventually(lambda: _has(server, "gamma-new", ["aws", "smtp", "text"]))
    new.set()
    await do(server, "gamma-new", "smtp/Go")
    done_with_old = [await do(server, "gamma-new", "smtp/Go") for _ in range(8)]
    assert {one.status for one in done_with_old} == {200}
    client(site, "gamma", "keys: [KEY(gamma-new)]\n")
    await eventually(lambda: _refused(server, "gamma-old"))
    old_gone.set()
    done.set()
    await asyncio.gather(*callers)
    assert not failed


async def test_what_a_client_does_not_change_is_shared_with_its_processes(site: Site) -> None:
    site.python(
        "count.py",
        "import sys, json\nn = 0\nfor line in sys.stdin:\n n += 1\n print(json.dumps({'n': n}), file=open(3, 'w', closefd=False), flush=True)\n",
    )
    site.configure(
        "count: {run: [./count.py], mode: persistent, concurrency: 1, commands: {Go: {}}}", gateway="api_key: single"
    )
    client(site, "acme", "keys: [KEY(acme-key)]\nconnectors: {count: }\nallow: []\n")
    client(site, "beta", "keys: [KEY(beta-key)]\nconnectors: {count: {config: {mine: 1}}}\n")
    client(site, "ops", "keys: []\n")
    async with served(site, ready=False) as server:
        assert [(await do(server, key, "count/Go")).body for key in ("single", "acme-key", "single")] == [
            {"n": 1}, {"n": 2}, {"n": 3},
        ]  # fmt: skip
        assert (await do(server, "beta-key", "count/Go")).body == {"n": 1}


async def test_the_path_names_a_client_where_no_key_does(server: Server) -> None:
    assert (await as_(server, "acme-key", "GET", "/clients/acme/v1/commands")).status == 200
    assert (await as_(server, "acme-key", "GET", "/clients/beta/v1/commands")).status == 401
    assert (await as_(server, "acme-key", "GET", "/clients/nobody/v1/commands")).status == 401
    seen = (await as_(server, "single", "GET", "/clients/beta/v1/commands")).json
    assert {one["id"].partition("/")[0] for one in seen} == {"aws", "ledgerbeta", "payroll", "smtp"}
    assert (await as_(server, "single", "POST", "/clients/beta/v1/do/payroll/Go", json={})).status == 200


def test_the_command_line_shows_one_client_s_world(site: Site) -> None:
    assert "crm/Go" in cli(site, "list", "--client", "acme").stdout
    assert "crm/Go" not in cli(site, "list", "--client", "beta").stdout
    called = cli(site, "call", "--client", "beta", "aws/Go", "a=1", "-q")
    assert json.loads(called.stdout)["command_response"]["body"]["config"] == {"who": "beta"}
    assert cli(site, "call", "--client", "beta", "crm/Go").returncode == 1
    unknown = cli(site, "list", "--client", "nobody")
    assert unknown.returncode == 2
    assert "there is no client 'nobody' (there are: acme, beta, default, ops)" in unknown.stderr
    checked = cli(site, "check", "--client", "acme").stdout
    assert "crm@acme" in checked
    assert "payroll" not in checked
    assert "keeps the contract" in cli(site, "test", "--client", "acme", "crm", "--command", "Go").stdout


def test_a_new_key_is_printed_once_with_what_to_add(site: Site) -> None:
    made = cli(site, "keys", "new", "gamma", "--role", "viewer", "--until", "2999-01-01")
    key = made.stdout.strip()
    assert key.startswith("gamma_")
    entry = re.search(r"- (\{.*\})", made.stderr)
    assert entry is not None
    assert sha256(key) in entry[1]
    client(site, "gamma", f"keys: [{entry[1]}]\n")
    assert "(viewer, until 2999-01-02T00:00:00+00:00)" in cli(site, "check", "--client", "gamma").stdout
    assert cli(site, "keys", "new", "../gamma").returncode == 2
    assert cli(site, "keys", "new", "gamma", "--until", "soon").returncode == 2


async def test_outcomes_go_where_their_client_says(site: Site) -> None:
    """Acme's callbacks have acme's credentials, beta's may not go there, and the common ones are nobody else's."""
    async with caller() as backend:
        site.configure(
            "fax: {run: [./echo.sh], commands: {Go: {async: true, additional_parameters: true}}}",
            gateway="api_key: single\ncallbacks: {allow: [127.0.0.1], headers: {X-Pass: common}, first_delay: 50ms}",
        )
        client(site, "acme", "keys: [KEY(acme-key)]\ncallbacks: {allow: [127.0.0.1], headers: {X-Pass: acmes}}\n")
        client(site, "beta", "keys: [KEY(beta-key)]\ncallbacks: {allow: [elsewhere.example]}\n")
        client(site, "gamma", "keys: [KEY(gamma-key)]\ncallbacks: {allow: [127.0.0.1]}\n")
        client(site, "ops", "keys: []\n")
        params = {"spiff__callback_url": backend.url}
        async with served(site) as server:
            for key in ("single", "acme-key", "gamma-key"):
                assert (await do(server, key, "fax/Go", params)).status == 202
                await eventually(
                    lambda key=key: len(backend.seen) == ["single", "acme-key", "gamma-key"].index(key) + 1
                )
            assert [headers.get("X-Pass") for headers, _ in backend.seen] == ["common", "acmes", None]
            refused = await do(server, "beta-key", "fax/Go", params)
            assert refused.status == 400
            assert "is not in callbacks.allow" in refused.message
            client(site, "acme", "keys: [KEY(acme-key)]\ncallbacks: {allow: [127.0.0.1], headers: {X-Pass: new}}\n")
            await eventually(lambda: len(server.events("registry_loaded")) > 0)
            await as_(server, "single", "POST", "/v1/reload")
            assert (await do(server, "acme-key", "fax/Go", params)).status == 202
            await eventually(lambda: len(backend.seen) == 4)
            assert backend.seen[-1][0]["X-Pass"] == "new"


FLOOD, CALM = 9_000, 1_000  # calls
AT_ONCE = 48


async def test_ten_thousand_calls_of_two_clients_with_a_flood_in_one(site: Site) -> None:
    """Acme floods a connector that both use; beta has its turns, and each answer is the caller's own."""
    site.configure(
        "echo: {run: [cat], concurrency: 4, queue: 16, commands: {Go: {additional_parameters: true}}}",
        gateway="api_key: single",
    )
    client(site, "acme", "keys: [KEY(acme-key)]\n")
    client(site, "beta", "keys: [KEY(beta-key)]\n")
    refused = {"acme": 0, "beta": 0}

    async def calls(server: Server, name: str, numbers: Iterator[int]) -> None:
        for number in numbers:
            answer = await do(server, f"{name}-key", "echo/Go", {"word": f"{name} {number}"})
            if answer.status == 429:
                refused[name] += 1
                assert answer.code == "connector_busy"
                assert ("beta" if name == "acme" else "acme") not in answer.raw.decode()
                continue
            assert answer.status == 200, answer.raw
            assert (answer.body["params"]["word"], answer.body["context"]["client"]) == (f"{name} {number}", name)

    async with served(site, ready=False) as server:
        flood, calm = iter(range(FLOOD)), iter(range(CALM))
        await asyncio.gather(
            *(calls(server, "acme", flood) for _ in range(AT_ONCE)), *(calls(server, "beta", calm) for _ in range(2))
        )
        told = (await as_(server, "acme-key", "GET", "/v1/status")).json["connectors"]["echo"]
        assert (told["in_flight"], told["queued"]) == (0, 0)
        assert "beta" not in (await as_(server, "acme-key", "GET", "/metrics")).raw.decode()
    assert refused["acme"] > 0  # it was a flood
    assert refused["beta"] == 0


async def test_what_crashes_for_one_client_is_called_by_the_others_on(site: Site) -> None:
    site.script("crash.sh", 'read request; case $request in *CRASH*) kill -SEGV $$ ;; esac; printf "{}"')
    site.configure(
        "common: {run: [./crash.sh], commands: {Go: {additional_parameters: true}}}", gateway="api_key: single"
    )
    for name in ("acme", "beta"):
        client(site, name, f"keys: [KEY({name}-key)]\n")
    async with served(site) as server:
        for _ in range(5):
            assert (await do(server, "acme-key", "common/Go", {"word": "CRASH"})).code == "connector_crashed"
        assert (await do(server, "acme-key", "common/Go")).code == "connector_unavailable"
        assert (await do(server, "beta-key", "common/Go")).status == 200
        [opened] = server.events("circuit_opened")
        assert (opened["connector"], opened["client"]) == ("common", "acme")
        told = {
            key: (await as_(server, key, "GET", "/v1/status")).json["connectors"]["common"]
            for key in ("acme-key", "beta-key", "single")
        }
        assert {key: one["circuit"] for key, one in told.items()} == {
            "acme-key": "open", "beta-key": "closed", "single": "open",
        }  # fmt: skip
        assert told["beta-key"]["reason"] is None


async def test_a_client_is_not_told_which_hidden_source_comes_before_one_of_its_own(site: Site) -> None:
    source = "{run: [./echo.sh], commands: {Ask: {parameters: {prefix: {type: str}}, typeahead: {category: people, prefix: prefix}}}}"
    site.configure(f"hidden: {source}\nshown: {source}", gateway="api_key: single")
    client(site, "acme", "keys: [KEY(acme-key)]\nallow: [shown]\n")
    client(site, "beta", "keys: []\n")
    async with served(site, ready=False) as server:
        assert (await as_(server, "acme-key", "GET", "/v1/status")).json["connectors"]["shown"]["notices"] == []
        whole = (await as_(server, "single", "GET", "/v1/status")).json["connectors"]["shown"]["notices"]
        assert whole == ["typeahead people: hidden/Ask has it already, so Ask is not asked"]


async def test_a_viewer_of_the_default_client_sees_what_is_its_own(server: Server, site: Site) -> None:
    client(site, "default", f"keys: [{{sha256: '{sha256('looks')}', role: viewer}}]\n")
    await eventually(lambda: _has(server, "looks", ["aws", "smtp", "text"]))
    assert sorted((await as_(server, "looks", "GET", "/v1/status")).json["connectors"]) == ["aws", "smtp", "text"]
    assert (await as_(server, "looks", "GET", "/v1/jobs?client=acme")).code == "forbidden"
    await do(server, "acme-key", "aws/Go")
    assert "acme" not in (await as_(server, "looks", "GET", "/metrics")).raw.decode()


def test_what_others_could_change_of_clients_is_told(site: Site) -> None:
    """A gateway that is root names a client's file that others can write: it says who may call."""
    (site.folder / "clients.d/acme.yaml").chmod(0o666)
    found = cli(site, "check")
    assert found.returncode == 1
    assert "clients.d/acme.yaml can be changed by everybody" in found.stdout.replace("\n", "")


async def test_variables_of_a_client_are_those_of_all_its_connectors(site: Site) -> None:
    """They lie below what an entry says, and above the defaults; then no connector is a common one."""
    show = 'read x; printf \'{"tz": "%s", "proxy": "%s", "pid": "%s"}\' "$TZ" "$https_proxy" "$WHO"'
    site.script("show.sh", show)
    site.configure(
        """
        plain: {run: [./show.sh], commands: {Go: {}}}
        own: {run: [./show.sh], env: {TZ: Europe/Oslo}, commands: {Go: {}}}
        """,
        gateway="api_key: single",
        defaults="env: {TZ: UTC, WHO: defaults}",
    )
    client(
        site,
        "acme",
        "keys: [KEY(acme-key)]\nallow: [plain, own]\nenv: {TZ: Asia/Tokyo, https_proxy: {secret: proxy}}\n"
        "connectors: {own: {env: {WHO: entry}}}\n",
    )
    client(site, "beta", "keys: [KEY(beta-key)]\n")
    client(site, "ops", "")
    secrets = site.folder / "secrets"
    secrets.mkdir()
    (secrets / "proxy").write_text("http://proxy.acme.example\n")
    site.file.write_text(site.file.read_text() + "secrets: {dir: secrets}\n")
    async with served(site, ready=False) as server:
        told = {
            (key, name): (await do(server, key, f"{name}/Go")).body
            for key in ("acme-key", "beta-key")
            for name in ("plain", "own")
        }
    acme = "http://proxy.acme.example"
    assert told == {
        ("acme-key", "plain"): {"tz": "Asia/Tokyo", "proxy": acme, "pid": "defaults"},
        ("acme-key", "own"): {"tz": "Europe/Oslo", "proxy": acme, "pid": "entry"},
        ("beta-key", "plain"): {"tz": "UTC", "proxy": "", "pid": "defaults"},
        ("beta-key", "own"): {"tz": "Europe/Oslo", "proxy": "", "pid": "defaults"},
    }


async def test_a_key_that_is_a_secret_counts_when_it_is_there(site: Site) -> None:
    secrets = site.folder / "secrets"
    secrets.mkdir()
    site.file.write_text(site.file.read_text() + "secrets: {dir: secrets}\n")
    client(
        site,
        "acme",
        "keys: [KEY(acme-key), {secret: acme_key}, {secret: acme_view, role: viewer}]\nallow: [smtp]\n",
    )
    async with served(site, ready=False) as server:
        assert await listed(server, "acme-key") == ["smtp"]
        assert (await as_(server, "s3cret", "GET", "/v1/commands")).status == 401
        notices = (await as_(server, "single", "GET", "/v1/status")).json["clients"]["acme"]["notices"]
        assert any("acme_key" in one for one in notices)
        (secrets / "acme_key").write_text("s3cret\n")
        (secrets / "acme_view").write_text("vi3wer\n")
        await eventually(lambda: _has(server, "s3cret", ["smtp"]))
        assert (await do(server, "vi3wer", "smtp/Go")).code == "forbidden"
        assert "s3cret" not in (await as_(server, "single", "GET", "/v1/status")).raw.decode()
        (secrets / "acme_key").unlink()
        await eventually(lambda: _refused(server, "s3cret"))
        assert await listed(server, "acme-key") == ["smtp"]


async def test_what_is_open_is_so_for_what_is_common_alone(site: Site) -> None:
    """Suggestions that need no key are the common ones: a client's own are for its key."""
    site.script("people.sh", "echo '[\"'$1'\"]'")
    source = "commands: {Find: {parameters: {text: {type: str}}, typeahead: {category: people, prefix: text}}}"
    site.configure(
        f"people: {{run: [./people.sh, common], {source}}}", gateway="{api_key: single, typeahead: open, metrics: open}"
    )
    client(site, "acme", "keys: [KEY(acme-key)]\nconnectors: {people: {run: [../people.sh, acme]}}\n")
    client(site, "beta", "keys: [KEY(beta-key)]\nallow: []\n")
    client(site, "ops", "")
    path = "/v1/typeahead/people?prefix=a"
    async with served(site, ready=False) as server:
        assert (await as_(server, None, "GET", path)).json == ["common"]
        assert (await as_(server, "nobodys", "GET", path)).json == ["common"]
        assert (await as_(server, "acme-key", "GET", path)).json == ["acme"]
        assert (await as_(server, "beta-key", "GET", path)).status == 404
        assert (await as_(server, None, "GET", f"/clients/acme{path}")).status == 401
        assert (await as_(server, "acme-key", "GET", f"/clients/acme{path}")).json == ["acme"]
        assert (await as_(server, "beta-key", "GET", f"/clients/beta{path}")).status == 404
        assert (await as_(server, None, "GET", "/metrics")).status == 200
        assert (await as_(server, None, "GET", "/clients/acme/metrics")).status == 401
        for where in ("/clients/acme/metrics", "/metrics"):
            own = (await as_(server, "acme-key", "GET", where)).raw.decode()
            assert 'client="acme"' in own
            assert 'client="default"' not in own


async def test_what_is_not_there_for_a_client_is_not_counted_for_whose_it_is(server: Server) -> None:
    for target in ("text/Go", "payroll/Go", "nowhere/Go"):
        assert (await do(server, "acme-key", target)).status == 404
    whole = (await as_(server, "single", "GET", "/v1/status")).json["connectors"]
    assert whole["text"]["last_outcomes"] == whole["payroll@beta"]["last_outcomes"] == []
    assert {line["connector"] for line in server.events("run", outcome="command_not_found")} == {
        "text@acme",
        "payroll@acme",
        "nowhere@acme",
    }
    assert (await do(server, "acme-key", "aws/Nothing")).status == 404
    assert (await as_(server, "single", "GET", "/v1/status")).json["connectors"]["aws@acme"]["last_outcomes"] != []


async def test_a_volume_of_kubernetes_with_clients_is_taken_over_when_it_is_swapped(site: Site) -> None:
    folder = site.folder / "clients.d"
    for file in folder.iterdir():
        file.unlink()

    def version(name: str, **files: str) -> None:
        (folder / name).mkdir()
        for client_name, text in files.items():
            (folder / name / f"{client_name}.yaml").write_text(text)
            if not (folder / f"{client_name}.yaml").is_symlink():
                (folder / f"{client_name}.yaml").symlink_to(f"..data/{client_name}.yaml")
        (folder / "..tmp").symlink_to(name)
        (folder / "..tmp").rename(folder / "..data")

    key = f"keys: [{{sha256: '{sha256('acme-key')}'}}]\n"
    version("..2027_1", acme=f"{key}allow: [aws]\n")
    async with served(site) as server:
        assert await listed(server, "acme-key") == ["aws"]
        version("..2027_2", acme=f"{key}allow: [smtp]\n", beta=f"keys: [{{sha256: '{sha256('beta-key')}'}}]\n")

        async def swapped() -> bool:
            return (await as_(server, "beta-key", "GET", "/v1/commands")).status == 200

        await eventually(swapped)
        assert await listed(server, "acme-key") == ["smtp"]


async def test_the_example_is_accepted_as_it_stands(tmp_path: Path) -> None:
    site = Site(tmp_path)
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(tmp_path / "tls.key")
    for pem in leaf.cert_chain_pems:
        pem.write_to_path(tmp_path / "tls.crt", append=True)
    site.python("aws.py", "def Buckets() -> dict: return {}\n")
    site.script(
        "bin/vault",
        """
        [ "$1 $2 $3" = "kv get -field=value" ] || exit 2
        case $4 in acme_key|acme_aws|acme_callback) echo "the-value-of-$4" ;; *) echo "no value at $4" >&2; exit 2 ;; esac
        """,
    )
    site.file.write_text(
        """
gateway: {clients_dir: clients.d, tls: {cert: tls.crt, key: tls.key}, trusted_proxies: [10.0.0.0/8]}
secrets: {dir: /run/secrets, env: [SMTP_PASSWORD, "CLIENT_*"], command: {vault: [vault, kv, get, -field=value, "{name}"]}}
connectors:
  aws: {runtime: python, module: ./aws.py, requirements: [boto3], commands: {Buckets: {}}}
  smtp: {run: [cat], env: {P: {secret: SMTP_PASSWORD}}, commands: {Send: {additional_parameters: true}}}
  text: {run: [cat], commands: {Find: {}}}
  texts: {run: [cat], commands: {Find: {}}}
  fax: {run: [cat], commands: {Send: {}}}
"""
    )
    (tmp_path / "clients.d").mkdir()
    (tmp_path / "clients.d" / "acme.yaml").write_text(
        f"""
keys: [{{sha256: "{sha256("acme-key")}", until: 2999-03-01}}, {{secret: acme_key}}]
allow: [aws, smtp, "text*"]
connectors:
  aws: {{requirements: [boto3==1.26.*], config: {{region: eu-north-1, secret_access_key: {{secret: acme_aws}}}}}}
  crm: {{runtime: java, maven: ["org.apache.commons:commons-lang3:3.4"], class: acme.Crm}}
limits: {{concurrency: 16, rate: 50/s, burst: 100, max_request: 8MiB}}
callbacks: {{allow: [workflow.acme.example], headers: {{Authorization: {{secret: acme_callback}}}}}}
"""
    )
    env = {"SMTP_PASSWORD": "of-the-environment", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    found = json.loads(cli(site, "check", "--client", "acme", "--json", env=env).stdout)
    (acme,) = found["clients"]
    problems = {one["name"]: one["problem"] for one in found["connectors"]}
    assert (acme["problem"], acme["notices"], len(acme["keys"])) == (None, [], 2)
    assert acme["sees"] == ["aws", "crm", "smtp", "text", "texts"]
    assert {name for name, problem in problems.items() if problem is None} == {"smtp", "text", "texts"}
    for name in ("aws", "crm"):
        assert problems[f"{name}@acme"] == f"not installed: run gateway install {name}@acme"
    secrets = cli(site, "secrets", "--json", env=env)
    assert secrets.returncode == 0
    assert {one["name"]: one["source"] for one in json.loads(secrets.stdout)} == {
        "SMTP_PASSWORD": "variable SMTP_PASSWORD",
        **dict.fromkeys(("acme_aws", "acme_callback", "acme_key"), "command vault"),
    }
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    async with served(site, env=env, tls=tls) as server:
        for key in ("acme-key", "the-value-of-acme_key"):
            assert await listed(server, key) == ["smtp", "text", "texts"]
            assert (await do(server, key, "text/Find")).status == 200
        assert (await do(server, "acme-key", "fax/Send")).status == 404
        assert (await as_(server, "acme_key", "GET", "/v1/commands")).status == 401


def test_null_takes_a_variable_away_from_wherever_it_comes(site: Site) -> None:
    site.script("connectors.d/dropped/show", 'cat >/dev/null; echo "\\"$A,$B,$C\\""')
    (site.drop_ins / "dropped" / "connector.yaml").write_text("run: [./show]\ncommands: {Go: {}}\nenv: {B: dropped}\n")
    listed = "run: [./connectors.d/dropped/show], commands: {Go: {}}"
    site.configure(
        f"dropped: {{env: {{A: null}}}}\nlisted: {{{listed}, env: {{A: null}}}}\nplain: {{{listed}}}",
        defaults="env: {A: a, B: b, C: c}",
    )
    client(site, "alone", "keys: [KEY(a)]\nenv: {B: null, C: client}\n")
    client(
        site, "changes", "keys: [KEY(b)]\nconnectors: {plain: {env: {C: null}}, dropped: {env: {B: null, A: again}}}\n"
    )
    for name, dropped, listed, plain in (
        ("default", ",dropped,c", ",b,c", "a,b,c"),
        ("alone", ",dropped,client", ",,client", "a,,client"),
        ("changes", "again,,c", ",b,c", "a,b,"),
    ):
        for connector, told in (("dropped", dropped), ("listed", listed), ("plain", plain)):
            answer = json.loads(cli(site, "call", "--quiet", "--client", name, f"{connector}/Go").stdout)
            assert (name, connector, answer["command_response"]["body"]) == (name, connector, told)
