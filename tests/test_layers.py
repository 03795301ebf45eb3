"""The layers of docs/architecture.md are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gateway/__init__.py"
FILES = sorted(set((ROOT / "gateway").rglob("*.py")) - {PACKAGE})
NAMES = [str(file.relative_to(ROOT)) for file in FILES]


def layers() -> dict[str, int]:
    """Return the layer of each module and package directly below gateway/, as the table says."""
    text = (ROOT / "docs/architecture.md").read_text()
    found: dict[str, int] = {}
    for number, names in re.findall(r"^\| (\d+) \| ((?:`\w+` ?)+)\|", text, flags=re.MULTILINE):
        for name in re.findall(r"\w+", names):
            assert name not in found, f"{name} stands in two layers"
            found[name] = int(number)
    return found


def module_of(file: Path) -> str:
    """Return a file's dotted name."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file) for file in FILES}


def imports(file: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere, for the type checker alone included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add("." * node.level)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES or node.module == "aiohttp" else node.module or "")
    return found


def unit_of(module: str) -> str:
    """Return the name that stands in the table."""
    return module.split(".")[1]


def test_the_table_names_every_module() -> None:
    assert set(layers()) == {unit_of(module) for module in MODULES}


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_module_imports_only_from_lower_layers(file: Path) -> None:
    module, table = module_of(file), layers()
    own = unit_of(module)
    others = {one for one in imports(file) if one.startswith("gateway.") and unit_of(one) != own}
    assert not {one for one in imports(file) if one.startswith(".")}, "name the whole path"
    wrong = {one for one in others if table[unit_of(one)] >= table[own]}
    assert not wrong, f"{module} (layer {table[own]}) imports {wrong}"


def test_the_files_of_a_package_import_each_other_without_a_cycle() -> None:
    inside = {
        module: {one for one in imports(file) if one in MODULES and one.split(".")[:2] == module.split(".")[:2]}
        - {module}
        for file, module in zip(FILES, map(module_of, FILES), strict=True)
    }
    done: set[str] = set()
    while len(done) < len(inside):
        free = {module for module, needs in inside.items() if module not in done and needs <= done}
        assert free, f"a cycle among {set(inside) - done}"
        done |= free


def test_the_package_itself_imports_nothing() -> None:
    assert imports(PACKAGE) == set()


def test_nothing_below_http_imports_the_http_server() -> None:
    table = layers()
    for file in FILES:
        if table[unit_of(module_of(file))] < table["http"]:
            assert not {one for one in imports(file) if one.startswith(("aiohttp.web", "aiohttp_cors"))}, file


def test_runners_stand_alone() -> None:
    for file in (ROOT / "runners").rglob("*.py"):
        assert not {one for one in imports(file) if one.split(".")[0] == "gateway"}, file
