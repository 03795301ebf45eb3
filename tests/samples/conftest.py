"""The connectors of the repository in a folder of their own, installed as an operator does it."""

from __future__ import annotations

import shutil
import socket
from typing import TYPE_CHECKING

import aiohttp
import pytest
import pytest_asyncio

from tests.installing import ROOT
from tests.one_gateway import nothing_is_left, nothing_is_left_of_the_file  # noqa: F401
from tests.support import Server, Site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

IGNORED = shutil.ignore_patterns("__pycache__", "node_modules")


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of connectors.d, and one state_dir for all that is built."""
    folder = tmp_path_factory.mktemp("samples")
    shutil.copytree(ROOT / "connectors.d", folder / "connectors.d", ignore=IGNORED)
    return folder


@pytest_asyncio.fixture
async def gateway(shared: Server) -> AsyncIterator[Server]:
    """The file's gateway over connections that end with the test."""
    async with aiohttp.ClientSession() as session:
        yield Server(shared.process, shared.site, shared._log, shared.port, session)


def configured(samples: Path, name: str, connectors: str) -> Site:
    """Write a connectors.yaml of this name, which serves only what it lists."""
    site = Site(samples)
    site.file = samples / f"{name}.yaml"
    site.configure(connectors, gateway="enable: listed")
    return site


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
