"""What a command has left to threads: Python waits at its end for those that are no daemons, and so do we."""

from __future__ import annotations

import sys
from typing import Any, List


def wait_as_python_does() -> None:
    """Do what the interpreter does first at its end: have executors finish, and join what is no daemon."""
    if _others():
        _threading()._shutdown()  # noqa: SLF001  (there is no public way)


def wait_for_all() -> None:
    """Wait for daemons too: in a server that stays, as the original proxy is one, they go on as well.

    Threads of a `ThreadPoolExecutor` wait for work for ever, and are ended by `wait_as_python_does`.
    """
    while True:
        working = [each for each in _others() if each not in _pooled()]
        if not working:
            break
        for thread in working:
            thread.join()
    wait_as_python_does()


def _others() -> List[Any]:
    threading = _threading()
    if threading is None:  # not even imported, which costs a fork a hundred pages
        return []
    return [each for each in threading.enumerate() if each is not threading.current_thread()]


def _threading() -> Any:
    return sys.modules.get("threading")


def _pooled() -> Any:
    return getattr(sys.modules.get("concurrent.futures.thread"), "_threads_queues", ())
