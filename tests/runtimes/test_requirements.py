"""What requirements name on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.errors import Quarantine
from gateway.runtimes import projects, requirements
from gateway.runtimes.requirements import is_requirement

if TYPE_CHECKING:
    from pathlib import Path


def named(folder: Path, text: str) -> list[str]:
    """Return the packages that the lines name, as they are below a folder."""
    return [str(path.relative_to(folder)) for path in requirements.of_texts(text.splitlines(), folder).packages]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("lib", "a b", "wheels"):
        (tmp_path / name).mkdir()
    (tmp_path / "wheels" / "tool-1.0-py3-none-any.whl").touch()
    (tmp_path / "tool-2.tar.gz").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("./lib", "lib"),
        ("lib/", "lib"),
        ("  ./lib   # why", "lib"),
        ("./lib[x,y]", "lib"),
        ("./lib[x] ; python_version > '3'", "lib"),
        ("./lib; python_version > '3'", "lib"),
        ("name @ ./lib", "lib"),
        ("name[x]@./lib", "lib"),
        ("name @ file:lib", "lib"),
        ("./wheels/../lib", "lib"),
        ("-e ./lib[x]", "lib"),
        ("-e lib", "lib"),
        ("--editable=./lib", "lib"),
        ("--editable './lib'", "lib"),
        (".", "."),
        ("tool-2.tar.gz --hash=sha256:0", "tool-2.tar.gz"),
        ("./wheels/tool-1.0-py3-none-any.whl", "wheels/tool-1.0-py3-none-any.whl"),
    ],
)
def test_a_path_is_found_whatever_stands_around_it(folder: Path, line: str, path: str) -> None:
    assert named(folder, line) == [path]


def test_urls_of_files_are_paths(folder: Path) -> None:
    assert named(folder, f"name @ {(folder / 'a b').as_uri()}#egg=name") == ["a b"]
    assert named(folder, f"file://localhost{folder}/lib") == ["lib"]


@pytest.mark.parametrize(
    "line",
    [
        "lib",
        "lib==1",
        "lib[x]>=1,<2 ; sys_platform == 'a/b'",
        "lib @ https://example.org/lib/lib-1.whl",
        "https://example.org/lib/lib-1.whl",
        "lib @ git+https://example.org/lib.git",
        "git+ssh://git@example.org/lib.git",
        "lib @ git+file:///nowhere/lib",
        "-e git+file:///nowhere/lib",
        "${HOME}/lib",
        "-r https://example.org/more.txt",
        "--index-url https://example.org/simple/",
        "--find-links https://example.org/wheels/",
        "# ./nowhere",
        "lib \\\n  --hash=sha256:0",
        "-",
        "--",
        "",
    ],
)
def test_what_is_elsewhere_is_no_path(folder: Path, line: str) -> None:
    assert named(folder, line) == []


def test_files_include_files_and_paths_begin_at_the_first(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "first.txt").write_text("-r sub/more.txt\r\n--constraint=limits.txt # x\r\n-r first.txt\r\n")
    (folder / "sub" / "more.txt").write_text("-c ../limits.txt\n./lib\n")
    (folder / "limits.txt").write_text("idna==3.6 \\\n  --hash=sha256:1\n")
    found = requirements.of_file(folder / "first.txt")
    assert found.files == (folder / "first.txt", folder / "sub" / "more.txt", folder / "limits.txt")
    assert found.packages == (folder / "lib",)
    assert found.hashed
    assert not requirements.of_texts(["idna # --hash=sha256:1"], folder).hashed


@pytest.mark.parametrize("line", ["./nowhere", "-e nowhere", "-r nowhere", "-c nowhere", "x @ ./nowhere"])
def test_what_is_not_there_is_named(folder: Path, line: str) -> None:
    with pytest.raises(Quarantine, match=f"{folder}/nowhere does not exist"):
        named(folder, line)


def test_folders_of_wheels_are_found_beside_the_file_that_names_them_or_where_paths_begin(folder: Path) -> None:
    (folder / "sub" / "near").mkdir(parents=True)
    (folder / "first.txt").write_text("-r sub/more.txt\n--find-links=./wheels # x\n-f https://example.org/\n")
    (folder / "sub" / "more.txt").write_text("-f near\n--find-links wheels\n-f nowhere\n--no-index\n")
    found = requirements.of_file(folder / "first.txt")
    assert found.links == (folder / "sub" / "near", folder / "wheels", folder / "nowhere")
    assert found.indexed
    assert not requirements.of_texts(["--extra-index-url https://example.org/"], folder).indexed


def test_a_text_may_be_a_requirement() -> None:
    for text in ("requests", "requests==2.3", "requests[socks] >= 2", "zope.interface", "x @ ./lib", "x; y", "x (>1)"):
        assert is_requirement(text), text
    for text in ("requirements.txt", "base.in", "pyproject.toml", "./x", "-r x", "two words", ""):
        assert not is_requirement(text), text


# --- what uv reads in another way than pip


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("tool==\\\n1.0\n", ["tool==1.0", ""]),
        ("tool \\\r\n ; python_version > '3'\r\n", ["tool  ; python_version > '3'", ""]),
        ("-e git+https://example.org/x.git@main#egg=x\n", ["git+https://example.org/x.git@main#egg=x", ""]),
        ("--editable=x[y] @ git+ssh://git@example.org/x.git", ["x[y] @ git+ssh://git@example.org/x.git"]),
        ("# a \\\ntool==\\\n1", ["# a \\", "tool==1"]),
    ],
)
def test_what_uv_would_refuse_is_written_as_it_reads_it(folder: Path, text: str, lines: list[str]) -> None:
    (folder / "x.txt").write_bytes(text.encode())
    assert requirements.lines_for_uv(folder / "x.txt") == tuple(lines)


@pytest.mark.parametrize(
    "text",
    [
        "tool==1 \\\n  --hash=sha256:0 \\\r\n  --hash=sha256:1 # x\n",
        "tool==1 \\\n  # via x\n",
        "-e ./lib\n# \\\ntool\n",
        "# -e git+https://example.org/x\n",
    ],
)
def test_what_uv_reads_is_left_alone(folder: Path, text: str) -> None:
    (folder / "x.txt").write_text(text)
    assert requirements.lines_for_uv(folder / "x.txt") is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_encodings_are_recognised(folder: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (folder / "x.txt").write_bytes(f"{mark}-e ./lib  # \u2603\r\ntool\r\n".encode(encoding))
    assert requirements.of_file(folder / "x.txt").packages == (folder / "lib",)


def test_a_comment_ends_with_its_line_and_a_requirement_may_go_on(folder: Path) -> None:
    assert named(folder, "# a \\\n./lib\n-e \\\n  './a b'\n# ./nowhere \\\n") == ["lib", "a b"]


def test_passwords_in_urls_are_secrets(folder: Path) -> None:
    text = "--index-url https://u:pass-7Yq1@example.org/\nx @ git+https://token-7Yq1@example.org/x\ntokens==1.0\n"
    assert set(requirements.of_texts(text.splitlines(), folder).secrets) == {"pass-7Yq1", "token-7Yq1"}


def test_indexes_in_files_of_constraints_are_options(folder: Path) -> None:
    (folder / "c.txt").write_text("--extra-index-url=https://example.org/a/ # why\n-r d.txt\ntool<2\n")
    (folder / "d.txt").write_text("-i 'https://example.org/b/'\n--no-index\n")
    found = requirements.of_texts(["-c c.txt", "--extra-index-url https://example.org/c/"], folder)
    urls = "https://example.org/a/", "https://example.org/b/"
    assert found.options == ("--extra-index-url", urls[0], "-i", urls[1], "--no-index")
    assert found.indexed


# --- projects


def project(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(text)
    return folder


SOURCES = """
[project]
name = "app"
dependencies = ["a", "direct @ {root:uri}/../direct", "gone @ file:../gone"]
optional-dependencies = {more = ["optional @ file:../optional"]}
[tool.uv.sources]
a = {path = "../a"}
b = [{path = "../b", marker = "sys_platform == 'x'"}, {git = "https://example.org/b"}]
c = {path = "../gone"}
"""


def test_what_a_project_names_by_path_is_found_however_deep(tmp_path: Path) -> None:
    app = project(tmp_path / "app", SOURCES)
    project(tmp_path / "a", '[project]\nname = "a"\n[tool.uv.sources]\napp = {path = "../app"}\nd = {path = "../d"}\n')
    project(
        tmp_path / "d", '[tool.poetry]\nname = "d"\n[tool.poetry.dependencies]\ne = {path = "../e", develop = true}\n'
    )
    for name in ("b", "e", "direct", "optional"):
        (tmp_path / name).mkdir()
    found = requirements.of_texts(["."], app).packages
    assert sorted(path.name for path in found) == ["a", "app", "b", "d", "direct", "e", "optional"]
    found = requirements.of_file(app / "pyproject.toml").packages
    assert sorted(path.name for path in found) == ["a", "app", "b", "d", "direct", "e", "optional"]


def test_members_of_a_workspace_are_found(tmp_path: Path) -> None:
    root = '[tool.uv.workspace]\nmembers = ["packages/*"]\n[tool.uv.sources]\nmy_lib = {workspace = true}\n'
    project(tmp_path, root)
    app = project(tmp_path / "packages" / "app", '[project]\nname = "app"\ndependencies = ["my-lib"]\n')
    project(tmp_path / "packages" / "lib", '[project]\nname = "My.Lib"\n')
    project(tmp_path / "packages" / "other", '[project]\nname = "other"\n')
    assert [path.name for path in requirements.of_texts(["."], app).packages] == ["app", "lib"]
    assert projects.settings(app) == tmp_path / "pyproject.toml"


def test_a_project_whose_needs_only_building_it_tells_is_a_package(tmp_path: Path) -> None:
    app = project(tmp_path / "app", '[project]\nname = "app"\ndynamic = ["dependencies"]\n')
    assert requirements.of_file(app / "pyproject.toml").packages == (app,)
    project(app, '[project]\nname = "app"\ndynamic = ["version"]\ndependencies = []\n')
    assert requirements.of_file(app / "pyproject.toml").packages == ()
    (app / "setup.py").write_text('setup(package_dir={"": "src/"})\n')
    assert requirements.of_file(app / "setup.py").packages == (app,)


@pytest.mark.parametrize(
    "text", ["[", "project = 1", "[project]\ndependencies = 1\n[tool.uv]\nsources = [1]\nworkspace = 1", "tool = [1]"]
)
def test_an_odd_project_is_left_to_the_tool(tmp_path: Path, text: str) -> None:
    app = project(tmp_path / "app", text)
    assert requirements.of_texts(["."], app).packages == (app,)


def test_a_lock_has_hashes_and_may_name_folders(folder: Path) -> None:
    (folder / "pylock.toml").write_text(
        '[[packages]]\nname = "lib"\ndirectory = {path = "./lib"}\n[[packages]]\nname = "x"\nsdist = {url = "x"}\n'
    )
    found = requirements.of_file(folder / "pylock.toml")
    assert (found.packages, found.hashed) == ((folder / "lib",), True)
