"""Glossary and code agree: one word, one thing."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "gateway").rglob("*.py"))
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]+) \| (.*?) ?\|$", (ROOT / "docs/glossary.md").read_text(), flags=re.MULTILINE)[
    2:
]

GONE = {
    "worker": "a process of a call is a run, and a gateway is one process",
    "master": "what keeps a gateway is its keeper",
    "team": "a gateway is one process",
    "warden": "the parent of what runs is its cell",
    "desk": "calls become jobs in jobs.submit",
    "supervisor": "places are counted in processes.places, calls are let in by calls.admission",
}
"""Words of former times, and what to say instead."""
SAID = {
    ("gateway/settings.py", "workers"): "the setting of former times",
    ("gateway/sections.py", "workers"): "the setting of former times",
    ("gateway/cli/serve.py", "workers"): "the option of former times",
    ("gateway/http/handlers.py", "workers"): "what callers find in /v1/status",
}


def test_no_two_classes_have_one_name() -> None:
    places = defaultdict(list)
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize("word", [row[0] for row in ROWS])
def test_a_word_is_in_the_code_where_the_glossary_says(word: str) -> None:
    (told,) = [row[2].strip("`") for row in ROWS if row[0] == word]
    if told:
        module, _, name = told.rpartition(".")
        found = importlib.import_module(f"gateway.{module}")
        if not hasattr(found, name):
            importlib.import_module(f"gateway.{told}")


def test_every_word_is_told_once() -> None:
    words = [word for row in ROWS for word in row[0].split(", ")]
    assert len(words) == len(set(words))
    assert len({row[2] for row in ROWS if row[2]}) == len([row for row in ROWS if row[2]])


def names_in(file: Path) -> set[str]:
    """Return the names in a file, comments and texts left out."""
    with tokenize.open(file) as stream:
        return {token.string for token in tokenize.generate_tokens(stream.readline) if token.type == tokenize.NAME}


@pytest.mark.parametrize("word", GONE)
def test_a_word_of_former_times_names_nothing(word: str) -> None:
    found = {
        (str(file.relative_to(ROOT)), name)
        for file in FILES
        for name in names_in(file)
        if word in re.split(r"_|(?<=[a-z])(?=[A-Z])", name.lower()) or f"{word}s" in name.lower().split("_")
    }
    assert found - set(SAID) == set(), GONE[word]
    assert not [one.name for one in pkgutil.walk_packages([str(ROOT / "gateway")]) if one.name == word]
