"""The sample `markdown` through the gateway: packages from npm, a node process a call."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.installing import installed
from tests.samples.conftest import configured
from tests.support import Server, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MISSING = [name for name in ("node", "npm") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not on this machine: {', '.join(MISSING)}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(samples: Path) -> AsyncIterator[Server]:
    site = configured(samples, "markdown", "markdown:")
    installed(site, "markdown")
    async with served(site) as gateway:
        yield gateway


async def test_markdown_becomes_html_without_scripts(gateway: Server) -> None:
    text = "# Order 17\n\n*on its way* <script>alert(1)</script>"
    answer = await gateway.do("markdown/MarkdownToHtml", {"markdown": text})
    assert answer.code is None, answer.json
    assert "<h1>Order 17</h1>" in answer.body["html"]
    assert "<em>on its way</em>" in answer.body["html"]
    assert "script" not in answer.body["html"]


async def test_markdown_becomes_text(gateway: Server) -> None:
    answer = await gateway.do("markdown/MarkdownToText", {"markdown": "**2 < 3** ☃"})
    assert answer.body == {"text": "2 < 3 ☃"}
