"""How a stream of log becomes bounded lines."""

from __future__ import annotations

import json

import pytest

from gateway.processes.log import AROUND, FEWEST, LINE, LogPipe


class Lines:
    """A LogPipe with what it gave out."""

    def __init__(self, bound: int = 1 << 20) -> None:
        self.lines: list[str] = []
        self.pipe = LogPipe(bound, self.lines.append)

    def feed(self, *chunks: bytes) -> list[str]:
        for chunk in chunks:
            self.pipe.feed(chunk)
        self.pipe.finish()
        return self.lines


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ((b"one\ntwo\n",), ["one", "two"]),
        ((b"o", b"ne", b"\ntwo\n"), ["one", "two"]),
        ((b"one\r\ntwo\r\n",), ["one", "two"]),
        ((b"one\n\ntwo",), ["one", "", "two"]),
        ((b"progress 1\rprogress 2\r\n",), ["progress 1\rprogress 2"]),
        (("☃".encode()[:1], "☃\n".encode()[1:]), ["☃"]),
        ((b"bad \xff byte\n",), ["bad \ufffd byte"]),
        ((), []),
        ((b"",), []),
    ],
)
def test_lines_come_out_however_they_were_read(chunks: tuple[bytes, ...], lines: list[str]) -> None:
    assert Lines().feed(*chunks) == lines


@pytest.mark.parametrize("size", [1000, 4096, 70_000])
def test_a_line_of_70_kilobytes_without_a_newline_comes_out_in_pieces(size: int) -> None:
    text = bytes(ord("a") + number % 26 for number in range(70_000))
    lines = Lines().feed(*(text[start : start + size] for start in range(0, len(text), size)))
    assert "".join(lines).encode() == text
    assert max(map(len, lines)) == LINE


def test_a_long_line_with_a_newline_comes_out_in_pieces_too() -> None:
    lines = Lines().feed(b"a" * (2 * LINE + 1) + b"\nnext\n")
    assert [len(line) for line in lines] == [LINE, LINE, 1, 4]


def test_a_line_is_not_held_back_until_the_end() -> None:
    pipe = Lines()
    pipe.pipe.feed(b"ready\nhalf")
    assert pipe.lines == ["ready"]


@pytest.mark.parametrize("chunk", [1, 7, 100, 5000])
def test_what_exceeds_the_bound_is_dropped_and_said_once(chunk: int) -> None:
    log = b"".join(b"line %04d\n" % number for number in range(500))
    lines = Lines(bound=105).feed(*(log[start : start + chunk] for start in range(0, len(log), chunk)))
    assert lines[:11] == [*(f"line {number:04d}" for number in range(10)), "line "]
    assert len(lines) == 12
    assert "bound of 105 bytes" in lines[11]


def test_a_log_of_exactly_its_bound_is_whole() -> None:
    assert Lines(bound=8).feed(b"one\n", b"two\n") == ["one", "two"]


def test_a_bound_of_zero_drops_all() -> None:
    (line,) = Lines(bound=0).feed(b"one\ntwo\n")
    assert "dropped" in line


def test_everything_is_counted_and_the_end_is_kept_over_the_bound() -> None:
    pipe = Lines(bound=10)
    pipe.feed(*([b"x" * 100_000] * 5), b"\nthe cause\n")
    assert pipe.pipe.total == 500_011
    assert pipe.pipe.tail().endswith("\nthe cause")
    assert len(pipe.pipe.tail()) <= LINE


def test_the_tail_of_a_flood_stays_small_in_memory() -> None:
    pipe = Lines(bound=1 << 30)
    pipe.feed(*([b"y" * (1 << 18)] * 8))
    assert len(pipe.pipe._tail) <= 2 * LINE + (1 << 18)
    assert not pipe.pipe._partial


def test_the_tail_is_the_end_however_much_came_before() -> None:
    pipe = LogPipe(1 << 20, lambda _line: None)
    for number in range(4):
        pipe.feed(b"%d" % number * LINE + b"\n")
    pipe.feed(b"the end\n")
    assert pipe.tail().endswith("3\nthe end")
    assert len(pipe.tail()) <= LINE


@pytest.mark.parametrize("flood", [b"\n", b"\0", b"\x01\n", b"\xff", b"short\n"])
@pytest.mark.parametrize("chunk", [1000, 1 << 18])
def test_what_is_written_of_a_log_stays_near_its_bound(flood: bytes, chunk: int) -> None:
    bound = 1 << 16
    log = flood * (bound // len(flood))
    lines = Lines(bound).feed(*(log[start : start + chunk] for start in range(0, len(log), chunk)))
    assert sum(AROUND + len(json.dumps(line, ensure_ascii=False).encode()) for line in lines) < 2 * bound + 8 * LINE
    assert "is dropped from here" in lines[-1]
    assert sum("is dropped from here" in line for line in lines) == 1


def test_so_many_lines_are_there_however_small_the_bound() -> None:
    assert Lines(bound=FEWEST // 2).feed(b"\n" * (FEWEST // 2)) == [""] * (FEWEST // 2)
