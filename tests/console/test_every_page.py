"""Every page of the console as everybody has it: light, dark, on a telephone; looked at with axe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.console.support import HEADERS, Office, log_in, looked_at, picture

if TYPE_CHECKING:
    from tests.console.support import Opener

PHONE = {"viewport": {"width": 360, "height": 780}, "has_touch": True, "reduced_motion": "reduce"}


@pytest.mark.parametrize(
    "options", [{"color_scheme": "light"}, {"color_scheme": "dark", **PHONE}], ids=["light", "dark, phone"]
)
async def test_axe_finds_nothing_nothing_moves_and_nothing_is_too_wide(
    office: Office, opened: Opener, options: dict[str, Any]
) -> None:
    delivered = await office.delivered("order-16")
    job = await office.job("order-17")
    await office.server.do("fax/Fetch", headers=HEADERS)
    sent, failed = await office.run_of("command=Send&connector=fax"), await office.run_of("outcome=failed")
    async with opened(office.server.url, **options) as page:
        await page.goto("/console/login")
        await looked_at(page)
        await log_in(page)
        for path in (
            "", "?q=nothing-of-that-name", "/connectors/fax", "/connectors/scanner", "/connectors/fax/commands/Send", "/jobs",
            "/jobs?state=dead", f"/jobs/{job}", f"/jobs/{job}/cancel", f"/jobs/{job}/retry", "/jobs/purge?older_than=0s", "/jobs/purge?older_than=9d", "/runs", "/runs?outcome=failed",
            f"/runs/{delivered}", f"/runs/{sent}", f"/runs/{failed}", f"/runs/{sent}/replay", "/connectors/nowhere",
            "/runs?since=nonsense",
        ):  # fmt: skip
            await page.goto(f"/console{path}")
            await looked_at(page)
        for command in ("fax/commands/Fetch", "invoices/commands/Make"):
            await page.goto(f"/console/connectors/{command}")
            await page.get_by_role("button", name="Run").click()
            await page.get_by_text("memory at most").wait_for()
            await looked_at(page)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("overview", {"color_scheme": "light"}),
        ("overview-dark", {"color_scheme": "dark"}),
        ("overview-phone", {"color_scheme": "light", **PHONE}),
    ],
)
async def test_the_overview_is_seen_in_the_light_in_the_dark_and_on_a_telephone(
    office: Office, opened: Opener, name: str, options: dict[str, Any]
) -> None:
    async with opened(office.server.url, **options) as page:
        await log_in(page)
        await looked_at(page)
        await picture(page, name)
