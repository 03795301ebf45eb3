"""What `gateway check` finds, names and ends with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from gateway.cli.main import main
from tests.support import Site

if TYPE_CHECKING:
    from pathlib import Path

GO = "commands: {Go: {additional_parameters: true}}"
GOOD = f"good: {{run: [cat], {GO}}}"


def check(*arguments: str) -> Result:
    """Run it in this process, which saves its start."""
    return CliRunner().invoke(main, ["check", *arguments], catch_exceptions=False)


def problems() -> dict[str, str | None]:
    """Return what it finds wrong, by connector; it has to be seen in its text too."""
    shown, done = check(), check("--json")
    found = json.loads(done.stdout)
    told = {one["name"]: one["problem"] for one in found["connectors"]}
    assert shown.exit_code == done.exit_code == (0 if found["ok"] else 1)
    assert all(problem in shown.stdout for problem in told.values() if problem)
    return told


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site, in which the test stands."""
    monkeypatch.chdir(tmp_path)
    return Site(tmp_path)


# --- YAML


BOMB = ", ".join(f"{n}: &{n} [{', '.join([f'*{chr(ord(n) - 1)}' if n != 'a' else 'x'] * 10)}]" for n in "abcdefg")
ODD = {
    "tag": ("{run: [cat], config: {a: !!python/object:os.system ls}}", "config.a: the tag !!python/object:os.system is none"),
    "number_key": ("{run: [cat], config: {7: a}}", 'config.7: a key must be text: write "7" in quotes'),
    "null_key": ("{run: [cat], config: {~: a}}", 'config.~: a key must be text: write "~" in quotes'),
    "twice": ("{run: [cat], run: [dog]}", "run: said twice (first on line "),
    "bomb": (f"{{config: {{{BOMB}}}}}", "more than 50000 keys and values"),
    "itself": ("&itself {run: [cat], config: {a: *itself}}", "config.a: an alias that contains itself"),
    "deep": ("{config: {a: " + "[" * 300 + "]" * 300 + "}}", "nested more than 100 levels deep"),
    "text": ("{run: [cat, 12.50]}", 'run.1: expected `str`, got `float`: write "12.50" in quotes'),
    "truth": ("{run: [cat], enabled: no}", "enabled: expected `bool`, got `str`: write true or false"),
    "nothing": ("{run: [cat], env: {A: }}", "env.A: expected text or a number"),
}  # fmt: skip


def test_what_yaml_makes_hard_hurts_the_entry_that_it_is_in(site: Site) -> None:
    lines = [GOOD, *(f"{name}: {text}" for name, (text, _) in ODD.items()), f"twin: {{run: [cat], {GO}}}"]
    lines += [f"12: {{run: [cat], {GO}}}", f"NO: {{run: [cat], {GO}}}", f"007: {{run: [cat], {GO}}}"]
    site.configure("\n".join([*lines, "twin: {run: [cat]}"]))
    found = problems()
    numbers = {line.strip().partition(":")[0]: at for at, line in enumerate(site.file.read_text().splitlines(), 1)}
    for name, (_, problem) in ODD.items():
        separator = ": " if problem.startswith(("more", "nested")) else "."
        assert f"{site.file}:{numbers[name]}: connectors.{name}{separator}{problem}" in (found.pop(name) or ""), name
    assert found.pop("twin") == f"{site.file}:{numbers['twin']}: connectors.twin: said twice (first on line 15)"
    assert found.pop("12") == f'{site.file}:{numbers["12"]}: connectors.12: a key must be text: write "12" in quotes'
    assert found == {"good": None, "NO": None, "007": None}


def test_a_connector_that_is_switched_off_may_be_wrong(site: Site) -> None:
    site.configure(f"{GOOD}\noff: {{enabled: false, config: {{a: !x 1, 7: 8}}}}")
    assert problems() == {"good": None}


def test_env_is_what_is_written(site: Site) -> None:
    words = {
        "A": "NO",
        "B": "007",
        "C": "1e3",
        "D": "12:30:00",
        "E": "2024-01-01",
        "F": "1.10",
        "G": "true",
        "H": "-0.50",
    }
    site.script("env.sh", """printf '"%s"' "$A $B $C $D $E $F $G $H" """)
    env = ", ".join(f"{name}: {word}" for name, word in words.items())
    site.configure(f"env: {{run: [./env.sh], env: {{{env}}}, {GO}}}")
    done = CliRunner().invoke(main, ["call", "-q", "env/Go"], catch_exceptions=False)
    assert json.loads(done.stdout)["command_response"]["body"] == " ".join(words.values())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"connectors:\n\tfax: {}\n", ":2:1: not valid YAML: found a tab where YAML takes spaces only"),
        (b"connectors:\n  a: [1\n  b: 2\n", ":3:4: not valid YAML: "),
        (b"connectors: {}\n--- \ngateway: {}\n", ":2:1: not valid YAML: expected a single document in the stream, but found"),
        (b"connectors:\n  a: \x00\n", ":2:6: not valid YAML: not text: control characters are not allowed"),
        (b"connectors:\n  a: \xff\n", ":2:6: not valid YAML: not text: invalid leading UTF-8 octet"),
        (b"connectors: {a: " + b"[" * 100_000, ":1:1014: not valid YAML: nested more than 1000 levels deep"),
        (b"connectors: {a: &a {}, b: &a {}}", ":1:27: not valid YAML: an anchor of this name was there before"),
        (b"connectors: {a: *b}", ":1:17: not valid YAML: found undefined alias"),
        (b"gateway: {7: 8}\nconnectors: {}", ':1: gateway.7: a key must be text: write "7" in quotes'),
        (b"connectors: {}\nconnectors: {}", ":2: connectors: said twice (first on line 1)"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_yaml_is_told_with_line_and_column(site: Site, text: bytes, problem: str) -> None:
    site.file.write_bytes(text)
    done = check()
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {site.file}{problem}")


def test_a_drop_in_s_yaml_is_read_in_the_same_way(site: Site) -> None:
    for name, text in {
        "tab": b"run:\n\t- cat\n",
        "twice": b"run: [cat]\nrun: [dog]\n",
        "two": b"run: [cat]\n---\n",
    }.items():
        (site.drop_ins / name).mkdir()
        (site.drop_ins / name / "connector.yaml").write_bytes(text)
    site.configure(GOOD)
    found = problems()
    assert found["good"] is None
    assert (found["tab"] or "").startswith(f"{site.drop_ins}/tab/connector.yaml:2:1: not valid YAML: found a tab")
    assert found["twice"] == f"{site.drop_ins}/twice/connector.yaml:2: run: said twice (first on line 1)"
    assert (found["two"] or "").startswith(f"{site.drop_ins}/two/connector.yaml:2:1: not valid YAML: expected a single")
