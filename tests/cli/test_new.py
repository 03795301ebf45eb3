"""`gateway new` writes connectors that work."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli.main import main
from tests.support import Site, cli

RUNTIMES = ["exec", "java", "node", "python", "shell"]
NEEDS = {"node": ["node"], "java": ["java", "javac", "mvn"]}


def reachable(host: str) -> bool:
    try:
        socket.create_connection((host, 443), 3).close()
    except OSError:
        return False
    return True


def skip_without(runtime: str) -> None:
    for program in NEEDS.get(runtime, []):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} here")
    cached = Path("~/.m2/repository/org/json/json/20260814").expanduser().exists()
    if runtime == "java" and not cached and not reachable("repo.maven.apache.org"):
        pytest.skip("its library is not in Maven's cache, and there is no way to Maven Central")


def new(site: Site, monkeypatch: pytest.MonkeyPatch, name: str, runtime: str, *arguments: str) -> Result:
    """Run the verb in this process."""
    monkeypatch.chdir(site.folder)
    return CliRunner().invoke(main, ["new", name, "--runtime", runtime, *arguments])


@pytest.fixture
def configured(site: Site) -> Site:
    site.configure()
    return site


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_new_connector_keeps_the_contract_and_answers(configured: Site, runtime: str) -> None:
    skip_without(runtime)
    made = cli(configured, "new", "greet-all", "--runtime", runtime)
    assert made.returncode == 0, made.stderr
    assert "gateway test greet-all" in made.stdout
    if "gateway install greet-all" in made.stdout:
        installed = cli(configured, "install", "greet-all")
        assert installed.returncode == 0, installed.stdout + installed.stderr
    tested = cli(configured, "test", "greet-all", "--json")
    checks = json.loads(tested.stdout)["checks"]
    assert tested.returncode == 0, checks
    assert {one["outcome"] for one in checks if one["check"] != "deadline"} == {"ok"}, checks
    assert sum(one["check"] == "expected" for one in checks) == 3
    called = cli(configured, "call", "greet-all/Greet", "name=Ada", "times:=2")
    assert json.loads(called.stdout)["command_response"]["body"] == {"text": "Hello, Ada! Hello, Ada!"}
    assert "stderr | greeting 2 times" in called.stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_place_in_a_template_is_filled_in(site: Site, monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    made = new(site, monkeypatch, "9-lives.v2", runtime, "--dir", "here")
    assert made.exit_code == 0, made.output
    files = [path for path in (site.folder / "here/9-lives.v2").rglob("*") if path.is_file()]
    assert {"connector.yaml", "tests.yaml"} < {path.name for path in files}
    for path in files:
        assert "__" not in path.name + path.read_text(), path
        assert path.name in {"connector.yaml", "tests.yaml", "X9LivesV2Connector.java"} or "9-lives.v2" in path.name


def test_nothing_is_overwritten(configured: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert new(configured, monkeypatch, "greet", "shell").exit_code == 0
    file = configured.drop_ins / "greet/greet.sh"
    file.write_text("mine")
    again = new(configured, monkeypatch, "greet", "shell")
    assert (again.exit_code, file.read_text()) == (2, "mine")
    assert "nothing is overwritten" in again.stderr
    assert [path.name for path in configured.drop_ins.iterdir()] == ["greet"]


def test_a_drop_in_file_of_the_same_name_is_a_clash(configured: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    configured.script("connectors.d/greet.sh", "echo '{}'")
    refused = new(configured, monkeypatch, "greet", "shell")
    assert refused.exit_code == 2
    assert "greet.sh exists" in refused.stderr


@pytest.mark.parametrize("name", ["a/b", ".hidden", "sp ace", ".."])
def test_a_name_that_no_connector_can_have_is_refused(
    configured: Site, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    refused = new(configured, monkeypatch, name, "shell")
    assert refused.exit_code == 2
    assert "a connector's name is made of" in refused.stderr
    assert not list(configured.drop_ins.iterdir())


def test_without_a_connectors_dir_a_folder_has_to_be_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.configure(gateway="connectors_dir: null")
    refused = new(site, monkeypatch, "greet", "shell")
    assert refused.exit_code == 2
    assert "--dir" in refused.stderr


def test_without_a_configuration_a_folder_has_to_be_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = new(site, monkeypatch, "greet", "shell")
    assert refused.exit_code == 2
    assert "connectors.yaml" in refused.stderr


def test_a_folder_that_cannot_be_written_is_told(configured: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (configured.folder / "file").write_text("")
    refused = new(configured, monkeypatch, "greet", "shell", "--dir", "file/below")
    assert refused.exit_code == 2
    assert "Not a directory" in refused.stderr
