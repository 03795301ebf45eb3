"""The file of the journal: one thread has it. A statement takes a whole batch, so that others have the interpreter."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from base64 import b64decode, b64encode
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import JournalUnavailable
from gateway.files import check_file
from gateway.journal.payloads import NOTHING, masked
from gateway.journal.records import FAILED, RunDetail, RunSummary
from gateway.sealing import Broken

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from gateway.journal.payloads import Masked
    from gateway.journal.records import Ran, Wanted
    from gateway.sealing import Keyring
    from gateway.sections import JournalSection

VERSION = 2
BUSY = 2.0  # seconds that another process may have the file locked
LOOK = 60.0  # seconds between two looks for runs that are too old
SLICE = 1000  # runs that are removed at once, in a transaction of their own: SQLite's own log has all that one changes
SLICES = 16  # that are removed before a write, if there is no room for it; the rest goes afterwards
SLICE_SIZE = 1 << 20  # bytes of them, about
GIVEN_BACK = 500  # pages of the file that are given back at once
ROW = 400  # bytes of a run without its log and payload, or so
PATIENCE = 3.0  # seconds of a search
STEPS = 100_000  # of SQLite's, between two looks at the time that a search takes
LOOKED_AT = 300  # entries of an index by which it is judged what it is good for
SMALL_CACHE = 4096  # KiB
NAME = 200  # characters of a name, which may be whatever a caller has typed
MESSAGE = 4096  # characters of a message
LOG = (
    16 << 20
)  # bytes from which on SQLite's own log is written into the file, or a quarter of the file's, if that is less
PAGE = 4096  # bytes of one

_COLUMNS = RunSummary.__struct_fields__
_CLIENT = _COLUMNS.index("client")
_TYPES = {"began": "REAL", "queue_wait": "REAL", "started": "REAL", "wall": "REAL", "finished": "REAL",
          "cpu_user": "REAL", "cpu_system": "REAL", "peak_rss": "INTEGER", "request_bytes": "INTEGER",
          "result_bytes": "INTEGER", "log_bytes": "INTEGER", "status": "INTEGER"}  # fmt: skip
_INDEXED = {
    "finished": "finished",
    "connector": "connector, finished",
    "command": "command, finished",
    "outcome": "outcome, finished",
    "failed": "(outcome <> 'ok'), finished",
    "client": "client, finished",
    "task": "task_id, finished",
    "process_instance": "process_instance_id, finished",
    "job": "job, finished",
}
"""What is asked for is found in its order: the latest first."""
_SPARSE = {"task": "task_id", "process_instance": "process_instance_id", "job": "job"}
"""What many runs have none of."""
_SCHEMA = (
    "CREATE TABLE runs (seq INTEGER PRIMARY KEY AUTOINCREMENT, "
    + ", ".join(f"{name} {_TYPES.get(name, 'TEXT')}" for name in _COLUMNS)
    + ", size INTEGER, UNIQUE (id))",
    "CREATE TABLE details (seq INTEGER PRIMARY KEY, log TEXT, sent TEXT, result TEXT)",
    *(
        f"CREATE INDEX runs_{name} ON runs ({columns})"
        + (f" WHERE {_SPARSE[name]} IS NOT NULL" if name in _SPARSE else "")
        for name, columns in _INDEXED.items()
    ),
    f"PRAGMA user_version = {VERSION}",
)
_ADD = (
    f"INSERT INTO runs ({', '.join(_COLUMNS)}, size) SELECT "
    + ", ".join(f"json_extract(value, '$[{place}]')" for place in range(len(_COLUMNS) + 1))
    + " FROM json_each(?)"
)
_ADD_DETAILS = (
    "INSERT INTO details SELECT runs.seq, json_extract(value, '$[1]'), json_extract(value, '$[2]'), "
    "json_extract(value, '$[3]') FROM json_each(?) CROSS JOIN runs ON runs.id = json_extract(value, '$[0]')"
)
_TOLD = ", ".join(f"'{one}', {f'json({one})' if one == 'process_instance_id' else one}" for one in _COLUMNS)
_LIST = "SELECT json_group_array(json(told)) FROM (SELECT json_object({told}) AS told FROM runs{where} {order})"
_ORDER = "ORDER BY finished DESC, seq DESC LIMIT :limit OFFSET :offset"
_ONE = f"SELECT json_object({_TOLD}), log, sent, result FROM runs LEFT JOIN details USING (seq) WHERE id = ?"
_FILTERS = {
    "connector": "connector = :connector",
    "command": "command = :command",
    "outcome": "outcome = :outcome",
    "task": "task_id = :task",
    "process_instance": "process_instance_id IN (:process_instance, :number)",
    "client": "client = :client",
    "job": "job = :job",
    "since": "finished >= :since",
    "until": "finished < :until",
    "after": "seq > COALESCE((SELECT seq FROM runs WHERE id = :after), 0)",
}
_PREFIX = "sealed:"
"""How a text begins that is sealed; none begins so by itself, since they are JSON."""

_summaries = msgspec.json.Decoder(list[RunSummary])
_summary = msgspec.json.Decoder(RunSummary)


class RunsFile:
    """It, opened. Whatever goes wrong is a sqlite3.Error or an OSError."""

    def __init__(self, path: Path, section: JournalSection, keys: Keyring) -> None:
        """Open the file, or make one. What is damaged, or another version's, is put aside."""
        self._path = path
        self._section = section
        self._keys = keys
        self._looked = 0.0
        self._most = int(section.size) // PAGE
        """Pages that the file may have."""
        self._weights: Counter[str | None] = Counter()
        """Bytes of each client's runs, or so, once they have to be known."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._connection = self._opened()
        except sqlite3.DatabaseError as problem:
            if not is_damage(problem):
                raise
            self._put_aside()
            self._connection = self._opened()

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def give_up(self) -> None:
        """Close it, and put it aside: it is damaged somewhere, and need not look so to whoever opens it again."""
        self.close()
        if not self.is_gone():
            self._put_aside()

    def is_gone(self) -> bool:
        """Tell whether what is written goes nowhere: the file was removed, or another one put in its place."""
        try:
            facts = os.stat(self._path)
        except OSError:
            return True
        return (facts.st_dev, facts.st_ino) != self._place

    def add(self, runs: Sequence[Ran]) -> None:
        """Write runs, all or none of them, once there is room for them."""
        latest = {one.id: one for one in runs}.values()
        rows, details = self._rows(latest)
        added, detailed = _as_json(rows), _as_json(details)
        for _ in range(SLICES):
            if not self._make_room(2 * len(added) + len(detailed)):
                break
        with self._transaction():
            for one in latest:
                if one.again:
                    self._remove(self._execute("SELECT seq, client, size FROM runs WHERE id = ?", one.id))
            self._execute(_ADD, added)
            if details:
                self._execute(_ADD_DETAILS, detailed)
        if self._weights:
            for row in rows:
                self._weights[row[_CLIENT]] += row[-1]
        if self._pages()[0] > self._most:
            self._looked = 0.0  # they took more than was thought, or the file was larger before

    def look(self, now: float) -> bool:
        """Remove some of what is too old by now, or too much, once in a while; tell whether there is more of it."""
        if abs(now - self._looked) < LOOK:
            return False
        if self._remove_oldest("finished < ?", now - self._section.keep) or self._make_room(0) or self._give_back():
            return True
        self._looked = now
        self._execute(f"PRAGMA analysis_limit = {LOOKED_AT}")
        self._execute("ANALYZE")
        self._execute("PRAGMA wal_checkpoint")  # until then the file is as large as it was
        return False

    def select(self, wanted: Wanted, limit: int, offset: int) -> list[RunSummary]:
        """Return runs, the latest first.

        Raises:
            JournalUnavailable: too many have to be looked at, one by one.
        """
        values = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
        parts = [_FILTERS[name] for name in values]
        if wanted.outcome == FAILED:
            parts[list(values).index("outcome")] = "(outcome <> 'ok') = 1"
        instance = wanted.process_instance
        if instance is not None:
            values["process_instance"] = msgspec.json.encode(instance).decode()
            values["number"] = instance
        where = f" WHERE {' AND '.join(parts)}" if parts else ""
        statement = _LIST.format(told=_TOLD, where=where, order=_ORDER)
        with self._patience():
            [(text,)] = self._execute(statement, {**values, "limit": limit, "offset": offset})
        return _summaries.decode(text)

    def find(self, name: str) -> RunDetail | None:
        """Return a run; None where there is none."""
        found = self._execute(_ONE, name)
        if not found:
            return None
        told, log, *texts = found[0]
        summary = msgspec.structs.asdict(_summary.decode(told))
        try:
            sent, result = (self._opened_text(name, column, text) for column, text in zip(_SEALED, texts, strict=True))
        except (Broken, ValueError):
            return RunDetail(**summary, log=log or "", unreadable=True)
        return RunDetail(
            **summary,
            log=log or "",
            result=None if result is None else msgspec.Raw(result),
            **_given(sent),
        )

    # --- private

    def _opened(self) -> sqlite3.Connection:
        """Make the file, readable for us alone."""
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
        check_file(self._path)
        facts = os.stat(self._path)
        self._place = (facts.st_dev, facts.st_ino)
        connection = sqlite3.connect(self._path, timeout=BUSY, isolation_level=None, check_same_thread=False)
        try:
            log = min(LOG, self._section.size // 4)
            for pragma in (
                f"page_size = {PAGE}", "auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = NORMAL",
                f"wal_autocheckpoint = {log // PAGE}", f"journal_size_limit = {log}", f"cache_size = -{SMALL_CACHE}",
            ):  # fmt: skip
                connection.execute(f"PRAGMA {pragma}").close()
            connection.execute("BEGIN IMMEDIATE")
            [(version,)] = connection.execute("PRAGMA user_version").fetchall()
            if version == 0:
                for statement in _SCHEMA:
                    connection.execute(statement)
            connection.execute("COMMIT")
            _check(version)
        except BaseException:
            connection.close()
            raise
        return connection

    def _put_aside(self) -> None:
        os.replace(self._path, self._path.with_suffix(".damaged"))
        for ending in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._path}{ending}")

    def _rows(self, runs: Iterable[Ran]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Return the columns of runs, the last of them about what one takes, and what is large of each."""
        rows, details = [], []
        for one in runs:
            written = NOTHING if one.payload is None else masked(one.payload, self._section.payload_size)
            detail = (
                _plain(one.log),
                self._sealed(one.id, "sent", written.sent),
                self._sealed(one.id, "result", written.result),
            )
            if any(detail):
                details.append((one.id, *detail))
            size = ROW + sum(len(part) for part in detail if part)
            rows.append((*_row(one, written), size))
        return rows, details

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    self._execute("ROLLBACK")
            raise

    def _execute(self, statement: str, values: Any = ()) -> list[Any]:
        """Do all of a statement; a value that is no mapping is its only one."""
        if not isinstance(values, dict | tuple):
            values = (values,)
        with contextlib.closing(self._connection.execute(statement, values)) as cursor:
            return cursor.fetchall()

    @contextlib.contextmanager
    def _patience(self) -> Any:
        """Give up a search that takes too long: while it lasts nothing is written."""
        until = time.monotonic() + PATIENCE
        self._connection.set_progress_handler(lambda: time.monotonic() > until, STEPS)
        try:
            yield
        except sqlite3.OperationalError as problem:
            if getattr(problem, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
                raise
            raise JournalUnavailable(
                f"the search took longer than {PATIENCE:g} s: ask for fewer runs (since)"
            ) from None
        finally:
            self._connection.set_progress_handler(None, 0)

    def _remove(self, rows: Sequence[tuple[int, str | None, int]]) -> None:
        """Remove runs: the number, the client and the size of each."""
        gone = msgspec.json.encode([seq for seq, _, _ in rows]).decode()
        for table in ("details", "runs"):
            self._execute(f"DELETE FROM {table} WHERE seq IN (SELECT value FROM json_each(?))", gone)
        for _, client, size in rows:
            if client in self._weights:
                self._weights[client] -= size

    def _remove_oldest(self, which: str, value: Any) -> bool:
        """Remove the oldest runs of a kind, a slice of them; tell whether there were any."""
        with self._transaction():
            rows = self._execute(
                f"SELECT seq, client, size FROM runs WHERE {which} ORDER BY finished, seq LIMIT {SLICE}", value
            )
            total = 0
            for count, (_, _, size) in enumerate(rows, 1):
                total += size
                if total >= SLICE_SIZE:
                    del rows[count:]
                    break
            self._remove(rows)
        return bool(rows)

    def _make_room(self, more: int) -> bool:
        """Remove a slice of the runs of the client with most, if so many bytes find no room; tell whether it was so."""
        pages, free = self._pages()
        if (pages - free) * PAGE + more <= self._section.size:
            return False
        if not self._weights:
            self._weights.update(dict(self._execute("SELECT client, sum(size) FROM runs GROUP BY client")))
        for heaviest, _ in self._weights.most_common(1):
            if self._remove_oldest("client IS ?", heaviest):
                return True
        self._weights.clear()  # there are none; or another gateway has removed them
        return False

    def _give_back(self) -> bool:
        """Make the file smaller by some pages, if it is larger than it may be; tell whether it was."""
        pages, free = self._pages()
        over = min(pages - self._most, free, GIVEN_BACK)
        if over > 0:
            # `execute` takes the first of its steps for all of it, and frees one page.
            self._connection.executescript(f"PRAGMA incremental_vacuum({over})").close()
        return over > 0

    def _pages(self) -> tuple[int, int]:
        """Return how many pages there are, and how many of them are free."""
        [(pages,)], [(free,)] = self._execute("PRAGMA page_count"), self._execute("PRAGMA freelist_count")
        return pages, free

    def _sealed(self, name: str, column: str, text: bytes | None) -> str | None:
        if text is None or not self._keys:
            return None if text is None else text.decode()
        return _PREFIX + b64encode(self._keys.close(text, _about(name, column))).decode()

    def _opened_text(self, name: str, column: str, text: str | None) -> bytes | None:
        if text is None or not text.startswith(_PREFIX):
            return None if text is None else text.encode()
        return self._keys.open(b64decode(text[len(_PREFIX) :], validate=True), _about(name, column))


def _check(version: int) -> None:
    if version not in {0, VERSION}:
        raise _OtherVersion(f"it is of version {version}, and this gateway's is {VERSION}")


class _OtherVersion(sqlite3.DatabaseError):
    """What is there is no journal of this version."""


_SEALED = ("sent", "result")


def is_damage(problem: Exception) -> bool:
    """Tell whether it will not go away by itself."""
    code = getattr(problem, "sqlite_errorcode", None)
    damages = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return isinstance(problem, _OtherVersion) or (code is not None and code & 0xFF in damages)


def _row(one: Ran, written: Masked) -> tuple[Any, ...]:
    """Return the columns of a run, in the order of `RunSummary`."""
    event, caller = one.event, one.caller
    instance = caller.process_instance_id
    values = (
        one.id, _plain(event.connector[:NAME]), _plain(event.command[:NAME]), event.client, caller.key_id,
        event.request_id, caller.task_id, None if instance is None else msgspec.json.encode(instance).decode(),
        caller.process_model_identifier, one.job, one.replay_of, one.finished - one.took, event.queue_wait,
        one.started, event.wall, one.finished, event.cpu_user, event.cpu_system, event.peak_rss, event.request_bytes,
        event.result_bytes, event.log_bytes, event.outcome, _plain(event.error_code),
        _plain(event.message and event.message[:MESSAGE]), event.status, event.signal, written.kept,
    )  # fmt: skip
    return tuple(round(value, 4) if isinstance(value, float) else value for value in values)


def _given(sent: bytes | None) -> dict[str, Any]:
    if sent is None:
        return {}
    try:
        return msgspec.json.decode(sent, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:  # all of it was a secret, or might have been
        return {"params": msgspec.Raw(sent)}


def _plain(text: str | None) -> str | None:
    """Return a text as SQLite takes it out of JSON."""
    return text and text.replace("\0", "\ufffd")


def _as_json(rows: list[tuple[Any, ...]]) -> str:
    try:
        return msgspec.json.encode(rows).decode()
    except UnicodeEncodeError:  # what came in and was no UTF-8
        mended = [
            [one.encode(errors="replace").decode() if isinstance(one, str) else one for one in row] for row in rows
        ]
        return msgspec.json.encode(mended).decode()


def _about(name: str, column: str) -> bytes:
    return f"{name}/{column}".encode()
