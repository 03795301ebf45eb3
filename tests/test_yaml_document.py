"""Files whose keys know their lines, and the units that operators write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from gateway import yaml_document
from gateway.errors import ConfigError
from gateway.units import Duration, Size
from gateway.yaml_document import YamlNode, load

if TYPE_CHECKING:
    from pathlib import Path


class Inner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    wait: Duration = Duration(1)
    room: Size = Size(1)
    names: list[str] = []


class Outer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    inner: Inner = Inner()
    retries: int = 0


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        load(written(path, text))
    return str(caught.value)


# --- units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("0s", 0), ("5s", 5), ("1.5s", 1.5), ("2m", 120), ("1h", 3600), ("7d", 604800), (" 3s ", 3)],
)
def test_a_duration_is_a_number_with_its_unit(text: str, seconds: float) -> None:
    assert Duration.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "5",
        5,
        5.0,
        "",
        "s",
        "-1s",
        "5 s",
        "1e3s",
        "5S",
        "5min",
        "1h30m",
        "\u0665s",
        ".5s",
        "5.s",
        "inf",
        None,
        True,
        "5s\n5s",
        "9" * 400 + "s",
    ],
)
def test_anything_else_is_no_duration(text: Any) -> None:
    with pytest.raises(ValueError, match="is not a duration: write 500ms, 5s, 2m or 1h"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("0B", 0), ("512B", 512), ("64KiB", 65536), ("8MiB", 8 << 20), ("1GiB", 1 << 30), ("1KB", 1000), ("2MB", 2000000),
     ("1GB", 10**9), ("0.5MiB", 1 << 19), (" 1B ", 1)],
)  # fmt: skip
def test_a_size_is_a_number_with_its_unit(text: str, count: int) -> None:
    assert Size.parse(text) == count


@pytest.mark.parametrize(
    "text", ["1", 1, "1M", "1mb", "1 MiB", "-1B", "1TiB", "", None, False, "MiB", "\u0665B", "9" * 400 + "B"]
)
def test_anything_else_is_no_size(text: Any) -> None:
    with pytest.raises(ValueError, match="is not a size: write 512B, 64KiB, 8MiB or 1GiB"):
        Size.parse(text)


@pytest.mark.parametrize("text", ["500ms", "1ms", "5s", "1.5s", "90s", "2m", "1h", "36h", "40s"])
def test_a_duration_is_shown_so_that_it_can_be_written_again(text: str) -> None:
    shown = str(Duration.parse(text))
    assert Duration.parse(shown) == pytest.approx(Duration.parse(text))


@pytest.mark.parametrize("text", ["0B", "512B", "64KiB", "8MiB", "1GiB", "1.5GiB"])
def test_a_size_is_shown_as_it_was_written(text: str) -> None:
    assert str(Size.parse(text)) == text


# --- files


def test_an_unknown_key_is_named_with_file_line_and_what_was_meant(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", "retries: 1\n\ninner:\n  wait: 5s\n  rom: 1B\n")
    with pytest.raises(ConfigError) as caught:
        load(file).child("inner").decode(Inner)
    assert str(caught.value) == f"{file}:5: inner.rom: unknown key (did you mean room?)"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("retries: many", "1: retries: expected `int`, got `str`"),
        ("inner:\n  wait: 5", "2: inner.wait: 5 is not a duration: write 500ms, 5s, 2m or 1h"),
        ("inner:\n  names:\n  - a\n  - 7", '4: inner.names.1: expected `str`, got `int`: write "7" in quotes'),
        ("inner: 5", "1: inner: expected `object`, got `int`"),
        ("nonsense: 1", "1: nonsense: unknown key (known: inner, retries)"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_line_and_key(tmp_path: Path, text: str, problem: str) -> None:
    file = written(tmp_path / "a.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load(file).decode(Outer)
    assert str(caught.value) == f"{file}:{problem}"


def test_a_key_that_is_said_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    assert refusal(file, "a:\n  b: 1\n  c: 2\n  b: 3\n") == f"{file}:4: a.b: said twice (first on line 2)"


@pytest.mark.parametrize("key", ["1", "true", "null", "~", "1.5", "-0", ".inf"])
def test_a_key_that_is_no_text_is_refused(tmp_path: Path, key: str) -> None:
    file = tmp_path / "a.yaml"
    assert refusal(file, f"a:\n  {key}: 1\n") == f'{file}:2: a.{key}: a key must be text: write "{key}" in quotes'


def test_a_quoted_number_is_a_key(tmp_path: Path) -> None:
    assert load(written(tmp_path / "a.yaml", '"1": x\n"true": y')).data == {"1": "x", "true": "y"}


def test_a_key_that_is_a_list_is_refused(tmp_path: Path) -> None:
    assert "a key must be text" in refusal(tmp_path / "a.yaml", "? [a, b]\n: 1\n")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.yaml"
    problem = refusal(file, text)
    assert problem.startswith(str(file))
    assert "empty" in problem or "expected a mapping at the top, got " in problem


@pytest.mark.parametrize("text", ["- a", "just text", "5", "null"])
def test_the_top_must_be_a_mapping(tmp_path: Path, text: str) -> None:
    assert "a.yaml:1: expected a mapping at the top, got " in refusal(tmp_path / "a.yaml", text)


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("a: 1\nb: [1, 2\n", "3:1", ""),
        ("a: 1\n\tb: 2\n", "2:1", "found a tab character"),
        ("a: b: c\n", "1:5", ""),
        ("a: *nobody\n", "1:4", "found undefined alias"),
        ("a: 1\n---\nb: 2\n", "2:1", "expected a single document in the stream, but found another document"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_place(tmp_path: Path, text: str, place: str, problem: str) -> None:
    file = tmp_path / "a.yaml"
    assert refusal(file, text).startswith(f"{file}:{place}: not valid YAML: {problem}")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"a: \xff\xfe\n", "1:4"),
        (b"a: 1\nb: \x00\n", "2:4"),
        ("a: 1\nb: \u00e6\n".encode("latin-1"), "2:4"),
        (b"\x7fELF\x02\x01\x01\x00", "1:1"),
    ],
)
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, text: bytes, place: str) -> None:
    assert f"a.yaml:{place}: not valid YAML: not text: " in refusal(tmp_path / "a.yaml", text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_may_say_how_its_text_is_encoded(tmp_path: Path, encoding: str) -> None:
    assert load(written(tmp_path / "a.yaml", "a: \u00e6\n".encode(encoding))).data == {"a": "\u00e6"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "a:\n  b: !!python/object/apply:os.system [ls]\n",
            "2: a.b: the tag !!python/object/apply:os.system is none of",
        ),
        ("a:\n  b: !secret x\n", "2: a.b: a tag that is none of plain data"),
        ("a:\n  b: !!set {x, y}\n", "2: a.b: the tag !!set is none of plain data"),
        ("a:\n  b: !!int seven\n", '2: a.b: "seven" is no int'),
        ("a:\n  b: !!map seven\n", "2: a.b: the tag !!map is none"),
        ("a:\n  b: .nan\n", '2: a.b: JSON has no number ".nan": write it in quotes'),
        (f"a:\n  b: {'9' * 5000}\n", '2: a.b: "9999999999'),
        ("a:\n  <<: 5\n", "1: a: << takes another mapping, or a list of them"),
    ],
)
def test_what_is_no_plain_data_is_refused_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "a.yaml"
    assert refusal(file, text).startswith(f"{file}:{problem}")


@pytest.mark.parametrize(
    "text", ["NO", "yes", "off", "y", "007", "0x1F", "0o17", "+47", "1_000", "1e3", "12:30:00", "2024-01-01", "1.2.3"]
)
def test_what_json_would_not_take_for_another_thing_is_text(tmp_path: Path, text: str) -> None:
    assert load(written(tmp_path / "a.yaml", f"a: {text}\n{text}: 1\n")).data == {"a": text, text: 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("-7", -7), ("1.50", 1.5), ("1.5e3", 1500.0), ("TRUE", True), ("false", False), ("~", None), ("", None)],
)
def test_numbers_truths_and_nothing_are_what_they_look_like(tmp_path: Path, text: str, value: Any) -> None:
    node = load(written(tmp_path / "a.yaml", f"a: {text}\n"))
    assert (node.data["a"], type(node.data["a"])) == (value, type(value))
    assert node.written("a") == text


def test_a_truth_is_not_guessed(tmp_path: Path) -> None:
    class Switch(msgspec.Struct):
        on: bool

    file = written(tmp_path / "a.yaml", "on: yes")
    with pytest.raises(ConfigError, match=r"1: on: expected `bool`, got `str`: write true or false"):
        load(file).decode(Switch)


@pytest.mark.parametrize(
    "text", ["a: &a\n  b: *a\n", "a: 1\nx: &x\n  b: [*x]\n", "a: &a\n  <<: *a\n", "a: &a\n  b: &b\n    <<: [*a]\n"]
)
def test_an_alias_that_contains_itself_is_refused(tmp_path: Path, text: str) -> None:
    problem = refusal(tmp_path / "a.yaml", text)
    assert "an alias that contains itself" in problem or "<< takes another mapping" in problem


def bomb(levels: int, sharp: str = "bomb: {config: {") -> str:
    """Write aliases of aliases, which stand for 10 to the power of `levels` texts."""
    lines = [f"a0: &a0 [{', '.join('x' * 10)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return sharp + ",\n  ".join(lines) + "}}\n"


@pytest.mark.parametrize("levels", [5, 7, 30])
def test_aliases_of_aliases_are_refused_before_they_are_made(tmp_path: Path, levels: int) -> None:
    written(tmp_path / "a.yaml", f"entries:\n  good: {{b: 1}}\n  {bomb(levels)}")
    entries = load(tmp_path / "a.yaml", entries="entries").child("entries")
    assert entries.child("good").fault() is None
    fault = str(entries.child("bomb").fault())
    assert fault.endswith(
        "a.yaml:3: entries.bomb: more than 50000 keys and values, those that aliases stand for included"
    )


def test_merges_of_merges_are_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_document, "ENTRY", 100)
    lines = ["a0: &a0 {<<: {p: 1}, q: 2}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9)]
    text = "one: {x: {" + ",\n  ".join(lines) + "}}\n"
    assert "one.x: more than 100 keys and values" in refusal(tmp_path / "a.yaml", text)


def test_a_file_of_bombs_is_refused_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_document, "VALUES", 20_000)
    monkeypatch.setattr(yaml_document, "ENTRY", 1000)
    anchors = "base: &base {{x: {}}}".format("[" + ", ".join("x" * 900) + "]")
    file = written(
        tmp_path / "a.yaml", "entries:\n  " + anchors + "\n" + "".join(f"  b{n}: *base\n" for n in range(30))
    )
    with pytest.raises(ConfigError, match="aliases stand for more than 20000 keys and values"):
        load(file, entries="entries")


def test_a_file_with_too_many_values_or_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.yaml"
    monkeypatch.setattr(yaml_document, "VALUES", 1000)
    assert "more than 1000 keys and values" in refusal(file, f"a: [{'x,' * 1000}]")
    monkeypatch.setattr(yaml_document, "MOST", 1 << 20)
    assert refusal(file, "#" * ((1 << 20) + 1)) == f"{file}: is larger than 1 MiB"


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_what_is_nested_too_deep_is_refused_where_it_begins(tmp_path: Path, opening: str) -> None:
    closing = {"[": "]", "{a: ": "}", "- ": ""}[opening]
    before = "a:\n  " if opening == "- " else "a: "
    entry = "entries:\n  deep:\n    b: {b}\n".format(
        b=("\n      " if opening == "- " else "") + opening * 200 + "1" + closing * 200
    )
    node = load(written(tmp_path / "a.yaml", entry), entries="entries").child("entries").child("deep")
    assert str(node.fault()).endswith("a.yaml:2: entries.deep: nested more than 100 levels deep")
    text = before + opening * 100_000 + "1" + closing * 100_000
    assert "not valid YAML: nested more than 1000 levels deep" in refusal(tmp_path / "a.yaml", text)


def test_what_is_wrong_with_one_entry_is_left_to_it(tmp_path: Path) -> None:
    text = (
        "entries:\n  twin: {a: 1}\n  7: {a: 1}\n  tag: {a: !x 1}\n  good: {a: 1}\n  twin: {a: 2}\n  ? [a]\n  : {b: 1}\n"
    )
    entries = load(written(tmp_path / "a.yaml", text), entries="entries").child("entries")
    faults = {name: str(node.fault()).partition("a.yaml:")[2] for name, node in entries.items()}
    assert faults == {
        "twin": "6: entries.twin: said twice (first on line 2)",
        "7": '3: entries.7: a key must be text: write "7" in quotes',
        "tag": "4: entries.tag.a: a tag that is none of plain data: a text that begins with ! is written in quotes",
        "good": "",
        "?": '7: entries.?: a key must be text: write "?" in quotes',
    }
    assert "3: entries.7: a key must be text" in refusal(tmp_path / "a.yaml", text)
    with pytest.raises(ConfigError, match=r"2: others\.a: a tag"):
        load(written(tmp_path / "a.yaml", "others:\n  a: !x 1\n"), entries="entries")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file or directory"):
        load(tmp_path / "nowhere.yaml")


def test_merged_keys_are_there_and_the_own_ones_win(tmp_path: Path) -> None:
    text = "base: &base {a: 1, b: 2}\none:\n  <<: *base\n  b: 3\n"
    node = load(written(tmp_path / "a.yaml", text))
    assert node.data["one"] == {"a": 1, "b": 3}
    assert str(node.child("one").error("bad", ("b",))).endswith("a.yaml:4: one.b: bad")


# --- overlays


def overlaid(tmp_path: Path, under: str, over: str) -> YamlNode:
    below = load(written(tmp_path / "under.yaml", under)).moved(("connectors", "x"))
    above = load(written(tmp_path / "over.yaml", f"connectors:\n  x:\n    {over}\n")).child("connectors").child("x")
    return below.overlaid(above)


def test_an_overlay_merges_mappings_and_replaces_the_rest(tmp_path: Path) -> None:
    node = overlaid(tmp_path, "env: {A: 1, B: 2}\nrun: [a, b]\n", "env: {B: 3, C: 4}\n    run: [c]")
    assert node.data == {"env": {"A": 1, "B": 3, "C": 4}, "run": ["c"]}


def test_null_in_an_overlay_removes_a_key(tmp_path: Path) -> None:
    assert overlaid(tmp_path, "env: {A: 1, B: 2}\nrun: [a]\n", "env: {A: null}").data == {"env": {"B": 2}, "run": ["a"]}


def test_an_overlay_keeps_the_place_of_each_key(tmp_path: Path) -> None:
    node = overlaid(tmp_path, "timeout: 5s\nenv:\n  A: 1\n", "env:\n      B: 2")
    assert str(node.error("bad", ("timeout",))) == f"{tmp_path}/under.yaml:1: connectors.x.timeout: bad"
    assert str(node.error("bad", ("env", "A"))) == f"{tmp_path}/under.yaml:3: connectors.x.env.A: bad"
    assert str(node.error("bad", ("env", "B"))) == f"{tmp_path}/over.yaml:4: connectors.x.env.B: bad"
    assert str(node.error("bad", ("env", "B", "deep"))) == f"{tmp_path}/over.yaml:4: connectors.x.env.B.deep: bad"
    assert str(node.error("bad")) == f"{tmp_path}/over.yaml:2: connectors.x: bad"


def test_the_parts_of_what_is_no_mapping_cannot_be_asked_for(tmp_path: Path) -> None:
    node = load(written(tmp_path / "a.yaml", "a: [1]")).child("a")
    with pytest.raises(ConfigError, match="1: a: expected a mapping, got a list"):
        node.items()
