"""The console over HTTP: who comes in, what forms need, what is in which headers, and whose words are on whose pages."""

from __future__ import annotations

import asyncio
import contextlib
import html
import io
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from gateway.http.console.files import HERE, STATIC
from tests.http.test_clients import client, sha256
from tests.jobs.support import caller
from tests.support import Answer, Server, Site, eventually, served
from tests.test_docs import DOCS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ECHO = """
read -r request
echo "WORD writes a line" >&2
case $request in
*'"command":"Fail"'*) exit 3 ;;
*'"command":"Wait"'*) while [ ! -e DIR/gate ]; do sleep 0.02; done ;;
*'"command":"Told"'*) echo '{"error": {"error_code": "no_carrier", "message": "the line is dead"}}'; exit ;;
esac
printf '%s' "$request"
"""
COMMANDS = """
    commands:
      Go:
        description: Says <what> it was sent
        parameters:
          text: {type: str, description: what to say}
          pages: {type: int, default: 7}
          loud: {type: bool, required: false}
          pace: {type: str, enum: [fast, slow], default: fast}
          token: {type: str, secret: true, required: false}
          more: {type: any, required: false}
      Fail: {additional_parameters: true}
      Told: {}
      Wait: {async: true, additional_parameters: true}
"""
GO = "/console/connectors/echo/commands/Go/try"
OTHERS = ("beta", "payroll", "ledgerbeta")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.script("echo.sh", ECHO.replace("DIR", str(tmp_path)).replace("WORD", "echo"))
    site.configure(
        f"""
  echo:
    run: [./echo.sh]
    timeout: 20s
    config: {{region: north, password: hunter22}}
{COMMANDS}
  broken: {{run: [./nowhere]}}
""",
        gateway="api_key: single",
        defaults="queue: 3",
    )
    return site


@pytest.fixture
def worlds(site: Site) -> Site:
    """Two clients, a common connector, and one of its own each."""
    for name, own, ledger in (("acme", "crm", "ledgeracme"), OTHERS):
        site.script(f"{name}.sh", ECHO.replace("WORD", f"{name}-line").replace("DIR", str(site.folder)))
        client(
            site,
            name,
            f"keys: [KEY({name}-key), {{sha256: '{sha256(name + '-view')}', role: viewer}}]\n"
            "allow: [echo]\n"
            "connectors:\n"
            f"  {own}:\n    run: [../{name}.sh]\n{COMMANDS}"
            f"  {ledger}: {{run: [./no-such-{name}-file], commands: {{Go: {{}}}}}}\n",
        )
    return site


@pytest.fixture
async def server(site: Site) -> AsyncIterator[Server]:
    async with served(site) as server:
        yield server


class Browser:
    """Keeps cookies, and fills in forms."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.cookie = ""
        self.token = ""

    async def request(self, method: str, path: str, **options: Any) -> Answer:
        headers = {"Sec-Fetch-Site": "same-origin", **options.pop("headers", {})}
        if self.cookie:
            headers["Cookie"] = f"console={self.cookie}"
        answer = await self.server.request(method, path, headers=headers, allow_redirects=False, **options)
        found = re.match(r"console=([^;]*)", answer.headers.get("Set-Cookie", ""))
        if found:
            self.cookie = found[1].strip('"')
        return answer

    async def log_in(self, key: str = "single", **options: Any) -> Answer:
        answer = await self.request("POST", "/console/login", data={"key": key}, **options)
        if answer.status == 303:
            page = (await self.request("GET", "/console")).raw.decode()
            self.token = re.search(r'name="csrf" value="([^"]+)"', page)[1]  # type: ignore[index]
        return answer

    async def page(self, path: str) -> str:
        answer = await self.request("GET", path)
        assert answer.status == 200, answer
        return html.unescape(answer.raw.decode())

    async def send(self, path: str, fields: dict[str, str] | None = None, **options: Any) -> Answer:
        return await self.request("POST", path, data={"csrf": self.token, **(fields or {})}, **options)


async def logged_in(server: Server, key: str = "single") -> Browser:
    browser = Browser(server)
    assert (await browser.log_in(key)).status == 303
    return browser


# --- to come in


async def test_one_logs_in_with_a_key_and_out_again(server: Server) -> None:
    browser = Browser(server)
    asked = await browser.request("GET", "/console/jobs?state=dead")
    assert asked.status == 303
    assert asked.headers["Location"] == "/console/login?next=%2Fconsole%2Fjobs%3Fstate%3Ddead"
    form = await browser.page(asked.headers["Location"])
    assert 'name="next" value="/console/jobs?state=dead"' in form
    wrong = await browser.log_in("nobodys")
    assert wrong.status == 401
    assert b"This key is nobody" in wrong.raw
    assert not browser.cookie
    right = await browser.log_in()
    assert right.status == 303
    assert right.headers["Location"] == "/console"
    cookie = right.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Lax", "Path=/console", "Max-Age=28800"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert "single" not in cookie
    assert "default, operator" in await browser.page("/console")
    kept = browser.cookie
    assert (await browser.send("/console/logout")).headers["Location"] == "/console/login"
    browser.cookie = kept
    assert (await browser.request("GET", "/console")).status == 303  # whoever has kept it


async def test_nobody_gets_further_than_the_form_without_a_session(server: Server) -> None:
    pages = [
        row.split("`")[1].split(" ")
        for row in (DOCS / "http.md").read_text().splitlines()
        if row.startswith("| `") and " /console" in row
    ]
    assert len(pages) > 10
    for method, path in pages:
        answer = await Browser(server).request(method, re.sub(r"\{\w+\}", "x", path))
        if path == "/console/login":
            assert answer.status == (200 if method == "GET" else 401)
        elif path == "/console/":
            assert answer.headers["Location"] == "/console"
        elif path == "/console/static/{file}":
            assert answer.status == 404
        else:
            assert answer.headers["Location"].startswith("/console/login?next="), path


async def test_a_cookie_is_secure_where_the_browser_has_called_by_https(site: Site) -> None:
    site.configure(gateway="api_key: single\ntrusted_proxies: [127.0.0.1]")
    async with served(site) as server:
        answer = await Browser(server).request(
            "POST", "/console/login", data={"key": "single"}, headers={"X-Forwarded-Proto": "https"}
        )
        name, _, cookie = answer.headers["Set-Cookie"].partition("=")
        assert name == "__Host-console"
        assert {"Secure", "Path=/"} <= set(cookie.split("; "))
        sealed = cookie.partition(";")[0].strip('"')
        for sent, scheme, status in (
            (name, "https", 200),
            ("console", "https", 303),  # which a neighbour may have set
            (name, "http", 303),
        ):
            headers = {"Cookie": f"{sent}={sealed}", "X-Forwarded-Proto": scheme}
            answer = await server.get("/console", headers=headers, allow_redirects=False)
            assert answer.status == status, (sent, scheme)


@pytest.mark.parametrize("cookie", ["", "x", "A" * 200, "A" * 5000, "ä".encode().hex()])
async def test_a_cookie_that_nobody_has_sealed_is_none(server: Server, cookie: str) -> None:
    browser = Browser(server)
    browser.cookie = cookie
    assert (await browser.request("GET", "/console")).status == 303


async def test_the_cookie_of_a_sign_in_and_a_key_in_a_header_open_nothing(server: Server) -> None:
    answer = await Browser(server).request("GET", "/console", headers={"Authorization": "Bearer single"})
    assert answer.status == 303


async def test_it_is_gone_on_to_no_place_but_a_page(server: Server) -> None:
    for place in (
        "https://evil.example/",
        "//evil.example",
        "/console\\@evil",
        "/v1/status",
        "/consoles",
        "/console/\r\nX: y",
    ):
        answer = await Browser(server).request("POST", "/console/login", data={"key": "single", "next": place})
        assert answer.headers["Location"] == "/console", place


async def test_who_guesses_has_to_wait(server: Server) -> None:
    browser = Browser(server)
    assert [(await browser.log_in(f"guess-{n}")).status for n in range(6)] == [401] * 5 + [429]
    answer = await browser.log_in()  # not even with the right one
    assert answer.status == 429
    assert 0 < int(answer.headers["Retry-After"]) <= 300


async def test_a_key_that_is_taken_away_ends_its_sessions(site: Site) -> None:
    client(site, "acme", "keys: [KEY(acme-key), KEY(other)]\nallow: [echo]\n")
    async with served(site) as server:
        browser, other = await logged_in(server, "acme-key"), await logged_in(server, "other")
        async with server.session.get(
            f"{server.url}/console/connectors/echo/log", headers={"Cookie": f"console={browser.cookie}"}
        ) as followed:
            assert followed.status == 200
            client(site, "acme", "keys: [KEY(other)]\nallow: [echo]\n")
            await eventually(lambda: _is_out(browser))
            await followed.content.read()  # it ends
        assert "acme, caller" in await other.page("/console")


async def _is_out(browser: Browser) -> bool:
    return (await browser.request("GET", "/console")).status == 303


async def test_without_a_key_it_is_open_to_this_machine_and_to_no_page_of_another_site(site: Site) -> None:
    site.configure("echo:\n    run: [./echo.sh]\n" + COMMANDS)
    async with served(site) as server:
        browser = Browser(server)
        assert "Log out" not in await browser.page("/console")
        assert (await browser.request("GET", "/console/login")).headers["Location"] == "/console"
        ran = await browser.send(GO, {"p.text": "hallo"})
        assert ran.status == 200
        for marks in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site", "Origin": "http://a.example"}):
            assert (await browser.send(GO, {"p.text": "hallo"}, headers=marks)).status == 403
        assert (await browser.request("GET", "/console", headers={"Host": "evil.example"})).status == 403


async def test_it_can_be_switched_off(site: Site) -> None:
    site.configure(gateway="api_key: single\nconsole: off")
    async with served(site) as server:
        for path in ("/console", "/console/login", "/console/static/console.css", "/console/jobs"):
            assert (await server.get(path)).status == 404


# --- what every answer has


async def test_every_answer_forbids_what_a_page_does_not_need(server: Server) -> None:
    browser = await logged_in(server)
    for path in (
        "/console", "/console/login", "/console/static/htmx.min.js", "/console/static/none.js", "/console/nowhere",
        "/console/connectors/echo", "/console/connectors/none", "/console/jobs/none", "/console/jobs?state=x",
    ):  # fmt: skip
        answer = await browser.request("GET", path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
    async with server.session.get(
        f"{server.url}/console/live", headers={"Cookie": f"console={browser.cookie}"}
    ) as followed:
        assert "default-src 'self'" in followed.headers["Content-Security-Policy"]
        assert followed.headers["Cache-Control"] == "no-store"


def test_no_page_has_a_script_or_a_style_in_it() -> None:
    for file in (HERE / "templates").iterdir():
        text = file.read_text()
        assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|hx-on|javascript:", text), file.name
        assert not re.search(r"(src|href)=\"(?!{{ console }}|#|{{ here }})", text), file.name
    for name in ("console.css", "console.js"):
        assert not re.search(r"https?:|@import|url\(", STATIC[name].read_text()), "nothing from elsewhere"


def test_what_is_vendored_is_what_is_written_down() -> None:
    table = (HERE / "static/VENDORED.md").read_text()
    for name in ("htmx.min.js", "htmx-sse.min.js"):
        assert f"`{sha256(STATIC[name].read_text())}`" in next(
            line for line in table.splitlines() if f"`{name}`" in line
        )


# --- forms


async def test_a_form_that_is_not_of_the_session_does_nothing(server: Server) -> None:
    browser, other = await logged_in(server), await logged_in(server)
    for token in ("", "x", other.token, "ä"):
        for path in (GO, "/console/logout", "/console/jobs/1/cancel", "/console/jobs/1/retry"):
            answer = await browser.request("POST", path, data={"csrf": token, "p.text": "hallo"})
            assert answer.status == 403, path
            assert b"not of your session" in answer.raw
    for marks in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        assert (await browser.send(GO, {"p.text": "hallo"}, headers=marks)).status == 403
    assert (await Browser(server).log_in(headers={"Sec-Fetch-Site": "cross-site"})).status == 403
    assert not server.events("run")
    assert (await browser.send(GO, {"p.text": "hallo"})).status == 200


async def test_a_form_is_bounded(server: Server) -> None:
    browser = await logged_in(server)
    assert (await browser.request("POST", "/console/login", data={"key": "x" * 9000})).status == 413
    assert (await browser.send(GO, {"p.text": "x" * 900_000})).status == 200
    large = await browser.request("POST", GO, data=io.BytesIO(b"x" * (5 << 20)))
    assert large.status == 413
    assert (await browser.send(GO, {f"f{n}": "" for n in range(2000)})).status == 400


async def test_a_form_is_made_from_the_parameters(server: Server) -> None:
    page = await (await logged_in(server)).page("/console/connectors/echo/commands/Go")
    assert "Says <what> it was sent" in page
    assert re.search(r'<textarea id="field-1" name="p.text"', page)
    assert re.search(r'name="p.pages"[^>]* value="7"', page)
    assert re.search(r'<select[^>]*name="p.loud"[^>]*>\s*<option value="" selected>not sent', page)
    assert '<option value=""fast"" selected>fast</option>' in page
    assert re.search(r'name="p.token" type="password" autocomplete="off"', page)
    labels = set(re.findall(r'<label for="([^"]+)"', page))
    assert labels == set(re.findall(r'<(?:input|select|textarea) id="([^"]+)"', page))


async def test_a_command_is_tried_as_a_caller_would(server: Server) -> None:
    browser = await logged_in(server)
    sent = {
        "p.text": 'a "b" <c>',
        "p.pages": "3",
        "p.loud": "true",
        "p.pace": '"slow"',
        "p.token": "s3cret-token",
        "p.more": "[1]",
    }
    answer = await browser.send(GO, sent, headers={"HX-Request": "true"})
    part = html.unescape(answer.raw.decode())
    assert answer.status == 200
    assert "<html" not in part
    for expected in (
        '"text": "a \\"b\\" <c>"',
        '"pages": 3',
        '"loud": true',
        '"pace": "slow"',
        "echo writes a line",
        "memory at most",
    ):
        assert expected in part
    assert "<c>" not in answer.raw.decode()
    [event] = server.events("run")
    assert event["command"] == "Go"
    assert event["request_id"] in part
    whole = (await browser.send(GO, {"p.text": "again", "p.token": "s3cret-token", "p.more": "{"})).raw.decode()
    assert "more is not JSON" in html.unescape(whole)
    assert "again" in whole
    assert "s3cret-token" not in whole


@pytest.mark.parametrize(
    ("command", "sent", "said"),
    [
        ("Go", {}, "text is missing"),
        ("Go", {"p.text": "a", "p.pages": "many"}, "pages must be an integer"),
        ("Fail", {}, "connector_failed"),
        ("Fail", {"additional": "[1]"}, "not a JSON object"),
        ("Told", {}, "no_carrier: the line is dead"),
    ],
)
async def test_what_goes_wrong_is_said(server: Server, command: str, sent: dict[str, str], said: str) -> None:
    browser = await logged_in(server)
    path = f"/console/connectors/echo/commands/{command}/try"
    part = html.unescape((await browser.send(path, sent, headers={"HX-Request": "true"})).raw.decode())
    assert said in part


# --- what is shown


async def test_the_overview_begins_with_what_is_wrong(server: Server) -> None:
    page = await (await logged_in(server)).page("/console")
    wrong = page.index("What is wrong")
    assert wrong < page.index("nowhere") < page.index("What to do: mend") < page.index("<table>")
    assert page.index('id="to-broken"') < page.index('id="to-echo"')


async def test_calls_are_counted_and_drawn(server: Server) -> None:
    for command in ("Told", "Told", "Fail"):
        await server.do(f"echo/{command}", headers={"Authorization": "Bearer single"})
    page = await (await logged_in(server)).page("/console?q=ECH")
    assert 'aria-label="2 told an error, 1 failed"' in page
    assert re.search(r'<td class="number">\d+ ms</td>', page)
    for shown in (page, await (await logged_in(server)).page("/console/connectors/echo")):
        assert re.search(r'aria-label="failed a second, over a quarter of an hour: 0?\.?\d+ in the end', shown)
        assert re.search(r'aria-label="answered within: p50, p95, over a quarter of an hour: \d+ ms, \d+ ms', shown)
    assert 'id="to-broken"' not in page


async def test_a_connector_shows_its_settings_and_where_they_come_from(server: Server, site: Site) -> None:
    page = await (await logged_in(server)).page("/console/connectors/echo")
    rows = dict(re.findall(r'<th scope="row">(\w+)</th><td><code>(.*?</code></td><td>.*?)</td>', page))
    line = next(n for n, text in enumerate(site.file.read_text().splitlines(), 1) if "timeout: 20s" in text)
    assert rows["timeout"] == f"20s</code></td><td>{site.file}:{line}"
    assert rows["queue"] == f"3</code></td><td>{site.file}:{1 + site.file.read_text().splitlines().index('  queue: 3')}"
    assert rows["linger"] == "2s</code></td><td>the default"
    assert '"region":"north"' in rows["config"]
    assert "hunter22" not in page


async def test_a_log_is_followed_while_it_is_written(server: Server) -> None:
    browser = await logged_in(server)
    async with server.session.get(
        f"{server.url}/console/connectors/echo/log", headers={"Cookie": f"console={browser.cookie}"}
    ) as followed:
        assert followed.headers["Content-Type"].startswith("text/event-stream")
        assert (await followed.content.readline()) == b": open\n"
        await browser.send(GO, {"p.text": "hallo"})
        text = ""
        while "ended: ok" not in text:
            text += (await followed.content.readline()).decode()
        assert "event: line\ndata: <p class=" in text
        assert "echo writes a line" in text


async def test_a_drain_waits_for_no_page_that_is_open(site: Site) -> None:
    async with served(site) as server:
        browser = await logged_in(server)
        async with server.session.get(
            f"{server.url}/console/live", headers={"Cookie": f"console={browser.cookie}"}
        ) as followed:
            assert b"open" in await followed.content.readline()
            server.signal(15)
            assert await server.ended() == 0
            with contextlib.suppress(aiohttp.ClientError):
                await followed.content.read()


# --- jobs


async def test_a_job_is_found_asked_about_and_cancelled(site: Site) -> None:
    site.configure(f"echo:\n    run: [./echo.sh]\n{COMMANDS}", gateway="api_key: single\naudit: {file: audit.log}")
    async with served(site) as server:
        accepted = await server.do(
            "echo/Wait",
            {"spiff__task_id": "task-7"},
            headers={"Authorization": "Bearer single", "Prefer": "respond-async"},
        )
        job = accepted.body["job_id"]
        browser = await logged_in(server)
        assert job in await browser.page("/console/jobs?state=&task=task-7&connector=")
        assert job not in await browser.page("/console/jobs?task=task-8")
        assert f'href="/console/jobs/{job}/cancel"' in await browser.page(f"/console/jobs/{job}")
        assert '<a href="/console/connectors/echo">echo</a>/Wait' in await browser.page(f"/console/jobs/{job}")
        assert f'href="/console/runs?job={job}"' in await browser.page(f"/console/jobs/{job}")
        question = await browser.page(f"/console/jobs/{job}/cancel")
        assert "Cancel this job?" in question
        assert (await browser.request("GET", f"/console/jobs/{job}/cancel", headers={})).status == 200
        done = await browser.send(f"/console/jobs/{job}/cancel")
        assert done.headers["Location"] == f"/console/jobs/{job}"
        assert '<span class="state cancelled">' in await browser.page(f"/console/jobs/{job}")
        assert (await browser.send(f"/console/jobs/{job}/cancel")).status == 409
        again = await browser.send(f"/console/jobs/{job}/retry", {"run": "true"})
        assert again.status == 303
        new = urlsplit(again.headers["Location"]).path.rpartition("/")[2]
        assert (await browser.send(f"/console/jobs/{new}/cancel")).status == 303
        told = [line for line in (site.folder / "audit.log").read_text().splitlines() if '"job"' in line]
        events = re.findall(r'"event":"(\w+)"', "\n".join(told))
        assert [one for one in events if one in {"log_in", "cancel", "run_again"}] == [
            "log_in",
            "cancel",
            "cancel",
            "run_again",
            "cancel",
        ]
        assert re.search(rf'"event":"cancel".*"key_id":"api_key".*"job":"{job}".*"outcome":"ok"', "\n".join(told))


async def test_jobs_that_have_ended_are_counted_asked_about_and_removed(worlds: Site) -> None:
    worlds.configure(f"echo:\n    run: [./echo.sh]\n{COMMANDS}", gateway="api_key: single\naudit: {file: audit.log}")
    async with served(worlds, ready=False) as server:
        await eventually(lambda: server.events("registry_loaded"))
        headers = {"Authorization": "Bearer acme-key", "Prefer": "respond-async"}
        jobs = [(await server.do("crm/Wait", {}, headers=headers)).body["job_id"] for _ in range(3)]
        browser, acme = await logged_in(server), await logged_in(server, "acme-key")
        assert 'action="/console/jobs/purge"' in await browser.page("/console/jobs")
        for job in jobs[:2]:
            assert (await browser.send(f"/console/jobs/{job}/cancel")).status == 303
        where = "/console/jobs/purge"

        async def counted() -> bool:  # a job that was cancelled has ended once its process is gone
            return "Remove 2 jobs?" in await browser.page(f"{where}?older_than=0s&state=")

        await eventually(counted)
        question = await browser.page(f"{where}?older_than=0s&state=cancelled")
        assert "All that ended as cancelled more than 0s ago, of all clients." in question
        assert 'name="older_than" value="0s"' in question
        for nothing in ("older_than=1h", "older_than=0s&state=delivered"):
            page = await browser.page(f"{where}?{nothing}")
            assert "Nothing to remove" in page
            assert "csrf" not in page.partition("<main")[2]
        for wrong in ("", "older_than=7", "older_than=1h&state=running", "older_than=1h&state=gone"):
            assert (await browser.request("GET", f"{where}?{wrong}")).status == 400, wrong
        for other in (acme, await logged_in(server, "acme-view")):
            assert "purge" not in await other.page("/console/jobs")
            assert (await other.request("GET", f"{where}?older_than=0s")).status == 403
            assert (await other.send(where, {"older_than": "0s"})).status == 403
        assert (await browser.request("POST", where, data={"csrf": "x", "older_than": "0s"})).status == 403
        assert jobs[0] in await browser.page("/console/jobs")
        done = await browser.send(where, {"older_than": "0s", "state": ""})
        assert (done.status, b"2 jobs were removed" in done.raw) == (200, True)
        page = await browser.page("/console/jobs")
        assert jobs[0] not in page
        assert jobs[2] in page
        [told] = [
            line for line in (worlds.folder / "audit.log").read_text().splitlines()
            if '"event":"purge"' in line and '"outcome":"ok"' in line
        ]  # fmt: skip
        assert '"count":2' in told
        assert (await browser.send(f"/console/jobs/{jobs[2]}/cancel")).status == 303


# --- runs


async def test_a_run_is_found_shown_asked_about_and_repeated(site: Site) -> None:
    site.configure(
        f"echo:\n    run: [./echo.sh]\n    journal: {{payloads: all}}\n{COMMANDS}",
        gateway="api_key: single\naudit: {file: audit.log}",
    )
    async with served(site) as server:
        headers = {"Authorization": "Bearer single"}
        await server.do("echo/Go", {"text": "a <word>", "spiff__task_id": "task-7"}, headers=headers)
        await server.do("echo/Fail", {"spiff__task_id": "task-8"}, headers=headers)
        found = (await server.get("/v1/runs", headers=headers)).json["runs"]
        failed, went = (one["id"] for one in found)
        browser = await logged_in(server)
        page = await browser.page("/console/runs?connector=echo&outcome=&task=task-7&since=1h")
        assert went in page
        assert failed not in page
        assert went not in await browser.page("/console/runs?outcome=failed")
        for run in (failed, went):
            assert f'href="/console/runs/{run}"' in await browser.page("/console/connectors/echo")
        shown = (await browser.request("GET", f"/console/runs/{went}")).raw.decode()
        assert "a &lt;word&gt;" in shown
        assert "echo writes a line" in shown
        steps = re.findall(r'<th scope="row">([^<]+)</th><td class="number">[\d.]+ m?s</td>', shown)
        assert steps == ["in the queue", "start", "run"]
        question = await browser.page(f"/console/runs/{went}/replay")
        assert "Repeat this run?" in question
        assert (await browser.request("POST", f"/console/runs/{went}/replay", data={"csrf": "x"})).status == 403
        again = await browser.send(f"/console/runs/{went}/replay")
        assert again.status == 200
        assert "a &lt;word&gt;" in again.raw.decode()
        [latest] = (await server.get("/v1/runs?limit=1", headers=headers)).json["runs"]
        assert (latest["replay_of"], latest["task_id"], latest["key_id"]) == (went, "task-7", "api_key")
        assert f'href="/console/runs/{went}"' in await browser.page(f"/console/runs/{latest['id']}")
        told = [line for line in (site.folder / "audit.log").read_text().splitlines() if '"event":"replay"' in line]
        assert [re.search(r'"outcome":"(\w+)"', line)[1] for line in told] == ["forbidden", "ok"]  # type: ignore[index]
        for path in ("/console/runs/none", "/console/runs/none/replay"):
            assert (await browser.request("GET", path)).status == 404
        assert (await browser.request("GET", "/console/runs?since=nonsense")).status == 400


async def test_a_run_of_a_job_shows_its_tries_to_call_back(site: Site) -> None:
    site.configure(
        f"echo:\n    run: [./echo.sh]\n{COMMANDS}",
        gateway="callbacks: {first_delay: 50ms, hosts: {127.0.0.1: {}}}",
    )
    async with caller() as backend, served(site) as server:
        site.folder.joinpath("gate").touch()
        sent = {"spiff__task_id": "task-7", "spiff__callback_url": f"{backend.url}/task-7"}
        job = (await server.do("echo/Wait", sent, headers={"Prefer": "respond-async"})).body["job_id"]
        browser = Browser(server)

        async def shown() -> str:
            runs = (await server.get(f"/v1/runs?job={job}")).json["runs"]
            return await browser.page(f"/console/runs/{runs[0]['id']}") if runs else ""

        async def tried() -> bool:
            return '<th scope="row">callback 1</th>' in await shown()

        await eventually(tried)
        assert f'href="/console/jobs/{job}"' in await shown()


async def test_what_was_not_kept_cannot_be_repeated_and_without_a_journal_there_are_no_runs(site: Site) -> None:
    site.configure(f"echo:\n    run: [./echo.sh]\n{COMMANDS}")
    async with served(site) as server:
        await server.do("echo/Go", {"text": "hallo"})
        [run] = (await server.get("/v1/runs")).json["runs"]
        browser = Browser(server)
        assert "Repeat ..." not in await browser.page(f"/console/runs/{run['id']}")
        assert (await browser.send(f"/console/runs/{run['id']}/replay")).status == 409
    site.configure(f"echo:\n    run: [./echo.sh]\n{COMMANDS}", gateway="journal: off")
    async with served(site) as server:
        await server.do("echo/Go", {"text": "hallo"})
        browser = Browser(server)
        assert (await browser.request("GET", "/console/runs")).status == 503
        assert "<td>Go</td><td>ok</td>" in await browser.page("/console/connectors/echo")


# --- clients


async def test_a_key_sees_nothing_of_anothers(worlds: Site) -> None:
    async with served(worlds, ready=False) as server:
        await eventually(lambda: server.events("registry_loaded"))
        beta = await logged_in(server, "beta-key")
        followed = await server.session.get(
            f"{server.url}/console/connectors/echo/log",
            headers={"Cookie": f"console={(await logged_in(server, 'acme-key')).cookie}"},
        )
        for target in ("echo/commands/Go", "payroll/commands/Fail"):
            assert (await beta.send(f"/console/connectors/{target}/try", {"p.text": "beta-word"})).status == 200
        headers = {"Authorization": "Bearer beta-key", "Prefer": "respond-async"}
        job = (await server.do("payroll/Wait", {"spiff__task_id": "beta-task"}, headers=headers)).body["job_id"]
        assert job in await beta.page("/console/jobs")
        assert "payroll" in await beta.page("/console")
        assert "in flight, over a quarter of an hour: 1 in the end" in await beta.page("/console")
        acme = await logged_in(server, "acme-key")
        assert (await acme.send("/console/connectors/echo/commands/Go/try", {"p.text": "mine"})).status == 200
        text = ""
        while "ended: ok" not in text:
            text += (await followed.content.readline()).decode()
        followed.close()
        assert text.count("data: <p class=") == 2  # its own line, and its own end
        pages = ["/console", "/console?q=beta", "/console/connectors/echo", "/console/connectors/crm", "/console/jobs",
                 "/console/connectors/echo/commands/Go", "/console/jobs?connector=payroll",
                 "/console/runs", "/console/runs?connector=payroll"]  # fmt: skip
        for page in pages:
            found = await acme.page(page)
            found = (
                found.replace('value="beta"', "")
                .replace("q=beta", "")
                .replace("“beta”", "")
                .replace('value="payroll"', "")
            )
            for word in (*OTHERS, "no-such-beta-file", job, str(worlds.folder)):
                assert word not in found, (page, word)
        assert "ledgeracme" in await acme.page("/console")
        assert "in flight, over a quarter of an hour: 0 in the end, at most 0" in await acme.page("/console")
        for path in (
            "/console/connectors/payroll",
            "/console/connectors/payroll@beta",
            "/console/connectors/payroll/log",
        ):
            assert (await acme.request("GET", path)).status == 404
        for path in (f"/console/jobs/{job}", f"/console/jobs/{job}/cancel"):
            assert (await acme.request("GET", path)).status == 403
        assert (await acme.send(f"/console/jobs/{job}/cancel")).status == 403
        assert (await acme.request("GET", "/console/jobs?client=beta")).status == 403
        assert (await acme.request("GET", "/console/runs?client=beta")).status == 403
        runs = (await server.get("/v1/runs", headers={"Authorization": "Bearer beta-key"})).json["runs"]
        assert len(runs) > 1
        for one in runs:
            assert (await acme.request("GET", f"/console/runs/{one['id']}")).status == 403
            assert (await acme.send(f"/console/runs/{one['id']}/replay")).status == 403
        assert (await beta.send(f"/console/jobs/{job}/cancel")).status == 303


async def test_runs_that_go_on_are_their_client_s_and_processes_an_operator_s(worlds: Site) -> None:
    async with served(worlds, ready=False) as server:
        await eventually(lambda: server.events("registry_loaded"))
        calls = []
        for name in ("acme", "beta"):
            headers = {"Authorization": f"Bearer {name}-key", "X-Request-Id": f"id-of-{name}"}
            sent = {"spiff__task_id": f"task-of-{name}"}
            calls.append(asyncio.create_task(server.do("echo/Wait", sent, headers=headers)))
        operator = await logged_in(server)

        async def begun() -> bool:
            page = await operator.page("/console/connectors/echo")
            return page.count("<td>runs a call</td>") == page.count("id-of-") == 2

        await eventually(begun)
        page = await operator.page("/console/connectors/echo")
        assert all(f"<td>task-of-{name}</td>" in page and f"<td>{name}</td>" in page for name in ("acme", "beta"))
        acme = await (await logged_in(server, "acme-view")).page("/console/connectors/echo")
        assert "<td>task-of-acme</td>" in acme
        assert "of-beta" not in acme
        assert "Processes, a table" not in acme
        assert "<dt>in flight</dt><dd>1" in acme
        (worlds.folder / "gate").touch()
        assert {one.status for one in await asyncio.gather(*calls)} == {200}


async def test_a_viewer_looks_and_an_operator_sees_all(worlds: Site) -> None:
    async with served(worlds, ready=False) as server:
        await eventually(lambda: server.events("registry_loaded"))
        viewer = await logged_in(server, "acme-view")
        assert "acme, viewer" in await viewer.page("/console")
        assert "Run</button>" not in await viewer.page("/console/connectors/echo/commands/Go")
        assert (await viewer.send(GO, {"p.text": "hallo"})).status == 403
        operator = await logged_in(server)
        page = await operator.page("/console")
        assert "payroll@beta" in page
        assert "crm@acme" in page
        assert "Run</button>" not in await operator.page("/console/connectors/crm%40acme/commands/Go")
        assert (await operator.send("/console/connectors/crm%40acme/commands/Go/try", {"p.text": "x"})).status == 404
        assert (await operator.send(GO, {"p.text": "hallo"})).status == 200
