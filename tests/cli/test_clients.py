"""What `gateway check` and `gateway secrets` say of clients' files: mistakes in them, and what each client sees."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import Site, cli

ROOT = Path(__file__).parent.parent.parent
DIGEST = hashlib.sha256(b"a key").hexdigest()
KEY = f'keys: [{{sha256: "{DIGEST}"}}]\n'

MISTAKES = [
    (f'key: [{{sha256: "{DIGEST}"}}]', "1: key: unknown key (did you mean keys?)"),
    (f'keys: [{{sha265: "{DIGEST}"}}]', "1: keys.0.sha265: unknown key (did you mean sha256?)"),
    (f"keys: [{{sha256: {'1' * 64}}}]", f'write "{"1" * 64}" in quotes'),
    ("keys: [{sha256: acme_vSv9p2mX}]", "1: keys.0.sha256: is no SHA-256: 64 hexadecimal digits, of the key alone"),
    ("keys: acme_vSv9p2mX", '1: keys: expected a list of keys: write [{sha256: "..."}]'),
    (f'keys: [{{sha256: "{DIGEST}", role: admin}}]', "invalid enum value 'admin' (known: caller, viewer, operator)"),
    (f'keys: [{{sha256: "{DIGEST}", until: 01.03.2027}}]', "1: keys.0.until: is no date such as 2027-03-01"),
    (f'keys:\n  - sha256: "{DIGEST}"\n   until: 2027-03-01', "3:4: not valid YAML"),
    ("keys:\n\t- {}", "2:1: not valid YAML: found a tab where YAML takes spaces only"),
    (f"{KEY}allow: smtp", "2: allow: expected `array | null`, got `str`: write a list, [smtp]"),
    (f"{KEY}connectors:\ncrm: {{run: [cat]}}", "3: crm: unknown key (known: allow, callbacks, connectors, env, keys, limits)"),
    (f"{KEY}limits: {{rate: 50}}", "2: limits.rate: 50 is not a rate: write 50/s, 3000/min or 100/h"),
]  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return a site with one common connector."""
    site = Site(tmp_path)
    site.configure("smtp: {run: [cat], commands: {Send: {}}}")
    (tmp_path / "clients.d").mkdir()
    return site


def write(site: Site, name: str, text: str) -> Path:
    file = site.folder / "clients.d" / f"{name}.yaml"
    file.write_text(text)
    return file


def checked(site: Site, **environment: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cli(site, "check", "--json", env=environment).stdout)
    return found


def test_a_mistake_is_told_with_file_line_key_and_what_to_write(site: Site) -> None:
    files = {f"c{number:02}": write(site, f"c{number:02}", text) for number, (text, _) in enumerate(MISTAKES)}
    found = {one["name"]: one for one in checked(site)["clients"]}
    for (name, file), (_, problem) in zip(files.items(), MISTAKES, strict=True):
        assert found[name]["problem"].startswith(f"{file}:")
        assert problem in found[name]["problem"]
        assert found[name]["sees"] == []
    assert "vSv9p2mX" not in str(found)


def test_what_can_be_used_and_is_hardly_meant_is_told(site: Site) -> None:
    soon = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=3)
    plain = write(site, "plain", "keys: [acme_vSv9p2mX, {key: acme_other}]\n")
    nobody = write(site, "nobody", "allow: [smpt]\n")
    write(site, "soon", f'keys: [{{sha256: "{DIGEST}", until: {soon}}}, {{sha256: "{"1" * 64}", until: "20200101"}}]\n')
    found = {one["name"]: one for one in checked(site)["clients"]}
    for number, notice in enumerate(found["plain"]["notices"]):
        assert notice.startswith(f"{plain}:1: keys.{number}: key ")
        assert 'stands here in plain: make another one, and write {sha256: "..."}' in notice
    assert len(found["plain"]["notices"]) == 2
    assert "vSv9p2mX" not in str(found)
    assert found["nobody"]["notices"] == [
        f"{nobody}: keys: there are none, so nobody calls for it: `gateway keys new nobody` makes one",
        "allow: no common connector is called smpt (did you mean smtp?)",
    ]
    end = f"{soon + datetime.timedelta(days=1)}T00:00:00+00:00"
    assert found["soon"]["notices"] == [
        f"key {'1' * 8} does not count any more: remove it",
        f"key {DIGEST[:8]} ends at {end}",
    ]
    assert found["soon"]["keys"][1] == {"id": "1" * 8, "role": "caller", "until": "2020-01-02T00:00:00+00:00"}


def test_a_change_of_what_is_not_there_says_what_a_new_one_needs(site: Site) -> None:
    file = write(site, "acme", f"{KEY}connectors:\n  smpt: {{config: {{a: 1}}}}\n  smtp: {{timeout: 5s}}\n")
    problems = {one["name"]: one["problem"] for one in checked(site)["connectors"]}
    assert problems == {
        "smtp": None,
        "smtp@acme": None,
        "smpt@acme": f"{file}:3: connectors.smpt: there is no common connector of this name to change; a new one needs"
        " run, or a runtime",
    }


def test_check_shows_what_each_client_sees_and_who_may_call(site: Site) -> None:
    write(site, "acme", f"{KEY}allow: []\nconnectors: {{crm: {{run: [cat], commands: {{Go: {{}}}}}}}}\n")
    shown = cli(site, "check", env={"CONNECTOR_PROXY_API_KEY": "the single one"}).stdout
    assert f"client acme\n    sees crm (its own)\n    keys {DIGEST[:8]} (caller)\n" in shown
    assert "client default\n    sees smtp\n    keys api_key (operator)\n" in shown


def test_check_says_where_the_audit_could_not_be_written_and_makes_no_file(site: Site) -> None:
    for said, problem in (
        ("audit.log", None),
        ("nowhere/audit.log", f"there is no folder {site.folder / 'nowhere'}"),
        ("connectors.d", f"{site.folder / 'connectors.d'} is a folder"),
    ):
        site.configure("smtp: {run: [cat], commands: {Send: {}}}", gateway=f"audit: {{file: {said}}}")
        answer = cli(site, "check", "--json")
        assert json.loads(answer.stdout)["audit"] == {"problem": problem}
        assert answer.returncode == (1 if problem else 0)
    assert not (site.folder / "audit.log").exists()


def test_secrets_of_clients_files_are_listed(site: Site) -> None:
    site.file.write_text(f"secrets: {{dir: s}}\n{site.file.read_text()}")
    (site.folder / "s").mkdir()
    for name in ("acme_key", "acme_callback"):
        (site.folder / "s" / name).write_text("a value")
    write(
        site,
        "acme",
        "keys: [{secret: acme_key}, {secret: next_key, role: operator}]\n"
        "callbacks: {allow: [acme.example], headers: {Authorization: {secret: acme_callback}}}\n",
    )
    listed = cli(site, "secrets", "--json")
    assert listed.returncode == 1
    assert {one["name"]: (one["ok"], one["users"]) for one in json.loads(listed.stdout)} == {
        "acme_key": (True, ["acme.yaml: keys.0"]),
        "next_key": (False, ["acme.yaml: keys.1"]),
        "acme_callback": (True, ["acme.yaml: callbacks.headers.Authorization"]),
    }


def test_the_page_begins_with_files_that_can_be_used(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    (tmp_path / "clients.d").mkdir()
    files = re.findall(r"```(?:yaml|python)\n(# (\S+?)(?::[^\n]*)?\n.*?)```", page, flags=re.DOTALL)
    for text, name in files[:4]:
        digest = hashlib.sha256(name.encode()).hexdigest()
        (tmp_path / name).write_text(re.sub(r'"\w+\.\.\."', f'"{digest}"', text))
    answer = cli(Site(tmp_path), "check", "--json")
    found = json.loads(answer.stdout)
    assert {one["name"]: (one["problem"], one["notices"], one["sees"]) for one in found["clients"]} == {
        "acme": (None, [], ["aws", "crm", "echo"]),
        "beta": (None, [], ["echo"]),
        "default": (None, [], ["aws", "echo"]),
    }
    assert {one["name"]: one["problem"] for one in found["connectors"]} == {
        "aws": "not installed: run gateway install aws",
        "aws@acme": "not installed: run gateway install aws@acme",
        "crm@acme": None,
        "echo": None,
    }
