"""The sample `files` through the gateway: a bash file, nothing to install."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest_asyncio

from tests.samples.conftest import configured
from tests.support import Server, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(samples: Path) -> AsyncIterator[Server]:
    async with served(configured(samples, "files", "files:")) as gateway:
        yield gateway


async def test_a_checksum_is_that_of_the_text(gateway: Server) -> None:
    answer = await gateway.do("files/Checksum", {"text": "☃\n"})
    assert answer.body == {"algorithm": "sha256", "digest": hashlib.sha256("☃\n".encode()).hexdigest()}


async def test_an_unknown_algorithm_is_told(gateway: Server) -> None:
    answer = await gateway.do("files/Checksum", {"text": "a", "algorithm": "rot13"})
    assert (answer.status, answer.code, answer.message) == (200, "unknown_algorithm", "no such algorithm: rot13")


async def test_a_path_that_is_not_there_is_a_failure(gateway: Server) -> None:
    answer = await gateway.do("files/DiskUsage", {"path": "/no/such/path"})
    assert (answer.status, answer.code) == (502, "connector_failed")
    assert "No such file or directory" in answer.message
    assert (await gateway.do("files/DiskUsage")).body["size"] > 0
