"""SQL on PostgreSQL.

| error | what | http_status |
| --- | --- | --- |
| postgres_not_configured | `config.dsn` is empty or cannot be read | |
| postgres_unreachable | no connection, or it broke | 503 |
| postgres_too_many_rows | more than `config.max_rows` | |
| postgres_no_rows | the statement of a Query returns none: Execute is meant | |
| postgres_invalid_value | a value has no JSON form, or a parameter none in SQL | |
| an SQLSTATE, as 23505 | what the server says; 57014 when the deadline stopped it | 503 for 40001, 40P01 and 53xxx |

https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.json import Json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Execute", "Query"]

MARGIN = 1000  # milliseconds before the deadline, to tell what happened
RETRYABLE = ("40001", "40P01", "53")


class Problem(Exception):
    """Something to tell the caller."""

    def __init__(self, code: str, message: str, *, later: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.later = later

    def told(self) -> dict[str, Any]:
        error = {"error": {"error_code": self.code, "message": str(self)}}
        return {**error, "http_status": 503} if self.later else error


def telling(command: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Answer a `Problem` as an error."""

    @functools.wraps(command)
    def told(**arguments: Any) -> dict[str, Any]:
        try:
            return command(**arguments)
        except Problem as problem:
            return problem.told()

    return told


@telling
def Query(
    *,
    config: dict[str, Any],
    context: dict[str, Any],
    sql: str,
    parameters: list[Any] | dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a statement that returns rows, in a transaction that may not write.

    Args:
        sql: One statement; %s stands for a parameter, %(name)s for a named one, and %% for a percent sign.
        parameters: A list, or an object for named ones. Objects in it are sent as JSON, lists as arrays.
    """
    limit = int(config.get("max_rows") or 10_000)
    with _connected(config, context) as connection, connection.cursor() as cursor:
        connection.read_only = True
        _execute(cursor, sql, parameters)
        if cursor.description is None:
            raise Problem("postgres_no_rows", f"{cursor.statusmessage} returns no rows: call Execute")
        columns = [{"name": column.name, "type": column.type_display} for column in cursor.description]
        rows = cursor.fetchmany(limit + 1)
    if len(rows) > limit:
        raise Problem("postgres_too_many_rows", f"more than {limit} rows (config.max_rows): use LIMIT")
    names = [column["name"] for column in columns]
    plain = [dict(zip(names, map(_plain, row), strict=True)) for row in rows]
    return {"columns": columns, "rows": plain, "count": len(plain)}


@telling
def Execute(
    *,
    config: dict[str, Any],
    context: dict[str, Any],
    sql: str,
    parameters: list[Any] | dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a statement that changes something, and commit.

    Args:
        sql: One statement; %s stands for a parameter, %(name)s for a named one, and %% for a percent sign.
        parameters: A list, or an object for named ones. Objects in it are sent as JSON, lists as arrays.
    """
    with _connected(config, context) as connection, connection.cursor() as cursor:
        _execute(cursor, sql, parameters)
        return {"count": max(0, cursor.rowcount), "status": cursor.statusmessage}


@contextlib.contextmanager
def _connected(config: dict[str, Any], context: dict[str, Any]) -> Iterator[psycopg.Connection]:
    """Give a connection whose transaction is committed at the end, or rolled back when something is raised."""
    dsn = str(config.get("dsn") or "").strip()
    if not dsn:
        raise Problem(
            "postgres_not_configured", "set config.dsn, for example: host=db.example.org dbname=orders user=me"
        )
    left = max(MARGIN, int(context["deadline_ms"]) - MARGIN)
    more: dict[str, Any] = {"connect_timeout": max(2, left // 1000)}
    if config.get("password"):
        more["password"] = config["password"]
    try:
        connection = psycopg.connect(dsn, **more)
    except psycopg.ProgrammingError as problem:
        raise Problem("postgres_not_configured", f"config.dsn: {problem}") from problem
    except psycopg.OperationalError as problem:
        raise Problem("postgres_unreachable", str(problem).strip(), later=True) from problem
    try:
        with connection:
            # The server stops what nobody waits for any longer, rather than the gateway the process: the work is
            # rolled back at once, and not when the server finds out.
            connection.execute(f"SET statement_timeout = {left}")
            connection.commit()
            yield connection
    except psycopg.Error as problem:
        raise _problem(problem) from problem


def _execute(cursor: psycopg.Cursor, sql: str, parameters: list[Any] | dict[str, Any] | None) -> None:
    sent: Any = [_sent(value) for value in parameters or ()]  # a list also when there are none: %% means % then too
    if isinstance(parameters, dict):
        sent = {name: _sent(value) for name, value in parameters.items()}
    cursor.execute(sql, sent, prepare=True)  # what is prepared is one statement, no script that ends the transaction


def _problem(problem: psycopg.Error) -> Problem:
    if problem.sqlstate is None:
        if isinstance(problem, psycopg.OperationalError):
            return Problem("postgres_unreachable", str(problem).strip(), later=True)
        return Problem("postgres_invalid_value", str(problem).strip())
    words = [problem.diag.message_primary, problem.diag.message_detail, problem.diag.message_hint]
    message = "; ".join(word for word in words if word)
    return Problem(problem.sqlstate, message, later=problem.sqlstate.startswith(RETRYABLE))


def _sent(value: Any) -> Any:
    return Json(value) if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    """Return what JSON can hold. Dates, decimals, UUIDs and bytes are the gateway's host's business."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return value if type(value).__module__ in _KNOWN else str(value)


_KNOWN = {"builtins", "datetime", "decimal", "uuid"}
