"""The console in a real browser: what operators do there all day, by mouse and by keyboard."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from playwright.async_api import expect

from tests.console.support import HEADERS, KEY, WORKS, Office, log_in, picture
from tests.http.test_clients import client
from tests.support import Site, eventually, served

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Page

    from tests.console.support import Opener


async def test_a_broken_connector_is_found_with_its_reason(page: Page) -> None:
    await log_in(page)
    wrong = page.get_by_role("region", name="What is wrong")
    await expect(wrong.get_by_text("cannot be served")).to_be_visible()
    await expect(wrong.get_by_text("What to do: mend that")).to_be_visible()
    await wrong.get_by_role("link", name="scanner").click()
    await expect(page.get_by_role("heading", name="scanner")).to_contain_text("quarantined")
    await expect(page.get_by_text("scan-to-pdf not found")).to_be_visible()
    printed = page.get_by_text("the network is away")
    await expect(printed).to_be_visible()
    await page.get_by_text("What the latest build printed").press("Enter")
    await expect(printed).to_be_hidden()


async def test_a_command_is_tried_without_leaving_its_page(page: Page) -> None:
    await log_in(page)
    await page.get_by_role("link", name="fax", exact=True).click()
    await page.get_by_role("link", name="Send", exact=True).click()
    await page.get_by_label("to (required)").fill("+4755")
    await page.get_by_label("text (required)").fill("from a browser")
    await page.get_by_label("quality").select_option("fine")
    await page.get_by_label("pin").fill("s3cret-pin")
    here = page.url
    await page.get_by_role("button", name="Run").click()
    result = page.get_by_role("status")
    await expect(result).to_contain_text("200")
    for told in ("from a browser", '"quality": "fine"', "sent in 12 s", "memory at most"):
        await expect(result).to_contain_text(told)
    assert page.url == here  # without scripts it would be another one
    await picture(page, "command", 1000)
    await page.get_by_label("cover").fill("{")
    await page.get_by_role("button", name="Run").click()
    await expect(result).to_contain_text("cover is not JSON")


async def test_a_log_is_followed_and_the_numbers_of_the_overview_too(page: Page, office: Office) -> None:
    await office.job("order-18")
    await log_in(page)
    overview = await page.context.new_page()
    await overview.goto("/console")
    await overview.get_by_role("link", name="fax", exact=True).focus()
    async with page.expect_response(re.compile("/log$")):
        await page.goto("/console/connectors/fax")
    for command in ("Fetch", "Send"):
        sent = {"to": "+4755", "text": "the order"} if command == "Send" else {}
        await office.server.do(f"fax/{command}", sent, headers=HEADERS)
    log = page.get_by_role("log")
    for told in ("dialling", "no carrier after 3 rings", "ended: error", "sent in 12 s", "ended: ok"):
        await expect(log).to_contain_text(told)
    await picture(page, "connector", 1300)
    await expect(overview.get_by_role("img", name="3 ok, 1 told an error")).to_be_visible()
    await expect(overview.get_by_role("link", name="fax", exact=True)).to_be_focused()  # whatever else has changed


async def test_a_page_that_nobody_sees_follows_nothing_until_it_is_seen_again(page: Page, office: Office) -> None:
    """A browser has six connections to a gateway: with a seventh tab none would open."""
    await log_in(page)
    await page.goto("/console/connectors/mail")
    log = page.get_by_role("log")

    async def see(*, hidden: bool) -> None:
        await page.evaluate(
            "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
            " document.dispatchEvent(new Event('visibilitychange')) }",
            hidden,
        )

    async def connections() -> int:
        return int((await office.server.get("/v1/status", headers=HEADERS)).json["connections"]["open"])

    async def call() -> None:
        assert (await office.server.do("mail/Send", headers=HEADERS)).status == 200

    async def followed() -> bool:
        await call()
        return await log.get_by_text("ended: ok").count() > 0

    await eventually(followed)
    before = await connections()
    await see(hidden=True)

    async def gone() -> bool:
        return await connections() < before

    await eventually(gone)
    lines = await log.locator("p").count()
    await call()
    assert await log.locator("p").count() == lines
    await see(hidden=False)

    async def grown() -> bool:
        await call()
        return await log.locator("p").count() > lines

    await eventually(grown)


async def test_a_job_is_cancelled_after_a_question(page: Page, office: Office) -> None:
    await office.delivered("order-16")
    job = await office.job("order-17")
    await log_in(page)
    await page.get_by_role("link", name="Jobs").click()
    await expect(page.get_by_role("row", name="order-16")).to_contain_text("delivered")
    await picture(page, "jobs", 520)
    await page.get_by_label("Task").fill("order-17")
    await page.get_by_role("button", name="Search").click()
    await expect(page.get_by_role("row", name="order-16")).to_have_count(0)
    await page.get_by_role("link", name=job).click()
    await page.get_by_role("link", name="Cancel").click()
    await expect(page.get_by_role("heading", name="Cancel this job?")).to_be_visible()
    await picture(page, "question", 400)
    await page.get_by_role("link", name="Back, and do nothing").click()
    await expect(page.get_by_role("heading", name=job)).not_to_contain_text("cancelled")
    await page.get_by_role("link", name="Cancel").click()
    await page.get_by_role("button", name="Cancel the job").click()
    await expect(page.get_by_role("heading", name=job)).to_contain_text("cancelled")


async def test_jobs_are_removed_after_a_question(page: Page, office: Office) -> None:
    await office.delivered("order-16")
    await log_in(page)
    await page.goto("/console/jobs")
    await page.get_by_label("Ended longer ago than").fill("soon")
    await page.get_by_role("button", name="Remove ...").click()
    assert page.url.endswith("/console/jobs")  # the browser says what it wants
    await page.get_by_label("Ended longer ago than").fill("0s")
    await page.get_by_label("Ended as").select_option("delivered")
    await page.get_by_role("button", name="Remove ...").press("Enter")
    await expect(page.get_by_role("heading", name="Remove 1 job?")).to_be_visible()
    await page.get_by_role("button", name="Remove the jobs").click()
    await expect(page.get_by_role("status")).to_have_text("1 job was removed.")


async def test_an_outcome_that_its_caller_refused_is_found_and_delivered_again(page: Page, office: Office) -> None:
    office.backend.answers = [401]
    job = await office.job("order-19", spiff__callback_url=office.backend.url)
    office.opens()
    await office.comes_to(job, "dead")
    await log_in(page)
    wrong = page.get_by_role("region", name="What is wrong")
    await expect(wrong).to_contain_text("1 outcome could not be delivered")
    await wrong.get_by_role("link", name="jobs").click()
    await page.get_by_role("row", name="order-19").get_by_role("link").click()
    await expect(page.get_by_role("region", name="Tries to deliver").first).to_contain_text("401")
    office.backend.answers = [200]
    await page.get_by_role("link", name="Try again").click()
    await page.get_by_role("button", name="Deliver again").click()
    await office.comes_to(job, "delivered")
    await page.reload()
    await expect(page.get_by_role("heading", name=job)).to_contain_text("delivered")
    await page.get_by_role("link", name="Overview").click()
    await expect(wrong.get_by_role("link", name="jobs")).to_have_count(0)


async def test_a_run_that_failed_is_found_with_its_log(page: Page) -> None:
    await log_in(page)
    await page.get_by_role("link", name="Runs").click()
    await page.get_by_label("Outcome").fill("failed")
    await page.get_by_role("button", name="Search").click()
    await page.get_by_role("row", name="invoices/Make").get_by_role("link").click()
    await expect(page.get_by_role("heading", name="Run ")).to_contain_text("connector_failed")
    await expect(page.get_by_text("failed with exit status 3")).to_be_visible()
    await expect(page.get_by_role("region", name="The end of its log")).to_contain_text("the ledger is locked")


async def test_a_run_is_repeated_after_a_question(page: Page) -> None:
    await log_in(page)
    await page.get_by_role("link", name="fax", exact=True).click()
    latest = page.get_by_role("region", name="Latest runs").get_by_role("row", name="Send").first.get_by_role("link")
    run = await latest.inner_text()
    await latest.click()
    await expect(page.get_by_role("region", name="Parameters")).to_contain_text("the receipt")
    await page.get_by_role("link", name="Repeat").click()
    await expect(page.get_by_role("heading", name="Repeat this run?")).to_be_visible()
    await page.get_by_role("button", name="Repeat the run").click()
    await expect(page.get_by_role("heading", name="Repeated")).to_be_visible()
    await expect(page.get_by_text("the receipt")).to_be_visible()
    await page.goto("/console/connectors/fax")
    await expect(latest).not_to_have_text(run)
    await latest.click()
    await page.get_by_role("link", name=run).click()  # the one that it repeats
    await expect(page.get_by_role("heading", name=f"Run {run}")).to_be_visible()


async def test_it_is_shown_where_the_time_of_a_run_went(page: Page, office: Office) -> None:
    run = await office.delivered("order-16")
    await log_in(page)
    await page.goto(f"/console/runs/{run}")
    steps = page.get_by_role("region", name="Where its time went").first
    for step in ("in the queue", "start", "run", "callback 1", "callback 2"):
        await expect(steps.get_by_role("rowheader", name=step, exact=True)).to_be_visible()
    await expect(steps.get_by_role("row", name="callback 1")).to_contain_text("503")
    await picture(page, "run")


# --- who


async def test_one_leaves_and_comes_back_to_where_one_has_been(page: Page) -> None:
    await log_in(page)
    await page.get_by_role("button", name="Log out").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    await page.goto("/console/jobs")
    await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    await page.get_by_label("Key").fill("nobodys")
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("alert")).to_contain_text("This key is nobody's")
    await page.get_by_label("Key").fill(KEY)
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("heading", name="Jobs")).to_be_visible()


async def test_one_logs_in_over_plain_http_by_a_name_and_follows_a_link_from_another_site(
    office: Office, opened: Opener
) -> None:
    """A name is no loopback address, so that the browser sends no `Sec-Fetch-Site`; another name is another site."""
    here = f"http://gateway.test:{office.server.port}"
    async with opened(here) as page:
        await log_in(page)
        link = f'<a href="{here}/console/jobs">a job</a>'
        await page.route("http://chat.test/**", lambda route: route.fulfill(body=link, content_type="text/html"))
        await page.goto("http://chat.test/")
        await page.get_by_role("link", name="a job").click()
        await expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("heading", name="Log in")).to_be_visible()


async def test_a_key_of_one_client_sees_nothing_of_anothers(tmp_path: Path, opened: Opener) -> None:
    site = Site(tmp_path)
    site.script("works.sh", WORKS)
    site.configure(
        "mail: {run: [./works.sh], commands: {Send: {additional_parameters: true}}}", gateway=f"api_key: {KEY}"
    )
    for name, own in (("acme", "crm"), ("beta", "payroll")):
        client(
            site,
            name,
            f"keys: [KEY({name}-key)]\nallow: [mail]\nconnectors:\n"
            f"  {own}: {{run: [../works.sh], commands: {{Go: {{async: true}}}}}}\n"
            f"  {own}-old: {{run: [../no-such-{name}-file], commands: {{Go: {{}}}}}}\n",
        )
    beta = {"Authorization": "Bearer beta-key"}
    async with served(site) as server, opened(server.url) as page, opened(server.url) as operators:
        job = (await server.do("payroll/Go", headers={**beta, "Prefer": "respond-async"})).body["job_id"]
        await log_in(page, "acme-key")
        await expect(page.get_by_text("acme, caller")).to_be_visible()
        await expect(page.locator("#to-crm")).to_be_visible()
        await expect(page.get_by_text("crm-old").first).to_be_visible()
        async with page.expect_response(re.compile("/log$")):
            await page.goto("/console/connectors/mail")
        await server.do("mail/Send", {"late": "beta's"}, headers=beta)
        await server.do("mail/Send", headers={"Authorization": "Bearer acme-key"})
        await expect(page.get_by_role("log")).to_contain_text("ended: ok")  # after the other one
        await expect(page.get_by_role("log")).not_to_contain_text("locked")
        run = (await server.get("/v1/runs?connector=payroll", headers=beta)).json["runs"]
        for path in ("", "/connectors/mail", "/connectors/crm", "/jobs", "/runs", "/jobs?connector=payroll"):
            await page.goto(f"/console{path}")
            shown = (await page.locator("main").inner_text()) + await page.title()
            for word in ("beta", "payroll", job, "locked", str(tmp_path)):
                assert word not in shown, (path, word)
        for path in (
            "/connectors/payroll",
            "/connectors/payroll@beta",
            f"/jobs/{job}",
            *(f"/runs/{one['id']}" for one in run),
        ):
            answer = await page.goto(f"/console{path}")
            assert answer is not None
            assert answer.status in {403, 404}, path
        await sees_both(operators)


async def sees_both(page: Page) -> None:
    await log_in(page)
    connectors = page.get_by_role("region", name="Connectors, a table")
    for name in ("crm@acme", "payroll@beta", "mail"):
        await expect(connectors.get_by_role("link", name=name, exact=True)).to_be_visible()


# --- by the keyboard alone


async def test_one_logs_in_finds_a_connector_and_tries_a_command_without_a_mouse(page: Page) -> None:
    await page.goto("/console")
    await page.keyboard.type(KEY)  # where one types is there from the start
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    await page.keyboard.press("Tab")
    assert await focused(page) == "To the content"
    await page.keyboard.press("Enter")
    await tabbed_to(page, "fax")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="fax")).to_be_visible()
    await tabbed_to(page, "Send")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Try it")).to_be_visible()
    await tabbed_to(page, "to (required)")
    await page.keyboard.type("+4755")
    await tabbed_to(page, "text (required)")
    await page.keyboard.type("without a mouse")
    await tabbed_to(page, "Run")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status")).to_contain_text("without a mouse")


async def focused(page: Page) -> str:
    """Return the name of what has the focus, which can be seen."""
    assert await page.evaluate("document.activeElement.matches(':focus-visible')")
    assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    return str(await page.evaluate("(document.activeElement.labels?.[0] ?? document.activeElement).innerText.trim()"))


async def tabbed_to(page: Page, name: str) -> None:
    seen = []
    for _ in range(50):
        await page.keyboard.press("Tab")
        seen.append(await focused(page))
        if seen[-1] == name:
            return
    raise AssertionError(f"{name} is not among {seen}")
