"""What `gateway install` makes of Python requirements: they are read where they stand, as the tool reads them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from gateway.connectors import install as installs
from gateway.connectors.build_log import BuildLog
from gateway.observe.redact import NO_SECRETS
from gateway.runtimes import BuildFailed
from tests.connectors.test_install import notice, problem
from tests.installing import index, install, installed, interpreters, sources, wheel
from tests.support import Site, cli, eventually, served

if TYPE_CHECKING:
    from collections.abc import Iterator

TELL = """
import importlib

def Tell(module: str) -> object:
    return importlib.import_module(module).VALUE
"""

WAYS = {
    "include": ["-r sub/more.txt"],
    "constrain": ["-c limits.txt", "tool"],
    "editable": ["-e ./lib"],
    "path": ["./lib   # what it needs"],
    "extras": ["./lib[x]"],
    "named": ["lib @ ./lib"],
    "links": ["--no-index", "--find-links ./wheels", "tool<2"],
}


def tool(folder: Path, version: str) -> Path:
    return wheel(folder, "tool", version, {"tool.py": f"VALUE = {version!r}\n"})


def value(site: Site, connector: str, module: str) -> object:
    """Return what a module of a connector's environment holds."""
    done = cli(site, "call", "--quiet", f"{connector}/Tell", f"module={module}")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)["command_response"]["body"]


@pytest.fixture
def tell(site: Site) -> Site:
    """A module that tells what is installed; wheels of `tool` 1.0 and 2.0, and sources of `lib`, below `inner`."""
    site.configure()
    (site.folder / "tell.py").write_text(TELL)
    inner = site.folder / "inner"
    tool(inner / "wheels", "1.0")
    tool(inner / "wheels", "2.0")
    sources(inner / "lib", "lib", {"lib.py": "VALUE = 1\n"}, extras='x = ["tool"]')
    (inner / "sub").mkdir()
    (inner / "sub" / "more.txt").write_text("tool==1.0\n")
    (inner / "limits.txt").write_text("tool<2\n")
    return site


def entry(requirements: str, more: str = "") -> str:
    return f"{{runtime: python, module: ../../tell.py, requirements: {requirements}{more}}}"


def drop_in(site: Site, name: str, text: str) -> Path:
    """Write a connector into a folder of its own, which has all that `inner` has."""
    folder = site.drop_ins / name
    shutil.copytree(site.folder / "inner", folder, dirs_exist_ok=True)
    (folder / "connector.yaml").write_text(text.replace("../../", f"{site.folder}/"))
    return folder


@pytest.mark.parametrize("form", ["list", "file"])
def test_requirements_begin_where_they_stand(tell: Site, form: str) -> None:
    for name, lines in WAYS.items():
        folder = drop_in(tell, name, entry(json.dumps(lines) if form == "list" else "requirements.txt"))
        if form == "file":
            (folder / "requirements.txt").write_text("# what it needs\n" + "\n".join(lines) + "\n")
    offline = ("--offline", "--find-links", "inner/wheels")
    done = install(tell, *offline)
    assert sorted(done.stdout.split()) == sorted([*WAYS, *["built"] * len(WAYS)]), done.stdout
    assert [value(tell, name, "tool") for name in ("include", "constrain", "links")] == ["1.0"] * 3
    assert value(tell, "extras", "tool") == "2.0"
    assert [value(tell, name, "lib") for name in ("editable", "path", "extras", "named")] == [1] * 4
    assert install(tell, *offline).stdout.split().count("unchanged") == len(WAYS)


@pytest.mark.parametrize("way", ["editable", "path", "extras", "named"])
def test_sources_that_requirements_name_are_watched(tell: Site, way: str) -> None:
    folder = drop_in(tell, "one", entry("requirements.txt"))
    (folder / "requirements.txt").write_text("\n".join(WAYS[way]))
    offline = ("--offline", "--find-links", "inner/wheels")
    installed(tell, *offline)
    (folder / "lib" / "lib.py").write_text("VALUE = 2\n")
    assert notice(tell) == "its entry has changed: run gateway install one"
    assert install(tell, *offline).stdout.split() == ["built", "one"]
    assert value(tell, "one", "lib") == 2
    assert install(tell, *offline).stdout.split() == ["unchanged", "one"]


async def test_a_running_gateway_tells_each_change_and_takes_each_build(tell: Site) -> None:
    offline = ("--offline", "--find-links", "inner/wheels")
    inner = tell.folder / "inner"
    (inner / "requirements.txt").write_text("-r sub/more.txt\n./lib\n")
    (tell.folder / "code").mkdir()
    (tell.folder / "tell.py").rename(tell.folder / "code" / "tell.py")
    tell.configure("one: {runtime: python, module: ./code/tell.py, requirements: ./inner/requirements.txt}")
    installed(tell, *offline)
    changed = ["its entry has changed: run gateway install one"]

    async def notices() -> list[str]:
        found: list[str] = (await gateway.status("one"))["notices"]
        return found

    async def told(*expected: str) -> bool:
        return await notices() == list(expected)

    async def has(module: str, value: object) -> bool:
        return (await gateway.do("one/Tell", {"module": module})).body == value

    async with served(tell) as gateway:
        assert await told()
        changes = {
            inner / "requirements.txt": "-r sub/more.txt\n./lib # and more\n",
            inner / "sub" / "more.txt": "tool\n",
            inner / "lib" / "lib.py": "VALUE = 2\n",
            inner / "lib" / "new.py": "VALUE = 3\n",
        }
        for file, text in changes.items():
            before = file.read_text() if file.exists() else None
            file.write_text(text)
            await eventually(lambda: told(*changed))
            file.write_text(before) if before is not None else file.unlink()
            await eventually(told)
        loads = len(gateway.events("registry_loaded"))
        for file, text in changes.items():
            file.write_text(text)
        await eventually(lambda: told(*changed))
        assert len(gateway.events("registry_loaded")) == loads, "the connector itself is what it was"
        await asyncio.to_thread(installed, tell, *offline)
        await eventually(told)
        await eventually(lambda: has("tool", "2.0"))
        assert await has("lib", 2)
        lock = tell.state / "runtimes" / "one" / "requirements.lock"
        lock.unlink()
        await eventually(lambda: told(*changed))
        (inner / "sub" / "more.txt").write_text("tool==7\n")
        await asyncio.to_thread(install, tell, *offline)

        async def has_failed() -> bool:
            return any("tool==7" in one for one in await notices())

        await eventually(has_failed)
        assert await has("tool", "2.0"), "the build before it serves on"
    assert not gateway.events("quarantined")


def test_files_that_requirements_include_are_watched(tell: Site) -> None:
    folder = drop_in(tell, "one", entry("[-r sub/more.txt, -c limits.txt]"))
    offline = ("--offline", "--find-links", "inner/wheels")
    installed(tell, *offline)
    (folder / "sub" / "more.txt").write_text("tool\n")
    assert install(tell, *offline).stdout.split() == ["built", "one"]
    assert value(tell, "one", "tool") == "1.0"
    (folder / "limits.txt").write_text("# none\n")
    assert install(tell, *offline).stdout.split() == ["built", "one"]
    assert value(tell, "one", "tool") == "2.0"


def test_the_package_in_the_folder_itself_is_a_dot(site: Site) -> None:
    site.configure()
    folder = sources(site.drop_ins / "a-dash", "connector_a_dash", {"connector_a_dash.py": "def Tell(): return 1\n"})
    (folder / "connector.yaml").write_text("{runtime: python, requirements: [.], commands: {Tell: {}}}")
    installed(site, "--offline")
    assert problem(site, "a-dash") is None
    assert list((site.state / "runtimes" / "a-dash" / "current").glob("venv/lib/*/*/connector_a_dash.py"))


PROJECT = """
[project]
name = "app"
version = "1"
dependencies = ["lib"]
[tool.uv.sources]
lib = {path = "./lib"}
"""
DYNAMIC = """
[project]
name = "app"
version = "1"
dynamic = ["dependencies"]
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = """
import pathlib, zipfile
HERE = pathlib.Path(__file__).parent
def build_wheel(target, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(pathlib.Path(target) / "app-1-py3-none-any.whl", "w") as archive:
        need = (HERE / "needs.txt").read_text()
        archive.writestr("app-1.dist-info/METADATA", f"Metadata-Version: 2.1\\nName: app\\nVersion: 1\\nRequires-Dist: {need}\\n")
        archive.writestr("app-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr("app-1.dist-info/RECORD", "")
    return "app-1-py3-none-any.whl"
"""


def test_what_a_project_names_by_path_is_watched(tell: Site) -> None:
    folder = drop_in(tell, "one", entry("pyproject.toml"))
    (folder / "pyproject.toml").write_text(PROJECT)
    installed(tell, "--offline")
    assert value(tell, "one", "lib") == 1
    (folder / "lib" / "lib.py").write_text("VALUE = 2\n")
    assert notice(tell) == "its entry has changed: run gateway install one"
    assert install(tell, "--offline").stdout.split() == ["built", "one"]
    assert value(tell, "one", "lib") == 2


def test_what_only_a_build_tells_of_a_project_is_watched(tell: Site) -> None:
    folder = drop_in(tell, "one", entry("pyproject.toml"))
    (folder / "pyproject.toml").write_text(DYNAMIC)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "needs.txt").write_text("tool==1.0")
    offline = ("--offline", "--find-links", "inner/wheels")
    installed(tell, *offline)
    assert value(tell, "one", "tool") == "1.0"
    (folder / "needs.txt").write_text("tool==2.0")
    assert install(tell, *offline).stdout.split() == ["built", "one"]
    assert value(tell, "one", "tool") == "2.0"
    assert install(tell, *offline).stdout.split() == ["unchanged", "one"]


def test_what_pip_takes_is_taken(tell: Site) -> None:
    folder = drop_in(tell, "one", entry("requirements.txt"))
    text = "# more \\\n--no-index\n--find-links=./wheels # here\ntool\\\n==1.0 \\\n ; python_version > '3' # why\n\n"
    (folder / "requirements.txt").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    installed(tell, "--offline")
    assert value(tell, "one", "tool") == "1.0"


def test_a_folder_of_wheels_that_is_not_there_is_told(tell: Site) -> None:
    folder = drop_in(tell, "one", entry("[--find-links ./nowhere, tool]"))
    assert f"--find-links: {folder}/nowhere does not exist" in install(tell, "--offline").stdout
    assert problem(tell, "one") == (
        f"not installed: gateway install one failed: --find-links: {folder}/nowhere does not exist"
    )


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
@pytest.mark.parametrize("line", ["lib @ git+{}", "-e git+{}#egg=lib"])
def test_repositories_stay_where_they_were_locked(tell: Site, line: str) -> None:
    repository = sources(tell.folder / "repository", "lib", {"lib.py": "VALUE = 1\n"})

    def commit() -> None:
        name = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
        for words in (("add", "."), (*name, "commit", "-q", "-m", "x")):
            subprocess.run(["git", "-C", str(repository), *words], check=True)

    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    commit()
    folder = drop_in(tell, "one", entry("requirements.txt"))
    (folder / "requirements.txt").write_text(f"{line.format(repository.as_uri())}\n")
    installed(tell)
    (repository / "lib.py").write_text("VALUE = 2\n")
    commit()
    assert install(tell).stdout.split() == ["unchanged", "one"]
    (tell.state / "runtimes" / "one" / "current").unlink()
    assert install(tell).stdout.split() == ["built", "one"]
    assert value(tell, "one", "lib") == 1
    assert install(tell, "--upgrade").stdout.split() == ["built", "one"]
    assert value(tell, "one", "lib") == 2


# --- compiled modules


def compiled(site: Site, connector: str) -> dict[str, int]:
    """Return the compiled modules of a connector's environment: their names, and what they are on disk."""
    packages = (site.state / "runtimes" / connector / "current").resolve().glob("venv/lib/*/site-packages")
    found = {file.relative_to(folder): file for folder in packages for file in folder.rglob("*.pyc")}
    return {str(path.with_name(path.name.partition(".")[0])): file.stat().st_ino for path, file in found.items()}


def test_modules_are_compiled_once_for_all_that_have_the_same_packages(tell: Site) -> None:
    wheel(
        tell.folder / "inner" / "wheels", "more", "1.0",
        {"more/__init__.py": "VALUE = 1\n", "more/odd.py": "print 1\n", "more/tests/test_it.py": "VALUE = 1\n"},
    )  # fmt: skip
    cache = {"UV_CACHE_DIR": str(tell.folder / "cache"), "UV_LINK_MODE": "hardlink"}
    for name in ("one", "two", "three"):
        drop_in(tell, name, entry("[more, ./lib]"))
        (tell.drop_ins / "three" / "lib" / "lib.py").write_text("VALUE = 2\n") if name == "three" else None
    offline = ("--offline", "--find-links", "inner/wheels")
    for name in ("one", "two", "three"):
        installed(tell, name, *offline, env=cache)
    one, two, three = (compiled(tell, name) for name in ("one", "two", "three"))
    assert sorted(one) == ["__pycache__/lib", "more/__pycache__/__init__"]
    assert one.keys() == two.keys() == three.keys()
    assert one["more/__pycache__/__init__"] == two["more/__pycache__/__init__"] == three["more/__pycache__/__init__"]
    assert one["__pycache__/lib"] != three["__pycache__/lib"], "its sources are others"
    assert [value(tell, name, "lib") for name in ("one", "two", "three")] == [1, 1, 2]
    shutil.rmtree(tell.state / "runtimes" / "three")
    shutil.rmtree(tell.state / "runtimes" / "one")
    installed(tell, "one", *offline, env=cache)
    assert compiled(tell, "one").keys() == one.keys()


# --- hashes


def test_hashes_are_enforced(tell: Site) -> None:
    folder = drop_in(tell, "one", entry("requirements.txt"))
    made = folder / "wheels" / "tool-1.0-py3-none-any.whl"
    right = hashlib.sha256(made.read_bytes()).hexdigest()
    lines = "--no-index\n--find-links ./wheels\ntool==1.0 \\\n    --hash=sha256:{}\n"
    (folder / "requirements.txt").write_text(lines.format("0" * 64))
    done = install(tell, "--offline")
    assert done.returncode == 1
    assert "tool==1.0" in done.stdout
    assert "0" * 64 in done.stdout
    assert "mismatch" in done.stdout.lower()
    (folder / "requirements.txt").write_text(lines.format(right))
    installed(tell, "--offline")
    assert value(tell, "one", "tool") == "1.0"
    (folder / "requirements.txt").write_text(f"{lines.format(right)}lib @ ./lib\n")
    done = install(tell, "--offline")
    assert "all requirements must have a hash" in done.stdout


def test_a_lock_is_installed_as_it_is(tell: Site) -> None:
    folder = drop_in(tell, "one", entry("pylock.toml"))
    made = folder / "wheels" / "tool-1.0-py3-none-any.whl"
    text = (
        'lock-version = "1.0"\ncreated-by = "tests"\n[[packages]]\nname = "tool"\nversion = "1.0"\n'
        'wheels = [{{path = "wheels/tool-1.0-py3-none-any.whl", hashes = {{sha256 = "{}"}}}}]\n'
    )
    (folder / "pylock.toml").write_text(text.format("0" * 64))
    assert "mismatch" in install(tell, "--offline").stdout.lower()
    (folder / "pylock.toml").write_text(text.format(hashlib.sha256(made.read_bytes()).hexdigest()))
    installed(tell, "--offline")
    assert value(tell, "one", "tool") == "1.0"


# --- indexes


@pytest.fixture
def public(tmp_path: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """An index for all, which has a newer `tool`: the environment that makes it the default, what it was asked."""
    tool(tmp_path / "public", "9.0")
    with index(tmp_path / "public") as (url, asked):
        yield {"UV_DEFAULT_INDEX": url, "UV_CACHE_DIR": str(tmp_path / "cache")}, asked


@pytest.mark.parametrize("form", ["list", "file"])
@pytest.mark.parametrize("option", ["--index-url", "--extra-index-url"])
def test_the_public_index_replaces_no_private_package(
    tell: Site, tmp_path: Path, public: tuple[dict[str, str], list[str]], option: str, form: str
) -> None:
    environment, asked = public
    tool(tmp_path / "private", "1.0")
    with index(tmp_path / "private") as (url, _):
        lines = [f"{option} {url}", "tool"]
        folder = drop_in(tell, "one", entry(json.dumps(lines) if form == "list" else "requirements.txt"))
        if form == "file":
            (folder / "requirements.txt").write_text("\n".join(lines))
        installed(tell, env=environment)
        assert value(tell, "one", "tool") == "1.0"
        shutil.rmtree(tell.state)
        installed(tell, "--index-url", environment["UV_DEFAULT_INDEX"], env={**environment, "UV_DEFAULT_INDEX": ""})
    assert value(tell, "one", "tool") == "1.0"
    assert not [path for path in asked if path.startswith("/files/")]


PRIVATE = """
[project]
name = "app"
version = "1"
dependencies = ["tool"]
optional-dependencies = {{}}
[[tool.uv.index]]
name = "private"
url = "{}"
explicit = true
[tool.uv.sources]
tool = {{index = "private"}}
"""


@pytest.mark.parametrize("form", ["pyproject.toml", "./lib", "-c limits.txt"])
def test_the_index_of_a_package_is_asked_for_it_wherever_it_is_named(
    tell: Site, tmp_path: Path, public: tuple[dict[str, str], list[str]], form: str
) -> None:
    environment, asked = public
    tool(tmp_path / "private", "1.0")
    tool(tmp_path / "public", "1.0")
    with index(tmp_path / "private") as (url, _):
        folder = drop_in(tell, "one", entry(form if form == "pyproject.toml" else json.dumps([form, "tool"])))
        (folder / "limits.txt").write_text(f"--extra-index-url {url}\n")
        project = PRIVATE.format(url)
        (folder / "pyproject.toml").write_text(project if form == "pyproject.toml" else "")
        if form == "./lib":
            build = (folder / "lib" / "pyproject.toml").read_text().partition("[build-system]")[2]
            (folder / "lib" / "pyproject.toml").write_text(f"{project}[build-system]{build}".replace("app", "lib"))
            (folder / "connector.yaml").write_text((folder / "connector.yaml").read_text().replace(', "tool"', ""))
        installed(tell, env=environment)
    assert value(tell, "one", "tool") == "1.0"
    assert not [path for path in asked if path.startswith("/files/")]


def test_versions_before_a_release_and_extras_stay_locked(tell: Site) -> None:
    wheels = tell.folder / "inner" / "wheels"
    tool(wheels, "3.0rc1")
    wheel(wheels, "more", "1.0", {"more.py": "VALUE = 1\n"}, requires=("tool>=3.0rc1", "tool_extra ; extra == 'x'"))
    wheel(wheels, "tool_extra", "1.0", {"tool_extra.py": "VALUE = 'of an extra'\n"})
    offline = ("--offline", "--find-links", "inner/wheels")
    drop_in(tell, "one", entry('["more[x]", --pre]'))
    drop_in(tell, "two", entry('["tool>=3.0rc1"]'))
    installed(tell, *offline)
    tool(wheels, "3.0rc2")
    for name in ("one", "two"):
        (tell.state / "runtimes" / name / "current").unlink()
    installed(tell, *offline)
    assert [value(tell, name, "tool") for name in ("one", "two")] == ["3.0rc1"] * 2
    assert value(tell, "one", "tool_extra") == "of an extra"


def test_without_an_index_none_is_asked(tell: Site, public: tuple[dict[str, str], list[str]]) -> None:
    environment, asked = public
    drop_in(tell, "one", entry("[--no-index, --find-links ./wheels, tool<2]"))
    drop_in(tell, "two", entry("[tool]"))
    installed(tell, "one", env=environment)
    assert (value(tell, "one", "tool"), asked) == ("1.0", [])
    installed(tell, "two", env=environment)
    assert value(tell, "two", "tool") == "9.0"


def test_variables_in_requirements_are_handed_over_by_name(tell: Site, tmp_path: Path) -> None:
    tool(tmp_path / "private", "1.0")
    with index(tmp_path / "private") as (url, _):
        drop_in(tell, "one", entry(json.dumps([f"--index-url {url.replace('//', '//u:${INDEX_PASSWORD}@')}", "tool"])))
        secret = {"INDEX_PASSWORD": "pass-7Yq1"}
        told = "requirements need the variable INDEX_PASSWORD, which builds do not get: set it, and say --env INDEX_PASSWORD"
        assert told in install(tell, env=secret).stdout
        installed(tell, "--env", "INDEX_PASSWORD", env=secret)
    assert value(tell, "one", "tool") == "1.0"


def test_passwords_in_requirements_are_not_shown(tell: Site) -> None:
    folder = drop_in(tell, "one", entry("requirements.txt"))
    (folder / "requirements.txt").write_text("tool @ http://u:pass-7Yq1@127.0.0.1:9/${PART}/x.whl oops\n")
    done = install(tell, "--env", "PART", env={"PART": "part-7Yq1"})
    assert "tool @ http://u:[redacted]@127.0.0.1:9/" in done.stdout
    shown = (done.stdout, done.stderr, cli(tell, "check", "--json").stdout, str(problem(tell, "one")))
    assert not [text for text in shown if "7Yq1" in text]
    assert b"7Yq1" not in (tell.state / "runtimes" / "one" / "failed.json").read_bytes()


# --- what runs meanwhile

LOOK = """
import glob, json, os, pathlib
def seen(file):
    try:
        return open(file, 'rb').read().decode(errors='replace')
    except OSError:
        return ''
pathlib.Path(__file__).with_name('seen.json').write_text(
    json.dumps([dict(os.environ), ''.join(map(seen, glob.glob('/proc/[0-9]*/environ')))])
)
"""
SECRETS = {
    "CONNECTOR_PROXY_API_KEY": "key-7Yq1",
    "CONNECTOR_PROXY_JOBS_DATABASE": "postgresql://u:pass-7Yq1@db/x",
    "AWS_SECRET_ACCESS_KEY": "aws-7Yq1",
    "UV_PUBLISH_TOKEN": "publish-7Yq1",
    "ORDINARY": "ordinary-7Yq1",
}


def test_scripts_of_packages_see_no_secrets(tell: Site) -> None:
    folder = drop_in(tell, "one", entry("[./lib]"))
    sources(folder / "lib", "lib", {"lib.py": "VALUE = 1\n"}, script=LOOK)
    more = {"HTTPS_PROXY": "http://127.0.0.1:9", "PIP_CERT": "/dev/null", "WANTED": "wanted"}
    installed(tell, "--offline", "--env", "WANTED", env={**SECRETS, **more})
    environment, others = json.loads((folder / "lib" / "seen.json").read_text())
    assert not SECRETS.keys() & environment.keys()
    assert more.items() <= environment.items()
    assert environment["HOME"] == os.environ["HOME"]
    given = json.loads(cli(tell, "check", "--sandbox", "--json").stdout)
    if "namespaces" not in json.dumps(given.get("missing", "")):
        assert "7Yq1" not in others


@pytest.mark.parametrize("how", ["key", "option"])
def test_nothing_of_sources_runs_where_wheels_alone_are_wanted(tell: Site, how: str) -> None:
    key, options = (", wheels_only: true", ()) if how == "key" else ("", ("--wheels-only",))
    folder = drop_in(tell, "one", entry("[./lib, tool<2]", key))
    sources(folder / "lib", "lib", {"lib.py": "VALUE = 1\n"}, script=LOOK)
    done = install(tell, "--offline", "--find-links", "inner/wheels", *options)
    assert done.returncode == 1
    assert "lib" in done.stdout
    assert not (folder / "lib" / "seen.json").exists()
    drop_in(tell, "one", entry("[tool<2]", key))
    installed(tell, "--offline", "--find-links", "inner/wheels", *options)
    assert value(tell, "one", "tool") == "1.0"


def test_a_connector_may_be_built_offline_alone(tell: Site, public: tuple[dict[str, str], list[str]]) -> None:
    environment, asked = public
    drop_in(tell, "one", entry("[tool]", ", offline: true"))
    done = install(tell, env=environment)
    assert done.returncode == 1
    assert "network was disabled" in done.stdout
    assert asked == []


# --- what was built is tried out

UNLOADABLE = {
    "import nowhere_at_all": "No module named 'nowhere_at_all' (add nowhere_at_all,",
    "from tool import NOTHING": "cannot import name 'NOTHING' from 'tool'",
    "import broken": "libnowhere.so.7: cannot open shared object file",
    "def Tell(": "SyntaxError: ",
}
RAISING = {
    "import os; os.environ['WANTED']": "KeyError: 'WANTED'",
    "raise SystemExit(3)": "SystemExit: 3",
    "open('/nowhere')": "No such file or directory: '/nowhere'",
}


@pytest.mark.parametrize("line", UNLOADABLE)
def test_a_connector_that_lacks_code_is_not_built(tell: Site, line: str) -> None:
    raising = "raise ImportError('libnowhere.so.7: cannot open shared object file: No such file or directory')\n"
    wheel(tell.folder / "inner" / "wheels", "broken", "1.0", {"broken.py": raising})
    offline = ("--offline", "--find-links", "inner/wheels")
    (tell.folder / "tell.py").write_text(f"def Tell(): return 1\n{line}\n")
    drop_in(tell, "one", entry("[tool, broken]"))
    done = install(tell, *offline)
    assert done.returncode == 1
    assert done.stdout.startswith("failed  one  it cannot be loaded: tell: ")
    assert UNLOADABLE[line] in done.stdout
    assert UNLOADABLE[line] in str(problem(tell, "one"))
    (tell.folder / "tell.py").write_text(TELL)
    installed(tell, *offline)
    assert value(tell, "one", "tool") == "2.0"


@pytest.mark.parametrize("line", RAISING)
def test_a_connector_that_needs_what_is_there_when_it_serves_is_built(tell: Site, line: str) -> None:
    (tell.folder / "tell.py").write_text(f"{line}\ndef Tell(): return 1\n")
    drop_in(tell, "one", entry("[tool]"))
    done = install(tell, "--offline", "--find-links", "inner/wheels")
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["built", "one"])
    assert f"it was built, and a part of it does not work here: tell: {RAISING[line]}" in done.stdout.replace(
        "[Errno 2] ", ""
    ).replace("FileNotFoundError: ", "")


def test_a_connector_is_tried_out_with_its_own_variables(tell: Site) -> None:
    (tell.folder / "own").mkdir()
    (tell.folder / "own" / "neighbour.py").write_text("")
    (tell.folder / "tell.py").write_text("import neighbour, os\nassert os.environ['A'] == 'b'\ndef Tell(): return 1\n")
    env = f", env: {{A: b, PYTHONPATH: {tell.folder}/own}}"
    drop_in(tell, "one", entry("[tool]", env))
    done = install(tell, "--offline", "--find-links", "inner/wheels", env={"WANTED": "x"})
    assert done.stdout.split() == ["built", "one"]


def test_a_part_that_lacks_code_leaves_the_others(tell: Site) -> None:
    folder = drop_in(tell, "one", "{runtime: python, package: lib, requirements: [tool], env: {PYTHONPATH: @}}")
    (folder / "connector.yaml").write_text((folder / "connector.yaml").read_text().replace("@", str(folder / "code")))
    (folder / "code" / "lib" / "commands").mkdir(parents=True)
    for name, text in (("__init__", ""), ("commands/__init__", ""), ("commands/bad", "import nowhere_at_all\n")):
        (folder / "code" / "lib" / f"{name}.py").write_text(text)
    offline = ("--offline", "--find-links", "inner/wheels")
    assert "it cannot be loaded: lib.commands.bad: ModuleNotFoundError" in install(tell, *offline).stdout
    (folder / "code" / "lib" / "commands" / "good.py").write_text(
        "class Good:\n    def execute(self, config, task_data): pass\n"
    )
    done = install(tell, *offline)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["built", "one"])
    assert "a part of it does not work here: lib.commands.bad: ModuleNotFoundError" in done.stdout


def test_where_no_code_of_packages_runs_nothing_is_tried_out(tell: Site) -> None:
    (tell.folder / "tell.py").write_text("import nowhere_at_all\n")
    drop_in(tell, "one", entry("[tool]", ", wheels_only: true"))
    installed(tell, "--offline", "--find-links", "inner/wheels")
    assert "No module named 'nowhere_at_all'" in str(problem(tell, "one"))


# --- texts, interpreters, places


@pytest.mark.parametrize(("text", "module"), [("tool", "tool"), ("tool<2", "tool"), ("./lib", "lib")])
def test_a_text_that_names_no_file_is_a_requirement(tell: Site, text: str, module: str) -> None:
    drop_in(tell, "one", entry(json.dumps(text)))
    installed(tell, "--offline", "--find-links", "inner/wheels")
    assert value(tell, "one", module)


def test_a_file_that_is_not_there_is_told(tell: Site) -> None:
    folder = drop_in(tell, "one", entry("requirements.txt"))
    told = f"requirements: {folder}/requirements.txt does not exist; requirements themselves are a list: [...]"
    assert problem(tell, "one") == told


@pytest.fixture
def old() -> Path:
    """An interpreter on which the runner does not run."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [*root.glob("versions/3.[67].*/bin/python3.[67]"), *Path("/usr/bin").glob("python3.[67]")]
    if not found:
        pytest.skip("no Python before 3.8 here")
    return found[0]


def test_an_interpreter_that_is_too_old_is_refused_with_the_list_of_others(tell: Site, old: Path) -> None:
    drop_in(tell, "one", entry("[]", f", python: {old}"))
    done = install(tell, "--offline")
    assert done.returncode == 1
    assert "is too old: 3.8 or later is needed. Here are: 3." in done.stdout
    assert "is too old: 3.8 or later is needed" in str(problem(tell, "one"))
    subprocess.run([old, "-m", "venv", "--without-pip", str(tell.folder / "theirs")], check=True)
    (tell.drop_ins / "one" / "connector.yaml").write_text("runtime: python\nmodule: tell.py\nvenv: ../../theirs\n")
    assert "is too old: 3.8 or later is needed" in str(problem(tell, "one"))


def test_a_version_chooses_among_those_of_a_version_manager(tell: Site, tmp_path: Path) -> None:
    manager = tmp_path / "manager"
    for version in ("3.99.2", "3.99.10"):
        folder = manager / "versions" / version / "bin"
        folder.mkdir(parents=True)
        (folder / "python3.99").symlink_to(next(iter(interpreters().values())))
    (manager / "shims").mkdir()
    shim = manager / "shims" / "python3.99"
    shim.write_text("#!/bin/sh\nexit 1\n")
    shim.chmod(0o755)
    chosen = {"short": ("3.99", "3.99.10"), "exact": ("3.99.2", "3.99.2"), "named": ("python3.99", "3.99.10")}
    for name, (said, _) in chosen.items():
        drop_in(tell, name, entry("[]", f', python: "{said}"'))
    installed(tell, "--offline", env={"PATH": f"{manager}/shims:{os.environ['PATH']}"})
    for name, (_, version) in chosen.items():
        python = tell.state / "runtimes" / name / "current" / "venv" / "bin" / "python"
        assert python.readlink() == manager / "versions" / version / "bin" / "python3.99"


def test_an_interpreter_that_is_not_there_is_told_with_the_list_of_others(tell: Site) -> None:
    drop_in(tell, "one", entry("[]", ', python: "3.99"'))
    told = install(tell, "--offline").stdout
    assert "No interpreter found for Python 3.99" in told
    for major, minor in interpreters():
        if shutil.which(f"python{major}.{minor}"):
            assert f"{major}.{minor} (" in told


def test_a_build_that_was_moved_says_so_and_is_made_again(tell: Site) -> None:
    drop_in(tell, "one", entry("[tool]"))
    offline = ("--offline", "--find-links", "inner/wheels")
    installed(tell, *offline)
    elsewhere = tell.folder / "elsewhere"
    tell.state.rename(elsewhere)
    tell.configure(gateway="state_dir: elsewhere")
    assert notice(tell).startswith(f"it was built in {tell.state}/runtimes/one/")
    assert notice(tell).endswith(", and moved since: run gateway install one")
    assert install(tell, *offline).stdout.split() == ["built", "one"]
    assert install(tell, *offline).stdout.split() == ["unchanged", "one"]
    assert json.loads(cli(tell, "check", "--json").stdout)["connectors"][0]["notices"] == []


def test_a_build_whose_interpreter_is_gone_says_so_and_is_made_again(tell: Site) -> None:
    drop_in(tell, "one", entry("[tool]"))
    offline = ("--offline", "--find-links", "inner/wheels")
    installed(tell, *offline)
    python = tell.state / "runtimes" / "one" / "current" / "venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(tell.folder / "gone")
    assert problem(tell, "one") == (
        f"its build cannot be used: its Python is gone, {tell.folder}/gone: run gateway install one"
    )
    assert install(tell, *offline).stdout.split() == ["built", "one"]
    assert value(tell, "one", "tool") == "2.0"


async def test_a_long_step_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installs, "STEP", 0.01)
    told: list[str] = []

    async def run(*_: object) -> object:
        await eventually(lambda: len(told) > 2)
        return mock.Mock(status=0, stop=None, result=b"")

    installer = mock.Mock(environ={}, run=run)
    one = mock.Mock()
    one.place.name = "one"
    log = BuildLog(tmp_path, "", NO_SECRETS)
    tools = installs._BuildTools(installer, one, lambda name, what: told.append(f"{name}: {what}"), log)
    await tools.run("/bin/uv", "venv", "/x")
    assert told[0] == "one: uv venv"
    assert told[1].startswith("one: uv venv, for ")


def test_builds_of_another_user_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BuildFailed, match="has built it, and this is user"):
        installs._check_owner(tmp_path)
