"""What a new operator does who is told that something is broken: each of five ways is named, two clicks from its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from playwright.async_api import expect

from tests import five_ways
from tests.console.support import HEADERS, KEY, log_in, looked_at, picture
from tests.support import Site, served

if TYPE_CHECKING:
    from pathlib import Path

    from tests.console.support import Opener

REASONS = {
    "crm": "the CRM answered: 401",
    "fax": "cannot open /dev/modem",
    "archive": "waiting for a tape",
    "reports": "more than 64MiB of memory",
}
"""By name, what the page of a run says; that which never ran has none."""


async def test_each_is_named_on_the_overview_and_its_reason_is_two_clicks_away(tmp_path: Path, opened: Opener) -> None:
    site = Site(tmp_path)
    site.configure(five_ways.write(site), gateway=f"api_key: {KEY}")
    async with served(site) as server, opened(server.url) as page:
        await five_ways.call(server, HEADERS)
        await log_in(page)
        wrong = page.get_by_role("region", name="What is wrong").get_by_role("listitem")
        table = page.get_by_role("region", name="Connectors, a table")
        for name, words in five_ways.WAYS.items():
            card = wrong.filter(has=page.get_by_role("link", name=name, exact=True))
            await expect(card).to_contain_text(words)
            await expect(card).to_contain_text("What to do: ")
            await expect(table.get_by_role("row", name=name)).not_to_contain_text("ready")
        await expect(table.get_by_role("row", name="mail")).to_contain_text("ready")
        await expect(wrong.filter(has=page.get_by_role("link", name="mail", exact=True))).to_have_count(0)
        await looked_at(page)
        await picture(page, "five-ways", 1230)
        for name, words in five_ways.WAYS.items():
            await page.goto("/console")
            await wrong.get_by_role("link", name=name, exact=True).click()
            await expect(page.get_by_role("region", name="What is wrong")).to_contain_text(words)
            if name not in REASONS:
                continue
            runs = page.get_by_role("region", name="Latest runs").get_by_role("rowheader").get_by_role("link")
            await runs.first.click()
            await expect(page.get_by_role("main")).to_contain_text(REASONS[name])
            if name == "fax":
                await picture(page, "crash", 640)


async def test_a_package_that_its_code_asks_for_is_named_with_the_traceback_on_its_page(
    tmp_path: Path, opened: Opener
) -> None:
    site = Site(tmp_path)
    site.python("connectors.d/stock.py", "import nowhere_to_be_found\n")
    site.configure(gateway=f"api_key: {KEY}")
    async with served(site) as server, opened(server.url) as page:
        await log_in(page)
        wrong = page.get_by_role("region", name="What is wrong")
        await expect(wrong).to_contain_text("it lacks a package or program, nowhere_to_be_found")
        await expect(wrong).to_contain_text("What to do: add nowhere_to_be_found to")
        await expect(wrong).not_to_contain_text("Traceback")
        await wrong.get_by_role("link", name="stock").click()
        await expect(wrong).to_contain_text("Traceback (most recent call last):")
        await looked_at(page)


async def test_what_is_mended_is_not_told_any_more(tmp_path: Path, opened: Opener) -> None:
    site = Site(tmp_path)
    site.configure(five_ways.write(site), gateway=f"api_key: {KEY}")
    async with served(site) as server, opened(server.url) as page:
        await five_ways.call(server, HEADERS)
        await log_in(page)
        row = page.get_by_role("region", name="Connectors, a table").get_by_role("row", name="crm")
        await expect(row).to_contain_text("failing")
        site.configure(five_ways.CONNECTORS.replace("expired", "right"), gateway=f"api_key: {KEY}")
        await server.request("POST", "/v1/reload", headers=HEADERS)
        await server.do("crm/Find", headers=HEADERS)
        await expect(row).to_contain_text("ready")  # as it is followed, without a click
