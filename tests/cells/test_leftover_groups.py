"""Control groups of gateways that were killed are removed by the next one, those of living ones are not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gateway.cells import groups

if TYPE_CHECKING:
    from pathlib import Path

DEAD = 1 << 22  # no process has this number, or a greater one


def test_only_what_the_dead_have_left_is_removed(tmp_path: Path) -> None:
    for name in (f"gateway-a-{DEAD}/cell-1", f"gateway-b-{DEAD}/full/inner", f"gateway-c-{os.getpid()}", "init.scope"):
        (tmp_path / name).mkdir(parents=True)
    groups._remove_dead(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"gateway-b-{DEAD}", f"gateway-c-{os.getpid()}", "init.scope",
    ]  # fmt: skip
