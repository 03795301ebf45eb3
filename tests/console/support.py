"""What the tests of the console in a browser share: an office to look at, one way to log in, and pictures for docs."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

from tests.support import eventually

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from playwright.async_api import Page

    from tests.jobs.support import Backend
    from tests.support import Server, Site

CHROMIUM = shutil.which("chromium")
PATIENCE = 20_000  # milliseconds
KEY = "single"
HEADERS = {"Authorization": f"Bearer {KEY}"}
PICTURES = os.environ.get("SCREENSHOTS")
"""The folder that pictures go to; nothing: none are made."""
COLORS = 256  # of a picture
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
MOVES = """() => [...document.querySelectorAll("*")].filter((one) => {
  const style = getComputedStyle(one);
  return style.animationName !== "none" || parseFloat(style.transitionDuration) > 0;
}).length"""
CONNECTORS = """
fax:
    run: [./fax.sh]
    timeout: 20s
    journal: {payloads: all}
    commands:
      Send:
        description: Sends a <page>
        parameters:
          to: {type: str, description: an E.164 number}
          text: {type: str, description: what the page says}
          pages: {type: int, default: 1}
          urgent: {type: bool, required: false}
          quality: {type: str, enum: [fine, normal], default: normal}
          pin: {type: str, secret: true, required: false}
          cover: {type: any, required: false}
      Broadcast: {description: Sends a page to everybody, async: true, additional_parameters: true}
      Fetch: {description: Fetches what has come}
calendar: {run: [./works.sh], commands: {Find: {description: Finds a free hour}}}
crm: {run: [./works.sh], commands: {Find: {description: Looks a customer up}, Change: {}}}
invoices: {run: [./works.sh], commands: {Make: {description: Makes an invoice, additional_parameters: true}}}
mail: {run: [./works.sh], commands: {Send: {description: Sends a message}}}
scanner: {run: [scan-to-pdf]}
"""
FAX = """
request=$(cat)
echo "dialling" >&2
case $request in
*'"command":"Broadcast"'*) while [ ! -e DIR/gate ]; do sleep 0.02; done ;;
*'"command":"Fetch"'*) echo "no carrier after 3 rings" >&2; echo '{"error": {"error_code": "no_carrier", "message": "the line is dead"}}'; exit ;;
esac
echo "sent in 12 s" >&2
echo "{\\"sent\\": true, \\"call\\": $request}"
"""
WORKS = """
case $(cat) in
*'"late"'*) echo "the ledger is locked" >&2; exit 3 ;;
esac
sleep 0.0$(($$ % 9))
echo "done" >&2; echo '{"done": true}'
"""


class Opener(Protocol):
    """Opens a page of a browser that has no cookies yet, until a block ends."""

    def __call__(self, url: str, **options: Any) -> AbstractAsyncContextManager[Page]: ...


class Office:
    """A gateway at work."""

    def __init__(self, server: Server, backend: Backend) -> None:
        self.server = server
        self.backend = backend
        self._gate = server.site.folder / "gate"

    async def works(self) -> None:
        """Have it called."""
        for target, times in {"mail/Send": 9, "crm/Find": 7, "calendar/Find": 4, "invoices/Make": 5}.items():
            await asyncio.gather(*(self.server.do(target, headers=HEADERS) for _ in range(times)))
        await self.server.do("invoices/Make", {"late": True}, headers=HEADERS)
        for more in ({"text": "the order", "pin": "s3cret-pin"}, {"text": "the receipt"}):
            await self.server.do("fax/Send", {"to": "+4755", **more}, headers=HEADERS)

    async def job(self, task: str, **more: Any) -> str:
        """Have a job accepted, which waits until the office opens."""
        params = {"spiff__task_id": task, **more}
        accepted = await self.server.do("fax/Broadcast", params, headers={**HEADERS, "Prefer": "respond-async"})
        return str(accepted.body["job_id"])

    async def run_of(self, query: str) -> str:
        """Return the latest run of those that are searched for, once there is one."""

        async def found() -> str:
            runs = (await self.server.get(f"/v1/runs?{query}", headers=HEADERS)).json["runs"]
            return str(runs[0]["id"]) if runs else ""

        return str(await eventually(found))

    async def delivered(self, task: str) -> str:
        """Have a job done whose callback is taken at the second try; return its run."""
        self.backend.answers = [503, 200]
        job = await self.job(task, spiff__callback_url=self.backend.url)
        self.opens()
        await self.comes_to(job, "delivered")
        self._gate.unlink()
        return await self.run_of(f"job={job}")

    async def comes_to(self, job: str, state: str) -> None:
        """Wait until a job is in a state."""

        async def is_there() -> bool:
            return (await self.server.get(f"/v1/jobs/{job}", headers=HEADERS)).json["state"] == state

        await eventually(is_there)

    def opens(self) -> None:
        """Let go on what waits."""
        self._gate.touch()


def write(site: Site) -> None:
    """Write the programs of its connectors."""
    site.script("fax.sh", FAX.replace("DIR", str(site.folder)))
    site.script("works.sh", WORKS)
    builds = site.state / "runtimes/scanner"
    builds.mkdir(parents=True)
    (builds / "failed.json").write_text('{"inputs": "", "problem": "fetch failed:\\nit is not there"}')
    (builds / "build.log").write_text("0.0 s  fetch\nthe network is away\n0.2 s  failed: fetch failed:\n" * 40)


async def log_in(page: Page, key: str = KEY) -> None:
    """Log in, by the keyboard."""
    await page.goto("/console")
    await page.get_by_label("Key").fill(key)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()


async def looked_at(page: Page) -> None:
    """See whether a page can be used by everybody: what axe finds, what moves, and what is wider than a screen."""
    found = await Axe().run(page, options={"runOnly": RULES, "resultTypes": ["violations"]})
    assert found.violations_count == 0, f"{page.url}\n{found.generate_report()}"
    assert await page.evaluate(MOVES) == 0, page.url
    wide = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, page.url


async def picture(page: Page, name: str, height: int = 0) -> None:
    """Make a picture for docs/console.md, where pictures are asked for; so many pixels of its page, or as it is seen."""
    if PICTURES is None:
        return
    size = page.viewport_size
    assert size is not None
    await page.set_viewport_size({"width": size["width"], "height": height or size["height"]})
    await page.evaluate("scrollTo(0, 0)")
    shown = await page.screenshot(animations="disabled", caret="hide")
    await page.set_viewport_size(size)
    await asyncio.to_thread(_kept, shown, Path(PICTURES) / f"{name}.png")


def _kept(shown: bytes, file: Path) -> None:
    """Write a picture in few colours, which is a third as large."""
    from PIL import Image  # noqa: PLC0415 - nobody else needs it

    file.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(shown)) as image:
        few = image.convert("RGB").quantize(COLORS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(file, optimize=True)
