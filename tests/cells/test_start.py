"""A gateway that has no cells does not begin, and says what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.cells.program import NoCell
from gateway.errors import ConfigError
from gateway.gateway import Gateway
from gateway.observe.events import Bus
from gateway.settings import read_settings

if TYPE_CHECKING:
    from tests.support import Site


async def test_without_its_program_nothing_begins(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise NoCell("no C compiler was found: run make setup")

    site.configure()
    monkeypatch.setattr("gateway.cells.program.path", missing)
    settings, _ = read_settings(site.file)
    with pytest.raises(ConfigError, match="run make setup"):
        await Gateway(settings, Bus()).open()
