"""What requirements name on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.errors import Quarantine
from gateway.runtimes import requirements
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
