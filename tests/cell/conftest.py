"""What the files of this folder share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cell.driver import SANITIZERS, built

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cell, with address and undefined behaviour checked; to compile it takes seconds."""
    return built(tmp_path_factory.mktemp("sanitized"), *SANITIZERS)
