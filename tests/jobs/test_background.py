"""Runs that go on after their answers, of executables in whatever language."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import Answer, Server, Site, eventually, gone, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LATER = """
request=$(cat)
case $request in
*'"op":"describe"'*)
  echo '{"commands": [{"name": "Go", "additional_parameters": true, "execute_async": true}]}'; exit ;;
esac
how=$(printf %s "$request" | sed -n 's/.*"how":"\\([a-z_]*\\)".*/\\1/p')
hold() { while [ ! -e DIR/gate ]; do sleep 0.02; done; echo $how >> DIR/done; }
case $how in
leader) echo '{"started": true}'; exec >&-; hold ;;
newline) echo '{"started": true}'; hold ;;
shell) (hold) & echo '{"started": true}' ;;
daemon) setsid env -i sh -c "cd /; while [ ! -e DIR/gate ]; do sleep 0.02; done; echo $how >> DIR/done" >/dev/null 2>&1 & \
  echo '{"started": true}' ;;
noise) echo 'not yet'; echo '{"started": true}'; hold ;;
silent) hold ;;
eats) echo '{"started": true}'; head -c 300000000 /dev/zero | tail -c 300000000 | cat > /dev/null; hold ;;
fails) echo '{"started": true}'; exec >&-; exit 3 ;;
dies) echo '{"started": true}'; exec >&-; kill -SEGV $$ ;;
esac
"""
URL = "http://127.0.0.1:9/callback"


class Later(Site):
    """A site whose connector `later` goes on as it is told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.script("later.sh", LATER.replace("DIR", str(folder)))
        self.serve()

    def serve(self, *, gateway: str = "drain: 1s", **keys: Any) -> None:
        written = "".join(f", {key}: {value}" for key, value in keys.items())
        self.configure(f"later: {{run: [./later.sh]{written}}}", gateway=gateway)

    def done(self) -> list[str]:
        file = self.folder / "done"
        return file.read_text().split() if file.exists() else []

    def let_go(self) -> None:
        (self.folder / "gate").touch()


@pytest.fixture
def site(tmp_path: Path) -> Later:
    return Later(tmp_path)


@pytest.fixture
async def gateway(site: Later) -> AsyncIterator[Server]:
    async with served(site) as server:
        yield server


async def go(gateway: Server, how: str) -> Answer:
    return await gateway.do("later/Go", {"how": how, "spiff__callback_url": URL})


async def going_on(gateway: Server) -> list[dict[str, Any]]:
    return [one for one in (await gateway.get("/v1/jobs")).json["jobs"] if one["background"]]


async def finished(gateway: Server) -> dict[str, Any]:
    (event,) = await eventually(lambda: gateway.events("background_finished"))
    return event


@pytest.mark.parametrize("how", ["leader", "newline", "shell", "daemon", "noise"])
@pytest.mark.parametrize("cgroup", ["true", "false"])
async def test_an_answer_is_complete_with_a_line_the_end_of_stdout_or_of_the_leader(
    site: Later, how: str, cgroup: str
) -> None:
    site.serve(gateway=f"cgroup: {cgroup}")
    async with served(site) as gateway:
        answer = await go(gateway, how)
        assert (answer.status, answer.body) == (202, {"started": True})
        assert len(await going_on(gateway)) == 1
        assert site.done() == []
        site.let_go()
        assert (await finished(gateway))["outcome"] == "ok"
        assert site.done() == [how]
        await eventually(lambda: not gateway.connectors())


async def test_one_that_never_answers_ends_at_the_deadline_of_calls(site: Later) -> None:
    site.serve(timeout="300ms")
    async with served(site) as gateway:
        answer = await go(gateway, "silent")
        assert (answer.status, answer.code) == (504, "connector_timeout")
        assert await going_on(gateway) == []


@pytest.mark.parametrize(
    ("how", "outcome", "message"),
    [("fails", "failed", "exit status 3"), ("dies", "connector_crashed", "SIGSEGV")],
)
async def test_how_it_ended_is_told(gateway: Server, how: str, outcome: str, message: str) -> None:
    assert (await go(gateway, how)).status == 202
    event = await finished(gateway)
    assert (event["outcome"], event["level"]) == (outcome, "warning")
    assert message in event["message"]


async def test_its_memory_stays_bounded(site: Later) -> None:
    site.serve(max_memory="64MiB")
    async with served(site) as gateway:
        assert (await go(gateway, "eats")).status == 202
        assert (await finished(gateway))["outcome"] == "connector_out_of_memory"


@pytest.mark.parametrize("how", ["leader", "daemon"])
async def test_it_ends_with_the_drain_and_nothing_is_left(site: Later, gateway: Server, how: str) -> None:
    assert (await go(gateway, how)).status == 202
    left = gateway.connectors()
    gateway.signal(signal.SIGTERM)
    assert await gateway.ended() == 0
    assert (await finished(gateway))["outcome"] == "gateway_draining"
    await gone(left)
    assert site.done() == []


async def test_nothing_is_left_of_it_when_the_gateway_is_killed(gateway: Server) -> None:
    for how in ("leader", "daemon"):
        assert (await go(gateway, how)).status == 202
    left = gateway.connectors()
    gateway.signal(signal.SIGKILL)
    await gateway.ended()
    await gone(left)


async def test_those_that_go_on_are_listed_shown_and_cancelled(site: Later) -> None:
    site.serve(gateway="drain: 1s\nmetrics: open", concurrency=20)
    async with served(site) as gateway:
        answers = await asyncio.gather(*(go(gateway, "leader") for _ in range(12)))
        assert {answer.status for answer in answers} == {202}
        found = await going_on(gateway)
        assert len(found) == 12
        assert all(one["id"].startswith("run-") for one in found)
        assert [one["accepted"] for one in found] == sorted((one["accepted"] for one in found), reverse=True)
        assert (await gateway.status())["background_runs"] == 12
        running = gateway.connectors()
        assert len(running) >= 12
        for one in found:
            assert (await gateway.get(f"/v1/jobs/{one['id']}")).json == one
            answer = await gateway.request("POST", f"/v1/jobs/{one['id']}/cancel")
            assert (answer.status, answer.json["state"]) == (200, "cancelled")
        assert await going_on(gateway) == []
        assert (await gateway.get(f"/v1/jobs/{found[0]['id']}")).status == 404
        again = await gateway.request("POST", f"/v1/jobs/{found[0]['id']}/retry")
        assert (again.status, again.code) == (409, "job_conflict")
        await gone(running)


@pytest.mark.parametrize("name", ["run-", "run-x-1", "run-0", "run-7-1", "run-0-nope"])
async def test_an_id_of_nobodys_is_not_found(gateway: Server, name: str) -> None:
    for method, path in (("GET", name), ("POST", f"{name}/cancel")):
        answer = await gateway.request(method, f"/v1/jobs/{path}")
        assert (answer.status, answer.code) == (404, "job_not_found")


async def test_a_command_that_could_call_back_by_itself_does_not_when_it_runs_as_a_job(gateway: Server) -> None:
    """The gateway calls back with what it came to, once."""
    answer = await gateway.do("later/Go", {"how": "leader"}, headers={"Prefer": "respond-async"})
    assert answer.status == 202
    (job,) = (await gateway.get("/v1/jobs")).json["jobs"]
    assert job["background"] is False
    await gateway.request("POST", f"/v1/jobs/{job['id']}/cancel")
