"""The sample `postgres` before a real server."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.installing import installed
from tests.samples.conftest import configured, free_port
from tests.support import Server, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
pytestmark = pytest.mark.skipif(not BINARIES, reason="no PostgreSQL here: apt-get install postgresql")

SETTINGS = ("fsync=off", "autovacuum=off", "unix_socket_directories=", "listen_addresses=127.0.0.1")
PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def database() -> Iterator[int]:
    """A cluster of its own on a free port of the loopback; it will not run as root."""
    binaries = BINARIES[-1].parent
    root = os.geteuid() == 0
    user: dict[str, Any] = (
        {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []} if root else {}
    )
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folder is closed to others
    try:
        if root:
            shutil.chown(folder, "nobody", user["group"])
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        initdb = [binaries / "initdb", "--pgdata", folder / "data", "--username", "robot", "--auth", "scram-sha-256",
                  "--pwfile", folder / "password", "--encoding", "UTF8", "--no-sync"]  # fmt: skip
        subprocess.run(initdb, check=True, capture_output=True, cwd="/", **user)
        port = free_port()
        settings = [word for one in (*SETTINGS, f"port={port}") for word in ("-c", one)]
        log = (folder / "log").open("wb")
        with (
            log,
            subprocess.Popen(
                [BINARIES[-1], "-D", folder / "data", *settings], stdout=log, stderr=log, cwd="/", **user
            ) as server,
        ):
            try:
                _ready(server, binaries, port)
                yield port
            finally:
                server.terminate()
                server.wait(20)
    finally:
        shutil.rmtree(folder)


def _ready(server: subprocess.Popen[bytes], binaries: Path, port: int) -> None:
    deadline = time.monotonic() + 60
    while subprocess.run([binaries / "pg_isready", "--quiet", "--host", "127.0.0.1", "--port", str(port)]).returncode:
        assert server.poll() is None, "PostgreSQL did not start"
        assert time.monotonic() < deadline, "PostgreSQL is not ready after a minute"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(samples: Path, database: int) -> AsyncIterator[Server]:
    dsn = f"host=127.0.0.1 port={database} user=robot dbname=postgres"
    code = "runtime: python, module: ./connectors.d/postgres/database.py, venv: .gateway/runtimes/postgres/current/venv"
    site = configured(
        samples,
        "postgres",
        f"""
        postgres: {{config: {{dsn: "{dsn}", password: {PASSWORD}, max_rows: 100}}}}
        brief: {{{code}, timeout: 2500ms, config: {{dsn: "{dsn}", password: {PASSWORD}}}}}
        unset: {{{code}}}
        garbled: {{{code}, config: {{dsn: "no such thing"}}}}
        nowhere: {{{code}, config: {{dsn: "host=127.0.0.1 port={free_port()}"}}}}
        intruder: {{{code}, config: {{dsn: "{dsn}", password: wrong horse}}}}
        """,
    )
    installed(site, "postgres")
    async with served(site) as gateway:
        yield gateway


@pytest_asyncio.fixture
async def orders(gateway: Server) -> AsyncIterator[None]:
    """A table with two rows."""
    await execute(gateway, "CREATE TABLE orders (id int PRIMARY KEY, what text NOT NULL, price numeric)")
    await execute(gateway, "INSERT INTO orders VALUES (1, 'tea', 2.50), (2, '☃', NULL)")
    yield
    await execute(gateway, "DROP TABLE orders")


async def execute(gateway: Server, sql: str, parameters: Any = None) -> Any:
    answer = await gateway.do("postgres/Execute", {"sql": sql, "parameters": parameters})
    assert (answer.status, answer.code) == (200, None), answer.json
    return answer.body


async def query(gateway: Server, sql: str, parameters: Any = None) -> Any:
    answer = await gateway.do("postgres/Query", {"sql": sql, "parameters": parameters})
    assert (answer.status, answer.code) == (200, None), answer.json
    return answer.body


async def test_its_commands_are_listed(gateway: Server) -> None:
    assert sorted(one for one in await gateway.commands() if one.startswith("postgres/")) == [
        "postgres/Execute",
        "postgres/Query",
    ]


@pytest.mark.usefixtures("orders")
async def test_a_query_gives_rows_and_columns(gateway: Server) -> None:
    assert await query(gateway, "SELECT id, what, price FROM orders ORDER BY id") == {
        "columns": [
            {"name": "id", "type": "int4"},
            {"name": "what", "type": "text"},
            {"name": "price", "type": "numeric"},
        ],
        "rows": [{"id": 1, "what": "tea", "price": "2.50"}, {"id": 2, "what": "☃", "price": None}],
        "count": 2,
    }


@pytest.mark.usefixtures("orders")
async def test_execute_commits_and_counts(gateway: Server) -> None:
    assert await execute(gateway, "UPDATE orders SET price = 3 WHERE id < 3") == {"count": 2, "status": "UPDATE 2"}
    assert (await query(gateway, "SELECT DISTINCT price FROM orders"))["rows"] == [{"price": "3"}]


async def test_parameters_are_values_and_never_sql(gateway: Server) -> None:
    body = await query(gateway, "SELECT %s::text AS a, %s::int AS b", ["'; DROP TABLE orders; --", 7])
    assert body["rows"] == [{"a": "'; DROP TABLE orders; --", "b": 7}]
    body = await query(
        gateway, "SELECT %(a)s::jsonb AS a, %(b)s::int[] AS b, 7 %% 4 AS c", {"a": {"x": [1]}, "b": [1, 2]}
    )
    assert body["rows"] == [{"a": {"x": [1]}, "b": [1, 2], "c": 3}]


async def test_every_type_has_a_json_form(gateway: Server) -> None:
    (row,) = (await query(gateway, """
        SELECT true AS yes, 1.5::float8 AS half, 'NaN'::float8 AS nan, '2026-01-02'::date AS day,
               '2026-01-02 03:04Z'::timestamptz AT TIME ZONE 'UTC' AS moment, '1 day'::interval AS span,
               'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid AS id, '\\xff00'::bytea AS data, '{"a": 1.5}'::jsonb AS doc,
               '10.0.0.0/8'::cidr AS net, int4range(1, 3) AS span_of_numbers, NULL AS nothing, ARRAY['NaN'::float8] AS list
    """))["rows"]  # fmt: skip
    assert row == {
        "yes": True, "half": 1.5, "nan": "nan", "day": "2026-01-02", "moment": "2026-01-02T03:04:00", "span": 86400.0,
        "id": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "data": "/wA=", "doc": {"a": 1.5}, "net": "10.0.0.0/8",
        "span_of_numbers": "[1, 3)", "nothing": None, "list": ["nan"],
    }  # fmt: skip


@pytest.mark.usefixtures("orders")
@pytest.mark.parametrize(
    ("target", "sql", "code", "words"),
    [
        ("Execute", "INSERT INTO orders VALUES (1, 'again')", "23505", "Key (id)=(1) already exists"),
        ("Execute", "INSERT INTO nothing VALUES (1)", "42P01", 'relation "nothing" does not exist'),
        ("Execute", "INSERT INTO", "42601", "syntax error"),
        ("Execute", "DELETE FROM orders; DELETE FROM orders", "42601", "multiple commands"),
        ("Query", "DELETE FROM orders RETURNING id", "25006", "read-only transaction"),
        ("Query", "COMMIT; DELETE FROM orders", "42601", "multiple commands"),
        ("Query", "SET search_path TO public", "postgres_no_rows", "call Execute"),
        ("Query", "SELECT generate_series(1, 101)", "postgres_too_many_rows", "more than 100 rows"),
        ("Query", "SELECT %s", "postgres_invalid_value", "placeholder"),
    ],
)  # fmt: skip
async def test_what_the_server_refuses_is_told_with_its_code(
    gateway: Server, target: str, sql: str, code: str, words: str
) -> None:
    answer = await gateway.do(f"postgres/{target}", {"sql": sql})
    assert (answer.status, answer.code) == (200, code), answer.json
    assert words in answer.message
    assert (await query(gateway, "SELECT count(*) FROM orders"))["rows"] == [{"count": 2}]


@pytest.mark.parametrize(
    ("connector", "code", "later", "words"),
    [
        ("unset", "postgres_not_configured", False, "set config.dsn"),
        ("garbled", "postgres_not_configured", False, "config.dsn"),
        ("nowhere", "postgres_unreachable", True, "refused"),
        ("intruder", "postgres_unreachable", True, "password authentication failed"),
    ],
)
async def test_a_missing_connection_is_told(
    gateway: Server, connector: str, code: str, later: bool, words: str
) -> None:
    answer = await gateway.do(f"{connector}/Query", {"sql": "SELECT 1"})
    assert (answer.status, answer.code) == (200, code), answer.json
    assert words in answer.message
    assert answer.json["command_response"].get("http_status") == (503 if later else None)


async def test_the_server_stops_a_statement_before_the_deadline_does(gateway: Server) -> None:
    answer = await gateway.do("brief/Query", {"sql": "SELECT pg_sleep(60)"})
    assert (answer.status, answer.code) == (200, "57014"), answer.json
    assert "statement timeout" in answer.message
    running = "SELECT count(*) AS n FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%%'"
    assert (await query(gateway, running))["rows"] == [{"n": 0}]


@pytest.mark.usefixtures("orders")
async def test_calls_at_the_same_time_do_not_disturb_each_other(gateway: Server) -> None:
    await asyncio.gather(
        *(execute(gateway, "INSERT INTO orders VALUES (%s, 'x')", [number]) for number in range(10, 16))
    )
    assert (await query(gateway, "SELECT count(*) AS n FROM orders"))["rows"] == [{"n": 8}]
