"""The console in Debian's Chromium: what an operator does there, and what axe says of each page."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import async_playwright, expect

from tests.http.test_console import COMMANDS, ECHO
from tests.support import Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Page

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
PATIENCE = 20_000  # milliseconds
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    site = Site(tmp_path)
    site.script("echo.sh", ECHO.replace("DIR", str(tmp_path)).replace("WORD", "echo"))
    site.configure(
        f"echo:\n    run: [./echo.sh]\n    timeout: 20s\n{COMMANDS}\nbroken: {{run: [./nowhere]}}",
        gateway="api_key: single",
    )
    builds = site.state / "runtimes" / "broken"
    builds.mkdir(parents=True)
    (builds / "failed.json").write_text('{"inputs": "", "problem": "fetch failed:\\nit is not there"}')
    (builds / "build.log").write_text("0.0 s  fetch\nthe line is dead\n0.2 s  failed: fetch failed:\n" * 40)
    async with served(site) as server:
        yield server
        (tmp_path / "gate").touch()  # what waits ends


@pytest.fixture
async def page(server: Server, request: pytest.FixtureRequest) -> AsyncIterator[Page]:
    """A page on which nothing is refused by its policy, and nothing fails."""
    problems: list[str] = []
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = await browser.new_context(base_url=server.url, **getattr(request, "param", {}))
        page = await context.new_page()
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page.on("console", lambda told: problems.append(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda problem: problems.append(str(problem)))
        yield page
        await browser.close()
    assert not problems


async def log_in(page: Page) -> None:
    await page.goto("/console")
    await page.get_by_label("Key").fill("single")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()


async def test_a_broken_connector_is_found_with_its_reason(page: Page) -> None:
    await log_in(page)
    await expect(page.get_by_text("it cannot be served").first).to_be_visible()
    await page.get_by_role("link", name="broken").first.click()
    await expect(page.get_by_role("heading", name="broken")).to_be_visible()
    await expect(page.get_by_text("nowhere does not exist")).to_be_visible()
    printed = page.get_by_text("the line is dead")
    await expect(printed).to_be_visible()
    await page.get_by_text("What the latest build printed").press("Enter")
    await expect(printed).to_be_hidden()


async def test_a_command_is_tried_without_leaving_its_page(page: Page) -> None:
    await log_in(page)
    await page.goto("/console/connectors/echo")
    await page.get_by_role("link", name="Go", exact=True).click()
    await page.get_by_label("text (required)").fill("from a browser")
    await page.get_by_label("pace").select_option("slow")
    await page.get_by_label("token").fill("s3cret-token")
    here = page.url
    await page.get_by_role("button", name="Run").click()
    result = page.get_by_role("status")
    await expect(result).to_contain_text("200")
    await expect(result).to_contain_text("from a browser")
    await expect(result).to_contain_text("echo writes a line")
    await expect(result).to_contain_text("memory at most")
    assert page.url == here  # without scripts it would be another one


async def test_a_log_is_followed_and_the_numbers_of_the_overview_too(page: Page, server: Server) -> None:
    await log_in(page)
    overview = await page.context.new_page()
    await overview.goto("/console")
    async with page.expect_response(re.compile("/log$")):
        await page.goto("/console/connectors/echo")
    await server.do("echo/Told", headers={"Authorization": "Bearer single"})
    log = page.get_by_role("log")
    await expect(log).to_contain_text("echo writes a line")
    await expect(log).to_contain_text("ended: error")
    await expect(overview.get_by_role("img", name="1 told an error")).to_be_visible()


async def test_a_page_that_nobody_sees_follows_nothing_until_it_is_seen_again(page: Page, server: Server) -> None:
    """A browser has six connections to a gateway: with a seventh tab none would open."""
    await log_in(page)
    await page.goto("/console/connectors/echo")
    log = page.locator("[role=log]")

    async def see(*, hidden: bool) -> None:
        await page.evaluate(
            "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
            " document.dispatchEvent(new Event('visibilitychange')) }",
            hidden,
        )

    async def followed() -> int:
        answer = await server.get("/v1/status", headers={"Authorization": "Bearer single"})
        return int(answer.json["connections"]["open"])

    async def call(text: str) -> None:
        assert (await server.do("echo/Go", {"text": text}, headers={"Authorization": "Bearer single"})).status == 200

    async def with_stream() -> bool:
        await call("seen")
        return await log.get_by_text("ended: ok").count() > 0

    await eventually(with_stream, 30)
    before = await followed()
    await see(hidden=True)

    async def gone() -> bool:
        return await followed() < before

    await eventually(gone, 30)
    lines = await log.locator("p").count()
    await call("unseen")
    assert await log.locator("p").count() == lines
    await see(hidden=False)

    async def grown() -> bool:
        await call("seen again")
        return await log.locator("p").count() > lines

    await eventually(grown, 30)


async def test_a_job_is_cancelled_after_a_question(page: Page, server: Server) -> None:
    headers = {"Authorization": "Bearer single", "Prefer": "respond-async"}
    job = (await server.do("echo/Wait", {"spiff__task_id": "task-7"}, headers=headers)).body["job_id"]
    await log_in(page)
    await page.get_by_role("link", name="Jobs").click()
    await page.get_by_label("Task").fill("task-7")
    await page.get_by_role("button", name="Search").click()
    await page.get_by_role("link", name=job).click()
    await page.get_by_role("link", name="Cancel").click()
    await expect(page.get_by_role("heading", name="Cancel this job?")).to_be_visible()
    await page.get_by_role("button", name="Cancel the job").click()
    await expect(page.get_by_role("heading", name=job)).to_contain_text("cancelled")


async def test_jobs_are_removed_after_a_question(page: Page, server: Server) -> None:
    await ended_job(server)
    await log_in(page)
    await page.goto("/console/jobs")
    await page.get_by_label("Ended longer ago than").fill("soon")
    await page.get_by_role("button", name="Remove ...").click()
    assert page.url.endswith("/console/jobs")  # the browser says what it wants
    await page.get_by_label("Ended longer ago than").fill("0s")
    await page.get_by_label("Ended as").select_option("kept")
    await page.get_by_role("button", name="Remove ...").press("Enter")
    await expect(page.get_by_role("heading", name="Remove 1 job?")).to_be_visible()
    await page.get_by_role("button", name="Remove the jobs").click()
    await expect(page.get_by_role("status")).to_have_text("1 job was removed.")


async def ended_job(server: Server) -> None:
    headers = {"Authorization": "Bearer single", "Prefer": "respond-async"}
    job = (await server.do("echo/Go", {"text": "a"}, headers=headers)).body["job_id"]

    async def is_kept() -> bool:
        return bool((await server.get(f"/v1/jobs/{job}", headers=headers)).json["state"] == "kept")

    await eventually(is_kept)


async def test_one_leaves_by_the_keyboard(page: Page) -> None:
    await log_in(page)
    await page.get_by_role("button", name="Log out").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    await page.goto("/console/jobs")
    await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    await page.get_by_label("Key").fill("single")
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("heading", name="Jobs")).to_be_visible()  # where one has been


@pytest.mark.parametrize(
    "page",
    [{"color_scheme": "light"}, {"color_scheme": "dark", "viewport": {"width": 360, "height": 740}}],
    indirect=True,
    ids=["light", "dark, on a phone"],
)
async def test_axe_finds_nothing(page: Page, server: Server) -> None:
    headers = {"Authorization": "Bearer single", "Prefer": "respond-async"}
    job = (await server.do("echo/Wait", {}, headers=headers)).body["job_id"]
    await ended_job(server)
    await server.do("echo/Told", headers={"Authorization": "Bearer single"})
    run = (await server.get("/v1/runs?command=Told", headers={"Authorization": "Bearer single"})).json["runs"][0]["id"]
    await page.goto("/console/login")
    await looked_at(page)
    await log_in(page)
    for path in ("", "/connectors/echo", "/connectors/broken", "/connectors/echo/commands/Go", "/jobs", f"/jobs/{job}",
                 f"/jobs/{job}/cancel", f"/jobs/{job}/retry", "/jobs/purge?older_than=0s", "/runs", f"/runs/{run}", f"/runs/{run}/replay"):  # fmt: skip
        await page.goto(f"/console{path}")
        await looked_at(page)
        wide = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, path


async def looked_at(page: Page) -> None:
    found = await Axe().run(page, options={"runOnly": RULES})
    assert found.violations_count == 0, f"{page.url}\n{found.generate_report()}"


async def test_one_logs_in_over_plain_http_by_a_name_and_follows_a_link_from_another_site(server: Server) -> None:
    """A name is no loopback address, so that the browser sends no `Sec-Fetch-Site`; another name is another site."""
    rules = "--host-resolver-rules=MAP gateway.test 127.0.0.1,MAP chat.test 127.0.0.1"
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", rules])
        page = await (await browser.new_context(base_url=f"http://gateway.test:{server.port}")).new_page()
        page.set_default_timeout(PATIENCE)
        await log_in(page)
        link = f'<a href="http://gateway.test:{server.port}/console/jobs">a job</a>'
        await page.route("http://chat.test/", lambda route: route.fulfill(body=link, content_type="text/html"))
        await page.goto("http://chat.test/")
        await page.get_by_role("link", name="a job").click()
        await expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
        await browser.close()
