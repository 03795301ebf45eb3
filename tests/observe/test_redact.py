"""In which forms a secret is found, and what is withheld."""

from __future__ import annotations

import base64
import html
import json
import shlex
import time
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus, unquote

import pytest

from gateway.observe.redact import LARGEST, MASK, MOST, NOTHING_SHOWN, Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

VALUES = [
    "hunter-22",
    "p@ss/w\"o'rd\\x y+z%41&<é>☃😀",
    "C:\\new\\table",
    "a\\nb\\u0041cd",
    "Ünïcode ☃ key",
    "1234",
    "5%41%42%",
    "x" * 200 + "y",
]
FORMS: dict[str, Callable[[str], str]] = {
    "as it is": lambda value: value,
    "JSON": lambda value: json.dumps(value, ensure_ascii=False),
    "JSON in ASCII": json.dumps,
    "JSON in JSON": lambda value: json.dumps(json.dumps(value)),
    "JSON in JSON in JSON": lambda value: json.dumps(json.dumps(json.dumps(value))),
    "JSON with slashes": lambda value: json.dumps(value).replace("/", "\\/").replace("&", "\\u0026"),
    "repr": repr,
    "repr of bytes": lambda value: repr(value.encode()),
    "a shell's quotes": shlex.quote,
    "CSV": lambda value: '"' + value.replace('"', '""') + '"',
    "SQL": lambda value: "'" + value.replace("'", "''") + "'",
    "a URL": quote,
    "a part of a URL": lambda value: quote(value, safe=""),
    "small letters in a URL": lambda value: "".join(f"%{byte:02x}" for byte in value.encode()),
    "a form": quote_plus,
    "a URL in a URL": lambda value: quote(quote(value, safe=""), safe=""),
    "JSON in a URL": lambda value: quote(json.dumps(value)),
    "HTML": html.escape,
    "JSON in HTML": lambda value: html.escape(json.dumps(value)),
    "numbers in HTML": lambda value: "".join(f"&#{ord(one)};" for one in value),
    "octal": lambda value: "".join(f"\\{byte:03o}" for byte in value.encode()),
    "capitals": str.upper,
    "base64": lambda value: base64.b64encode(value.encode()).decode(),
    "base64 without padding": lambda value: base64.b64encode(value.encode()).decode().rstrip("="),
    "base64 for URLs": lambda value: base64.urlsafe_b64encode(value.encode()).decode().rstrip("="),
    "base64 in a URL": lambda value: quote(base64.b64encode(value.encode()), safe=""),
    "base64 in lines": lambda value: base64.encodebytes(value.encode()).decode(),
    "hexadecimal": lambda value: value.encode().hex(),
    "HEXADECIMAL": lambda value: value.encode().hex().upper(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_a_value_is_found_in_every_form(value: str, form: str) -> None:
    said = FORMS[form](value)
    text = f"before {said} after"
    shown = Redactor(["other", value])(text)
    assert MASK in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    left = unquote(shown.removeprefix("before ").removesuffix(" after").replace(MASK, ""))
    assert len(left.strip("\\\"'\n=b&quot;%25C")) <= 2, shown  # a few bits of base64


@pytest.mark.parametrize("user", ["", "a", "ab", "abc"])
@pytest.mark.parametrize("end", ["", "x", "xy"])
def test_the_base64_of_what_holds_a_value_is_found(user: str, end: str) -> None:
    told = base64.b64encode(f"{user}:hunter-22{end}".encode()).decode()
    shown = Redactor(["hunter-22"])(f"Authorization: Basic {told}")
    assert MASK in shown
    left = shown.removeprefix("Authorization: Basic ").replace(MASK, "")
    assert len(left) <= len(told) - 4 * len("hunter-22") // 3 + 1  # what has bits of what stands beside it


def test_what_has_no_secret_in_it_stays_as_it_is() -> None:
    redact = Redactor(["hunter-22", "päss wörd"])
    for text in (
        "",
        "plain",
        'a "quoted" text',
        "100 %",
        "%41%42",
        "\\u0041",
        "&amp;",
        "\ud800",
        "\\" * 99,
        "hunter-2",
    ):
        assert redact(text) is text


def test_lines_of_a_value_are_found_one_by_one() -> None:
    redact = Redactor(["-----BEGIN X-----\nfirst line\nsecond line\n"])
    assert redact("second line") == MASK
    assert redact(json.dumps("first line\nsecond line")) == f'"{MASK}\\n{MASK}"'


def test_base64_of_a_long_value_is_found_line_by_line() -> None:
    value = "".join(f"line {number} of a key\n" for number in range(40))
    redact = Redactor([value])
    for line in base64.encodebytes(value.encode()).decode().splitlines()[:-1]:
        assert redact(line) == MASK


def test_the_longer_of_two_values_goes_whole() -> None:
    assert Redactor(["hunter", "hunter-22"])("hunter-22, hunter") == f"{MASK}, {MASK}"


def test_what_a_long_value_begins_like_is_hidden_as_far_as_it_goes() -> None:
    value = "".join(f"{number:04d}" for number in range(100))
    assert Redactor([value])(f"cut off: {value[:99]} and {value}") == f"cut off: {MASK} and {MASK}"


def test_values_of_three_characters_are_too_short_to_be_hidden() -> None:
    assert Redactor(["abc", "   ", "12", ""])("abc 12     def") == "abc 12     def"


def test_more_values_than_can_be_looked_for_hide_everything() -> None:
    for values in ([f"value-{number}" for number in range(MOST + 1)], ["x" * (LARGEST + 1)], ["line\n" * (MOST + 1)]):
        redact = Redactor(values)
        assert redact.withholds
        assert redact("anything") == MASK
        assert redact("") == ""
    assert Redactor(["pass-1"]).plus([f"value-{number}" for number in range(MOST + 1)])("anything") == MASK
    assert NOTHING_SHOWN.plus(["more"])("anything") == MASK


def test_a_redactor_that_knows_more_is_equal_to_one_that_knows_the_same() -> None:
    assert Redactor(["one"]).plus(["two"]) == Redactor(["one"]).plus(["two"])
    assert Redactor(["one"]) == Redactor(["one"])
    assert len({Redactor(["one"]), Redactor(["two"]), NOTHING_SHOWN, Redactor()}) == 4
    assert Redactor(["one"]).plus([]) == Redactor(["one"])


@pytest.mark.parametrize("form", ["as it is", "JSON in JSON", "small letters in a URL", "numbers in HTML", "octal"])
def test_a_text_is_not_cut_where_a_value_stands(form: str) -> None:
    redact = Redactor(["hunter-22"])
    said = FORMS[form]("hunter-22")
    assert len(said) <= redact.reach
    text = f"before {said} after".encode()
    for at in range(len(text) + 1):
        cut = redact.cut(text, at)
        shown = redact.masked(text[:cut]) + redact.masked(text[cut:])
        assert shown == redact.masked(text)


def test_a_hundred_values_take_not_much_longer_than_one() -> None:
    redact = Redactor([f"secret-{number}-{number * 7919 % 1009}'/ +" for number in range(100)])
    lines = [
        f"2026-01-01 INFO module {number} has done 'what it was to do' with {number * 7} rows" for number in range(2600)
    ]
    begun = time.process_time()
    assert [redact(line) for line in lines] == lines
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("piece", ["\\", "\\n", "\\\\u0041", "%25", "&amp;", "'", "a", "secret-7"])
def test_no_text_takes_long(piece: str) -> None:
    redact = Redactor(["secret-7", "a" * 30_000, "\\" * 3000])
    begun = time.process_time()
    redact(piece * (100_000 // len(piece)))
    assert time.process_time() - begun < 10  # what is quadratic takes minutes
