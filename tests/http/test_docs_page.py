"""The page that shows the OpenAPI document, in Debian's Chromium."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import importlib.util
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from gateway.http import docs
from tests.http.test_clients import client
from tests.support import Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
BROWSER = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="there is no Chromium: apt-get install chromium chromium-driver"
)
ECHO = "echo: {run: [cat], commands: {Request: {parameters: {text: {type: str, schema: {examples: [hello]}}}}}}"
FILES = ("docs", "docs/docs.js", "docs/docs.css", "docs/swagger-ui.css", "docs/swagger-ui-bundle.js")


async def test_the_page_is_open_and_holds_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure(ECHO)
    async with served(site, env={"CONNECTOR_PROXY_API_KEY": "hunter2"}) as gateway:
        for file in FILES:
            answer = await gateway.get(f"/{file}")
            assert answer.status == 200
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["X-Frame-Options"] == "DENY"
            assert b"Request" not in answer.raw or "swagger" in file
            kept = {"If-None-Match": answer.headers["ETag"]}
            assert (await gateway.get(f"/{file}", headers=kept)).status == 304
        page = (await gateway.get("/docs")).raw
        assert b"<script>" not in page.replace(b"<noscript>", b"")
        assert b"<style" not in page
        assert b"//" not in page, "nothing is fetched from elsewhere"
        for other in ("../settings.py", "..%2fdocs.py", "docs.html", "swagger-ui", "swagger-ui-bundle.js.gz"):
            assert (await gateway.get(f"/docs/{other}")).status in {401, 404}


async def test_it_is_below_each_client_too_and_tells_none(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure(ECHO)
    client(site, "acme", "keys: [KEY(acme)]")
    async with served(site) as gateway:
        pages = [await gateway.get(f"{below}/docs") for below in ("", "/clients/acme", "/clients/nobody")]
        assert {(page.status, page.raw) for page in pages} == {(200, pages[0].raw)}


async def test_it_can_be_switched_off(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure(ECHO, gateway="docs: off")
    async with served(site) as gateway:
        assert [(await gateway.get(f"/{file}")).status for file in FILES] == [404] * len(FILES)
        document = (await gateway.get("/openapi.json")).json
        assert "/docs" not in document["paths"]


@pytest.mark.parametrize("shipped", [True, False])
async def test_what_the_wheel_has_is_sent_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aiohttp_client: Any, shipped: bool
) -> None:
    if shipped:
        (tmp_path / "swagger-ui").mkdir()
        (tmp_path / "swagger-ui/swagger-ui.css").write_bytes(b"plain")
        (tmp_path / "swagger-ui/swagger-ui.css.gz").write_bytes(gzip.compress(b"compressed"))
    monkeypatch.setattr(docs, "_ASSETS", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    app = web.Application()
    app.add_routes([web.route(one.method, one.path, one.handler) for one in docs.DocsHandlers(lambda: False).routes()])
    server = await aiohttp_client(app)
    for accepted, content in (("gzip", b"compressed"), ("identity", b"plain")):
        answer = await server.get("/docs/swagger-ui.css", headers={"Accept-Encoding": accepted})
        assert answer.status == (200 if shipped else 404)
        if shipped:
            assert await answer.read() == content
            assert answer.headers["Content-Type"] == "text/css; charset=utf-8"


# --- in a browser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}/profile"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        yield started
    finally:
        started.quit()


class Shown:
    """The page in a browser; what it is asked happens in a thread."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self._browser = browser

    async def open(self, url: str) -> None:
        await asyncio.to_thread(self._browser.get, url)

    async def told(self) -> str:
        """Return what is said of the document, once it is not being loaded."""
        await eventually(lambda: self._text("#told") not in {None, "Loading …"}, 60)
        return self._text("#told") or ""

    async def type(self, key: str) -> None:
        field = self._browser.find_element(By.ID, "key")
        field.clear()
        field.send_keys(key)
        field.submit()

    async def click(self, selector: str) -> None:
        def clicked() -> bool:
            with contextlib.suppress(Exception):
                self._browser.find_element(By.CSS_SELECTOR, selector).click()
                return True
            return False

        await eventually(clicked, 60)

    async def text(self, selector: str) -> str:
        return str(await eventually(lambda: self._text(selector), 60))

    def classes(self) -> str | None:
        return self._browser.find_element(By.TAG_NAME, "html").get_attribute("class")

    def problems(self) -> list[Any]:
        """Return what the browser has complained about since this was last asked."""
        log: list[dict[str, Any]] = self._browser.get_log("browser")  # type: ignore[no-untyped-call]
        return [line for line in log if line["level"] == "SEVERE"]

    def _text(self, selector: str) -> str | None:
        with contextlib.suppress(Exception):
            return self._browser.find_element(By.CSS_SELECTOR, selector).text
        return None


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Server]:
    site = Site(tmp_path)
    site.configure(ECHO)
    client(site, "acme", "keys: [KEY(acme)]\nconnectors: {crm: {run: [cat], commands: {Go: {}}}}")
    async with served(site) as running:
        yield running


@BROWSER
@pytest.mark.parametrize("below", ["", "/clients/acme"])
async def test_a_key_shows_what_can_be_called_and_a_command_is_tried(
    gateway: Server, browser: webdriver.Chrome, below: str
) -> None:
    page = Shown(browser)
    await page.open(f"{gateway.url}{below}/docs")
    assert await page.told() == "This gateway needs a key."
    assert page.problems() == []
    await page.type("wrong")
    await eventually(lambda: page._text("#told") == "This key is not known here.", 60)
    assert ["401" in one["message"] for one in page.problems()] == [True]
    await page.type("acme")
    operation = "#operations-echo-echo__Request"
    assert "/v1/do/echo/Request" in await page.text(operation)
    assert await page.told() == ""
    assert await page.text("#operations-crm-crm__Go")
    await page.click(f"{operation} .opblock-summary-control")
    await page.click(f"{operation} .try-out__btn")
    await page.click(f"{operation} .execute")
    answer = await page.text(f"{operation} .live-responses-table tbody .response-col_description")
    assert '"text": "hello"' in answer
    assert (await page.text(f"{operation} .live-responses-table tbody .response-col_status")).startswith("200")
    assert f"{gateway.url}{below}/v1/do/echo/Request" in await page.text(f"{operation} .request-url")
    assert page.problems() == []
    await page.open(f"{gateway.url}{below}/docs")
    assert await page.told() == "This gateway needs a key.", "it is kept nowhere"


@BROWSER
async def test_of_many_connectors_it_shows_one_at_a_time(tmp_path: Path, browser: webdriver.Chrome) -> None:
    site = Site(tmp_path / "site")
    site.configure("\n".join(f"c{number:03}: {{run: [cat], commands: {{Do: {{}}}}}}" for number in range(501)))
    async with served(site) as gateway:
        page = Shown(browser)
        await page.open(f"{gateway.url}/docs")
        assert await page.told() == ""
        assert await page.text("#operations-c000-c000__Do")
        choice = Select(browser.find_element(By.ID, "connector"))
        assert len(choice.options) == 502
        choice.select_by_visible_text("c500")
        assert "/v1/do/c500/Do" in await page.text("#operations-c500-c500__Do")
        assert page._text("#operations-c000-c000__Do") is None
        choice.select_by_visible_text("Gateway")
        assert await page.text("#operations-Gateway-get_liveness")
        assert page.problems() == []


@BROWSER
async def test_without_keys_it_asks_for_none(tmp_path: Path, browser: webdriver.Chrome) -> None:
    site = Site(tmp_path / "site")
    site.configure(ECHO)
    async with served(site) as gateway:
        page = Shown(browser)
        await page.open(f"{gateway.url}/docs")
        assert await page.told() == ""
        assert await page.text("#operations-echo-echo__Request")
        assert not browser.find_element(By.ID, "ask").is_displayed()
        assert not browser.find_element(By.ID, "choose").is_displayed()
        for scheme in ("dark", "light"):
            wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
            await eventually(lambda expected=scheme == "dark": (page.classes() == "dark-mode") is expected)
        assert page.problems() == []
