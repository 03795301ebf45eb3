"""`problems` in /v1/status: what is wrong, and to whom it is told."""

from __future__ import annotations

import asyncio
import datetime
from typing import TYPE_CHECKING, Any

from tests import five_ways
from tests.jobs.support import Backend, caller
from tests.observe.test_metrics import scraped, value
from tests.support import Server, Site, cli, eventually, served

if TYPE_CHECKING:
    from collections.abc import Mapping

JOBS = """
fax: {run: [cat], commands: {Send: {async: true, additional_parameters: true}}}
plain: {run: [cat], commands: {Go: {additional_parameters: true}}}
"""
CALLBACKS = "drain: 1s\ncallbacks: {first_delay: 50ms, hosts: {127.0.0.1: {}}}"


async def dead_letter(gateway: Server, backend: Backend, headers: Mapping[str, str] | None = None) -> str:
    """Have a job's outcome refused for good; return the job."""
    backend.answers = [401]
    accepted = await gateway.do("fax/Send", {"spiff__callback_url": backend.url}, headers=headers or {})
    name = str(accepted.body["job_id"])

    async def dead() -> bool:
        return (await gateway.get(f"/v1/jobs/{name}", headers=headers or {})).json["state"] == "dead"

    await eventually(dead)
    return name


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def problems(gateway: Server, key: str = "", query: str = "") -> dict[tuple[str, str], dict[str, Any]]:
    """Return what is wrong, by kind and subject."""
    answer = await gateway.get(f"/v1/status{query}", headers=bearer(key) if key else {})
    return {(one["kind"], one["subject"]): one for one in answer.json["problems"]}


async def test_dead_letters_are_told_until_they_are_gone(site: Site) -> None:
    site.configure(JOBS, gateway=CALLBACKS)
    async with caller() as backend, served(site) as gateway:
        await dead_letter(gateway, backend)
        await dead_letter(gateway, backend)

        async def counted(wanted: int) -> bool:
            return value(await scraped(gateway), "gateway_jobs_dead") == wanted

        await eventually(lambda: counted(2))
        one = (await problems(gateway))["dead_letters", "jobs"]
        assert one["severity"] == "warning"
        assert one["text"].startswith("2 outcomes could not be delivered")
        assert "gateway jobs list --state dead" in one["remedy"]
        await gateway.request("POST", "/v1/jobs/purge?older_than=0s")
        await eventually(lambda: counted(0))
        assert ("dead_letters", "jobs") not in await problems(gateway)


async def test_a_client_is_told_of_its_own_world_alone(site: Site) -> None:
    soon = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)).date().isoformat()
    site.script("crash.sh", "kill -9 $$")
    site.configure(JOBS, gateway=CALLBACKS)
    (site.folder / "clients.d").mkdir()
    for name, more in (("acme", f", until: '{soon}'"), ("rival", "")):
        (site.folder / f"clients.d/{name}.yaml").write_text(
            f"keys: [{{key: {name}-key{more}}}]\n"
            f"connectors: {{own: {{run: [{site.folder}/crash.sh], commands: {{Go: {{}}}}}}}}\n"
        )
    (site.folder / "clients.d/bad.yaml").write_text("keys: 3\n")
    async with caller() as backend, served(site, env={"CONNECTOR_PROXY_API_KEY": "sesame"}) as gateway:
        await dead_letter(gateway, backend, bearer("rival-key"))
        for _ in range(5):
            await gateway.do("own/Go", headers=bearer("rival-key"))

        async def has(key: str, *wanted: tuple[str, str]) -> bool:
            return set(wanted) <= (await problems(gateway, key)).keys()

        await eventually(lambda: has("rival-key", ("circuit_open", "own"), ("dead_letters", "jobs")))
        mine = await problems(gateway, "acme-key")
        theirs = await problems(gateway, "rival-key")
        everybodys = await problems(gateway, "sesame")
        asked_for = await problems(gateway, "sesame", "?client=rival")
        refused = await gateway.get("/v1/status?client=rival", headers=bearer("acme-key"))
    wrong = {where for where, one in mine.items() if one["severity"] != "notice"}
    assert wrong - {("sandbox_weaker", "sandbox")} == {("key_ending", "client acme")}
    assert "rival" not in str(mine)
    assert ("key_ending", "client acme") not in theirs
    assert asked_for.keys() == theirs.keys()
    assert refused.status == 403
    assert everybodys.keys() >= {
        ("circuit_open", "own@rival"), ("dead_letters", "jobs"), ("key_ending", "client acme"),
        ("client_refused", "client bad"),
    }  # fmt: skip


async def test_a_full_queue_and_a_file_that_cannot_be_used_are_told_while_they_last(site: Site) -> None:
    gate = site.folder / "gate"
    site.script("gated.sh", f"while [ ! -e {gate} ]; do sleep 0.01; done; echo 1")
    connectors = "gated: {run: [./gated.sh], concurrency: 1, queue: 2, commands: {Go: {}}}"
    site.configure(connectors)
    async with served(site) as gateway:
        calls = [asyncio.create_task(gateway.do("gated/Go")) for _ in range(3)]

        async def full() -> Any:
            return (await problems(gateway)).get(("queue_full", "gated"))

        one = await eventually(full)
        assert one["severity"] == "error"
        assert one["text"].startswith("2 of 2 places in its queue are taken; at work: 1")
        site.file.write_text("connectors: [")
        await gateway.request("POST", "/v1/reload")
        assert ("registry", "configuration") in await problems(gateway)
        site.configure(connectors)
        await gateway.request("POST", "/v1/reload")
        gate.touch()
        await asyncio.gather(*calls)
        assert not {("queue_full", "gated"), ("registry", "configuration")} & (await problems(gateway)).keys()


async def test_a_connector_that_is_broken_in_five_ways_is_named_with_each(site: Site) -> None:
    site.configure(five_ways.write(site))
    async with served(site) as gateway:
        await five_ways.call(gateway)
        found = await problems(gateway)
        told = " ".join(cli(site, "status", "--url", gateway.url).stdout.split())
    worst = {where: one for where, one in found.items() if one["severity"] != "notice" and one["subject"] != "sandbox"}
    # On a machine that is busy a slow one may be cut.
    kinds = {subject: kind for kind, subject in worst}
    assert kinds.pop("archive") in {"slow", "failing"}
    assert kinds == {"ledger": "quarantined", "crm": "failing", "fax": "circuit_open", "reports": "failing"}
    for (_, subject), one in worst.items():
        assert five_ways.WAYS[subject] in one["text"]
        assert one["remedy"]
        assert five_ways.WAYS[subject] in told
    assert "ended with error (401)" in worst["failing", "crm"]["text"]
    assert "invalid API key" in worst["failing", "crm"]["text"]
    assert "cannot open /dev/modem" in worst["circuit_open", "fax"]["text"]
    assert "connector_out_of_memory" in worst["failing", "reports"]["text"]
    assert "max_memory" in worst["failing", "reports"]["remedy"]


async def test_a_package_that_is_missing_is_named_wherever_it_is_missed(site: Site) -> None:
    site.python("described.py", "import nowhere_to_be_found\n")
    (site.folder / "asks.py").write_text("import nowhere_to_be_found\ndef Go() -> int:\n    return 1\n")
    (site.folder / "late.py").write_text("def Go() -> int:\n    import nowhere_to_be_found\n    return 1\n")
    site.configure(
        """
        described: {run: [./described.py]}
        called: {run: [./described.py], commands: {Go: {}}}
        asks: {runtime: python, module: ./asks.py}
        late: {runtime: python, module: ./late.py}
        """
    )
    async with served(site) as gateway:
        await gateway.do("called/Go")
        for _ in range(3):
            await gateway.do("late/Go")
        found = await problems(gateway)
    described, called = found["quarantined", "described"], found["failing", "called"]
    for one in (described, called, found["quarantined", "asks"], found["failing", "late"]):
        assert one["text"].startswith("it lacks a package or program, nowhere_to_be_found")
        assert "Traceback" not in one["text"]
        assert one["remedy"].startswith("add nowhere_to_be_found to")
    assert (described["severity"], called["severity"]) == ("error", "warning")  # the latter: one call is not much
