"""The stores that the engine is tested on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.jobs.postgres import Postgres
from tests.jobs.support import Bench, bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """A server that all tests share, one after another."""
    made = Postgres()
    yield made
    made.close()


@pytest.fixture
def url(server: Postgres) -> str:
    """An empty database."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS gateway_jobs CASCADE")
    return server.url


@pytest.fixture
def fragile() -> Iterator[Postgres]:
    """A server that the test stops."""
    made = Postgres()
    yield made
    made.close()


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of store; what it needs is there before the test."""
    if request.param == "postgres":
        request.getfixturevalue("server")
    return request.param


@pytest.fixture
def database(kind: str, request: pytest.FixtureRequest) -> str | None:
    """Each of the stores: the URL of an empty database; None is a file."""
    return request.getfixturevalue("url") if kind == "postgres" else None


@pytest.fixture
async def one(tmp_path: Path, database: str | None) -> AsyncIterator[Bench]:
    """An engine on each of the stores."""
    async with bench(tmp_path, database) as made:
        yield made
