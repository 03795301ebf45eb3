"""What a command has left to threads: Python waits at its end for those that are no daemons, and so do we.

Executors and pools keep threads and processes that wait for work for ever. Python's own end has executors finish what
they have begun and ends them; of a pool we wait for that.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
from typing import Any, List

from .own import time

LOOK = 0.02  # seconds between two looks at what cannot be joined
_POOLS = ("multiprocessing.pool", "multiprocessing.queues")


def wait_as_python_does() -> None:
    """Do what the interpreter does first at its end: have executors finish, and join what is no daemon."""
    if _others():
        _threading()._shutdown()  # noqa: SLF001  (there is no public way)


def wait_for_all() -> None:
    """Wait for daemons too: in a server that stays, as the original proxy is one, they go on as well."""
    time.sleep(LOOK)  # a thread that was started just now is not counted yet
    while True:
        others = _others()
        working = [each for each in others if not _keeps_waiting(each)]
        for thread in working:
            thread.join()
        busy = [each for each in others if _is_busy(each)]
        children = [each for each in _children() if not _works_for_a_pool(each)]
        for child in children:
            child.join()
        if not working and not busy and not children and _thread._count() <= len(others):  # noqa: SLF001
            break
        if not working and not children:
            time.sleep(LOOK)
    wait_as_python_does()


def _others() -> List[Any]:
    threading = _threading()
    if threading is None:  # not even imported, which costs a fork a hundred pages
        return []
    return [each for each in threading.enumerate() if each is not threading.current_thread()]


def _threading() -> Any:
    return sys.modules.get("threading")


def _keeps_waiting(thread: Any) -> bool:
    """Tell whether a thread belongs to an executor or a pool."""
    known = (("concurrent.futures.thread", "_threads_queues"), ("concurrent.futures.process", "_threads_wakeups"))
    if any(thread in getattr(sys.modules.get(module), name, ()) for module, name in known):
        return True
    return getattr(getattr(thread, "_target", None), "__module__", None) in _POOLS


def _is_busy(thread: Any) -> bool:
    """Tell whether a thread belongs to a pool that has work left: results that are to come are in a dict of its."""
    with contextlib.suppress(Exception):
        target = thread._target  # noqa: SLF001
        return target.__name__ == "_handle_results" and any(
            isinstance(each, dict) and each
            for each in thread._args  # noqa: SLF001
        )
    return False


def _children() -> List[Any]:
    multiprocessing = sys.modules.get("multiprocessing")
    active = getattr(multiprocessing, "active_children", None)
    return active() if active is not None else []


def _works_for_a_pool(child: Any) -> bool:
    """Tell whether a process waits for work: of a pool, or of an executor, which Python ends by itself."""
    if "PoolWorker" in child.name:
        return True
    managers = getattr(sys.modules.get("concurrent.futures.process"), "_threads_wakeups", ())
    for manager in list(managers):
        with contextlib.suppress(Exception):
            processes = getattr(manager, "processes", None) or manager._args[1]  # noqa: SLF001  (3.8: its argument)
            if child.pid in processes:
                return True
    return False
