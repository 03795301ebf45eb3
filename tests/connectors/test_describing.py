"""A start: the port is open at once, and nobody waits for a connector that does not say what it can do."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from gateway.connectors.definition import define
from gateway.connectors.sources import read_sources
from gateway.settings import read_settings
from tests.support import PATIENCE, Server, Site, cli, eventually, served

if TYPE_CHECKING:
    from pathlib import Path

GO = '{"commands": [{"name": "Go", "additional_parameters": true}]}'
ASKED = "it is being asked what it can do, 30 s at most (describe_timeout)"
PATIENT = "good: {describe_timeout: 30s}"
HANGS = "did not describe itself within 0.3 s (describe_timeout)"


def hanging(site: Site, count: int) -> list[str]:
    """Write drop-ins that never say what they can do; return their names."""
    names = [f"hang{number:02}" for number in range(count)]
    for name in names:
        site.script(f"connectors.d/{name}.sh", "trap '' TERM; sleep 1000")
    return names


def gated(site: Site, name: str, description: str = GO) -> Path:
    """Write a drop-in that describes itself once its gate, which is returned, is open, and notes that it was asked."""
    gate = site.folder / f"{name}.gate"
    os.mkfifo(gate)
    site.script(
        f"connectors.d/{name}.sh",
        f"""
        request=$(cat)
        case $request in
        *'"op":"describe"'*) echo {name} >>"{site.folder}/asked"; read line <"{gate}"; echo '{description}' ;;
        *) echo '"{name} here"' ;;
        esac
        """,
    )
    return gate


def good(site: Site, name: str = "good") -> None:
    site.script(
        f"connectors.d/{name}.sh",
        f"""case $(cat) in *'"op":"describe"'*) echo '{GO}' ;; *) echo '"{name} here"' ;; esac\n""",
    )


def asked(site: Site) -> list[str]:
    file = site.folder / "asked"
    return file.read_text().splitlines() if file.exists() else []


async def open_(gate: Path) -> None:
    """Let whoever waits at a gate pass. Opening it for writing waits for him."""
    await asyncio.to_thread(gate.write_text, "go\n")


async def waits(gateway: Server, name: str, **options: object) -> asyncio.Task[object]:
    """Call a connector that is being asked, and make sure that it is not answered before others are."""
    call = asyncio.create_task(gateway.do(f"{name}/Go", **options))
    for _ in range(20):
        assert (await gateway.get("/liveness")).status == 200
    assert not call.done()
    return call


async def test_nine_that_hang_keep_nobody_waiting(site: Site) -> None:
    names = hanging(site, 9)
    good(site, "zgood")
    site.configure()
    async with served(site, ready=False) as gateway:
        answer = await gateway.get("/v1/readiness")
        assert answer.status == 503
        assert answer.json["reason"] == "describing"
        assert {*names} <= {*answer.json["connectors"]}
        assert (await gateway.do("zgood/Go")).body == "zgood here"
        assert await gateway.commands() == ["zgood/Go"]
        status = await gateway.status()
        assert status["describing"] == names
        assert {one: status["connectors"][one]["reason"] for one in names} == dict.fromkeys(names, ASKED)
        assert (await gateway.get("/v1/readiness")).json == {"ok": False, "reason": "describing", "connectors": names}
        late = "appears while the others hang"
        site.script("connectors.d/late.sh", f"""case $(cat) in *describe*) echo '{GO}' ;; *) echo '"{late}"' ;; esac""")

        async def called() -> bool:
            return (await gateway.do("late/Go")).status == 200

        await eventually(called)


async def test_many_that_wait_are_all_asked_at_the_same_time(site: Site) -> None:
    gates = {name: gated(site, name) for name in (f"slow{number:02}" for number in range(12))}
    site.configure()
    async with served(site, ready=False) as gateway:
        await eventually(lambda: sorted(asked(site)) == sorted(gates))
        assert (await gateway.get("/v1/readiness")).json["connectors"] == sorted(gates)
        for gate in gates.values():
            await open_(gate)
        await eventually(gateway.ready)
        assert await gateway.commands() == [f"{name}/Go" for name in gates]
        assert [event["asked"] for event in gateway.events("all_described")] == [12]


async def test_one_that_hangs_is_given_up_after_describe_timeout_and_the_gateway_is_ready(site: Site) -> None:
    hanging(site, 2)
    good(site)
    site.configure("hang01: {describe_timeout: 200ms}\n" + PATIENT, defaults="describe_timeout: 300ms")
    async with served(site) as gateway:
        states = (await gateway.status())["connectors"]
        assert {name: one["state"] for name, one in states.items()} == {
            "good": "ready", "hang00": "quarantined", "hang01": "quarantined"
        }  # fmt: skip
        assert states["hang00"]["reason"] == HANGS
        assert states["hang01"]["reason"] == "did not describe itself within 0.2 s (describe_timeout)"
        answer = await gateway.do("hang00/Go")
        assert (answer.status, answer.code) == (503, "connector_unavailable")
        assert HANGS in answer.message


async def test_a_connector_that_hangs_later_does_not_make_a_gateway_unready(site: Site) -> None:
    good(site)
    site.configure()
    async with served(site) as gateway:
        hanging(site, 1)
        await eventually(lambda: asking(gateway, "hang00"))
        assert await gateway.ready()
        assert (await gateway.status())["describing"] == []
        assert await gateway.commands() == ["good/Go"]


async def test_a_longer_describe_timeout_is_tried_at_once(site: Site) -> None:
    gate = gated(site, "slow")
    site.configure(defaults="describe_timeout: 200ms")
    async with served(site) as gateway:
        assert (await gateway.status("slow"))["state"] == "quarantined"
        site.configure(defaults="describe_timeout: 1m")
        await eventually(lambda: asking(gateway, "slow"))  # and not at the end of five seconds, or of five minutes
        await open_(gate)
        await eventually(lambda: listed(gateway, ["slow/Go"]))


async def asking(gateway: Server, name: str) -> bool:
    connectors = (await gateway.status())["connectors"]
    return name in connectors and connectors[name]["state"] == "describing"


async def listed(gateway: Server, commands: list[str]) -> bool:
    return await gateway.commands() == commands


def test_a_host_that_imports_has_as_long_and_a_minute_at_least(site: Site) -> None:
    site.configure("one: {run: [cat]}\ntwo: {run: [cat], describe_timeout: 2m}")
    settings, _ = read_settings(site.file)
    sources = read_sources(settings)
    found = [define(entry, sources.defaults, settings) for entry in sources.entries]
    assert [one.launch.keep.boot for one in found if one is not None] == [60, 120]


# --- calls


async def test_a_call_waits_for_its_connector_to_describe_itself(site: Site) -> None:
    gate = gated(site, "slow")
    site.configure()
    async with served(site, ready=False) as gateway:
        call = await waits(gateway, "slow")
        await open_(gate)
        assert (await call).body == "slow here"
        assert (await gateway.do("slow/Come")).code == "command_not_found"
        assert (await gateway.do("none/Come")).code == "command_not_found"


async def test_a_call_that_wants_to_be_a_job_waits_too(site: Site) -> None:
    gate = gated(site, "slow")
    site.configure()
    async with served(site, ready=False) as gateway:
        call = await waits(gateway, "slow", headers={"Prefer": "respond-async"})
        await open_(gate)
        answer = await call
        assert answer.status == 202
        name = answer.json["command_response"]["body"]["job_id"]

        async def done() -> bool:
            return (await gateway.get(f"/v1/jobs/{name}")).json["state"] not in {"queued", "running"}

        await eventually(done)


async def test_a_call_waits_no_longer_than_it_may_take(site: Site) -> None:
    gated(site, "slow")
    site.configure()
    async with served(site, ready=False) as gateway:
        answer = await gateway.do("slow/Go", headers={"X-Timeout": "0.3"})
        assert (answer.status, answer.code) == (503, "connector_unavailable")
        assert answer.message == f"slow/Go: slow is describing: {ASKED}"
        assert answer.headers["Retry-After"]


async def test_no_more_calls_wait_than_may_run_and_queue(site: Site) -> None:
    gate = gated(site, "slow")
    site.configure("slow: {concurrency: 1, queue: 1}")
    async with served(site, ready=False) as gateway:
        calls = [asyncio.create_task(gateway.do("slow/Go")) for _ in range(3)]
        done, others = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert [call.result().code for call in done] == ["connector_unavailable"]
        await open_(gate)
        assert [(await call).status for call in others] == [200, 200]


async def test_a_call_whose_connector_turns_out_to_be_bad_hears_why(site: Site) -> None:
    gate = gated(site, "slow", description='{"commands": 7}')
    site.configure()
    async with served(site, ready=False) as gateway:
        call = await waits(gateway, "slow")
        await open_(gate)
        answer = await call
        assert (answer.status, answer.code) == (503, "connector_unavailable")
        assert "slow is quarantined: describe failed" in answer.message


async def test_the_description_of_a_file_that_was_replaced_meanwhile_is_waited_for(site: Site) -> None:
    gated(site, "slow")
    site.configure()
    async with served(site, ready=False) as gateway:
        call = await waits(gateway, "slow")
        good(site, "slow")
        assert (await call).body == "slow here"


# --- the catalogue


async def test_who_asks_at_once_for_what_there_is_hears_of_all_that_answers_soon(site: Site) -> None:
    telling = {"commands": [{"name": "Find", "typeahead": {"category": "people", "prefix": "text"},
                             "parameters": [{"id": "text", "type": "str"}]}],
               "auths": [{"name": "Sign", "authorize_url": "https://one.example/", "token_url": "https://one.example/",
                          "client_id": "me"}]}  # fmt: skip
    site.script("connectors.d/teller.sh", f"cat >/dev/null; echo '{json.dumps(telling)}'")
    good(site)
    site.configure()
    for path, told in (("commands", ["good/Go", "teller/Find"]), ("auths", ["teller/Sign"])):
        async with served(site, ready=False) as gateway:
            assert [one["id"] for one in (await gateway.get(f"/v1/{path}")).json] == told
        shutil.rmtree(site.state / "describe")
    async with served(site, ready=False) as gateway:
        assert (await gateway.get("/v1/typeahead/people?prefix=A&limit=1")).status == 502  # it gives no list


# --- the end of a start


async def test_a_start_is_ended_at_once_and_those_who_wait_are_told(site: Site) -> None:
    hanging(site, 6)
    site.configure()
    async with served(site, ready=False) as gateway:
        call = await waits(gateway, "hang05")
        await eventually(lambda: len(gateway.connectors()) >= 6)
        gateway.signal(signal.SIGTERM)
        answer = await call
        assert (answer.status, answer.code) == (503, "gateway_draining")
        assert await gateway.ended() == 0
        assert not gateway.events("quarantined")


# --- the command line


async def test_check_and_list_ask_all_at_the_same_time(site: Site) -> None:
    gates = {name: gated(site, name) for name in (f"slow{number:02}" for number in range(9))}
    site.configure()
    for number, verb in enumerate(("check", "list"), 1):
        verbs = asyncio.create_task(asyncio.to_thread(cli, site, verb, "--json"))
        await eventually(lambda number=number: len(asked(site)) == number * len(gates))
        for gate in gates.values():
            await open_(gate)
        assert (await verbs).returncode == 0
        shutil.rmtree(site.state / "describe")


def test_check_and_list_give_up_what_hangs(site: Site) -> None:
    hanging(site, 5)
    good(site)
    site.configure(PATIENT, defaults="describe_timeout: 300ms")
    done = cli(site, "check", "--json")
    assert done.returncode == 1
    found = {one["name"]: one for one in json.loads(done.stdout)["connectors"]}
    assert {one["problem"] for name, one in found.items() if name != "good"} == {HANGS}
    assert found["hang00"]["limits"]["describe_timeout"] == "300ms"
    assert found["good"]["limits"]["describe_timeout"] == "30s"
    assert [one["id"] for one in json.loads(cli(site, "list", "--json").stdout)] == ["good/Go"]


def test_call_waits_for_no_other_connector(site: Site) -> None:
    names = hanging(site, 5)
    good(site)
    site.configure(defaults="describe_timeout: 1h")
    assert '"body":"good here"' in cli(site, "call", "--quiet", "good/Go").stdout
    done = cli(site, "call", "--quiet", "--timeout", "0.3", f"{names[0]}/Go")
    assert done.returncode == 1
    assert "connector_unavailable" in done.stderr


def test_a_verb_that_is_interrupted_leaves_nothing(site: Site) -> None:
    hanging(site, 3)
    gate = gated(site, "slow")
    site.configure()
    process = subprocess.Popen([sys.executable, "-m", "gateway", "check", "--config", str(site.file)],
                               cwd=site.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    descriptor = os.open(gate, os.O_WRONLY)  # once it is asked
    os.close(descriptor)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 130
