"""The file of the journal: what is found again, its bounds, and what becomes of one that is damaged."""

from __future__ import annotations

import json
import sqlite3
import stat
from typing import TYPE_CHECKING, Any

import pytest

from gateway.errors import JournalUnavailable
from gateway.journal import file as module
from gateway.journal.file import _FILTERS, RunsFile
from gateway.journal.records import RunSummary, Wanted
from gateway.sealing import Keyring
from gateway.sections import JournalSection
from gateway.units import Duration, Size
from tests.journal.support import NOW, ran, sent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECTION = JournalSection(size=Size(4 << 20), payload_size=Size(1 << 16))
NO_KEYS = Keyring((), "journal")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[RunsFile]:
    made = RunsFile(tmp_path / "journal" / "runs.sqlite", SECTION, NO_KEYS)
    yield made
    made.close()


def tidied(file: RunsFile, now: float) -> None:
    """Have all removed that has to go by now."""
    while file.look(now):
        pass


def names(file: RunsFile, **wanted: Any) -> list[str]:
    return [one.id for one in file.select(Wanted(**wanted), 100, 0)]


def test_a_run_is_found_as_it_was(file: RunsFile) -> None:
    whole = ran("a", log="the \0 end\ud800", outcome="connector_failed", error_code="connector_failed", message="é \0",
                client="acme", key_id="k1", task_id="t", process_instance_id="7", job="j", wall=1.23456, cpu_user=0.1,
                peak_rss=5, status=3, payload=sent({"x": 1}, result=b'{"y":2}'))  # fmt: skip
    file.add([whole])
    (summary,) = file.select(Wanted(), 1, 0)
    assert summary == RunSummary(
        id="a", connector="fax", command="Send", client="acme", key_id="k1", request_id="request-a", task_id="t",
        process_instance_id="7", process_model_identifier=None, job="j", replay_of=None, began=NOW - 2, queue_wait=0.0,
        started=0.5, wall=1.2346, finished=NOW, cpu_user=0.1, cpu_system=0.0, peak_rss=5, request_bytes=0,
        result_bytes=0, log_bytes=0, outcome="connector_failed", error_code="connector_failed", message="é \ufffd",
        status=3, signal=None, kept="whole",
    )  # fmt: skip
    found = file.find("a")
    assert found is not None
    assert found.log == "the \ufffd end?"
    assert (bytes(found.params or b""), bytes(found.result or b"")) == (b'{"x":1}', b'{"y":2}')
    assert file.find("b") is None


def test_runs_are_found_by_what_they_are_the_latest_first(file: RunsFile) -> None:
    file.add(
        [
            ran("a", at=NOW, connector="fax", outcome="ok", client="acme", task_id="t", process_instance_id=7),
            ran("b", at=NOW + 1, connector="aws", command="Get", outcome="error", process_instance_id="7", job="j"),
            ran("c", at=NOW + 2, connector="fax", outcome="connector_timeout", client="beta", process_instance_id="x"),
        ]
    )
    assert names(file) == ["c", "b", "a"]
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"connector": "fax"}, ["c", "a"]),
        ({"command": "Get"}, ["b"]),
        ({"outcome": "ok"}, ["a"]),
        ({"outcome": "failed"}, ["c", "b"]),
        ({"outcome": "failed", "connector": "fax"}, ["c"]),
        ({"task": "t"}, ["a"]),
        ({"process_instance": "7"}, ["b", "a"]),
        ({"process_instance": "x"}, ["c"]),
        ({"client": "acme"}, ["a"]),
        ({"job": "j"}, ["b"]),
        ({"since": NOW + 1}, ["c", "b"]),
        ({"until": NOW + 1}, ["a"]),
        ({"after": "a"}, ["c", "b"]),
        ({"after": "gone"}, ["c", "b", "a"]),
        ({"connector": "'; DROP TABLE runs; --"}, []),
    ]
    assert {key for wanted, _ in cases for key in wanted} == set(_FILTERS)
    for wanted, expected in cases:
        assert names(file, **wanted) == expected, wanted
    assert [one.id for one in file.select(Wanted(), 1, 1)] == ["b"]


@pytest.mark.parametrize(
    "wanted",
    [{}, {"connector": "fax"}, {"command": "Send"}, {"outcome": "ok"}, {"outcome": "failed"}, {"client": "c"}, {"task": "t"}, {"job": "j"},
     {"process_instance": "7"}, {"since": NOW}],
)  # fmt: skip
def test_no_list_looks_at_all_runs(file: RunsFile, wanted: dict[str, Any]) -> None:
    """An index gives them in their order: nothing is gone through, and nothing is sorted but few."""
    statements: list[str] = []
    file._connection.set_trace_callback(statements.append)
    file.select(Wanted(**wanted), 50, 0)
    plan = " ".join(row[3] for row in file._connection.execute(f"EXPLAIN QUERY PLAN {statements[-1]}"))
    assert "USING INDEX runs_" in plan
    assert "TEMP B-TREE" not in plan or "process_instance" in wanted


def test_one_that_went_on_is_there_once_as_it_ended(file: RunsFile) -> None:
    file.add([ran("a", outcome="ok", log="begins"), ran("b")])
    file.add([ran("a", outcome="failed", log="ends", again=True)])
    assert sorted(names(file)) == ["a", "b"]
    assert names(file, after="b") == ["a"]
    found = file.find("a")
    assert found is not None
    assert (found.outcome, found.log) == ("failed", "ends")
    assert file._execute("SELECT count(*) FROM details") == [(1,)]


def test_one_batch_may_have_both_ends_of_a_run(file: RunsFile) -> None:
    file.add([ran("a", outcome="ok"), ran("a", outcome="failed", again=True)])
    assert [one.outcome for one in file.select(Wanted(), 9, 0)] == ["failed"]


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    file = RunsFile(tmp_path / "runs.sqlite", JournalSection(keep=Duration(100)), NO_KEYS)
    file.add([ran("a", at=NOW, log="x")])
    file.add([ran("b", at=NOW + 90, log="x")])
    assert names(file) == ["b", "a"]
    file.add([ran("c", at=NOW + 151, log="x")])
    tidied(file, NOW + 151)
    assert names(file) == ["c", "b"]
    tidied(file, NOW + 1000)
    assert names(file) == []
    assert file._execute("SELECT count(*) FROM details") == [(0,)]
    file.close()


def test_the_oldest_go_where_there_is_no_room(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    file = RunsFile(path, SECTION, NO_KEYS)
    for number in range(60):
        batch = [ran(f"{number}-{one}", at=NOW + number, log="x" * 4000) for one in range(50)]
        file.add(batch)
        assert path.stat().st_size <= SECTION.size * 1.1
    found = names(file)
    assert found[0].startswith("59-")
    count = file._execute("SELECT count(*) FROM runs")[0][0]
    assert 500 < count < 1500
    assert file._execute("SELECT count(*) FROM details")[0][0] == count
    file.close()
    smaller = RunsFile(path, JournalSection(size=Size(4 << 20), keep=Duration(1)), NO_KEYS)
    smaller.add([ran("new", at=NOW + 9999)])
    tidied(smaller, NOW + 9999)
    assert names(smaller) == ["new"]
    smaller.close()


def test_a_file_that_is_larger_than_it_may_be_now_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    file = RunsFile(path, JournalSection(size=Size(16 << 20)), NO_KEYS)
    file.add([ran(str(number), log="x" * 4000) for number in range(2500)])
    file.close()
    assert path.stat().st_size > 10 << 20
    file = RunsFile(path, SECTION, NO_KEYS)
    file.add([ran("new", at=NOW + 1)])
    tidied(file, NOW)
    assert "new" in [one.id for one in file.select(Wanted(), 5000, 0)]
    file.close()
    assert path.stat().st_size <= SECTION.size


def test_payloads_are_sealed_with_a_key_and_open_with_it_alone(tmp_path: Path) -> None:
    path, payload = tmp_path / "runs.sqlite", sent({"to": "mrs-smith"}, result=b'{"said":"mrs-jones"}')
    old, new = Keyring(("old",), "journal"), Keyring(("new", "old"), "journal")
    file = RunsFile(path, SECTION, old)
    file.add([ran("a", payload=payload)])
    file.close()
    data = path.read_bytes()
    assert b"request-a" in data
    assert b"mrs-" not in data
    for keys, readable in ((new, True), (Keyring(("other",), "journal"), False), (NO_KEYS, False)):
        file = RunsFile(path, SECTION, keys)
        found = file.find("a")
        file.close()
        assert found is not None
        assert found.unreadable is not readable
        assert (found.params is not None) is readable
        if readable:
            assert json.loads(bytes(found.params or b"")) == {"to": "mrs-smith"}
    file = RunsFile(path, SECTION, old)
    file.add([ran("b", payload=payload)])
    file._execute("UPDATE details SET sent = (SELECT sent FROM details LIMIT 1)")
    found = file.find("b")
    assert found is not None
    assert found.unreadable
    file.close()


def test_it_is_readable_for_nobody_else(file: RunsFile, tmp_path: Path) -> None:
    file.add([ran("a")])
    folder = tmp_path / "journal"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("damage", [b"no file of SQLite's at all" * 100, None])
def test_a_file_that_is_damaged_or_another_version_s_is_put_aside(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "runs.sqlite"
    if damage is None:
        other = sqlite3.connect(path)
        other.execute("PRAGMA user_version = 99")
        other.close()
    else:
        path.write_bytes(damage)
    file = RunsFile(path, SECTION, NO_KEYS)
    file.add([ran("a")])
    assert names(file) == ["a"]
    file.close()
    assert (tmp_path / "runs.damaged").exists()


def test_what_is_no_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "runs.sqlite").mkdir()
    with pytest.raises(OSError, match="director"):
        RunsFile(tmp_path / "runs.sqlite", SECTION, NO_KEYS)


def test_runs_can_be_written_again_after_a_write_has_failed(file: RunsFile) -> None:
    file.add([ran("a")])
    file._execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        file.add([ran(str(number), log="x" * 8000) for number in range(200)])
    assert names(file) == ["a"]
    file._execute("PRAGMA max_page_count = 1000000")
    file.add([ran("b", at=NOW + 1)])
    assert names(file) == ["b", "a"]


def test_whoever_calls_most_makes_room_and_nobody_else(tmp_path: Path) -> None:
    file = RunsFile(tmp_path / "runs.sqlite", SECTION, NO_KEYS)
    quiet = [ran(f"quiet-{one}", at=NOW + one, client="quiet", log="x" * 2000) for one in range(200)]
    file.add([*quiet, ran("nobody's", at=NOW, log="x")])
    for number in range(60):
        file.add([ran(f"{number}-{one}", at=NOW + 300 + number, client="loud", log="x" * 4000) for one in range(50)])
    assert len(file.select(Wanted(client="quiet"), 1000, 0)) == 200
    assert "nobody's" in [one.id for one in file.select(Wanted(), 5000, 0)]
    assert names(file)[0].startswith("59-")
    assert file._execute("SELECT count(*) FROM details") == file._execute("SELECT count(*) FROM runs")
    file._execute("DELETE FROM runs WHERE client = 'loud'")  # as another gateway might
    file._execute("DELETE FROM details WHERE seq NOT IN (SELECT seq FROM runs)")
    for number in range(60):
        file.add([ran(f"new-{number}-{one}", at=NOW + 400, client="quiet", log="x" * 4000) for one in range(50)])
    assert (tmp_path / "runs.sqlite").stat().st_size <= SECTION.size
    file.close()


def test_what_is_removed_at_once_is_bounded_and_so_is_what_lies_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLICE", 50)
    path = tmp_path / "runs.sqlite"
    file = RunsFile(path, SECTION, NO_KEYS)
    for number in range(40):
        file.add([ran(f"{number}-{one}", log="x" * 500, task_id=f"{one}-{number}") for one in range(50)])
    there = len(file.select(Wanted(), 5000, 0))
    removed = 0
    while file.look(NOW + 30 * 86_400):
        left = len(file.select(Wanted(), 5000, 0))
        assert 0 <= there - left <= 50
        removed, there = removed + there - left, left
        assert path.with_name("runs.sqlite-wal").stat().st_size <= SECTION.size // 2
    assert (removed, there) == (2000, 0)
    file.close()


def test_names_that_take_more_than_was_thought_make_it_no_larger(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    file = RunsFile(path, SECTION, NO_KEYS)
    for number in range(30):
        file.add([ran(f"{number}-{one}", task_id=f"{one}-{number}" + "t" * 1500) for one in range(100)])
        tidied(file, NOW)
        assert path.stat().st_size <= SECTION.size
    assert "29-99" in [one.id for one in file.select(Wanted(), 100, 0)]
    file.close()


def test_a_search_that_takes_too_long_is_given_up(file: RunsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.add([ran(str(number)) for number in range(200)])
    with monkeypatch.context() as patched:
        patched.setattr(module, "PATIENCE", -1.0)
        patched.setattr(module, "STEPS", 10)
        with pytest.raises(JournalUnavailable, match="since"):
            names(file, command="None")
    assert names(file, command="None") == []
    assert len(names(file)) == 100


def test_it_knows_that_it_was_removed_or_replaced(file: RunsFile, tmp_path: Path) -> None:
    path = tmp_path / "journal" / "runs.sqlite"
    assert not file.is_gone()
    path.rename(path.with_name("elsewhere"))
    assert file.is_gone()
    path.write_bytes(b"")
    assert file.is_gone()
