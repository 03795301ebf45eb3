"""What other gateways left, or nobody knows whether it was left to us: taken into our hands, the oldest first."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING

from gateway.jobs.contract import StoreAway
from gateway.jobs.futures import Tasks
from gateway.jobs.legacy import LegacyStore
from gateway.jobs.store import WITHDRAWN
from gateway.observe.events import NodeLost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.jobs.hands import Hands
    from gateway.jobs.held import Held
    from gateway.jobs.store import Store
    from gateway.observe.events import Event

COUNT = 1000  # jobs that are taken up at once
SIZE = 16 << 20  # bytes of their parameters
REMEMBER = 60.0  # seconds between looks for what is ours, and forgotten
AGAIN = 1.0  # seconds until a store that failed is asked again


class Recovery:
    """Takes them up."""

    def __init__(self, store: Store, publish: Callable[[Event], None]) -> None:
        self.left = 0
        """Jobs in our file that are not taken up yet."""
        self.hands: Hands
        self._store = store
        self._publish = publish
        self._legacy = LegacyStore(store)
        self._tasks = Tasks()

    async def look(self, *, alone: bool) -> None:
        """Find what is open, before the first job is accepted; `alone`: all of it is for us."""
        await self._legacy.move_open()
        self.left = await self._store.count_orphans() if alone else 0

    def begin(self) -> None:
        """Take up what is left, in the background, and see to it that nothing of ours is forgotten."""
        self._surely(self._take_up_all)
        self._tasks.begin(self._remember_for_ever())

    async def take_over(self) -> None:
        """Take the jobs of gateways over that are dead now."""
        await self._legacy.move_again()
        for node, count in (await self._take_up()).items():
            self._publish(NodeLost(node=node, jobs=count))

    async def end_cancelled(self) -> None:
        """End those of our jobs that other gateways have cancelled."""
        for name in await self._store.cancelled():
            self.hands.cancel(name)

    def withdraw(self, held: Held) -> None:
        """The caller was told 503. Should the job be committed all the same it must not run, unless somebody joined."""

        async def withdraw() -> None:
            if await self._store.withdraw(held.job):
                self.hands.withdrawn(held, WITHDRAWN)
            else:
                self.hands.start(held)

        self._surely(withdraw)

    def look_again(self, name: str) -> None:
        """Go on with a job if it is ours, and we do not know."""

        async def look() -> None:
            row = await self._store.mine(name)
            if row is not None and self.hands.get(name) is None:
                self.hands.go_on(row)

        self._surely(look)

    async def end(self) -> None:
        """End what goes on in the background."""
        await self._tasks.end()

    async def _remember_for_ever(self) -> None:
        """Go on with what is ours, and not in our hands: it came late, after a statement that nobody waited for."""
        unknown: set[str] = set()
        while True:
            await asyncio.sleep(REMEMBER)
            with contextlib.suppress(StoreAway):
                known, unknown = unknown, {name for name in await self._store.held() if self.hands.get(name) is None}
                for name in unknown & known:  # it was so a minute ago
                    self.look_again(name)

    async def _take_up_all(self) -> None:
        await self._take_up()
        await self._legacy.move_ended()

    async def _take_up(self) -> Counter[str]:
        """Return how many jobs were taken up of each gateway."""
        taken: Counter[str] = Counter()
        while not self.hands.draining and (found := await self._store.orphans(COUNT)):
            owners = {name: owner for name, owner, _ in found}
            names = fitting([(name, size) for name, _, size in found], SIZE)
            try:
                rows = await self._store.take(names)
            except StoreAway as problem:
                for name in names if problem.sent else ():
                    self.look_again(name)
                raise
            for row in sorted(rows, key=lambda row: row.accepted):
                self.hands.go_on(row)
            self.left = max(0, self.left - len(rows))
            taken.update(owners[row.id] for row in rows)
        return taken

    def _surely(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something in the background, however long the store is away."""

        async def repeat() -> None:
            while True:
                with contextlib.suppress(StoreAway):
                    await work()
                    return
                await asyncio.sleep(AGAIN)

        self._tasks.begin(repeat())


def fitting(found: Sequence[tuple[str, int]], size: int) -> list[str]:
    """Return the first of those jobs, (id, size) each, that are no larger together; at least one."""
    names: list[str] = []
    for name, own in found:
        size -= own
        if names and size < 0:
            break
        names.append(name)
    return names
