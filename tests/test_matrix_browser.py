"""Connectors that drive Debian's Chromium, in each mode and at each level; nothing of it is left afterwards."""

from __future__ import annotations

import http.server
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.installing import environment_with, packages_with
from tests.libraries import listening
from tests.one_gateway import nothing_is_left, nothing_is_left_of_the_file  # noqa: F401
from tests.support import Server, Site, cmdline, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
LEVELS = ("off", "standard", "strict")
MODES = ("spawn", "standby", "fork", "persistent")
MODES_OF = {
    "shell": MODES[:2], "own": MODES, "node": ("spawn", "standby", "persistent"),
    "lazy": ("persistent",), "kept": ("persistent",),
}  # fmt: skip
SHARED = ("/tmp", "/dev/shm")  # where a browser puts what it does not put into its profile
PAGE = b"<html><body><script>document.title = 'made for ' + location.search</script></body></html>"

SHELL = """
# The page once its scripts have run.
# @param url str
cmd_Title() {
  local page
  page=$(chromium --headless --no-sandbox --dump-dom "$PARAM_url" | grep -o '<title>[^<]*') || return
  printf '{"title": %s}' "$(json_string "${page#<title>}")"
}
"""
PYTHON = """
from selenium import webdriver

def started(*more):
    options = webdriver.ChromeOptions()
    options.binary_location = "{chromium}"
    for option in ("--headless=new", "--no-sandbox", *more):
        options.add_argument(option)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService("{driver}"))
"""
OWN = """
def Title(url: str):
    browser = started()
    try:
        browser.get(url)
        return {"title": browser.title}
    finally:
        browser.quit()

def Forgotten(url: str):
    browser = started()
    browser.get(url)
    return {"title": browser.title}
"""
LAZY = """
import os
PROCESS = os.urandom(8).hex()
BROWSER = None

def Title(url: str):
    global BROWSER
    BROWSER = BROWSER or started()
    BROWSER.get(url)
    return {"title": BROWSER.title, "process": PROCESS}
"""
KEPT = """
import os
PROCESS = os.urandom(8).hex()
BROWSER = started("--renderer-process-limit=1", "--disable-site-isolation-trials",
                  "--disable-features=SpareRendererForSitePerProcess")
BROWSER.get("data:text/html,ready")

def Title(url: str):
    BROWSER.get(url)
    return {"title": BROWSER.title, "process": PROCESS}
"""
NODE = """
import { chromium } from 'playwright-core';

export async function Title({ url }) {
  const browser = await chromium.launch({ executablePath: '{chromium}' }); // with --no-sandbox, unless told otherwise
  try {
    const page = await browser.newPage();
    await page.goto(url);
    return { title: await page.title() };
  } finally {
    await browser.close();
  }
}
"""

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium chromium-driver"),
]
WANTS = {
    "shell": [],
    "own": [pytest.mark.skipif(DRIVER is None, reason="there is no chromedriver: apt-get install chromium-driver")],
    "node": [pytest.mark.skipif(shutil.which("npm") is None, reason="there is no Node with npm")],
}


class Page(http.server.BaseHTTPRequestHandler):
    """A page that makes its title itself."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    with listening(Page) as address:
        yield f"http://{address}/"


def lay_out(folder: Path) -> list[str]:
    """Write the connectors; return their entries, each for every mode and level."""
    kinds = {"shell": ("runtime: shell, module: ./title.sh", MODES_OF["shell"])}
    (folder / "title.sh").write_text(SHELL)
    if DRIVER is not None:
        venv = environment_with("selenium")
        python = PYTHON.replace("{driver}", DRIVER)
        for name, source in (("own", OWN), ("lazy", LAZY), ("kept", KEPT)):
            (folder / f"{name}.py").write_text((python + source).replace("{chromium}", str(CHROMIUM)))
            keys = f"runtime: python, module: ./{name}.py, venv: {venv}"
            kinds[name] = keys, MODES_OF[name]
    if shutil.which("npm") is not None:
        (folder / "node").mkdir()
        (folder / "node/title.mjs").write_text(NODE.replace("{chromium}", str(CHROMIUM)))
        (folder / "node/node_modules").symlink_to(packages_with("playwright-core"))
        kinds["node"] = "runtime: node, module: ./node/title.mjs", MODES_OF["node"]
    return [
        f"{kind}-{mode}-{level}: {{{keys}, mode: {mode}, sandbox: {level}, network: host}}"
        for kind, (keys, modes) in kinds.items()
        for mode in modes
        for level in LEVELS
        if kind not in {"lazy", "kept"} or level == "standard"
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(short_site: Site) -> AsyncIterator[Server]:
    site = short_site  # Chromium's socket lies in the private folder
    site.configure("\n".join(lay_out(site.folder)), defaults="timeout: 60s\nwarm: 0\ndescribe_timeout: 60s")
    async with served(site, ready=False) as server:
        await eventually(server.ready, 120)
        yield server


def left(gateway: Server) -> list[str]:
    """Return what is there of a browser: processes of this gateway, files where others have theirs, too."""
    running = [words for pid in gateway.processes() if b"chrom" in (words := cmdline(pid)).split(b"\0")[0]]
    files = [f"{folder}/{name}" for folder in SHARED for name in os.listdir(folder) if "chrom" in name.lower()]
    return [*map(repr, running), *files]


async def title(gateway: Server, connector: str, url: str, command: str = "Title") -> dict[str, Any]:
    """Return what a connector says of a page."""
    status = await gateway.status(connector)
    if status["state"] != "ready":
        pytest.skip(status["reason"])
    answer = await gateway.do(f"{connector}/{command}", {"url": url})
    assert (answer.status, answer.code) == (200, None), answer.raw
    assert isinstance(answer.body, dict)
    return answer.body


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("kind", "mode"),
    [pytest.param(kind, mode, marks=WANTS[kind]) for kind in ("shell", "own", "node") for mode in MODES_OF[kind]],
)
async def test_is_driven_and_gone_afterwards(gateway: Server, page: str, kind: str, mode: str, level: str) -> None:
    for number in range(2 if mode == "persistent" else 1):
        found = await title(gateway, f"{kind}-{mode}-{level}", f"{page}?{number}")
        assert found == {"title": f"made for ?{number}"}
        await eventually(lambda: left(gateway) == [])


@pytest.mark.parametrize("mode", [pytest.param(mode, marks=WANTS["own"]) for mode in MODES])
async def test_one_that_a_call_forgets_ends_with_it(gateway: Server, page: str, mode: str) -> None:
    assert await title(gateway, f"own-{mode}-standard", f"{page}?1", "Forgotten") == {"title": "made for ?1"}
    await eventually(lambda: left(gateway) == [])


@pytest.mark.parametrize("kind", [pytest.param("lazy", marks=WANTS["own"])])
async def test_one_that_a_persistent_process_keeps_from_a_call_costs_the_process(
    gateway: Server, page: str, kind: str
) -> None:
    connector = f"{kind}-persistent-standard"
    found = [await title(gateway, connector, f"{page}?{number}") for number in range(3)]
    assert [one["title"] for one in found] == [f"made for ?{number}" for number in range(3)]
    assert len({one["process"] for one in found}) == 3
    (notice,) = (await gateway.status(connector))["notices"]
    assert "start at import what later requests need" in notice


@pytest.mark.parametrize("kind", [pytest.param("kept", marks=WANTS["own"])])
async def test_one_of_a_single_renderer_stays_with_the_persistent_process_that_started_it(
    gateway: Server, page: str, kind: str
) -> None:
    found = [await title(gateway, f"{kind}-persistent-standard", f"{page}?{number}") for number in range(3)]
    assert [one["title"] for one in found] == [f"made for ?{number}" for number in range(3)]
    assert len({one["process"] for one in found}) == 1
