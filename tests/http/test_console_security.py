"""Attacks on the console: what other sites, old cookies and many pages can do, and what browsers have to send."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import test_utils, web

from gateway.calls.admission import AdmissionState
from gateway.http.console import live, sessions
from gateway.http.console.files import STATIC
from gateway.http.console.sessions import ConsoleSession, LoggedOut
from gateway.http.keys import Unauthorized
from gateway.identity import Identity
from tests.http.test_clients import client
from tests.http.test_console import COMMANDS, ECHO, GO, Browser, logged_in
from tests.support import Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.script("echo.sh", ECHO.replace("DIR", str(tmp_path)).replace("WORD", "echo"))
    site.configure(f"echo:\n    run: [./echo.sh]\n{COMMANDS}", gateway="api_key: single")
    return site


async def test_a_session_that_was_left_opens_nothing_after_a_restart_either(site: Site) -> None:
    async with served(site) as server:
        browser, stays = await logged_in(server), await logged_in(server)
        left = browser.cookie
        assert (await browser.send("/console/logout")).status == 303
        kept = stays.cookie
    assert (site.state / "logged_out").stat().st_mode & 0o777 == 0o600
    async with served(site) as server:
        for cookie, status in ((left, 303), (kept, 200)):
            browser = Browser(server)
            browser.cookie = cookie
            assert (await browser.request("GET", "/console")).status == status


def test_what_was_left_is_forgotten_when_its_time_is_over_or_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "ENDED", 3)
    known, other = LoggedOut(tmp_path / "a" / "file"), LoggedOut(tmp_path / "a" / "file")
    assert "old" not in known
    for token, until in (("old", 1.0), *((str(number), 1e11) for number in range(4))):
        known.add(ConsoleSession(digest=b"", token=token, until=until))
    assert [token for token in ("old", "0", "1", "2", "3") if token in known] == ["1", "2", "3"]
    assert "3" in other
    other.add(ConsoleSession(digest=b"", token="theirs", until=1e11))
    known.add(ConsoleSession(digest=b"", token="mine", until=1e11))
    assert "theirs" in LoggedOut(tmp_path / "a" / "file")  # what another process has written stays
    for text in (b"", b"nonsense", b'{"a": "b"}'):
        (tmp_path / "a" / "file").write_bytes(text)
        assert "3" not in LoggedOut(tmp_path / "a" / "file")
    (tmp_path / "closed").write_bytes(b"")
    lost = LoggedOut(tmp_path / "closed" / "file")
    lost.add(ConsoleSession(digest=b"", token="mine", until=1e11))
    assert "mine" in lost  # in this process


async def test_a_browser_says_with_a_form_where_it_comes_from(site: Site) -> None:
    """With `no-referrer` it would say `Origin: null`, and over plain HTTP, but at a loopback address, nothing else."""
    async with served(site) as server:
        for path in ("/console/login", "/console", "/console/nowhere"):
            answer = await server.get(path, allow_redirects=False)
            assert answer.headers["Referrer-Policy"] == "same-origin"
        for origin, status in (
            (server.url, 303), ("null", 403), ("http://evil.example", 403), ("https://127.0.0.1", 403), (None, 303),
        ):  # fmt: skip
            marks = {} if origin is None else {"Origin": origin}
            answer = await server.request(
                "POST", "/console/login", data={"key": "single"}, headers=marks, allow_redirects=False
            )
            assert answer.status == status, origin


async def test_files_are_kept_by_their_version_and_by_nothing_else(site: Site) -> None:
    async with served(site) as server:
        page = (await server.get("/console/login")).raw.decode()
        urls = re.findall(r'"(/console/static/[^"]+)"', page)
        assert {re.sub(r".*/|\?.*", "", url) for url in urls} == set(STATIC)
        for url in urls:
            answer = await server.get(url)
            assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            for other in (url.partition("?")[0], f"{url}0", f"{url.partition('?')[0]}?v="):
                assert (await server.get(other)).headers["Cache-Control"] == "no-store"


async def test_no_path_leads_out_of_the_files(site: Site) -> None:
    async with served(site) as server:
        for path in (
            "/console/static/%2e%2e/templates/base.html", "/console/static/..%2ftemplates%2fbase.html",
            "/console/static/VENDORED.md", "/console/static/%00", "/console/static/console.css%2f",
            "/console/static//console.css", "/console/static/CONSOLE.CSS", "/console/static/.%2fconsole.css",
        ):  # fmt: skip
            answer = await server.get(path, allow_redirects=False)
            assert answer.status in {303, 404}, path
            assert b"{%" not in answer.raw
        for path in ("/console/..;/v1/status", "/console%2fjobs", "/console/%2e%2e/v1/status", "//console", "/CONSOLE",
                     "/console/static/..%2f..%2fv1%2fstatus", "/clients/acme/console"):  # fmt: skip
            answer = await server.get(path, allow_redirects=False)
            assert answer.status in {303, 401, 404}, path


async def test_no_client_takes_all_pages_that_can_be_followed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("acme", "beta"):
        client(site, name, f"keys: [KEY({name}-key)]\nallow: [echo]\n")
    assert live.OF_ONE * 2 <= live.MOST
    async with served(site) as server, contextlib.AsyncExitStack() as stack:
        acme, beta = await logged_in(server, "acme-key"), await logged_in(server, "beta-key")

        async def follow(browser: Browser) -> int:
            answer = await stack.enter_async_context(
                server.session.get(f"{server.url}/console/live", headers={"Cookie": f"console={browser.cookie}"})
            )
            return answer.status

        assert {await follow(acme) for _ in range(live.OF_ONE)} == {200}
        assert await follow(acme) == 429
        assert await follow(beta) == 200


async def test_a_form_does_nothing_by_another_method_or_of_another_kind(site: Site) -> None:
    async with served(site) as server:
        browser = await logged_in(server)
        for method in ("PUT", "PATCH", "DELETE", "TRACE"):
            assert (await browser.request(method, GO, data={"csrf": browser.token})).status == 405, method
        for headers in ({"X-HTTP-Method-Override": "POST"}, {"X-Method-Override": "POST"}):
            answer = await browser.request("GET", "/console/logout", headers=headers)
            assert answer.status == 405
        body = f'{{"csrf": "{browser.token}"}}'
        answer = await browser.request("POST", GO, data=body, headers={"Content-Type": "application/json"})
        assert answer.status == 403
        answer = await browser.request("POST", GO, data=b"csrf=x", headers={"Content-Encoding": "gzip"})
        assert answer.status == 400
        assert b"cannot be read" in answer.raw
        bomb = gzip.compress(b"a" * (50 << 20))
        assert (await browser.request("POST", GO, data=bomb, headers={"Content-Encoding": "gzip"})).status == 413
        assert not server.events("run")
        assert not server.events("internal_error")
        for method in ("HEAD", "OPTIONS"):
            assert (await Browser(server).request(method, "/console/jobs")).status == 303
            assert (await browser.request(method, "/console/jobs")).status == 200


async def test_forms_count_in_what_may_be_held(site: Site) -> None:
    site.configure(
        f"echo:\n    run: [./echo.sh]\n{COMMANDS}", gateway="api_key: single\nmax_held: 1MiB\nmax_request: 1MiB"
    )
    async with served(site) as server, contextlib.AsyncExitStack() as stack:
        browser = await logged_in(server)
        head = f"POST {GO} HTTP/1.1\r\nHost: x\r\nCookie: console={browser.cookie}\r\nContent-Length: 900000\r\n\r\n"
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        stack.callback(writer.close)
        writer.write(head.encode() + b"x" * 800_000)  # and never the rest
        await writer.drain()

        async def refused() -> bool:
            return (await browser.send(GO, {"p.text": "x" * 900_000})).status == 503

        await eventually(refused)


async def streamed(news: Callable[[], AsyncIterator[tuple[str, str]]], identify: Callable[[Any], object]) -> bytes:
    """Return all that a stream sends until it ends."""
    serving: Any = SimpleNamespace(state=AdmissionState.SERVING)
    streams = live.Streams(serving, identify)

    async def handler(request: web.Request) -> web.StreamResponse:
        request._state.update(identity=Identity(), request_id="r")
        return await streams.send(request, news, asyncio.Event())

    app = web.Application()
    app.router.add_get("/", handler)
    async with test_utils.TestClient(test_utils.TestServer(app)) as caller:
        sent = await (await caller.get("/")).read()
    assert streams._open.total() == 0
    return sent


async def test_a_stream_ends_with_its_session_although_news_keep_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TICK", 0.05)
    looks = itertools.count()

    def identify(_request: Any) -> None:
        if next(looks):
            raise Unauthorized

    async def news() -> AsyncIterator[tuple[str, str]]:
        while True:
            await asyncio.sleep(0)
            yield "line", "x"

    assert (await streamed(news, identify)).startswith(b": open\n\nevent: line\ndata: x\n\n")


async def test_a_stream_that_fails_ends_and_is_no_other_answer() -> None:
    async def news() -> AsyncIterator[tuple[str, str]]:
        yield "numbers", "<p>1</p>"
        raise RuntimeError("broken")

    assert await streamed(news, lambda _request: None) == b": open\n\nevent: numbers\ndata: <p>1</p>\n\n"
