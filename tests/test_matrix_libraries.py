"""Real libraries answer the same in each mode of Python, and mode fork forks all that are said to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.installing import environment_with
from tests.jobs.postgres import Postgres
from tests.libraries import CASES, Redis, Web, grpc_server, listening
from tests.one_gateway import nothing_is_left, nothing_is_left_of_the_file  # noqa: F401
from tests.support import Server, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MODES = ("spawn", "standby", "fork", "persistent")
PATIENCE = 120  # seconds until all have been asked what they can do: each imports its library
TRIED = (
    "httpx",
    "boto3",
    "psycopg",
    "grpcio",
    "numpy",
    "pandas",
    "polars",
    "gevent",
)  # tests/test_matrix.py has requests

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    site = Site(tmp_path_factory.mktemp("libraries"))
    venv = environment_with(*sorted({one for name in TRIED for one in CASES[name].requires}))
    database = Postgres()
    try:
        with listening(Web) as web, listening(Redis) as redis, grpc_server(venv / "bin/python") as grpc:
            servers = {"web": f"http://{web}", "redis": f"redis://{redis}", "grpc": grpc, "postgres": database.url}
            lines = []
            for name in TRIED:
                (site.folder / f"{name}_.py").write_text(CASES[name].module(servers))
                keys = f"runtime: python, module: ./{name}_.py, venv: {venv}"
                lines += [f"{name}-{mode}: {{{keys}, mode: {mode}}}" for mode in MODES]
            site.configure("\n".join(lines), defaults="timeout: 60s\ndescribe_timeout: 60s\nwarm: 0")
            async with served(site, ready=False) as server:
                await eventually(server.ready, PATIENCE)
                yield server
    finally:
        database.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("library", TRIED)
async def test_answers_twice_alike(gateway: Server, library: str, mode: str) -> None:
    for _ in range(2):
        answer = await gateway.do(f"{library}-{mode}/Go")
        assert (answer.status, answer.code) == (200, None), answer.raw
        assert answer.body == CASES[library].expected
    status = await gateway.status(f"{library}-{mode}")
    assert status["mode"] == (CASES[library].fork if mode == "fork" else mode)
    assert bool(status["notices"]) == (status["mode"] != mode)
