"""A real Chromium, and an office's gateway for people to look at."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import async_playwright, expect

from tests.console.support import CHROMIUM, CONNECTORS, KEY, PATIENCE, Office, write
from tests.jobs.support import caller
from tests.support import Site, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser, ConsoleMessage, Page, Request

    from tests.console.support import Opener

NAMES = "--host-resolver-rules=MAP gateway.test 127.0.0.1,MAP chat.test 127.0.0.1"
PLAIN = "The Cross-Origin-Opener-Policy header has been ignored"  # so it is over plain HTTP, but to this machine
SCREEN = {"width": 1200, "height": 800}


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: make console-test installs it")
    expect.set_options(timeout=PATIENCE)
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", NAMES])
        yield browser
        await browser.close()


@pytest.fixture
async def opened(chromium: Browser) -> AsyncIterator[Opener]:
    """Open pages, each with cookies of its own: `async with opened(server.url, color_scheme="dark") as page`.

    The test fails where one of them does something that its policy forbids, or says that something failed.
    """
    complaints: list[str] = []

    def told(message: ConsoleMessage) -> None:
        where = message.location["url"]
        own_status = message.text.startswith("Failed to load resource") and message.page and where == message.page.url
        if message.type == "error" and not own_status and not message.text.startswith(PLAIN):
            complaints.append(f"{where}: {message.text}")

    def failed(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # what is followed ends with its page
            complaints.append(f"{request.url}: {request.failure}")

    @contextlib.asynccontextmanager
    async def opening(url: str, **options: Any) -> AsyncIterator[Page]:
        context = await chromium.new_context(base_url=url, **{"viewport": SCREEN, **options})
        context.on("console", told)
        context.on("weberror", lambda problem: complaints.append(f"{problem.error}"))
        context.on("requestfailed", failed)
        context.set_default_timeout(PATIENCE)
        yield await context.new_page()
        await context.close()

    yield opening
    assert not complaints


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    """A gateway with some connectors, one of them broken, that have been called."""
    site = Site(tmp_path)
    write(site)
    site.configure(CONNECTORS, gateway=f"api_key: {KEY}\ncallbacks: {{first_delay: 50ms, hosts: {{127.0.0.1: {{}}}}}}")
    async with caller() as backend, served(site) as server:
        office = Office(server, backend)
        await office.works()
        yield office
        office.opens()  # what waits ends


@pytest.fixture
async def page(office: Office, opened: Opener) -> AsyncIterator[Page]:
    async with opened(office.server.url) as page:
        yield page
