"""The journal beside the loop: nobody waits for it, and what it cannot write is counted."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from gateway.errors import JournalUnavailable, RunNotFound
from gateway.journal import journal as module
from gateway.journal.file import RunsFile
from gateway.journal.journal import BEHIND, Journal
from gateway.journal.records import Wanted
from gateway.observe.events import Event, JournalChanged
from gateway.sealing import Keyring
from gateway.sections import JournalSection
from tests.journal.support import NOW, ran
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


class Kept:
    """A journal, what it has published, and its clock."""

    def __init__(self, folder: Path) -> None:
        self.told: list[Event] = []
        self.now = NOW
        self.path = folder / "journal" / "runs.sqlite"
        self.journal = Journal(
            JournalSection(), folder / "journal", Keyring((), "journal"), self.told.append, lambda: self.now
        )

    async def names(self, **wanted: Any) -> list[str]:
        return [one.id for one in await self.journal.list(Wanted(**wanted), limit=100, offset=0)]


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Kept]:
    made = Kept(tmp_path)
    yield made
    await asyncio.to_thread(made.journal.close)
    assert not [one for one in threading.enumerate() if one.name == "journal"]


async def test_whoever_asks_sees_what_has_just_ended(kept: Kept) -> None:
    for number in range(5):
        kept.journal.put(ran(str(number), at=NOW + number))
        assert (await kept.names())[0] == str(number)
    assert (await kept.journal.find("3")).request_id == "request-3"
    with pytest.raises(RunNotFound):
        await kept.journal.find("x")
    assert kept.told == []


async def test_runs_are_written_without_anybody_asking_and_at_the_end(kept: Kept, tmp_path: Path) -> None:
    kept.journal.put(ran("a"))
    await eventually(lambda: kept.journal._taken)
    kept.journal.put(ran("b"))
    await asyncio.to_thread(kept.journal.close)
    with pytest.raises(JournalUnavailable):
        await kept.names()
    again = Kept(tmp_path)
    assert sorted(await again.names()) == ["a", "b"]
    await asyncio.to_thread(again.journal.close)


async def test_nothing_is_made_before_the_first_run(kept: Kept, tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == len([one for one in threading.enumerate() if one.name != "journal"])


async def test_the_clock_says_what_is_too_old(kept: Kept) -> None:
    kept.journal.put(ran("a"))
    assert await kept.names() == ["a"]
    kept.now += 8 * 86_400
    kept.journal.put(ran("b", at=kept.now))
    assert await kept.names() == ["b"]


async def test_what_is_too_old_goes_although_nothing_happens(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 0.01)
    kept.journal.put(ran("a"))
    assert await kept.names() == ["a"]
    kept.now += 8 * 86_400

    with contextlib.closing(sqlite3.connect(kept.path)) as other:
        await eventually(lambda: other.execute("SELECT count(*) FROM runs").fetchall() == [(0,)])


async def test_a_folder_that_is_removed_meanwhile_is_made_anew(kept: Kept) -> None:
    kept.journal.put(ran("lost"))
    assert await kept.names() == ["lost"]
    shutil.rmtree(kept.path.parent.parent)
    kept.journal.put(ran("kept"))
    assert await kept.names() == ["kept"]
    assert kept.path.exists()
    assert kept.journal.problem is None


async def test_a_machine_without_another_thread_costs_runs_alone(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        kept.journal.put(ran("lost"))
        assert (kept.journal.dropped, kept.journal.problem) == (1, "can't start new thread")
        with pytest.raises(JournalUnavailable, match="thread"):
            await kept.names()
    kept.journal.put(ran("kept"))
    assert await kept.names() == ["kept"]


@contextlib.contextmanager
def held(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hold the thread in the middle of a write until the block ends."""
    entered, go, add = threading.Event(), threading.Event(), RunsFile.add

    def slowly(*args: Any) -> None:
        entered.set()
        go.wait(20)
        add(*args)

    monkeypatch.setattr(RunsFile, "add", slowly)
    kept.journal.put(ran("first"))
    assert entered.wait(20)
    try:
        yield
    finally:
        go.set()


async def test_what_finds_the_queue_full_is_dropped_and_counted_and_told_once(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE", 20_000)
    with held(kept, monkeypatch):
        for number in range(100):
            kept.journal.put(ran(str(number), log="x" * 500))
        assert kept.journal.dropped > 80
        assert kept.journal.health().problem == BEHIND
        assert len(kept.told) == 1
    await eventually(lambda: not kept.journal._queue)
    kept.journal.put(ran("later"))
    assert "later" in await kept.names()
    await eventually(lambda: kept.journal.problem is None)
    last = kept.told[-1]
    assert isinstance(last, JournalChanged)
    assert (last.ok, last.dropped, last.level) == (True, kept.journal.dropped, "info")


async def test_what_callers_have_typed_counts_in_the_queue(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE", 20_000)
    with held(kept, monkeypatch):
        for facts in ({"task_id": "t" * 8000}, {"process_instance_id": "p" * 8000}, {"message": "m" * 8000}):
            before = kept.journal._put
            kept.journal.put(ran("x", **facts))
            assert kept.journal.dropped or kept.journal._put - before > 8000
        assert kept.journal.dropped == 1


async def test_who_hands_over_does_not_wait_for_the_thread(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(kept, monkeypatch):
        kept.journal.put(ran("second"))  # returns, although nothing can be written
        asked = asyncio.ensure_future(kept.names())
        await asyncio.sleep(0)
        assert not asked.done()
    assert sorted(await asked) == ["first", "second"]


async def fails(kept: Kept, mend: Callable[[], object]) -> None:
    """Show that runs are counted as missing while nothing can be written, and written once it can be."""
    kept.journal.put(ran("lost"))
    await eventually(lambda: kept.journal.dropped == 1)
    kept.journal.put(ran("lost too"))
    await eventually(lambda: kept.journal.dropped == 2)
    assert [type(one) for one in kept.told] == [JournalChanged]
    assert kept.told[0].severity() == "warning"
    with pytest.raises(JournalUnavailable):
        await kept.names()
    mend()
    kept.journal.put(ran("kept"))
    assert await kept.names() == ["kept"]
    await eventually(lambda: len(kept.told) == 2)
    assert kept.journal.health().problem is None


async def test_a_folder_that_cannot_be_used_costs_runs_alone(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN", 0.0)
    (tmp_path / "journal").write_text("in the way")
    await fails(kept, (tmp_path / "journal").unlink)


async def test_a_disk_that_is_full_costs_runs_alone(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await kept.names() == []
    file = kept.journal._file
    assert isinstance(file, RunsFile)
    file._execute("PRAGMA max_page_count = 1")
    kept.journal.put(ran("lost", log="x" * 100_000))
    await eventually(lambda: kept.journal.dropped == 1)
    assert "full" in (kept.journal.problem or "")
    assert await kept.names() == []
    file._execute("PRAGMA max_page_count = 100000")
    kept.journal.put(ran("kept"))
    assert await kept.names() == ["kept"]


@pytest.mark.parametrize("from_page", [0, 2])
async def test_a_file_that_is_damaged_while_it_is_used_is_begun_anew(kept: Kept, from_page: int) -> None:
    """Also one whose head is well, so that it can be opened."""
    kept.journal.put(ran("old"))
    assert await kept.names() == ["old"]
    file = kept.journal._file
    assert file is not None
    file._execute("PRAGMA wal_checkpoint(TRUNCATE)")
    file._execute("PRAGMA cache_size = 0")
    size = kept.path.stat().st_size
    with kept.path.open("r+b") as damaged:
        damaged.seek(from_page * 4096)
        damaged.write(b"x" * (size - from_page * 4096))
    for _ in range(5):  # the first that meets it is lost
        kept.journal.put(ran("new"))
        with contextlib.suppress(JournalUnavailable):
            if await kept.names() == ["new"]:
                break
    assert await kept.names() == ["new"]
    assert kept.path.with_suffix(".damaged").exists()


KILLED = """
import asyncio, os, pathlib, signal, sys
from gateway.journal.journal import Journal
from gateway.journal.records import Wanted
from gateway.sealing import Keyring
from gateway.settings import JournalSection
from tests.journal.support import NOW, ran

async def main():
    journal = Journal(JournalSection(), pathlib.Path(sys.argv[1]), Keyring((), "journal"), print, lambda: NOW)
    for batch in range(20):
        for number in range(100):
            journal.put(ran(f"{batch}-{number}", log="x" * 1000))
        await journal.list(Wanted(), limit=1, offset=0)
    for number in range(100):
        journal.put(ran(f"late-{number}", log="x" * 1000))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_kill_9_leaves_a_file_that_can_be_used(kept: Kept, tmp_path: Path) -> None:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", KILLED, str(tmp_path / "journal")], capture_output=True
    )
    assert done.returncode == -9, done
    found = await kept.journal.list(Wanted(), limit=10_000, offset=0)
    assert len([one for one in found if not one.id.startswith("late")]) == 2000
    kept.journal.put(ran("next"))
    assert await kept.names(after=found[0].id) == ["next"]
    assert not kept.path.with_suffix(".damaged").exists()
