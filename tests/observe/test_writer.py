"""The queue of the log, and the thread that empties it."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from gateway.observe import logs, writer
from gateway.observe.writer import LogWriter
from tests.support import PATIENCE
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "AGAIN", 0.01)
    monkeypatch.setattr(writer, "STALLED", 0.05)


@pytest.fixture
def lines() -> Iterator[LogWriter]:
    one = LogWriter()
    yield one
    one.close()


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "log"]


def test_a_line_is_there_at_once_where_writing_does_not_wait(lines: LogWriter, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab") as file:
        lines.begin(file.fileno())
        lines.put(b"one\n")
        lines.write("two \udcff\n")
        assert path.read_bytes() == b"one\ntwo \\udcff\n"
        lines.put(b"x" * 100_000)
        assert path.stat().st_size == 100_015
    reader, descriptor = os.pipe()
    lines.begin(descriptor)
    lines.put(b"three\n")
    assert os.read(reader, 100) == b"three\n"
    assert threads() == []
    os.close(reader)
    os.close(descriptor)


def test_lines_that_may_come_later_come_before_the_next_one(lines: LogWriter, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab") as file:
        lines.begin(file.fileno())
        lines.put(b"one\n", later=True)
        lines.put(b"two\n")
        assert path.read_bytes() == b"one\ntwo\n"
        lines.put(b"three\n", later=True)
        assert until(lambda: path.read_bytes() == b"one\ntwo\nthree\n", PATIENCE)
        lines.close()


def test_there_is_a_thread_from_the_first_line_that_waits_to_the_end(lines: LogWriter) -> None:
    reader, descriptor = os.pipe()
    lines.begin(descriptor)
    while not threads():
        lines.put(b"x" * 999 + b"\n")
    lines.put(b"last\n")
    read = b""
    while not read.endswith(b"last\n"):
        read += os.read(reader, 100_000)
    assert len(read) % 1000 == 5
    lines.close()
    assert threads() == []
    lines.put(b"after\n")
    assert os.read(reader, 100) == b"after\n"
    os.close(reader)
    os.close(descriptor)


def test_a_line_is_tried_again_until_somebody_reads(lines: LogWriter, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    descriptor = os.open(path, os.O_WRONLY)
    os.close(reader)
    lines.begin(descriptor)
    lines.put(b"one\n")
    assert until(lambda: lines.problem, PATIENCE)
    assert lines.problem == "Broken pipe"
    lines.put(b"two\n")
    with open(os.open(path, os.O_RDONLY), "rb") as file:
        assert [file.readline(), file.readline()] == [b"one\n", b"two\n"]
        assert until(lambda: lines.problem is None, PATIENCE)
        lines.close()
    os.close(descriptor)
    assert lines.dropped == 0


@pytest.mark.parametrize("blocking", [True, False])
def test_what_found_the_queue_full_is_told_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, blocking: bool) -> None:
    monkeypatch.setattr(writer, "QUEUE", 200_000)
    reader, descriptor = os.pipe()
    os.set_blocking(descriptor, blocking)
    logs.configure("json", descriptor)
    lines, before = logs._lines, logs.dropped()
    try:
        for number in range(5000):
            lines.put(b'{"event": %5d, "x": "%50d"}\n' % (number, 0))
        lost = logs.dropped() - before
        assert 0 < lost < 5000
        assert until(logs.problem, PATIENCE)
        assert logs.problem() == "nobody reads it"
        with open(reader, "rb") as file:
            for number in range(5000 - lost):
                assert json.loads(file.readline())["event"] == number
            told = json.loads(file.readline())
            assert (told["event"], told["level"], told["lines"]) == ("log_dropped", "warning", lost)
            assert until(lambda: logs.problem() is None, PATIENCE)
            lines.put(b"next\n")
            assert file.readline() == b"next\n"
    finally:
        logs.configure("json")
        os.close(descriptor)


def test_a_file_that_was_full_takes_lines_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(writer, "QUEUE", 300)
    write, full = os.write, True

    def on_a_disk(descriptor: int, data: bytes) -> int:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", on_a_disk)
    path = tmp_path / "log"
    with path.open("ab") as file:
        logs.configure("json", file.fileno())
        lines = logs._lines
        try:
            for number in range(100):
                lines.put(b'{"event": %5d, "x": "%50d"}\n' % (number, 0))
                assert until(lambda: lines._writing, PATIENCE)  # the thread has the first of them
            full = False
            assert until(lambda: b"log_dropped" in path.read_bytes(), PATIENCE)
            lines.put(b'{"event": 100}\n')
            assert until(lambda: logs.problem() is None, PATIENCE)
        finally:
            logs.configure("json")
    *kept, told, last = (json.loads(line) for line in path.read_bytes().splitlines())
    assert [one["event"] for one in kept] == list(range(100 - told["lines"]))
    assert (told["event"], last["event"]) == ("log_dropped", 100)


def test_the_end_does_not_wait_for_what_cannot_be_written(lines: LogWriter) -> None:
    with open("/dev/full", "wb") as file:
        lines.begin(file.fileno())
        lines.put(b"one\n")
        assert until(lambda: lines.problem, PATIENCE)
        assert lines.problem == "No space left on device"
        begun = time.monotonic()
        lines.close()
        assert time.monotonic() - begun < writer.LAST_WORDS
        assert threads() == []


def test_the_end_waits_only_so_long_for_whoever_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LAST_WORDS", 0.05)
    lines = LogWriter()
    reader, descriptor = os.pipe()
    lines.begin(descriptor)
    lines.put(b"x" * 200_000)
    lines.close()
    assert threads() == ["log"]
    lines.close()
    with open(reader, "rb") as file:
        assert len(file.read(200_000)) == 200_000
        assert until(lambda: not threads(), PATIENCE)
    os.close(descriptor)


def test_without_a_thread_lines_wait_for_one(lines: LogWriter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with (tmp_path / "log").open("ab") as file:
        lines.begin(file.fileno())
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refused)
            lines.put(b"one\n", later=True)
        assert lines.problem == "can't start new thread"
        lines.put(b"two\n")
        assert until(lambda: lines.problem is None, PATIENCE)
        lines.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
