"""What thousands of calls leave behind: nothing. `make soak` is the long form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.soak import CONNECTORS, soak, soaked
from bench.usage import used

if TYPE_CHECKING:
    from pathlib import Path

AT_ONCE = 16
CALLS = 50 * len(CONNECTORS)
GROWN = 10 << 20  # bytes; an allocator never comes back to the byte
CELL_GROWN = 1 << 20


async def test_many_calls_good_and_bad_leave_no_memory_no_descriptor_and_no_process(tmp_path: Path) -> None:
    async with soaked(tmp_path) as gateway:
        await soak(gateway, CALLS, AT_ONCE)
        before = used(gateway)
        outcomes = await soak(gateway, 2 * CALLS, AT_ONCE, seed=1)
        after = used(gateway)
    assert sum(outcomes.values()) == 2 * CALLS
    assert outcomes["echo: 200 "] > CALLS / len(CONNECTORS)
    assert after.connectors == 0
    assert after.descriptors <= before.descriptors + AT_ONCE  # connections that are kept
    assert after.gateway - before.gateway < GROWN
    assert after.cell - before.cell < CELL_GROWN
    assert after.cells <= 2 * AT_ONCE * len(CONNECTORS)  # two processes each; a connector has some waiting
