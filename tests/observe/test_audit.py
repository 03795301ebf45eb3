"""Where the audit is written: in whole lines, to the file that has the name, as soon as there is one."""

from __future__ import annotations

import asyncio
import datetime
import functools
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.observe import audit as module
from gateway.observe import writer
from gateway.observe.audit import Audit, AuditLine, now, shown
from gateway.observe.events import AuditChanged, AuditDropped, Bus, Event
from tests.support import PATIENCE, eventually
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "AGAIN", 0.01)


class Listening:
    """A bus, and what was published on it of the audit."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.told: list[Event] = []
        self.bus.listen(self.told.append, AuditChanged, AuditDropped)

    @property
    def changes(self) -> list[tuple[bool, str]]:
        return [(one.ok, one.reason) for one in self.told if isinstance(one, AuditChanged)]


@pytest.fixture
def heard() -> Listening:
    return Listening()


@pytest.fixture
def made(heard: Listening) -> Iterator[list[Audit]]:
    """Audits to be closed."""
    audits: list[Audit] = []
    yield audits
    for one in audits:
        one.close()
    assert until(lambda: "audit" not in [thread.name for thread in threading.enumerate()], PATIENCE)


def opened(path: Path, heard: Listening, made: list[Audit], **options: Any) -> Audit:
    audit = Audit(path, heard.bus, **options)
    made.append(audit)
    audit.open()
    return audit


def line(name: object, **facts: Any) -> AuditLine:
    return AuditLine(time=now(), event="call", request_id=str(name), outcome="ok", **facts)


def ids(*paths: Path) -> list[str]:
    """Return the request ids in files, whose lines have to be whole."""
    return [json.loads(text)["request_id"] for path in paths for text in path.read_text().splitlines()]


def test_a_line_has_always_the_same_members_in_the_same_order(
    tmp_path: Path, heard: Listening, made: list[Audit]
) -> None:
    path = tmp_path / "audit.log"
    audit = opened(path, heard, made)
    audit.put(line("one"))
    audit.put(line("two", client="acme", key_id="k", status=200, count=3, task_id="\udcff\n\0"))
    first, second = (json.loads(text) for text in path.read_text().splitlines())
    assert list(first) == list(second) == list(AuditLine.__struct_fields__)
    assert second["task_id"] == "\\udcff\n\0"
    moment = datetime.datetime.fromisoformat(first["time"])
    assert moment.tzinfo == datetime.UTC
    assert first["time"].endswith("Z")
    assert len(first["time"]) == len("2026-11-30T00:52:52.123Z")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert heard.told == []


def test_a_line_of_the_longest_texts_fits_a_page() -> None:
    widest = shown("\1" * 100_000)
    assert shown("") is None
    text = module.encoded(
        line("x" * 128, task_id=widest, connector=widest, command=widest, job=widest, client="c" * 200, key_id="k" * 64)
    )
    assert len(text) < writer.FITS


def test_what_stands_there_stays_and_half_a_line_is_ended(tmp_path: Path, heard: Listening, made: list[Audit]) -> None:
    path = tmp_path / "audit.log"
    path.write_text('{"request_id": "old"}\n{"half')
    path.chmod(0o640)
    opened(path, heard, made).put(line("new"))
    old, half, new = path.read_text().splitlines()
    assert (json.loads(old)["request_id"], half, json.loads(new)["request_id"]) == ("old", '{"half', "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640  # whoever made it knows why
    assert "" not in path.read_text().splitlines()


def test_a_renamed_file_is_left_at_the_next_line_also_without_being_told(
    tmp_path: Path, heard: Listening, made: list[Audit]
) -> None:
    path, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    audit = opened(path, heard, made)
    audit.put(line(1))
    path.rename(old)
    audit.put(line(2))
    path.unlink()
    audit.put(line(3))
    other = tmp_path / "other"
    other.write_text("")
    other.rename(path)
    audit.put(line(4))
    assert (ids(old), ids(path)) == (["1"], ["4"])
    path.rename(old)
    audit.reopen()
    assert path.exists()  # at once, for whoever waits to pack the old one
    assert heard.told == []


def test_a_folder_that_is_gone_and_back_loses_no_line(tmp_path: Path, heard: Listening, made: list[Audit]) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "audit.log"
    audit = opened(path, heard, made)
    audit.put(line(1))
    path.unlink()
    folder.rmdir()
    assert [audit.put(line(number)) > 0 for number in (2, 3)] == [True, True]
    assert audit.problem == "No such file or directory"
    assert audit.failed == 2
    assert heard.changes == [(False, "No such file or directory")]
    folder.mkdir()
    assert until(lambda: audit.problem is None, PATIENCE)
    audit.put(line(4))
    assert ids(path) == ["2", "3", "4"]
    assert heard.changes[1:] == [(True, "")]


def test_a_folder_that_comes_after_the_start_is_noticed_without_a_line(
    tmp_path: Path, heard: Listening, made: list[Audit]
) -> None:
    path = tmp_path / "logs" / "audit.log"
    audit = opened(path, heard, made, required=True)
    assert audit.refuses
    path.parent.mkdir()
    assert until(lambda: not audit.refuses, PATIENCE)
    audit.put(line(1))
    assert ids(path) == ["1"]


def test_what_can_never_be_written_is_known_before_the_first_line(heard: Listening, made: list[Audit]) -> None:
    audit = opened(Path("/dev/full"), heard, made, required=True)
    assert audit.refuses
    assert audit.problem == "No space left on device"
    assert audit.failed == 0
    audit.put(line(1))
    assert audit.failed == 1


def test_a_fifo_is_written_once_somebody_reads_it(tmp_path: Path, heard: Listening, made: list[Audit]) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    audit = opened(path, heard, made)
    audit.put(line(1))
    assert audit.problem == writer.NOBODY
    with open(os.open(path, os.O_RDONLY)) as file:
        assert json.loads(file.readline())["request_id"] == "1"
        assert until(lambda: audit.problem is None, PATIENCE)
        audit.put(line(2))
        assert json.loads(file.readline())["request_id"] == "2"
    audit.put(line(3))
    assert until(lambda: audit.problem == "Broken pipe", PATIENCE)
    with open(os.open(path, os.O_RDONLY)) as file:
        assert json.loads(file.readline())["request_id"] == "3"
        audit.close()


def test_lines_of_several_writers_to_a_fifo_stay_whole(tmp_path: Path, heard: Listening, made: list[Audit]) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as file:
        os.set_blocking(file.fileno(), True)
        audits = [opened(path, heard, made) for _ in range(3)]
        for number in range(2000):
            for who, audit in enumerate(audits):
                audit.put(line(f"{who}-{number}"))
        read = [json.loads(file.readline())["request_id"] for _ in range(6000)]
        for who in range(3):
            assert [one for one in read if one.startswith(f"{who}-")] == [f"{who}-{number}" for number in range(2000)]


def test_what_lies_far_away_is_written_by_the_thread(
    tmp_path: Path, heard: Listening, made: list[Audit], monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = set()
    write = os.write

    def noted(descriptor: int, data: bytes) -> int:
        if len(data) > 1:
            writing.add(threading.current_thread().name)
        return write(descriptor, data)

    monkeypatch.setattr(writer, "_is_far", lambda _device: True)
    monkeypatch.setattr(os, "write", noted)
    path = tmp_path / "audit.log"
    audit = opened(path, heard, made)
    for number in range(100):
        audit.put(line(number))
    audit.reopen()
    audit.put(line(100))
    audit.close()
    assert ids(path) == [str(number) for number in range(101)]
    assert writing == {"audit"}
    assert audit.failed == 0


def test_a_far_file_system_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.stat("/proc/self").st_dev
    assert not writer._is_far(here)
    monkeypatch.setattr(writer, "FAR", ("proc",))
    assert writer._is_far(here)


def test_a_line_that_was_begun_is_ended_where_it_stands_and_written_anew_elsewhere(
    tmp_path: Path, heard: Listening, made: list[Audit], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 0
    write = os.write

    def bounded(descriptor: int, data: bytes) -> int:  # as a disk that is full does
        nonlocal room
        if data and not room:
            raise OSError(28, os.strerror(28))
        count = write(descriptor, bytes(data)[:room]) if data else 0
        room -= count
        return count

    path, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    audit = opened(path, heard, made)
    monkeypatch.setattr(os, "write", bounded)
    room = 40
    audit.put(line(1))
    assert until(lambda: audit.problem, PATIENCE)
    room = 1000
    assert until(lambda: audit.problem is None, PATIENCE)
    assert ids(path) == ["1"]
    room = 40
    audit.put(line(2))
    assert until(lambda: audit.problem, PATIENCE)
    path.rename(old)
    room = 1000
    assert until(lambda: audit.problem is None, PATIENCE)
    audit.put(line(3))
    assert ids(path) == ["2", "3"]
    assert len(old.read_text().splitlines()[1]) == 40
    assert audit._out.written == audit._out.taken


def test_lines_beyond_the_queue_are_told_where_they_are_missing(
    tmp_path: Path, heard: Listening, made: list[Audit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "QUEUE", 1000)
    path = tmp_path / "logs" / "audit.log"
    audit = opened(path, heard, made)
    kept = [number for number in range(20) if audit.put(line(number))]
    assert 0 < len(kept) < 20
    assert audit.failed == 20
    path.parent.mkdir()
    assert until(lambda: path.exists() and path.read_text().count("\n") == len(kept) + 1, PATIENCE)
    *there, last = (json.loads(text) for text in path.read_text().splitlines())
    assert [one["request_id"] for one in there] == [str(number) for number in kept]
    assert (last["event"], last["outcome"], last["count"]) == ("audit", "dropped", 20 - len(kept))


def filled(audit: Audit) -> int:
    """Put lines until one is not written."""
    while True:
        mark = audit.put(line("x"))
        if not until(functools.partial(lambda mark: audit._out.written >= mark, mark), 0.05):
            return mark


async def test_with_required_an_answer_waits_for_its_line(
    tmp_path: Path, heard: Listening, made: list[Audit], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        audit = Audit(path, heard.bus, required=True)
        made.append(audit)
        audit.open(asyncio.get_running_loop())
        mark = filled(audit)
        waiting = asyncio.ensure_future(audit.settled(mark))
        done, _ = await asyncio.wait((waiting,), timeout=0.05)
        assert not done
        await eventually(lambda: (reader.read(), waiting.done())[1])
        assert audit._out.written >= mark
        assert audit.failed == 0
        mark = filled(audit)
        monkeypatch.setattr(writer, "STALLED", 0.2)
        monkeypatch.setattr(module, "PATIENCE", 0.1)
        await audit.settled(mark)  # but not for ever
        assert audit.failed == 1
        await eventually(lambda: audit.refuses)
        assert heard.changes == [(False, writer.NOBODY)]
        await eventually(lambda: (reader.read(), not audit.refuses)[1])
        await eventually(lambda: heard.changes[1:] == [(True, "")])


SCRIPT = """
import pathlib, sys
from gateway.observe.audit import Audit, AuditLine, now
from gateway.observe.events import Bus
audit = Audit(pathlib.Path(sys.argv[1]), Bus())
audit.open()
print("open", flush=True)
number = 0
while True:
    audit.put(AuditLine(time=now(), event="call", request_id=f"{sys.argv[2]}-{number}", outcome="ok"))
    number += 1
"""


def test_processes_that_append_to_one_file_and_are_killed_leave_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(path), str(who)],
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for who in range(2)
    ]  # fmt: skip
    for one in processes:
        assert one.stdout is not None
        assert one.stdout.readline() == b"open\n"
    assert until(lambda: path.stat().st_size > 1 << 20, PATIENCE)
    for one in processes:
        one.kill()
        one.communicate()
    found = ids(path)
    for who in "01":
        own = [one for one in found if one.startswith(who)]
        assert own == [f"{who}-{number}" for number in range(len(own))]
        assert own
