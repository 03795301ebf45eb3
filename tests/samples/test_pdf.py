"""The sample `pdf` through the gateway: libraries from Maven, sources that are compiled, a JVM a call."""

from __future__ import annotations

import base64
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

MISSING = [name for name in ("java", "javac", "mvn") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not on this machine: {', '.join(MISSING)}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(samples: Path) -> AsyncIterator[Server]:
    site = configured(samples, "pdf", "pdf:")
    installed(site, "pdf")
    async with served(site) as gateway:
        yield gateway


async def test_a_text_comes_back_from_its_pdf(gateway: Server) -> None:
    made = await gateway.do("pdf/TextToPdf", {"text": "Invoice 17\nTotal: 4.20", "title": "Invoice"})
    assert made.code is None, made.json
    assert base64.b64decode(made.body["pdf"]).startswith(b"%PDF-")
    read = await gateway.do("pdf/PdfToText", {"pdf": made.body["pdf"]})
    assert read.code is None, read.json
    lines = [line.strip() for line in read.body["text"].split("\n")]
    assert [line for line in lines if line] == ["Invoice", "Invoice 17", "Total: 4.20"]


async def test_what_is_no_pdf_is_an_error_that_names_it(gateway: Server) -> None:
    answer = await gateway.do("pdf/PdfToText", {"pdf": base64.b64encode(b"hello").decode()})
    assert answer.code, answer.json
    assert "pdf" in answer.message.lower()
