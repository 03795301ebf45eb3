"""How a stream of log becomes bounded lines."""

from __future__ import annotations

import json
from base64 import b64encode
from urllib.parse import quote

import pytest

from gateway.observe.redact import MASK, Redactor
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


# --- secrets


SECRET = "hunt☃r-22/+'"
FORMS = {
    "plain": SECRET,
    "json": json.dumps(SECRET),
    "url": quote(SECRET, safe=""),
    "base64": b64encode(SECRET.encode()).decode(),
}


def piped(log: bytes, chunk: int, bound: int = 1 << 20) -> tuple[list[str], str]:
    """Return the lines of a log, and its tail."""
    lines: list[str] = []
    pipe = LogPipe(bound, lines.append, Redactor([SECRET]))
    for start in range(0, len(log), chunk):
        pipe.feed(log[start : start + chunk])
    pipe.finish()
    return lines, pipe.tail()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk", [1, 11, 8192])
def test_a_secret_across_two_reads_is_found(form: str, chunk: int) -> None:
    lines, tail = piped(f"one {FORMS[form]} two\n".encode(), chunk)
    for text in (*lines, tail):
        assert text.startswith("one ")
        assert MASK in text
        assert not [piece for piece in pieces(FORMS[form])[:-3] if piece in text]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_secret_across_a_cut_is_found(form: str, end: str) -> None:
    said = FORMS[form]
    for before in range(LINE - len(said.encode()) - 1, LINE + 2):
        lines, tail = piped(f"{'-' * before}{said}{'-' * 3 * LINE}{end}".encode(), 5000)
        assert_hidden("".join(lines), said)
        assert max(map(len, lines)) <= LINE
        assert not tail.strip("-")


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_at_the_beginning_of_the_tail_is_found(form: str) -> None:
    said = FORMS[form]
    for after in range(LINE - len(said.encode()) - 1, LINE + 2, 3):
        for before in (0, LINE, 10 * LINE):
            _, tail = piped(f"{'-' * before}{said}{'-' * after}".encode(), 5000)
            assert not [piece for piece in pieces(said) if piece in tail]


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_at_the_bound_is_found(form: str) -> None:
    said = FORMS[form]
    for over in range(len(said.encode()) + 1):
        log = f"{'-' * 300}{said}{'-' * 99}\n".encode()
        lines, _ = piped(log, 50, bound=300 + over)
        assert not [piece for piece in pieces(said) if piece in "".join(lines)]


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_that_is_missing_its_beginning_is_not_in_the_tail(form: str) -> None:
    said = FORMS[form]
    for lost in range(len(said.encode())):
        pipe = LogPipe(100, lambda _line: None, Redactor([SECRET]))
        pipe.feed(b"-" * 101)
        pipe.feed(said.encode()[lost:] + b"-" * 5000 + b"the end")  # as a cell tells the end of what it has not told
        assert not [piece for piece in pieces(said) if piece in pipe.tail()]
        assert pipe.tail().endswith("the end")


def test_a_line_of_nothing_but_secrets_is_bounded() -> None:
    lines, tail = piped(SECRET.encode() * 10_000, 5000)
    assert set("".join([*lines, tail]).replace(MASK, "")) == set()


def pieces(said: str) -> list[str]:
    """Return the parts of a text of which none may be seen."""
    text = said.strip('"')
    return [text[at : at + 4] for at in range(len(text) - 3)]


def assert_hidden(shown: str, said: str) -> None:
    assert MASK in shown
    assert not [piece for piece in pieces(said)[6:-3] if piece in shown]
