"""What a change of an environment, or of code, shows in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gateway.runtimes import base
from gateway.runtimes.base import sources
from gateway.runtimes.installed import traces

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def packages_of(venv: Path) -> Path:
    folder = venv / "lib" / "python3.11" / "site-packages"
    folder.mkdir(parents=True)
    (venv / "lib64").symlink_to("lib")
    return folder


def code(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")


def test_a_package_is_found_where_it_is_installed(tmp_path: Path) -> None:
    packages = packages_of(tmp_path)
    code(packages, "connector_x/__init__.py", "connector_x/commands/show.py", "other/__init__.py", "single.py")
    assert traces(tmp_path, "connector_x") == [
        tmp_path / "pyvenv.cfg",
        packages,
        packages / "connector_x" / "commands",
        packages / "connector_x" / "auths",
        packages / "connector_x" / "__init__.py",
        packages / "connector_x" / "commands" / "show.py",
    ]
    assert traces(tmp_path, "single")[-1] == packages / "single.py"
    assert traces(tmp_path, None) == [tmp_path / "pyvenv.cfg", packages]
    code(packages, "company/x/__init__.py")
    assert packages / "company" / "x" / "__init__.py" in traces(tmp_path, "company.x")


def test_what_is_worked_on_elsewhere_is_found_too(tmp_path: Path) -> None:
    packages = packages_of(tmp_path / "venv")
    code(tmp_path / "one", "connector_x/__init__.py", "library/inner/code.py")
    code(tmp_path / "two words", "src/second/code.py", "third/code.py")
    (packages / "one.pth").write_text(f"# a word\nimport sys\n\n{tmp_path / 'nowhere'}\n../../../../one\n")
    for name, told in {
        "second": {"url": (tmp_path / "two words").as_uri(), "dir_info": {"editable": True}},
        "copied": {"url": tmp_path.as_uri(), "dir_info": {}},
        "fetched": {"url": "https://example.org/x.whl", "archive_info": {}},
        "odd": [],
    }.items():
        code(packages, f"{name}-1.dist-info/direct_url.json")
        (packages / f"{name}-1.dist-info" / "direct_url.json").write_text(json.dumps(told))
    found = [path.resolve() for path in traces(tmp_path / "venv", "connector_x")]
    assert found[:3] == [tmp_path / "venv" / "pyvenv.cfg", packages, packages / "one.pth"]
    assert set(found[3:]) == {
        tmp_path / "one" / "connector_x" / "commands",
        tmp_path / "one" / "connector_x" / "auths",
        tmp_path / "one" / "connector_x" / "__init__.py",
        tmp_path / "one" / "library" / "inner" / "code.py",
        tmp_path / "two words" / "src" / "second" / "code.py",
        tmp_path / "two words" / "third" / "code.py",
    }


def test_sources_are_found_nearest_first_and_not_in_what_others_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("deep/er/a.py", "deep/b.py", "c.py", "data.txt")
    code(tmp_path, *names, ".hidden/x.py", "__pycache__/x.py", "node_modules/x.py", "state/run/x.py", "venv/pyvenv.cfg")
    code(tmp_path, "venv/lib/x.py")
    (tmp_path / "deep" / "again").symlink_to(tmp_path)
    expected = [tmp_path / name for name in ("c.py", "deep/b.py", "deep/er/a.py")]
    assert sources(tmp_path, ".py", left_out=tmp_path / "state") == expected
    monkeypatch.setattr(base, "SOURCES", 2)
    assert sources(tmp_path, ".py") == expected[:2]
    assert sources(tmp_path / "nowhere", ".py") == []
