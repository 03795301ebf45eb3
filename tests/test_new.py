"""`gateway new` writes connectors that work."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

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
def test_every_place_in_a_template_is_filled_in(site: Site, runtime: str) -> None:
    made = cli(site, "new", "9-lives.v2", "--runtime", runtime, "--dir", "here")
    assert made.returncode == 0, made.stderr
    files = [path for path in (site.folder / "here/9-lives.v2").rglob("*") if path.is_file()]
    assert {"connector.yaml", "tests.yaml"} < {path.name for path in files}
    for path in files:
        assert "__" not in path.name + path.read_text(), path
        assert path.name in {"connector.yaml", "tests.yaml", "X9LivesV2Connector.java"} or "9-lives.v2" in path.name


def test_nothing_is_overwritten(configured: Site) -> None:
    assert cli(configured, "new", "greet", "--runtime", "shell").returncode == 0
    file = configured.drop_ins / "greet/greet.sh"
    file.write_text("mine")
    again = cli(configured, "new", "greet", "--runtime", "shell")
    assert (again.returncode, file.read_text()) == (2, "mine")
    assert "nothing is overwritten" in again.stderr
    assert [path.name for path in configured.drop_ins.iterdir()] == ["greet"]


def test_a_drop_in_file_of_the_same_name_is_a_clash(configured: Site) -> None:
    configured.script("connectors.d/greet.sh", "echo '{}'")
    refused = cli(configured, "new", "greet", "--runtime", "shell")
    assert refused.returncode == 2
    assert "greet.sh exists" in refused.stderr


@pytest.mark.parametrize("name", ["a/b", ".hidden", "sp ace", ".."])
def test_a_name_that_no_connector_can_have_is_refused(configured: Site, name: str) -> None:
    refused = cli(configured, "new", name, "--runtime", "shell")
    assert refused.returncode == 2
    assert "a connector's name is made of" in refused.stderr
    assert not list(configured.drop_ins.iterdir())


def test_without_a_connectors_dir_a_folder_has_to_be_named(site: Site) -> None:
    site.configure(gateway="connectors_dir: null")
    refused = cli(site, "new", "greet", "--runtime", "shell")
    assert refused.returncode == 2
    assert "--dir" in refused.stderr


def test_without_a_configuration_a_folder_has_to_be_named(site: Site) -> None:
    refused = cli(site, "new", "greet", "--runtime", "shell")
    assert refused.returncode == 2
    assert "connectors.yaml" in refused.stderr


def test_a_folder_that_cannot_be_written_is_told(configured: Site) -> None:
    (configured.folder / "file").write_text("")
    refused = cli(configured, "new", "greet", "--runtime", "shell", "--dir", "file/below")
    assert refused.returncode == 2
    assert "Not a directory" in refused.stderr
