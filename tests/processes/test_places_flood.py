"""One client floods a connector without pause: what another's calls wait for. `python -m bench fair` has the times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.harness import percentile
from tests.processes.flood import CONNECTOR, Seen, beside
from tests.support import opened

if TYPE_CHECKING:
    from tests.support import Site

SLOTS = 2
CONNECTIONS = 64


async def seen(site: Site, *, queue: int, other: str, calls: int) -> Seen:
    site.script("go.sh", "echo 1")
    limits = f"concurrency: {SLOTS}, queue: {queue}, queue_timeout: 60s, timeout: 90s"
    clients = site.folder / "clients.d"
    clients.mkdir()
    for client in ("flood", "other"):
        (clients / f"{client}.yaml").write_text("keys: []\n")
    site.configure(f"{CONNECTOR}: {{run: [./go.sh], sandbox: off, {limits}, commands: {{Go: {{}}}}}}")
    async with opened(site.file) as gateway:
        came = await beside(gateway, other=other, calls=calls, flood="flood", connections=CONNECTIONS)
        assert gateway.places.running == 0
    if came.seconds:
        p50, p99 = (percentile(came.seconds, share) * 1000 for share in (0.5, 0.99))
        print(f"{other}, queue {queue}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, passed by {max(came.passed)} at most")
    return came


@pytest.mark.parametrize("queue", [CONNECTIONS, 8])
async def test_a_call_beside_another_clients_flood_has_the_next_slot_that_comes_free(site: Site, queue: int) -> None:
    came = await seen(site, queue=queue, other="other", calls=100)
    assert came.refused == 0
    assert len(came.passed) == 100
    assert max(came.passed) <= SLOTS + 1


async def test_a_call_beside_its_own_clients_flood_waits_for_all_of_it(site: Site) -> None:
    came = await seen(site, queue=CONNECTIONS, other="flood", calls=5)
    assert len(came.passed) == 5
    assert min(came.passed) > CONNECTIONS // 2
