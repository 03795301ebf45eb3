"""Fixtures to import where one gateway serves a whole file: it keeps processes between tests, so the file is checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import leaving_nothing

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def nothing_is_left() -> None:
    """In the place of the check after every test."""


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left_of_the_file() -> Iterator[None]:
    """Fail when the file leaves a process, a zombie or a descriptor behind."""
    with leaving_nothing():
        yield
