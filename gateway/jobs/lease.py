"""Which gateways that share a database are alive.

Each writes a row, and renews it. One whose row is stale is declared dead by another, which deletes the row and takes
its jobs over. A gateway that finds its row gone was declared dead, was only frozen, and must die at once: its jobs
run elsewhere. Times are the database's.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import psycopg

from gateway.jobs.port import JobsUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FENCED = 70  # exit status
CONNECT = {
    "connect_timeout": 3,
    "options": "-c statement_timeout=3000 -c lock_timeout=3000 -c search_path=gateway_jobs",
    "keepalives_idle": 3,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
    "application_name": "gateway-jobs",
}

_CREATE = """
SELECT pg_advisory_xact_lock(727400);
CREATE SCHEMA IF NOT EXISTS gateway_jobs;
CREATE TABLE IF NOT EXISTS gateway_node (
    id text PRIMARY KEY,
    seen timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE IF NOT EXISTS gateway_slot (
    connector text NOT NULL,
    slot int NOT NULL CHECK (slot > 0),
    node text NOT NULL REFERENCES gateway_node (id) ON DELETE CASCADE,
    job text NOT NULL,
    PRIMARY KEY (connector, slot)
);
CREATE TABLE IF NOT EXISTS gateway_verdict (
    job text PRIMARY KEY,
    verdict text NOT NULL CHECK (verdict IN ('joined', 'withdrawn')),
    said timestamptz NOT NULL DEFAULT clock_timestamp()
);
DELETE FROM gateway_verdict WHERE said < clock_timestamp() - interval '7 days';
"""
# The first one to say it is right; the others learn what was said.
_VERDICT = """
INSERT INTO gateway_verdict (job, verdict) VALUES (%(job)s, %(verdict)s)
ON CONFLICT (job) DO UPDATE SET job = excluded.job RETURNING verdict
"""
_JOIN = "INSERT INTO gateway_node (id) VALUES (%(node)s)"
_BEAT = "UPDATE gateway_node SET seen = clock_timestamp() WHERE id = %(node)s"
_REAP = "DELETE FROM gateway_node WHERE seen < clock_timestamp() - make_interval(secs => %(lease)s)"
_LEAVE = "DELETE FROM gateway_node WHERE id = %(node)s"
# Also finds what a reaper left that died half way.
_ORPHANS = """
SELECT executor_id FROM workflow_status
WHERE status = 'PENDING' AND executor_id IS NOT NULL
  AND executor_id NOT IN (SELECT id FROM gateway_node)
GROUP BY executor_id
"""
_TAKE = """
INSERT INTO gateway_slot (connector, slot, node, job)
SELECT %(connector)s, free, %(node)s, %(job)s FROM generate_series(1, %(limit)s) AS free
WHERE NOT EXISTS (SELECT 1 FROM gateway_slot WHERE connector = %(connector)s AND slot = free)
ORDER BY free LIMIT 1
ON CONFLICT DO NOTHING
"""
_GIVE = "DELETE FROM gateway_slot WHERE node = %(node)s AND NOT job = ANY(%(held)s)"


Verdict = Literal["joined", "withdrawn"]
"""Of a job whose commit came so late that its caller was told 503: somebody else was told 202, or nobody was."""


class Pace(NamedTuple):
    """Seconds: between two beats, and from a beat to death."""

    beat: float = 1.5
    lease: float = 6.0


PACE = Pace()


class Lease:
    """This gateway's row. `take_over` is called, in the lease's thread, with dead nodes that have open jobs."""

    def __init__(
        self,
        url: str,
        node: str,
        *,
        pace: Pace,
        take_over: Callable[[list[str]], None],
        changed: Callable[[bool, str], None],
        die: Callable[[int], Any] = os._exit,
    ) -> None:
        self.node = node
        self._url = url
        self._pace = pace
        self._take_over = take_over
        self._changed = changed
        self._die = die
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="jobs-lease", daemon=True)
        self._connection: psycopg.Connection[Any] | None = None
        self._seen = 0.0
        self._steady_since = 0.0
        self._held: set[str] = set()
        self._slots = threading.Lock()
        self._slot_connection: psycopg.Connection[Any] | None = None

    def join(self) -> None:
        """Write the row, before anything is promised under its name.

        Raises:
            JobsUnavailable: the database does not answer.
        """
        try:
            with psycopg.connect(self._url, **CONNECT) as connection:  # type: ignore[arg-type]
                connection.execute(_CREATE)
                connection.execute(_JOIN, {"node": self.node})
        except psycopg.Error as problem:
            raise JobsUnavailable(f"the jobs' database does not answer: {said(problem)}") from problem
        self._seen = self._steady_since = time.monotonic()

    def verdict(self, job: str, wanted: Verdict) -> Verdict:
        """Say of a job that it was joined, or withdrawn, unless the other was said before; return what holds.

        Raises:
            psycopg.Error: the database does not answer.
        """
        with psycopg.connect(self._url, **CONNECT) as connection:  # type: ignore[arg-type]
            row = connection.execute(_VERDICT, {"job": job, "verdict": wanted}).fetchone()
        return row[0] if row is not None else wanted

    def start(self) -> None:
        """Beat from now on."""
        self._thread.start()

    def sure(self) -> bool:
        """Tell whether nobody can have declared this gateway dead."""
        return time.monotonic() - self._seen < self._pace.lease

    def leave(self) -> None:
        """Stop beating and delete the row, so that others go on with what is left at once. It blocks."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)
        for connection in (self._connection, self._slot_connection):
            if connection is not None:
                connection.close()
        self._connection = self._slot_connection = None
        with contextlib.suppress(psycopg.Error), psycopg.connect(self._url, **CONNECT) as last:  # type: ignore[arg-type]
            last.execute(_LEAVE, {"node": self.node})

    def take(self, connector: str, limit: int, job: str) -> bool:
        """Try to take one of the connector's slots over all gateways. It blocks."""
        self._held.add(job)  # before it is: a beat gives back what is not held
        with self._slots:
            try:
                with self._for_slots() as connection:
                    facts = {"connector": connector, "node": self.node, "job": job, "limit": limit}
                    taken = connection.execute(_TAKE, facts).rowcount == 1
            except psycopg.Error:
                taken = False
        if not taken:
            self._held.discard(job)
        return taken

    def give(self, job: str) -> None:
        """Give a job's slot back; when the database is away, with a later beat. It blocks."""
        self._held.discard(job)
        with self._slots, contextlib.suppress(psycopg.Error), self._for_slots() as connection:
            connection.execute(_GIVE, {"node": self.node, "held": list(self._held)})

    def _for_slots(self) -> contextlib.AbstractContextManager[psycopg.Connection[Any]]:
        if self._slot_connection is None or self._slot_connection.closed:
            self._slot_connection = psycopg.connect(self._url, autocommit=True, **CONNECT)  # type: ignore[arg-type]
        return _kept(self._slot_connection)

    def _main(self) -> None:
        healthy = True
        while not self._stop.wait(self._pace.beat):
            try:
                self._beat()
                if not healthy:
                    healthy = True
                    self._changed(True, "")
            except Exception as problem:  # noqa: BLE001 - a lease that stops beating is a dead gateway
                self._steady_since = time.monotonic()
                with contextlib.suppress(psycopg.Error):
                    if self._connection is not None:
                        self._connection.close()
                self._connection = None
                if healthy:
                    healthy = False
                    self._changed(False, f"the jobs' database does not answer: {said(problem)}")

    def _beat(self) -> None:
        if self._connection is None:
            self._connection = psycopg.connect(self._url, autocommit=True, **CONNECT)  # type: ignore[arg-type]
        begun = time.monotonic()
        if self._connection.execute(_BEAT, {"node": self.node}).rowcount != 1 and not self._stop.is_set():
            self._die(FENCED)
            return
        now = time.monotonic()
        if now - begun > self._pace.beat or begun - self._seen > self._pace.lease / 2:
            self._steady_since = now
        self._seen = begun
        self._connection.execute(_GIVE, {"node": self.node, "held": list(self._held)})
        # After an outage everybody's row is stale: nobody is judged before all had the time of a lease to beat.
        if now - self._steady_since >= self._pace.lease:
            self._connection.execute(_REAP, {"lease": self._pace.lease})
            orphans = [str(row[0]) for row in self._connection.execute(_ORPHANS).fetchall()]
            if orphans:
                self._take_over(orphans)


@contextlib.contextmanager
def _kept(connection: psycopg.Connection[Any]) -> Iterator[psycopg.Connection[Any]]:
    try:
        yield connection
    except psycopg.OperationalError:
        connection.close()
        raise


def said(problem: BaseException) -> str:
    """Return the first line of what a driver says; its others may quote the statement."""
    lines = str(problem).strip().splitlines()
    return lines[0][:200] if lines else type(problem).__name__
