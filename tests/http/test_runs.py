"""The journal over HTTP: what it tells of runs, what it keeps of them, and a run again."""

from __future__ import annotations

import html
import json
import re
import secrets
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.jobs.support import caller
from tests.observe.test_metrics import scraped, value
from tests.support import Answer, Server, Site, eventually, served

if TYPE_CHECKING:
    from pathlib import Path

ACT = """
request=$(cat)
echo done >> DIR/effects
echo "a line SECRET" >&2
case $request in
*'"do":"told"'*) echo '{"error": {"error_code": "FaxBusy", "message": "engaged"}}' ;;
*'"do":"crash"'*) kill -SEGV $$ ;;
*'"do":"text"'*) echo '{"response": "<p>SECRET</p>", "status": 201, "mimetype": "text/html"}' ;;
*'"do":"fail"'*) exit 3 ;;
*) printf '%s' "$request" ;;
esac
"""
COMMANDS = """
      Go: {additional_parameters: true, parameters: {pin: {type: str, required: false, secret: true}}}
      Job: {async: true, additional_parameters: true}
"""


class JournalSite(Site):
    """A site whose connector `act` does as it is told and says a secret of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.level = "off"
        self.secret = secrets.token_hex(8)
        self.script("act.sh", ACT.replace("DIR", str(folder)).replace("SECRET", self.secret))
        self.serve()

    def serve(self, *, gateway: str = "", connector: str = "") -> None:
        self.configure(
            f"act:\n    run: [./act.sh]\n    env: {{API_TOKEN: {self.secret}}}\n    {connector}\n    commands:{COMMANDS}",
            gateway=f"callbacks: {{first_delay: 50ms, hosts: {{127.0.0.1: {{}}}}}}\n{gateway}",
        )

    def written(self) -> bytes:
        """Return all bytes of the journal's files."""
        return b"".join(one.read_bytes() for one in (self.state / "journal").iterdir())

    def effects(self) -> int:
        file = self.folder / "effects"
        return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture
def site(tmp_path: Path) -> JournalSite:
    return JournalSite(tmp_path)


async def listed(server: Server, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await server.get(f"/v1/runs{query}")).json["runs"]
    return found


async def latest(server: Server) -> dict[str, Any]:
    """Return all that is told of the latest run."""
    found: dict[str, Any] = (await server.get(f"/v1/runs/{(await listed(server, '?limit=1'))[0]['id']}")).json
    return found


async def replayed(server: Server, run: str, **options: Any) -> Answer:
    return await server.request("POST", f"/v1/runs/{run}/replay", **options)


async def test_each_call_is_a_run_that_says_who_what_when_and_how_it_ended(site: JournalSite) -> None:
    body = {"spiff__task_id": "t", "spiff__process_instance_id": 7, "spiff__process_model_identifier": "m"}
    key = {"Authorization": "Bearer k3y"}
    site.serve(gateway="api_key: k3y")
    cases = [
        ("act/Go", {}, "ok", None),
        ("act/Go", {"do": "told"}, "error", "FaxBusy"),
        ("act/Go", {"do": "crash"}, "connector_crashed", "connector_crashed"),
        ("act/Go", {"pin": 5}, "invalid_parameters", "invalid_parameters"),
        ("act/None", {}, "command_not_found", "command_not_found"),
        ("none/Go", {}, "command_not_found", "command_not_found"),
    ]
    async with served(site) as server:
        server.session.headers.update(key)
        for number, (target, params, outcome, code) in enumerate(cases):
            answer = await server.do(target, {**params, **body}, headers={"X-Request-Id": f"r{number}"})
            told = await latest(server)
            assert f"{told['connector']}/{told['command']}" == target
            assert (told["outcome"], told["error_code"], told["request_id"]) == (outcome, code, f"r{number}")
            assert (told["client"], told["key_id"], told["task_id"]) == (None, "api_key", "t")
            assert (told["process_instance_id"], told["process_model_identifier"]) == (7, "m")
            ran = "X-Run-Duration" in answer.headers and told["started"] is not None
            assert told["finished"] >= told["began"] > 1.7e9
            assert (told["peak_rss"] > 0) is (outcome in {"ok", "error", "connector_crashed"}) is ran
            assert told["log"] == ("a line [redacted]" if ran else "")
            assert (told["kept"], told["params"], told["result"]) == ("no", None, None)
            if told["message"]:
                assert told["message"] == answer.message
        assert (await latest(server))["node"] == (await server.status())["journal"]["node"]
        crash = (await listed(server, "?outcome=connector_crashed"))[0]
        assert (crash["signal"], crash["status"]) == ("SIGSEGV", None)
        assert [one["request_id"] for one in await listed(server)] == [f"r{number}" for number in range(6)][::-1]
        await server.get("/v1/do/act/Go", headers={"Authorization": "Bearer wrong"})
        assert len(await listed(server)) == 6
    assert site.secret.encode() not in site.written()


async def test_runs_are_found_by_what_they_are_page_by_page(site: JournalSite) -> None:
    async with served(site) as server:
        for number in range(4):
            params = {"do": "fail"} if number % 2 else {}
            await server.do("act/Go", {**params, "spiff__task_id": f"t{number}", "spiff__process_instance_id": number})
        names = {one["task_id"]: one["id"] for one in await listed(server)}

        async def tasks(query: str) -> list[str]:
            return [one["task_id"] for one in await listed(server, query)]

        assert await tasks("?outcome=failed") == ["t3", "t1"]
        assert await tasks("?outcome=ok&connector=act&command=Go") == ["t2", "t0"]
        assert await tasks("?connector=none") == []
        assert await tasks("?task=t2") == ["t2"]
        assert await tasks("?process_instance=3") == ["t3"]
        assert await tasks("?limit=2&offset=1") == ["t2", "t1"]
        assert await tasks(f"?after={names['t1']}") == ["t3", "t2"]
        assert await tasks("?since=1h") == ["t3", "t2", "t1", "t0"]
        assert await tasks("?until=1h") == []
        assert await tasks("?since=2020-01-01T00:00:00Z&until=2999-01-01T00:00:00%2B01:00") == ["t3", "t2", "t1", "t0"]
        assert await tasks("?since=1700000000.5&until=1700000001") == []
        for query in (
            "limit=x",
            "offset=-1",
            "since=yesterday",
            "until=1e400",
            "since=nan",
            "task=%00",
            "limit=" + "9" * 40,
        ):
            assert (await server.get(f"/v1/runs?{query}")).code == "invalid_request", query
        assert (await server.get("/v1/runs/none")).code == "run_not_found"
        assert (await server.get("/v1/runs/%00")).code == "invalid_request"


async def test_pages_of_the_console_stay_while_runs_come_in(site: JournalSite) -> None:
    async with served(site) as server:

        async def page(path: str) -> tuple[list[str], dict[str, str]]:
            text = (await server.get(path)).raw.decode()
            links = re.findall(r'rel="(prev|next)" href="([^"]+)"', text)
            return re.findall(r"<td>(t\d+)</td>", text), {rel: html.unescape(link) for rel, link in links}

        for number in range(5):
            await server.do("act/Go", {"spiff__task_id": f"t{number}"})
        first, links = await page("/console/runs?limit=2&command=Go")
        assert first == ["t4", "t3"]
        await server.do("act/Go", {"spiff__task_id": "t5"})
        second, links = await page(f"{links['next']}&limit=2")
        assert second == ["t2", "t1"]
        await server.do("act/Go", {"spiff__task_id": "t6"})
        assert (await page(f"{links['next']}&limit=2"))[0] == ["t0"]
        assert (await page(f"{links['prev']}&limit=2"))[0] == ["t4", "t3"]


async def test_payloads_are_kept_where_their_connector_says_so_and_a_reload_is_enough(site: JournalSite) -> None:
    async with served(site) as server:
        await server.do("act/Go", {"x": 1})
        assert (await latest(server))["kept"] == "no"
        site.serve(connector="journal: {payloads: errors}")
        await server.request("POST", "/v1/reload")
        await server.do("act/Go", {"x": 1})
        assert (await latest(server))["kept"] == "no"
        for do in ("fail", "told"):
            await server.do("act/Go", {"do": do})
            told = await latest(server)
            assert (told["kept"], told["params"]) == ("whole", {"do": do})
            assert (told["result"] is None) is (do == "fail")
        await server.do("act/Go", {"pin": 5})  # is refused
        assert (await latest(server))["params"] == {"pin": "[redacted]"}
        site.serve(connector="journal: {payloads: all}")
        await server.request("POST", "/v1/reload")
        answer = await server.do("act/Go", {"x": 1.50, "spiff__task_data": {"order": 17}})
        told = await latest(server)
        assert (told["params"], told["task_data"]) == ({"x": 1.5}, {"order": 17})
        assert told["result"] == answer.json
        site.serve(connector="journal: {payloads: some}")
        await server.request("POST", "/v1/reload")
        assert "payloads" in (await server.status("act"))["reason"]


async def test_no_secret_is_in_the_file(site: JournalSite) -> None:
    site.serve(gateway="journal: {payloads: all}")
    pin, word = secrets.token_hex(8), secrets.token_hex(8)
    async with served(site) as server:
        for do in ("well", "told", "crash", "fail", "text"):
            body = {"do": do, "pin": pin, "copy": f"{pin} {site.secret}", "options": {"password": word}}
            await server.do("act/Go", {**body, "spiff__task_data": {"token": word, "x": pin}})
            told = await latest(server)
            assert told["kept"] == "masked"
            assert told["params"]["copy"] == "[redacted] [redacted]"
            assert (await replayed(server, told["id"])).code == "run_conflict"
        assert told["result"] == "<p>[redacted]</p>"
        assert site.effects() == 5
    for secret in (pin, word, site.secret):
        assert secret.encode() not in site.written()


async def test_what_is_kept_is_sealed_with_the_key_of_jobs(site: JournalSite) -> None:
    site.serve(gateway="journal: {payloads: all}\njobs: {encrypt: the-key}")
    word = secrets.token_hex(8)
    async with served(site) as server:
        await server.do("act/Go", {"x": word})
        told = await latest(server)
        assert told["params"] == {"x": word}
        assert (await replayed(server, told["id"])).status == 200
    assert word.encode() not in site.written()
    site.serve(gateway="journal: {payloads: all}\njobs: {encrypt: another-key}")
    async with served(site) as server:
        found = (await server.get(f"/v1/runs/{told['id']}")).json
        assert (found["unreadable"], found["params"], found["kept"]) == (True, None, "whole")
        assert (await replayed(server, told["id"])).code == "run_conflict"


async def test_what_is_large_is_not_kept(site: JournalSite) -> None:
    site.serve(gateway="journal: {payloads: all, payload_size: 1KiB}")
    async with served(site) as server:
        await server.do("act/Go", {"x": "y" * 2000})
        told = await latest(server)
        assert (told["kept"], told["params"], told["result"]) == ("too_large", None, None)
        assert "payload_size" in (await replayed(server, told["id"])).message


async def test_a_run_is_repeated_as_a_call_of_its_own(site: JournalSite) -> None:
    audit = site.folder / "audit.log"
    site.serve(gateway=f"journal: {{payloads: all}}\naudit: {{file: {audit}}}")
    async with served(site) as server:
        body = {"x": 1, "spiff__task_id": "t", "spiff__process_instance_id": "p", "spiff__task_data": {"order": 17}}
        first = await server.do("act/Go", body)
        told = await latest(server)
        again = await replayed(server, told["id"], headers={"X-Request-Id": "again"})
        assert again.status == 200
        assert again.headers["X-Request-Id"] == "again"
        assert "X-Run-Duration" in again.headers
        for part in ("params", "task_data"):
            assert again.body[part] == first.body[part]
        assert again.body["context"]["task_id"] == "t"
        assert again.body["context"].keys() <= {"request_id", "task_id", "process_instance_id", "deadline_ms"}
        new = await latest(server)
        assert new["id"] != told["id"]
        assert (new["replay_of"], new["request_id"], new["process_instance_id"]) == (told["id"], "again", "p")
        assert (await replayed(server, new["id"])).status == 200
        await server.do("act/Go", {"do": "fail"})
        assert (await replayed(server, (await latest(server))["id"])).code == "connector_failed"
        assert (await replayed(server, "none")).code == "run_not_found"
        assert site.effects() == 5
        lines = [json.loads(line) for line in audit.read_text().splitlines()]
        replays = [one for one in lines if one["event"] == "replay"]
        assert [(one["run"], one["connector"], one["outcome"], one["status"]) for one in replays] == [
            (told["id"], "act", "ok", 200), (new["id"], "act", "ok", 200),
            (replays[2]["run"], "act", "connector_failed", 502), ("none", None, "run_not_found", 404),
        ]  # fmt: skip
        assert (replays[0]["request_id"], replays[0]["job"], replays[0]["task_id"]) == ("again", None, "t")


async def test_runs_of_jobs_say_which_and_a_repeated_run_can_become_one(site: JournalSite) -> None:
    site.serve(gateway="journal: {payloads: all}\napi_key: k3y")
    async with served(site) as server, caller() as backend:
        server.session.headers.update({"Authorization": "Bearer k3y"})
        answer = await server.do("act/Job", {"x": 1, "spiff__callback_url": backend.url})
        job = answer.body["job_id"]
        await eventually(lambda: backend.seen)
        (told,) = await listed(server, f"?job={job}")
        assert (told["outcome"], told["key_id"], told["job"]) == ("ok", "api_key", job)
        again = await replayed(server, told["id"], headers={"Prefer": "respond-async"})
        assert again.status == 202
        other = again.body["job_id"]
        await eventually(lambda: listed(server, f"?job={other}"))
        shown = await server.get(f"/v1/jobs/{other}")
        assert shown.json["callback"] is False


async def test_what_is_off_keeps_nothing_and_says_so(site: JournalSite) -> None:
    site.serve(gateway="journal: off")
    async with served(site) as server:
        await server.do("act/Go")
        for answer in (await server.get("/v1/runs"), await server.get("/v1/runs/x"), await replayed(server, "x")):
            assert (answer.status, answer.code) == (503, "journal_unavailable")
        assert (await server.status())["journal"] is None
    assert not (site.state / "journal").exists()


async def test_runs_outlast_their_gateway_and_its_kill(site: JournalSite) -> None:
    async with served(site) as server:
        for number in range(20):
            await server.do("act/Go", {"spiff__task_id": str(number)})
        assert len(await listed(server)) == 20
        server.signal(signal.SIGKILL)
        await server.ended()
    async with served(site) as server:
        await server.do("act/Go", {"spiff__task_id": "new"})
        assert [one["task_id"] for one in await listed(server)] == ["new", *map(str, range(20))][:1] + [
            str(number) for number in reversed(range(20))
        ]
    assert re.search(rb"SQLite format 3", site.written())


async def test_calls_go_on_where_nothing_can_be_written(site: JournalSite) -> None:
    site.state.mkdir(exist_ok=True)
    (site.state / "journal").write_text("in the way")
    async with served(site) as server:
        assert (await server.do("act/Go")).status == 200
        await eventually(lambda: server.events("journal_changed", ok=False))
        assert (await server.do("act/Go")).status == 200
        assert (await server.get("/v1/runs")).code == "journal_unavailable"
        told = (await server.status())["journal"]
        assert told["problem"]

        async def counted() -> bool:
            return value(await scraped(server), "gateway_journal_dropped_total") == 2

        await eventually(counted)


async def test_a_call_that_became_a_job_on_its_way_says_which(site: JournalSite) -> None:
    site.script("slow.sh", f"cat; while [ ! -e {site.folder}/gate ]; do sleep 0.02; done")
    with site.file.open("a") as file:
        file.write("  slow: {run: [./slow.sh], promote_after: 100ms, commands: {Go: {additional_parameters: true}}}\n")
    async with served(site) as server, caller() as backend:
        answer = await server.do("slow/Go", {"spiff__callback_url": backend.url})
        assert answer.status == 202
        assert await listed(server, "?connector=slow") == []  # it is not over
        (site.folder / "gate").touch()
        await eventually(lambda: backend.seen)
        (told,) = await listed(server, "?connector=slow")
        assert (told["job"], told["outcome"]) == (answer.body["job_id"], "ok")
        assert told["wall"] >= 0.1


async def test_a_run_that_goes_on_after_its_answer_is_one_run_that_ends_as_it_ends(site: JournalSite) -> None:
    site.script(
        "later.sh",
        f"""
        case $(cat) in
        *'"op":"describe"'*)
          echo '{{"commands": [{{"name": "Go", "additional_parameters": true, "execute_async": true}}]}}'; exit ;;
        esac
        echo '{{"started": true}}'; exec >&-; while [ ! -e {site.folder}/gate ]; do sleep 0.02; done; exit 3
        """,
    )
    with site.file.open("a") as file:
        file.write("  later: {run: [./later.sh], journal: {payloads: all}}\n")
    async with served(site) as server:
        assert (await server.do("later/Go", {"x": 1, "spiff__callback_url": "http://127.0.0.1:9/"})).status == 202
        (told,) = await listed(server)
        assert (told["outcome"], told["peak_rss"], told["kept"]) == ("ok", 0, "whole")
        going_on = (await server.get("/v1/jobs?connector=later")).json["jobs"]
        assert [one["id"] for one in going_on] == [told["job"]]
        (site.folder / "gate").touch()

        async def ended() -> Any:
            return await listed(server, "?outcome=failed")

        (last,) = await eventually(ended)
        assert (last["id"], last["job"], last["status"]) == (told["id"], told["job"], 3)
        assert (last["message"], last["peak_rss"] > 0) == ("exit status 3", True)
        assert len(await listed(server)) == 1
