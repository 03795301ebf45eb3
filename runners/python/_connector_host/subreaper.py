"""A forked process inherits what its descendants leave behind, so that the cell knows whose it is.

By `_ctypes` itself: the Python half of ctypes would be a fifth of a small host's memory, and a hundred pages of each
child's.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

try:
    import _ctypes
except ImportError:  # an interpreter that was built without libffi
    _ctypes = None  # type: ignore[assignment]

BECOME = (36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
CEASE = (36, 0, 0, 0, 0)
ASK_NOTHING = (3, 0, 0, 0, 0)  # PR_GET_DUMPABLE

_prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl") if _ctypes is not None else 0


def missing() -> Optional[str]:
    """Say why it cannot be done; None when it can."""
    return None if _prctl else "no module _ctypes, which it needs to tell its children's processes apart"


def become() -> None:
    """Have whatever the calling process' descendants leave behind become its children."""
    _call(BECOME)


def cease() -> None:
    """Have it become the next one's again: what is there by now stays."""
    _call(CEASE)


def rehearse() -> None:
    """Have the interpreter learn how it is done."""
    _call(ASK_NOTHING)


def _call(arguments: Tuple[int, ...]) -> Any:
    return _ctypes.call_function(_prctl, arguments)
