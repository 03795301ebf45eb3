"""What the header of an executable says."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

INTERPRETER = 3  # PT_INTERP: what loads the libraries that a program asks for
AARCH64 = 183


def machine(program: Path) -> int:
    """Return the number of what it is for."""
    return int(struct.unpack_from("<H", program.read_bytes(), 18)[0])


def is_static(program: Path) -> bool:
    """Tell whether it needs nothing but the kernel."""
    data = program.read_bytes()
    assert data[:5] == b"\x7fELF\x02", "64 bits"
    (at,), (size, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<HH", data, 54)
    return INTERPRETER not in [struct.unpack_from("<I", data, at + size * one)[0] for one in range(count)]
