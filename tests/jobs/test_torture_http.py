"""Nothing that a gateway accepted is lost, whatever happens to the gateway. `make torture` is the long form, on PostgreSQL."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bench.torture import SEED, tortured

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_nothing_is_lost_and_nothing_is_run_twice_that_must_not_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("TORTURE_SEED", SEED))
    async with tortured(tmp_path, postgres=False, seed=seed) as torture:
        report = await torture.run(15.0, settle=60.0)
    with capsys.disabled():
        print(f"\n{report}")
    assert report.accepted > 20
    assert report.kills > 0
    assert report.wrong == []
