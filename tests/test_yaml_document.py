"""Files whose keys know their lines, and the units that operators write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

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
        ("inner:\n  names:\n  - a\n  - 7", "4: inner.names.1: expected `str`, got `int`"),
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


@pytest.mark.parametrize("key", ["1", "true", "null", "~", "1.5", "2024-01-01"])
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
    ("text", "line"),
    [
        ("a: 1\nb: [1, 2\n", 3),
        ("a: 1\n\tb: 2\n", 2),
        ("a: b: c\n", 1),
        ("a: *nobody\n", 1),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: !!python/name:os.system\n", 1),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "a.yaml"
    assert refusal(file, text).startswith(f"{file}:{line}: not valid YAML: ")


@pytest.mark.parametrize("text", [b"a: \xff\xfe\n", b"a: \x00\n", b"\x7fELF\x02\x01\x01\x00"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, text: bytes) -> None:
    assert "not valid YAML" in refusal(tmp_path / "a.yaml", text)


def test_a_file_that_contains_itself_is_refused(tmp_path: Path) -> None:
    assert "not valid YAML" in refusal(tmp_path / "a.yaml", "a: &a\n  b: *a\n")


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
