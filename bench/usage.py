"""What a gateway uses at a moment, to be compared with what it uses later."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests import procfs

if TYPE_CHECKING:
    from tests.support import Server


class Use(NamedTuple):
    """What a gateway uses now: resident bytes of its process and of its largest cell, and what else could leak."""

    gateway: int
    cell: int
    cells: int
    descriptors: int
    connectors: int


def used(gateway: Server) -> Use:
    cells = gateway.cells()
    return Use(
        gateway=procfs.memory(gateway.pid).resident,
        cell=max((procfs.memory(pid).resident for pid in cells), default=0),
        cells=len(cells),
        descriptors=gateway.descriptors(),
        connectors=len(gateway.connectors()),
    )


def show(when: str, use: Use) -> None:
    print(
        f"{when:10} gateway {use.gateway >> 20} MiB, {use.descriptors} descriptors; "
        f"{use.cells} processes of cells, the largest {use.cell >> 10} KiB; connectors {use.connectors}",
        flush=True,
    )
