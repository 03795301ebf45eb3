"""Launches, and a machine on which nothing more can be started, for tests of what keeps processes."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from gateway.observe.events import Bus
from gateway.processes.launch import Bounds, Keep, Launch
from gateway.processes.notices import Notices
from gateway.processes.places import Places
from gateway.processes.spawn import SpawnPool

if TYPE_CHECKING:
    from gateway.cells.cell import Cell
    from gateway.observe.events import Event


def launch(*, keep: Keep | None = None, **more: Any) -> Launch:
    bounds = Bounds(output=1 << 20, log=1 << 20, memory=0)
    line = ("/bin/cat",)
    return Launch(argv=line, resident=line, env={}, result_on_fd3=False, bounds=bounds, keep=keep or Keep(), **more)


class Full:
    """Cells of a machine that has no descriptors left."""

    def __init__(self) -> None:
        self.asked = 0

    def take(self, *_: object) -> Cell:
        self.asked += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Machine:
    """What a connector's processes need: places, cells that cannot be had, and who is told."""

    def __init__(self, keep: Keep | None = None) -> None:
        self.places = Places(8)
        self.cells = Full()
        self.spawn = SpawnPool(self.cells)  # type: ignore[arg-type]
        self.told: list[Event] = []
        bus = Bus()
        bus.listen(self.told.append)
        self.launch = launch(keep=keep)
        self.notices = Notices(self.launch, bus)

    def make_room(self) -> bool:
        return False
