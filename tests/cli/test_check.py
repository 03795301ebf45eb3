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


# --- what cannot be started, or is passed over


def test_what_cannot_be_started_says_why_and_what_to_do(site: Site) -> None:
    script = 'echo \'{"commands": [{"name": "Go"}]}\'\n'
    files = {
        "crlf": f"#!/bin/sh\r\n{script}",
        "env": f"#!/usr/bin/env sh\r\n{script}",
        "bare": script,
        "empty": "",
        "mark": f"\ufeff#!/bin/sh\n{script}",
        "none": f"#!\n{script}",
        "gone": f"#!/no/such/sh -e\n{script}",
        "closed": f"#!/etc/passwd\n{script}",
        "fine": f"#!/bin/sh\n{script}",
    }
    for name, text in files.items():
        (site.drop_ins / f"{name}.sh").write_bytes(text.encode())
        (site.drop_ins / f"{name}.sh").chmod(0o755)
    (site.folder / "data").write_text("7")
    site.configure(f"told: {{run: [./data]}}\ndeclared: {{run: [./data], {GO}}}\nmissing: {{run: [./none]}}\n{GOOD}")
    at, could_not = site.drop_ins, "describe could not be started:"
    assert problems() == {
        "crlf": f"the #! line of crlf.sh ends with a carriage return, as on Windows: sed -i 's/\\r$//' {at}/crlf.sh",
        "env": f"the #! line of env.sh ends with a carriage return, as on Windows: sed -i 's/\\r$//' {at}/env.sh",
        "bare": f"{could_not} [Errno 8] Exec format error: {at}/bare.sh has no #! line: begin it with one, for example #!/bin/sh",
        "empty": f"{could_not} [Errno 8] Exec format error: {at}/empty.sh is empty: begin it with one, for example #!/bin/sh",
        "mark": f"{could_not} [Errno 8] Exec format error: {at}/mark.sh begins with a byte order mark, which hides its #!"
        " line: save it as UTF-8 without one",
        "none": "the #! line of none.sh names no interpreter",
        "gone": "/no/such/sh not found: the #! line of gone.sh needs it",
        "closed": "/etc/passwd is not executable: the #! line of closed.sh needs it",
        "told": f"{could_not} [Errno 13] Permission denied: {site.folder}/data is not executable: chmod +x {site.folder}/data",
        "declared": f"{site.folder}/data is not executable: chmod +x {site.folder}/data: calls answer connector_start_failed",
        "missing": f"{could_not} [Errno 2] No such file or directory: {site.folder}/none does not exist",
        "fine": None,
        "good": None,
    }


def test_what_is_no_drop_in_is_said_to_be_passed_over(site: Site) -> None:
    for name in (
        "README",
        "readme.md",
        "LICENSE.txt",
        "notes.rst",
        ".hidden",
        "backup~",
        "data.bin",
        "tool.py",
        "fax.yml",
    ):
        (site.drop_ins / name).write_text("x")
    for name in ("shared", "misnamed", "plural"):
        (site.drop_ins / name).mkdir()
    (site.drop_ins / "misnamed/connector.yml").write_text("run: [cat]")
    (site.drop_ins / "plural/Connectors.yaml").write_text("run: [cat]")
    site.configure(GOOD)
    assert problems() == {
        "good": None,
        "misnamed": f"{site.drop_ins}/misnamed/connector.yml: rename it to connector.yaml",
        "plural": f"{site.drop_ins}/plural/Connectors.yaml: rename it to connector.yaml",
    }
    passed = {
        "data.bin: neither executable nor a script",
        "tool.py: neither executable nor a script",
        "fax.yml: neither executable nor a script: a connector's keys are in connector.yaml, in a folder of its own",
        "shared: a folder without connector.yaml",
    }
    assert set(json.loads(check("--json").stdout)["passed_over"]) == {f"{site.drop_ins}/{one}" for one in passed}
    shown = check().stdout
    assert all(f"passed over {site.drop_ins}/{one}" in shown for one in passed)
    assert "README" not in shown


def test_a_folder_of_drop_ins_that_is_not_there_is_said(site: Site) -> None:
    site.configure(GOOD, gateway="connectors_dir: conectors.d")
    assert json.loads(check("--json").stdout)["passed_over"] == [f"{site.folder}/conectors.d: there is no such folder"]


def test_a_missing_module_is_named_with_the_packages_that_are_there(site: Site) -> None:
    (site.folder / "lacking.py").write_text("import no_such_module\ndef Go() -> str:\n    return ''\n")
    site.configure("bare: {runtime: python, module: ./lacking.py}")
    assert problems() == {
        "bare": "lacking is left out: ModuleNotFoundError: No module named 'no_such_module' (add no_such_module, or the"
        " package that provides it, to requirements); it has no packages but Python's own"
    }


def test_a_configuration_with_the_wrong_suffix_is_found(site: Site) -> None:
    (site.folder / "connectors.yml").write_text("connectors: {}")
    done = check()
    assert done.exit_code == 2
    assert done.stderr == "error: connectors.yaml: there is no such file here, but connectors.yml: rename it\n"


# --- what others can change


def test_what_others_can_change_is_a_fault(site: Site) -> None:
    site.script("connectors.d/one.sh", """echo '{"commands": [{"name": "Go"}]}'""")
    site.configure(GOOD)
    assert check().exit_code == 0
    site.drop_ins.chmod(0o1777)
    done, as_json = check(), json.loads(check("--json").stdout)
    told = f"{site.drop_ins} can be changed by everybody, and with it what the gateway runs: chmod o-w {site.drop_ins}"
    assert (done.exit_code, as_json["ok"], as_json["exposed"]) == (1, False, [told])
    assert f"BAD {told}" in done.stdout
    assert "2 of 2 connectors can be served" in done.stdout
