"""Signing in through a real gateway, at a small OAuth provider that checks what it is sent."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import os
import re
import ssl
import stat
import subprocess
import sys
import time
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit

import aiohttp
import msgspec
import pytest
import trustme
from aiohttp import web
from yarl import URL

from gateway.application import Application
from gateway.connectors.definition import define
from gateway.connectors.sources import read_sources
from gateway.errors import ConfigError, Quarantine
from gateway.oauth import cookies, flow
from gateway.oauth.flow import LIFE, SignIn
from gateway.oauth.seal import FILE, Seal
from gateway.sealing import Broken
from gateway.settings import read_settings
from tests.installing import FIXTURES
from tests.support import Server, Site, cli, eventually, listening, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

BACKEND = "http://localhost:8000"
TOKEN = "eyJhbGciOi.backend-token.sig"
BACK = f"{BACKEND}/v1.0/authentication_callback/fax/OAuth?token={TOKEN}"
SECRET = "hush-hush-4711"
ACCESS = "access-token-8f2c"
FORM = "application/x-www-form-urlencoded"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'",
    "Referrer-Policy": "no-referrer",
}


class Provider:
    """An OAuth provider: says yes at once, and takes a code once, from whom it gave it to."""

    def __init__(self) -> None:
        self.url = ""
        self.token: dict[str, Any] = {
            "access_token": ACCESS,
            "token_type": "Bearer",
            "refresh_token": "refresh-77",
            "expires_in": 3600,
        }
        self.answer: Callable[[], web.StreamResponse] | None = None
        """What the token URL answers instead."""
        self.hangs: asyncio.Event | None = None
        self.public = False
        self.pkce = True
        self.asked: list[dict[str, str]] = []
        self.forms: list[dict[str, str]] = []
        self.refused: list[str] = []
        self.accepted: list[str] = []
        """Encodings of an answer that whoever had a code could read."""
        self._codes: dict[str, dict[str, str]] = {}

    async def authorize(self, request: web.Request) -> web.Response:
        query = dict(request.query)
        self.asked.append(query)
        code = f"code-{len(self.asked)}-secret"
        self._codes[code] = query
        return web.Response(
            status=302, headers={"Location": f"{query['redirect_uri']}?code={code}&state={query['state']}"}
        )

    async def exchange(self, request: web.Request) -> web.StreamResponse:
        form = {key: str(value) for key, value in (await request.post()).items()}
        self.forms.append(form)
        self.accepted.append(request.headers.get("Accept-Encoding", ""))
        if self.hangs is not None:
            await self.hangs.wait()
        if self.answer is not None:
            return self.answer()
        query = self._codes.pop(form.get("code", ""), None)
        problem = self._problem(form, query, request) if query is not None else "unknown code"
        if problem is not None:
            self.refused.append(problem)
            return web.json_response({"error": "invalid_grant", "error_description": problem}, status=400)
        return web.json_response(self.token)

    def _problem(self, form: dict[str, str], query: dict[str, str], request: web.Request) -> str | None:
        expected = {"grant_type": "authorization_code", "client_id": "gate", "redirect_uri": query["redirect_uri"]}
        if not self.public:
            expected["client_secret"] = SECRET
        if self.pkce:
            challenge = base64.urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
            if challenge.rstrip(b"=").decode() != query["code_challenge"]:
                return "code_verifier"
        if "Authorization" in request.headers:
            return "Authorization"
        wrong = {key for key in expected if form.get(key) != expected[key]}
        more = set(form) - set(expected) - {"code", *(["code_verifier"] if self.pkce else [])}
        return f"wrong {wrong} more {more}" if wrong | more else None


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    app = web.Application()
    app.router.add_get("/authorize", made.authorize)
    app.router.add_post("/token", made.exchange)
    async with listening(app) as made.url:
        yield made


class Page(NamedTuple):
    """What a browser got."""

    status: int
    headers: Any
    text: str

    @property
    def location(self) -> str:
        assert self.status == 302, self
        return str(self.headers["Location"])

    @property
    def token(self) -> Any:
        """The JSON that a browser brings to the backend."""
        response = re.split(r"[?&]response=", self.location)[1]
        assert re.fullmatch(r"[A-Za-z0-9_.~%-]+", response)
        return json.loads(unquote(response))


class Browser:
    """Keeps cookies and follows nothing by itself."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def get(self, url: str, **options: Any) -> Page:
        async with self.session.get(URL(url, encoded=True), allow_redirects=False, **options) as response:
            return Page(response.status, response.headers.copy(), await response.text())

    def cookies(self) -> list[Any]:
        return list(self.session.cookie_jar)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield Browser(session)


def auth(provider: Provider, **keys: Any) -> str:
    """Return an authentication as YAML in one line."""
    facts: dict[str, Any] = {
        "authorize_url": f"{provider.url}/authorize",
        "token_url": f"{provider.url}/token",
        "client_id": "gate",
        "client_secret": SECRET,
        "scope": "fax.send offline",
        **keys,
    }
    return json.dumps({name: value for name, value in facts.items() if value is not None})


def configure(site: Site, auths: str, gateway: str = f"oauth: {{redirects: [{BACKEND}]}}") -> None:
    site.configure(f"fax: {{run: [cat], commands: {{}}, auths: {{OAuth: {auths}}}}}", gateway=gateway)


@pytest.fixture
async def gateway(site: Site, provider: Provider) -> AsyncIterator[Server]:
    configure(site, auth(provider))
    async with served(site) as server:
        yield server


def start(gateway: Server, back: str = BACK, target: str = "fax/OAuth") -> str:
    return f"{gateway.url}/v1/auth/{target}?redirect_url={back}"


async def sign_in(gateway: Server, browser: Browser, back: str = BACK, target: str = "fax/OAuth") -> Page:
    """Go all the way, as a browser does."""
    begun = await browser.get(start(gateway, back, target))
    at_provider = await browser.get(begun.location)
    return await browser.get(at_provider.location)


def check_headers(page: Page) -> None:
    assert {name: page.headers.get(name) for name in HEADERS} == HEADERS


# --- the flow


async def test_a_browser_comes_back_with_a_token(gateway: Server, browser: Browser, provider: Provider) -> None:
    begun = await browser.get(start(gateway))
    url = urlsplit(begun.location)
    query = dict(parse_qsl(url.query))
    assert f"{url.scheme}://{url.netloc}{url.path}" == f"{provider.url}/authorize"
    assert (query["response_type"], query["client_id"], query["scope"]) == ("code", "gate", "fax.send offline")
    assert (query["redirect_uri"], query["code_challenge_method"]) == (
        f"{gateway.url}/v1/auth/fax/OAuth/callback",
        "S256",
    )
    assert len(query["state"]) >= 32
    check_headers(begun)
    at_provider = await browser.get(begun.location)
    now = int(time.time())
    done = await browser.get(at_provider.location)
    check_headers(done)
    assert done.location.startswith(f"{BACK}&response=")
    token = done.token
    assert now + 3600 <= token.pop("expires_at") <= now + 3660
    assert token == {**provider.token, "scope": ["fax.send", "offline"]}
    assert (provider.refused, len(provider.forms)) == ([], 1)
    assert browser.cookies() == []
    assert gateway.events("sign_in", connector="fax", auth="OAuth", outcome="ok")


async def test_no_key_is_needed_to_sign_in_but_to_list(site: Site, provider: Provider, browser: Browser) -> None:
    configure(site, auth(provider), f"{{api_key: k3y, oauth: {{redirects: [{BACKEND}]}}}}")
    async with served(site) as gateway:
        assert (await gateway.get("/v1/auths")).status == 401
        listed = await gateway.get("/v1/auths", headers={"Spiff-Connector-Proxy-Api-Key": "k3y"})
        assert listed.json == [{"id": "fax/OAuth", "parameters": []}]
        assert (await sign_in(gateway, browser)).token["access_token"] == ACCESS


async def test_no_token_code_or_secret_gets_into_the_log(gateway: Server, browser: Browser, provider: Provider) -> None:
    await sign_in(gateway, browser)
    provider.answer = lambda: web.json_response({"error": f"bad {SECRET}"}, status=400)
    await sign_in(gateway, browser)
    await browser.get(f"{gateway.url}/v1/auth/fax/OAuth/callback?code=code-x-secret&state=st4te-x")
    await browser.get(start(gateway, f"http://evil.example/?token={TOKEN}"))
    await browser.get(start(gateway, BACK + "x" * 9000))
    await gateway.request("POST", f"/v1/auth/fax/OAuth?redirect_url={BACK}")
    log = await eventually(lambda: gateway.log() if "LineTooLong" in gateway.log() else None)
    states = [asked["state"] for asked in provider.asked]
    verifiers = [form["code_verifier"] for form in provider.forms]
    for hidden in (
        TOKEN,
        ACCESS,
        SECRET,
        "code-1-secret",
        "code-x-secret",
        "st4te-x",
        "refresh-77",
        *states,
        *verifiers,
    ):
        assert hidden not in log


async def test_sign_ins_are_in_the_audit_without_what_they_are_about(
    site: Site, browser: Browser, provider: Provider
) -> None:
    configure(site, auth(provider), f"{{oauth: {{redirects: [{BACKEND}]}}, audit: {{file: audit.log}}}}")
    async with served(site) as gateway:
        await sign_in(gateway, browser)
        await browser.get(f"{gateway.url}/v1/auth/fax/OAuth/callback?code=code-x-secret&state=st4te-x")
        await browser.get(start(gateway, f"http://evil.example/?token={TOKEN}"))
        await gateway.request("HEAD", "/v1/auth/fax/OAuth")
    text = (site.folder / "audit.log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["event"], line["outcome"], line["status"]) for line in lines] == [
        ("auth_started", "ok", 302),
        ("auth_finished", "ok", 302),
        ("auth_finished", "failed", 400),
        ("auth_started", "failed", 400),
    ]
    assert {(line["connector"], line["command"], line["client"]) for line in lines} == {("fax", "OAuth", "default")}
    hidden = (TOKEN, ACCESS, SECRET, "code-", "st4te", "localhost", "evil", provider.asked[0]["state"], "redirect")
    assert not [one for one in hidden if one in text]


async def test_a_scope_that_was_granted_counts(gateway: Server, browser: Browser, provider: Provider) -> None:
    provider.token = {"access_token": ACCESS, "scope": "fax.read  more", "expires_in": None, "odd": {"x": "&=#\u2603"}}
    token = (await sign_in(gateway, browser)).token
    assert token == {**provider.token, "scope": ["fax.read", "more"]}


async def test_a_public_client_sends_no_secret(site: Site, provider: Provider, browser: Browser) -> None:
    provider.public = True
    configure(site, auth(provider, client_secret=None, scope=["a", "b"], extra={"prompt": "consent", "uri": "x"}))
    async with served(site) as gateway:
        assert (await sign_in(gateway, browser)).token["scope"] == ["a", "b"]
    assert provider.refused == []
    assert (provider.asked[0]["scope"], provider.asked[0]["prompt"], provider.asked[0]["uri"]) == (
        "a b",
        "consent",
        "x",
    )


async def test_pkce_can_be_left_out(site: Site, provider: Provider, browser: Browser) -> None:
    provider.pkce = False
    configure(site, auth(provider, pkce=False))
    async with served(site) as gateway:
        assert (await sign_in(gateway, browser)).token["access_token"] == ACCESS
    assert "code_challenge" not in provider.asked[0]


RETURNS: list[tuple[Any, str]] = [
    (f"{BACKEND}/cb?token=x&more=y", f"{BACKEND}/cb?token=x&more=y&response="),
    (f"{BACKEND}/cb", f"{BACKEND}/cb?response="),
    (
        f"{BACKEND}/cb?a=%20b&redirect_url=http://evil.example",
        f"{BACKEND}/cb?a=%20b&redirect_url=http://evil.example&response=",
    ),
    ("http%3A%2F%2Flocalhost%3A8000%2Fcb%3Ftoken%3Dx%26y%3Dz&more=http://e", f"{BACKEND}/cb?token=x&y=z&response="),
]


async def test_the_address_to_return_to_is_the_rest_of_the_query(gateway: Server, browser: Browser) -> None:
    for sent, arrives in RETURNS:
        assert (await sign_in(gateway, browser, sent)).location.startswith(arrives)


async def test_who_only_looks_at_a_callback_does_not_end_the_sign_in(gateway: Server, browser: Browser) -> None:
    back = (await browser.get((await browser.get(start(gateway))).location)).location
    async with browser.session.head(URL(back, encoded=True)) as head:
        assert (head.status, "Set-Cookie" in head.headers) == (200, False)
        assert {name: head.headers.get(name) for name in HEADERS} == HEADERS
    assert (await browser.get(back)).token["access_token"] == ACCESS


async def test_several_sign_ins_in_one_browser_do_not_meet(gateway: Server, browser: Browser) -> None:
    first = await browser.get(start(gateway, f"{BACKEND}/first"))
    second = await browser.get(start(gateway, f"{BACKEND}/second"))
    assert len(browser.cookies()) == 2
    at_second, at_first = await browser.get(second.location), await browser.get(first.location)
    assert (await browser.get(at_second.location)).location.startswith(f"{BACKEND}/second?response=")
    assert (await browser.get(at_first.location)).location.startswith(f"{BACKEND}/first?response=")
    assert browser.cookies() == []


async def test_what_one_cookie_cannot_hold_is_held_by_several(gateway: Server, browser: Browser) -> None:
    back = f"{BACKEND}/cb?token={os.urandom(3900).hex()}"
    begun = await browser.get(start(gateway, back[:7900]))
    parts = [one for one in browser.cookies() if one.key.startswith("signin-")]
    assert len(parts) > 1
    assert all(len(one.OutputString()) < 4096 for one in parts)
    done = await browser.get((await browser.get(begun.location)).location)
    assert done.location.startswith(f"{back[:7900]}&response=")
    assert browser.cookies() == []


async def test_sign_ins_that_were_given_up_do_not_lock_a_browser_out(
    gateway: Server, browser: Browser, provider: Provider
) -> None:
    def kept(more: dict[str, str] | None = None) -> dict[str, str]:
        # A jar of aiohttp by itself sends less than browsers do.
        held = {one.key: one.value for one in browser.cookies()} | (more or {})
        return {"Cookie": "; ".join(f"{key}={value}" for key, value in held.items())} if held else {}

    begun = []
    for number in range(8):
        token = base64.urlsafe_b64encode(os.urandom(4500)).decode()
        begun.append(await browser.get(start(gateway, f"{BACKEND}/{number}?token={token}"), headers=kept()))
        assert begun[-1].status == 302
        assert len({one.key.rpartition("-")[0] for one in browser.cookies()}) == min(number + 1, 2)
    assert len(browser.cookies()) == 4
    for number in (5, 7, 6):
        back = (await browser.get(begun[number].location)).location
        done = await browser.get(back, headers=kept())
        if number == 5:
            assert (done.status, "This sign-in is not known" in done.text) == (400, True)
        else:
            assert done.location.startswith(f"{BACKEND}/{number}?token=")
    assert len(provider.forms) == 2
    assert browser.cookies() == []
    await browser.get(start(gateway))
    (latest,) = browser.cookies()
    page = await browser.get(start(gateway), headers=kept(cookies.parts("zz", "x")))
    dropped = [one.partition("=")[0] for one in page.headers.getall("Set-Cookie") if "Max-Age=0" in one]
    assert dropped == list(cookies.parts("zz", "x"))
    assert latest.key in {one.key for one in browser.cookies()}


async def test_cookies_are_for_this_authentication_and_no_script(gateway: Server, browser: Browser) -> None:
    await browser.get(start(gateway))
    (cookie,) = browser.cookies()
    assert (cookie["path"], cookie["httponly"], cookie["samesite"]) == ("/v1/auth/fax/OAuth", True, "Lax")
    assert (cookie["secure"], cookie["max-age"]) == ("", str(LIFE))
    assert TOKEN not in cookie.value


async def test_behind_a_proxy_the_public_url_is_what_browsers_see(
    site: Site, provider: Provider, browser: Browser
) -> None:
    public = "https://gate.example/connectors"
    configure(site, auth(provider), f"{{public_url: {public}/, oauth: {{redirects: [{BACKEND}]}}}}")
    async with served(site) as gateway:
        begun = await browser.get(start(gateway))
        (cookie,) = begun.headers.getall("Set-Cookie")
        assert "; Path=/connectors/v1/auth/fax/OAuth;" in cookie
        assert "; Secure" in cookie
        at_provider = await browser.get(begun.location)
        assert at_provider.location.startswith(f"{public}/v1/auth/fax/OAuth/callback?")
        sent = {"Cookie": cookie.partition(";")[0]}
        done = await browser.get(at_provider.location.replace(public, gateway.url), headers=sent)
        assert done.token["access_token"] == ACCESS
        assert all("Path=/connectors/v1/auth/fax/OAuth" in one for one in done.headers.getall("Set-Cookie"))
    assert provider.refused == []


async def test_a_callback_may_come_after_a_restart(site: Site, provider: Provider, browser: Browser) -> None:
    configure(site, auth(provider), f"{{oauth: {{redirects: [{BACKEND}]}}}}")
    async with served(site) as gateway:
        begun = await browser.get(start(gateway))
        back = urlsplit((await browser.get(begun.location)).location)
    key = site.state / FILE
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    async with served(site) as gateway:
        done = await browser.get(f"{gateway.url}{back.path}?{back.query}")
        # The provider compares the whole redirect_uri, which holds the first gateway's port: it is remembered.
        assert done.token["access_token"] == ACCESS
    assert [one.name for one in site.state.iterdir() if "oauth" in one.name] == [FILE]


# --- who may be sent where


ELSEWHERE: list[tuple[Any, str]] = [
    ("http://evil.example/cb", "http://evil.example"),
    ("https://localhost:8000/cb", "https://localhost:8000"),
    ("http://localhost:8001/cb", "http://localhost:8001"),
    ("http://localhost/cb", "http://localhost"),
    ("http://localhost:8000@evil.example/cb", "plain http or https URL"),
    ("http://localhost:8000.evil.example/cb", "plain http or https URL"),
    ("http://localhost:8000%5C@evil.example/cb", "plain http or https URL"),
    ("http%3A%2F%2Flocalhost%3A8000%5C@evil.example/cb", "plain http or https URL"),
    ("http%3A%2F%2Flocalhost%3A8000%2F%0D%0ASet-Cookie:a=b", "plain http or https URL"),
    ("//evil.example/cb", "plain http or https URL"),
    ("javascript:alert(1)//http://localhost:8000", "plain http or https URL"),
    ("http%3A%2F%2F%3Cscript%3E", "plain http or https URL"),
    ("http%C5%BF://localhost:8000/cb", "plain http or https URL"),
]


async def test_nobody_is_sent_anywhere_else(gateway: Server, browser: Browser) -> None:
    for back, shown in ELSEWHERE:
        page = await browser.get(start(gateway, back))
        assert (page.status, page.headers.get("Location")) == (400, None)
        assert shown in page.text
        assert "<script" not in page.text
        assert browser.cookies() == []
        check_headers(page)


async def test_the_page_says_what_to_add_where(gateway: Server, browser: Browser) -> None:
    page = await browser.get(start(gateway, f"http://backend.example:8000/secret?token={TOKEN}"))
    assert "gateway: oauth: redirects: [http://backend.example:8000]" in page.text
    assert "secret" not in page.text


async def test_a_rule_with_a_path_holds_for_what_is_below(site: Site, provider: Provider, browser: Browser) -> None:
    configure(site, auth(provider), f"oauth: {{redirects: ['{BACKEND}/api']}}")
    async with served(site) as gateway:
        assert (await browser.get(start(gateway, f"{BACKEND}/api/cb"))).status == 302
        for path in ("/other", "/apis", "/api/../other", "/api/%2e%2e/other"):
            assert (await browser.get(start(gateway, BACKEND + path))).status == 400


async def test_without_redirects_the_hosts_of_callbacks_count(site: Site, provider: Provider, browser: Browser) -> None:
    configure(site, auth(provider), "callbacks: {allow: [backend, '*.example.org', 10.0.0.0/8]}")
    async with served(site) as gateway:
        assert (await browser.get(start(gateway, "http://backend:8000/cb"))).status == 302
        for url in (
            "http://localhost:8000/cb",
            "http://a.example.org/cb",
            "http://10.0.0.1/cb",
            "http://backend.evil/cb",
        ):
            assert (await browser.get(start(gateway, url))).status == 400
    configure(site, auth(provider), "{}")
    async with served(site) as gateway:
        assert (await browser.get(start(gateway))).status == 400


# --- what can go wrong


async def test_without_an_address_to_return_to_nothing_begins(gateway: Server, browser: Browser) -> None:
    for query in ("", "?", "?redirect_url=", "?xredirect_url=http://localhost:8000"):
        page = await browser.get(f"{gateway.url}/v1/auth/fax/OAuth{query}")
        assert (page.status, "lacks redirect_url" in page.text) == (400, True)
        check_headers(page)


async def test_what_is_not_there_is_not_found(gateway: Server, browser: Browser) -> None:
    targets = ("fax/Other", "other/OAuth", "fax/%3Cscript%3E", "../x")
    for target, end in itertools.product(targets, ("", "/callback")):
        page = await browser.get(f"{gateway.url}/v1/auth/{target}{end}?redirect_url={BACK}")
        assert page.status == 404
        assert "<script" not in page.text
        if ".." not in target:
            assert "Auth not found" in page.text
            check_headers(page)


async def test_what_the_provider_says_is_shown_and_harmless(gateway: Server, browser: Browser) -> None:
    begun = await browser.get(start(gateway))
    state = parse_qs(urlsplit(begun.location).query)["state"][0]
    says = "%3Cscript%3Ealert(1)%3C/script%3E" + "x" * 2000
    url = f"{gateway.url}/v1/auth/fax/OAuth/callback"
    page = await browser.get(f"{url}?error=access_denied&error_description={says}&state={state}")
    assert (page.status, "access_denied" in page.text) == (400, True)
    assert "&lt;script&gt;alert(1)" in page.text
    assert len(page.text) < 2000
    check_headers(page)
    assert browser.cookies() == []
    page = await browser.get(f"{url}?error=access_denied&error_description={says}&state={state}")
    assert "access_denied" in page.text
    assert "script" not in page.text


def broken(cookie: str) -> list[str]:
    middle = len(cookie) // 2
    return [
        cookie[:middle] + ("A" if cookie[middle] != "A" else "B") + cookie[middle + 1 :],
        cookie[:-8],
        cookie + "AAAA",
        "x",
        "",
    ]


async def test_a_sign_in_that_is_not_this_browser_s_own_is_refused(
    gateway: Server, browser: Browser, provider: Provider, site: Site
) -> None:
    begun = await browser.get(start(gateway))
    (cookie,) = browser.cookies()
    at_provider = await browser.get(begun.location)
    name, value = cookie.key, cookie.value
    query = dict(parse_qsl(urlsplit(at_provider.location).query))
    callback = f"{gateway.url}/v1/auth/fax/OAuth/callback?code={query['code']}&state="
    browser.session.cookie_jar.clear()

    async def refused(state: str, cookies: dict[str, str]) -> None:
        header = {"Cookie": "; ".join(f"{key}={one}" for key, one in cookies.items())} if cookies else {}
        page = await browser.get(callback + state, headers=header)
        assert (page.status, "This sign-in is not known" in page.text) == (400, True)
        check_headers(page)

    await refused(query["state"], {})
    await refused("", {name: value})
    await refused("another-state", {name: value})
    await refused("another-state", {f"{cookies.name_of('another-state')}0": value})
    await refused("%ff%e2%98%83", {name: value})
    for bad in broken(value):
        await refused(query["state"], {name: bad})
    seal = Seal(None, site.state)
    known = msgspec.json.decode(seal.open(value), type=SignIn)
    for changed in (
        {"expires": time.time() - 1},
        {"connector": "other"},
        {"auth": "Other"},
        {"application": "x"},
        {"state": "s"},
    ):
        forged = seal.close(msgspec.json.encode(msgspec.structs.replace(known, **changed)))
        await refused(query["state"], {name: forged})
    strange = Seal("another key", site.state).close(msgspec.json.encode(known))
    await refused(query["state"], {name: strange})
    await refused(query["state"], {name: seal.close(b"{}")})
    assert provider.forms == []
    page = await browser.get(callback + query["state"], headers={"Cookie": f"{name}={value}"})
    assert page.token["access_token"] == ACCESS


@pytest.mark.parametrize(
    ("changed", "holds"),
    [
        ({"authorize_url": "/elsewhere"}, False),
        ({"token_url": "/elsewhere"}, False),
        ({"client_id": "another"}, False),
        ({"scope": "fax.read"}, True),
    ],
)
async def test_a_sign_in_that_was_begun_for_another_application_ends_nowhere(
    site: Site, provider: Provider, browser: Browser, changed: dict[str, str], holds: bool
) -> None:
    configure(site, auth(provider))
    async with served(site) as gateway:
        back = (await browser.get((await browser.get(start(gateway))).location)).location
        told = {key: f"{provider.url}{value}" if key.endswith("_url") else value for key, value in changed.items()}
        configure(site, auth(provider, **told))
        await eventually(lambda: len(gateway.events("registry_loaded")) == 2)
        page = await browser.get(back)
        if holds:
            assert page.token["scope"] == ["fax.read"]
            return
        assert (page.status, "This sign-in is not known" in page.text) == (400, True)
        check_headers(page)
    assert provider.forms == []


NO_TOKENS: list[tuple[Any, str]] = [
    (
        lambda: web.json_response({"error": "invalid_client", "error_description": SECRET}, status=401),
        "the error invalid_client",
    ),
    (lambda: web.json_response({"error": SECRET + " is wrong"}, status=400), "the error (one that is no code)"),
    (lambda: web.json_response({"error": SECRET}, status=400), "the error (one that is no code)"),
    (lambda: web.json_response({"message": "no"}, status=403), "no access_token"),
    (lambda: web.Response(text='{"access_token": "x", "y": "\\ud800"}'), "something that is no token"),
    (lambda: web.json_response({"token_type": "Bearer"}), "no access_token"),
    (lambda: web.json_response({"access_token": 5}), "no access_token"),
    (lambda: web.json_response([1]), "something that is no token"),
    (lambda: web.Response(text="hello"), "something that is no token"),
    (lambda: web.Response(body=b"\xff\xfe\x00"), "something that is no token"),
    (lambda: web.json_response({"access_token": "x", "expires_in": "soon"}), "something that is no token"),
    (lambda: web.Response(status=500, text=SECRET), "token_url answered 500"),
    (lambda: web.Response(status=404, text=SECRET), "token_url answered 404"),
    (lambda: web.Response(status=307, headers={"Location": "/token"}), "307, a redirect"),
    (lambda: web.Response(text='{"access_token": "x", "y": ' + "[" * 30_000), "something that is no token"),
    (
        lambda: web.Response(text='{"access_token": "x", "y": ' + "[" * 30_000 + "]" * 30_000 + "}"),
        "something that is no token",
    ),
    (lambda: web.Response(text='{"error": "invalid_grant", "access_token": "x"}'), "the error invalid_grant"),
    (lambda: web.json_response({"error": None}), "no access_token"),
    (lambda: web.Response(text="error=bad_code&access_token=", content_type=FORM), "the error bad_code"),
    (lambda: web.Response(text="error=bad_code", content_type=FORM, status=400), "the error bad_code"),
    (lambda: web.Response(text="expires_in=soon&access_token=x", content_type=FORM), "something that is no token"),
    (lambda: web.Response(text="access_token=%ff", content_type=FORM), "something that is no token"),
    (lambda: web.Response(text="access_token=x", content_type="text/html"), "something that is no token"),
]


async def test_an_answer_without_an_error_is_a_token(gateway: Server, browser: Browser, provider: Provider) -> None:
    text = f'{{"access_token": "{ACCESS}", "error": null}}'
    for kind in ("application/json", "text/plain", FORM):
        provider.answer = lambda kind=kind: web.Response(text=text, content_type=kind)
        assert (await sign_in(gateway, browser)).token == {"access_token": ACCESS, "scope": ["fax.send", "offline"]}


async def test_a_form_is_a_token(gateway: Server, browser: Browser, provider: Provider) -> None:
    form = {"access_token": "a+b c&d", "scope": "x y", "token_type": "bearer", "expires_in": "3600"}
    for kind in (FORM, "text/plain"):
        provider.answer = lambda kind=kind: web.Response(text=urlencode(form), content_type=kind)
        token = (await sign_in(gateway, browser)).token
        assert token.pop("expires_at") >= time.time() + 3500
        assert token == {**form, "scope": ["x", "y"], "expires_in": 3600}


async def test_a_token_s_answer_has_a_bound(gateway: Server, browser: Browser, provider: Provider) -> None:
    text = json.dumps({"access_token": ACCESS}).ljust(64 << 10)
    provider.answer = lambda: web.Response(text=text)
    assert (await sign_in(gateway, browser)).token["access_token"] == ACCESS
    provider.answer = lambda: web.Response(text=f"{text} ")
    page = await sign_in(gateway, browser)
    assert (page.status, "token_url answered more than 64 KiB" in page.text) == (502, True)
    check_headers(page)


async def test_a_compressed_answer_is_neither_asked_for_nor_unpacked(
    gateway: Server, browser: Browser, provider: Provider
) -> None:
    bomb = zlib.compressobj(wbits=31)
    packed = b"".join(bomb.compress(b" " * (1 << 20)) for _ in range(64)) + bomb.flush()
    for encoding in ("gzip", "identity, GZIP", "br"):
        headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
        provider.answer = lambda headers=headers: web.Response(body=packed, headers=headers)
        page = await sign_in(gateway, browser)
        assert (page.status, "token_url answered something compressed" in page.text) == (502, True)
    assert set(provider.accepted) == {"identity"}
    provider.answer = lambda: web.Response(body=packed, headers={"Content-Type": "application/json"})
    assert "something that is no token" in (await sign_in(gateway, browser)).text
    provider.answer = None
    assert (await sign_in(gateway, browser)).token["access_token"] == ACCESS


async def test_a_provider_that_gives_no_token_is_a_page(gateway: Server, browser: Browser, provider: Provider) -> None:
    for answer, told in NO_TOKENS:
        provider.answer = answer
        page = await sign_in(gateway, browser)
        assert (page.status, told in page.text) == (502, True), page.text
        assert SECRET not in page.text
        assert len(provider.forms) == 1
        provider.forms.clear()
        check_headers(page)
        assert browser.cookies() == []


async def test_a_provider_that_is_away_is_a_page(site: Site, provider: Provider, browser: Browser) -> None:
    configure(site, auth(provider, token_url="http://127.0.0.1:1/token"))
    async with served(site) as gateway:
        page = await sign_in(gateway, browser)
    assert (page.status, "token_url could not be reached (ConnectError)" in page.text) == (502, True)


async def test_a_provider_that_does_not_answer_in_time_is_given_up(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "PATIENCE", 0.3)
    provider.hangs = asyncio.Event()
    application = Application(authorize_url=provider.url, token_url=f"{provider.url}/token", client_id="gate")
    begun = SignIn(
        connector="c",
        auth="a",
        application="",
        redirect_url="",
        redirect_uri="http://gate.example/callback",
        expires=0,
    )
    with pytest.raises(flow.TokenRefused, match=r"did not answer within 0.3 s|could not be reached .ReadTimeout"):
        await flow.fetch_token(application, begun, "code")
    provider.hangs.set()


async def test_a_provider_is_trusted_as_the_system_says(site: Site, provider: Provider, browser: Browser) -> None:
    authority, folder = trustme.CA(), site.folder
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    app = web.Application()
    app.router.add_post("/token", provider.exchange)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    configure(site, auth(provider, token_url=f"https://127.0.0.1:{runner.addresses[0][1]}/token"))
    try:
        async with served(site, env={"SSL_CERT_FILE": str(folder / "ca.pem")}) as gateway:
            assert (await sign_in(gateway, browser)).token["access_token"] == ACCESS
        async with served(site) as gateway:
            assert "could not be reached" in (await sign_in(gateway, browser)).text
            assert gateway.events("sign_in", outcome="failed")[0]["reason"].startswith(
                "The provider gave no token: token_url"
            )
    finally:
        await runner.cleanup()


async def test_proxies_of_the_environment_are_not_asked(site: Site, provider: Provider, browser: Browser) -> None:
    configure(site, auth(provider))
    proxy = "http://127.0.0.1:1"
    async with served(site, env={"HTTP_PROXY": proxy, "ALL_PROXY": proxy, "NO_PROXY": ""}) as gateway:
        assert (await sign_in(gateway, browser)).token["access_token"] == ACCESS


async def test_a_host_that_is_none_is_refused(gateway: Server, browser: Browser) -> None:
    for host in ("evil.example/x", "a@b", "a:b"):
        page = await browser.get(start(gateway), headers={"Host": host})
        assert page.status == 400
        assert "Set-Cookie" not in page.headers


async def test_a_key_that_cannot_be_kept_is_a_page(site: Site, provider: Provider, browser: Browser) -> None:
    configure(site, auth(provider))
    async with served(site) as gateway:
        (site.state / FILE).write_bytes(b"\xff\xfe")
        pages = [await browser.get(start(gateway))]
        (site.state / FILE).unlink()
        (site.state / FILE).mkdir()
        pages.append(await browser.get(start(gateway)))
        for page in pages:
            assert (page.status, "cannot read or make the key" in page.text) == (500, True)
            check_headers(page)


async def test_a_failure_of_the_gateway_itself_shows_and_logs_no_query(
    site: Site, provider: Provider, browser: Browser
) -> None:
    breaking = site.folder / "breaking"
    breaking.mkdir()
    (breaking / "sitecustomize.py").write_text(
        "from gateway.http import auths\ndef broken(*_):\n    raise RuntimeError('broken')\nauths.authorize_url = broken\n"
    )
    configure(site, auth(provider))
    root = FIXTURES.parent.parent
    async with served(site, env={"PYTHONPATH": f"{breaking}:{root}"}) as gateway:
        page = await browser.get(start(gateway))
        assert page.status == 500
        check_headers(page)
        assert gateway.events("internal_error", path="/v1/auth/fax/OAuth")
        assert TOKEN not in page.text + gateway.log()


# --- where an application is told


async def test_an_operator_s_keys_lie_on_top_of_a_connector_s(site: Site, provider: Provider, browser: Browser) -> None:
    told = {
        "name": "OAuth",
        "authorize_url": f"{provider.url}/authorize",
        "token_url": "http://127.0.0.1:1/",
        "scope": "a",
    }
    more = {"name": "Half", "authorize_url": "https://x.example", "parameters": [{"id": "p", "type": "str"}]}
    wrong = {"name": "Wrong", "authorize_url": "x.example", "token_url": "https://x.example", "client_id": "c"}
    site.script("fax.sh", f"echo '{json.dumps({'commands': [], 'auths': [told, more, wrong]})}'")
    keys = json.dumps({"token_url": f"{provider.url}/token", "client_id": "gate", "client_secret": SECRET})
    site.configure(
        f"fax: {{run: [./fax.sh], auths: {{OAuth: {keys}, Own: {{description: Mine, client_id: c}}}}}}",
        gateway=f"oauth: {{redirects: [{BACKEND}]}}",
    )
    async with served(site) as gateway:
        assert (await gateway.get("/v1/auths")).json == [{"id": "fax/OAuth", "parameters": []}]
        assert (await sign_in(gateway, browser)).token["scope"] == ["a"]
        assert (await browser.get(start(gateway, target="fax/Half"))).status == 404
        assert (await gateway.status("fax"))["notices"] == [
            "auths/Half is left out: token_url and client_id are missing",
            "auths/Wrong is left out: authorize_url: not an http or https URL without user and fragment",
            "auths/Own is left out: authorize_url and token_url are missing",
        ]
    assert "auths/Half is left out: token_url and client_id are missing" in cli(site, "check").stdout


async def test_a_connector_s_own_secret_is_neither_written_nor_shown(
    site: Site, provider: Provider, browser: Browser
) -> None:
    asked = site.folder / "asked"
    site.python(
        "fax.py",
        f"""
        import json, sys
        request = json.loads(sys.stdin.readline())
        if request["op"] == "describe":
            open({str(asked)!r}, "a").write("x")
            auth = {{"name": "OAuth", "authorize_url": "{provider.url}/authorize", "token_url": "{provider.url}/token",
                    "client_id": "gate", "client_secret": request["config"]["LOCK"]}}
            print(json.dumps({{"commands": [{{"name": "Leak", "parameters": []}}], "auths": [auth]}}))
        else:
            print(request["config"]["LOCK"], file=sys.stderr)
            sys.exit(request["config"]["LOCK"])
        """,
    )
    site.configure(
        f"fax: {{run: [./fax.py], config: {{LOCK: {SECRET}}}}}", gateway=f"oauth: {{redirects: [{BACKEND}]}}"
    )
    for starts in (1, 2):
        async with served(site) as gateway:
            assert len(asked.read_text()) == starts
            assert (await sign_in(gateway, browser)).token["access_token"] == ACCESS
            leaked = await gateway.do("fax/Leak")
            assert "[redacted]" in leaked.message
            assert SECRET not in leaked.raw.decode() + gateway.log()
        for file in (site.state / "describe").iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert SECRET not in file.read_text()


async def test_a_description_without_a_secret_is_remembered(site: Site, provider: Provider) -> None:
    asked = site.folder / "asked"
    told = json.dumps({"commands": [], "auths": [{"name": "OAuth", "authorize_url": f"{provider.url}/authorize"}]})
    site.script("fax.sh", f"echo x >> {asked}; echo '{told}'")
    site.configure("fax: {run: [./fax.sh]}")
    for _ in range(2):
        async with served(site):
            assert asked.read_text() == "x\n"


@pytest.fixture
def package(site: Site) -> Site:
    """A gateway's folder with an interpreter that finds the synthetic Spiff package."""
    site.script(
        "python/bin/python",
        f'shift; PYTHONPATH={FIXTURES} exec {os.path.realpath(sys.executable)} "$@"',
        shell="/bin/bash",
    )
    return site


def configure_package(site: Site, config: dict[str, str], auths: str = "{}") -> None:
    site.configure(
        f"synthetic: {{runtime: python, venv: ./python, config: {json.dumps(config)}, auths: {auths}}}",
        gateway=f"oauth: {{redirects: [{BACKEND}]}}",
    )


async def test_an_unmodified_package_signs_in_with_its_config(
    package: Site, provider: Provider, browser: Browser
) -> None:
    configure_package(package, {"FAX_ID": "gate", "FAX_SECRET": SECRET, "FAX_URL": provider.url})
    async with served(package) as gateway:
        (listed,) = (await gateway.get("/v1/auths")).json
        assert (listed["id"], [one["id"] for one in listed["parameters"]]) == ("synthetic/OAuth", ["scope"])
        done = await sign_in(gateway, browser, target="synthetic/OAuth")
        assert done.token["scope"] == ["fax.send", "offline_access"]
        assert (
            "auths/SimpleAuth is left out: it has no app_description" in (await gateway.status("synthetic"))["notices"]
        )
    assert provider.refused == []
    for file in (package.state / "describe").iterdir():
        assert SECRET not in file.read_text()


async def test_a_package_that_lacks_its_config_says_what_is_missing(
    package: Site, provider: Provider, browser: Browser
) -> None:
    configure_package(package, {"FAX_URL": provider.url})
    notice = "auths/OAuth is left out: KeyError: 'FAX_ID' (set it under config:)"
    async with served(package) as gateway:
        assert (await gateway.get("/v1/auths")).json == []
        assert notice in (await gateway.status("synthetic"))["notices"]
        assert (await browser.get(start(gateway, target="synthetic/OAuth"))).status == 404
        configure_package(package, {"FAX_URL": provider.url}, f"{{OAuth: {auth(provider)}}}")

        async def listed() -> bool:
            return (await gateway.get("/v1/auths")).json != []

        await eventually(listed)
        assert notice not in (await gateway.status("synthetic"))["notices"]
        assert (await sign_in(gateway, browser, target="synthetic/OAuth")).token["access_token"] == ACCESS


# --- the configuration


@pytest.mark.parametrize(
    ("auths", "problem"),
    [
        ("client_di: x", "connectors.fax.auths.OAuth.client_di: unknown key (did you mean client_id?)"),
        ("authorize_url: 'ftp://x'", "connectors.fax.auths.OAuth: authorize_url: not an http or https URL"),
        ("token_url: 'https://u@x/'", "connectors.fax.auths.OAuth: token_url: not an http or https URL"),
        ("authorize_url: 'http://[/a'", "connectors.fax.auths.OAuth: authorize_url: not an http or https URL"),
        ("scope: {a: b}", "connectors.fax.auths.OAuth.scope: expected"),
        ("pkce: maybe", "connectors.fax.auths.OAuth.pkce: expected"),
        ("extra: {state: x}", "connectors.fax.auths.OAuth: extra: 'state' is not for others to say"),
        ("parameters: {p: {typ: str}}", "connectors.fax.auths.OAuth.parameters.p.typ: unknown key"),
    ],
)
def test_an_authentication_that_cannot_be_used_is_refused_by_its_name(site: Site, auths: str, problem: str) -> None:
    site.configure(f"fax:\n  run: [cat]\n  commands: {{}}\n  auths:\n    OAuth:\n      {auths}")
    settings, _ = read_settings(site.file, environ={})
    sources = read_sources(settings)
    with pytest.raises(Quarantine, match=rf"{re.escape(str(site.file))}:\d+: {re.escape(problem)}"):
        define(sources.entries[0], sources.defaults, settings)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("public_url: gate.example", "2: gateway.public_url: 'gate.example' is no origin"),
        ("public_url: 'https://h/?x=1'", "2: gateway.public_url: 'https://h/?x=1' is no origin"),
        ("oauth: {key: ' '}", "2: gateway.oauth.key: is empty"),
        ("oauth: {redirects: [http://a, localhost]}", "2: gateway.oauth.redirects.1: 'localhost' is no origin"),
        ("oauth: {redirect: []}", "2: gateway.oauth.redirect: unknown key (did you mean redirects?)"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_by_its_name(site: Site, section: str, problem: str) -> None:
    site.configure(gateway=section)
    with pytest.raises(ConfigError, match=re.escape(f"{site.file}:{problem}")):
        read_settings(site.file, environ={})


@pytest.mark.parametrize(
    ("url", "usable"),
    [
        ("HTTPS://provider.example:8443/token?x=y", True),
        ("https://b\u00fccher.example", True),
        ("http://[::1]:8000/token", True),
        ("http\u017f://provider.example/", False),
        ("http://[/a", False),
        ("http://]/a", False),
        ("http://:80/", False),
        ("http://h:0/", False),
        ("http://h:65536/", False),
        ("http://h:x/", False),
        ("http://h/\x00", False),
        ("http://h/\u2003", False),
        ("http://h\uff0fx/", False),
    ],
)
def test_the_url_of_a_provider_has_a_host_and_a_port(url: str, usable: bool) -> None:
    for name in ("authorize_url", "token_url"):
        faults = [] if usable else [f"{name}: not an http or https URL without user and fragment"]
        assert list(Application(**{name: url}).faults()) == faults


def test_keys_and_parameters_of_old_are_still_accepted(site: Site) -> None:
    site.configure(
        "fax: {run: [cat], commands: {}, auths: {OAuth: {description: D, parameters: {p: {type: str}}}, Bare: }}"
    )
    assert cli(site, "check").returncode == 0


# --- the seal


def test_a_seal_is_opened_with_its_key_alone(tmp_path: Path) -> None:
    sealed = Seal("key", tmp_path).close(b"plain" * 1000)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", sealed)
    assert Seal("key", tmp_path).open(sealed) == b"plain" * 1000
    with pytest.raises(Broken):
        Seal("kez", tmp_path).open(sealed)
    for bad in ("", "x", "\u2603", sealed[:-1], sealed[1:]):
        with pytest.raises(Broken):
            Seal("key", tmp_path).open(bad)
    assert list(tmp_path.iterdir()) == []


async def test_a_key_is_made_once_whoever_comes_first(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    seals = [Seal(None, folder) for _ in range(8)]
    sealed = await asyncio.gather(*(asyncio.to_thread(one.close, b"x") for one in seals))
    assert all(one.open(text) == b"x" for one in seals for text in sealed)
    assert [one.name for one in folder.iterdir()] == [FILE]
    for content, problem in ((b"", "it is empty"), (b"\xff\xfe", "it is no text")):
        (folder / FILE).write_bytes(content)
        with pytest.raises(OSError, match=problem):
            Seal(None, folder).close(b"x")


def test_parts_of_a_sealed_text_come_together_again() -> None:
    for length in (0, 1, cookies.PART, cookies.PART + 1, 3 * cookies.PART):
        sealed = "x" * length
        parts = cookies.parts("s", sealed)
        assert len(parts) == -(-length // cookies.PART)
        assert cookies.joined("s", {**parts, **cookies.parts("t", "other")}) == sealed


def test_cookies_of_several_sign_ins_are_told_apart() -> None:
    first, second = (cookies.parts(state, state * (cookies.PART + 1)) for state in "ab")
    held = cookies.each({"session": "x", **second, "signin-x-0": "x", **first})
    assert held == {cookies.name_of(state): state * (cookies.PART + 1) for state in "ab"}


def test_a_gateway_where_nobody_signs_in_loads_nothing_for_it() -> None:
    code = "import sys, gateway.server; print([m for m in ('authlib', 'httpx2', 'cryptography') if m in sys.modules])"
    root = FIXTURES.parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# --- several clients


async def test_the_address_says_whose_sign_in_it_is(site: Site, provider: Provider, browser: Browser) -> None:
    """Acme changes the authentication, beta may not use the connector, and nobody can end another's sign-in."""
    configure(site, auth(provider), f"{{api_key: k3y, oauth: {{redirects: [{BACKEND}]}}}}")
    folder = site.folder / "clients.d"
    folder.mkdir()
    (folder / "acme.yaml").write_text("connectors: {fax: {auths: {OAuth: {scope: acme.send}}}}")
    (folder / "beta.yaml").write_text("allow: []")
    async with served(site) as gateway:
        common = start(gateway)
        acme = common.replace("/v1/", "/clients/acme/v1/")
        begun = await browser.get(acme)
        query = dict(parse_qsl(urlsplit(begun.location).query))
        assert query["scope"] == "acme.send"
        assert query["redirect_uri"] == f"{gateway.url}/clients/acme/v1/auth/fax/OAuth/callback"
        at_provider = await browser.get(begun.location)
        stranger = await browser.get(at_provider.location.replace("/clients/acme/", "/"))
        assert stranger.status == 400
        assert (await browser.get(at_provider.location)).token["access_token"] == ACCESS
        refused = [await browser.get(common.replace("/v1/", f"/clients/{name}/v1/")) for name in ("beta", "nobody")]
        assert [page.status for page in refused] == [404, 404]
        assert refused[0].text == refused[1].text
        assert (await sign_in(gateway, browser)).token["access_token"] == ACCESS
        assert provider.asked[-1]["scope"] == "fax.send offline"


async def test_a_client_that_names_its_backend_has_tokens_sent_there_alone(
    site: Site, provider: Provider, browser: Browser
) -> None:
    configure(site, auth(provider), f"{{api_key: k3y, oauth: {{redirects: [{BACKEND}]}}}}")
    folder = site.folder / "clients.d"
    folder.mkdir()
    for name in ("acme", "beta"):
        (folder / f"{name}.yaml").write_text(f"callbacks: {{allow: [{name}.example]}}")
    (folder / "gamma.yaml").write_text("callbacks: {allow: ['*.example']}")  # which names no host
    async with served(site) as gateway:
        for client, sent in (("acme", "acme.example"), ("beta", "beta.example"), ("gamma", None), ("default", None)):
            for backend in ("https://acme.example", "https://beta.example", BACKEND):
                begin = start(gateway).replace(BACKEND, backend).replace("/v1/", f"/clients/{client}/v1/")
                page = await browser.get(begin)
                allowed = backend == f"https://{sent}" if sent is not None else backend == BACKEND
                assert page.status == (302 if allowed else 400), (client, backend)
