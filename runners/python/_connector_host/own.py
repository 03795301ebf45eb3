"""The standard library as it was before any of a connector's code ran.

gevent and eventlet put functions of their own into `os`, `select`, `socket` and `time`, pyfakefs into `os`, and a
connector may put anything anywhere. The host imports from here what it needs afterwards: copies stay as they are. What
is written in Python calls itself by names that everybody sees, so that `json` is imported once more.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Dict

if TYPE_CHECKING:
    import gc
    import io
    import json
    import os
    import select
    import signal
    import socket
    import time
else:
    from types import ModuleType

    def _copied(name: str) -> ModuleType:
        module = ModuleType(name)
        module.__dict__.update(vars(__import__(name)))
        return module

    def _imported_anew(name: str) -> ModuleType:
        __import__(name)  # C code of it looks its errors up among what is imported
        theirs = _taken_out(name)
        try:
            return __import__(name)
        finally:
            _taken_out(name)
            sys.modules.update(theirs)

    def _taken_out(name: str) -> Dict[str, ModuleType]:
        return {each: sys.modules.pop(each) for each in list(sys.modules) if f"{each}.".startswith(f"{name}.")}

    gc, io, os, select, signal, socket, time = map(_copied, ("gc", "io", "os", "select", "signal", "socket", "time"))
    json = _imported_anew("json")

__all__ = ["gc", "io", "json", "os", "select", "signal", "socket", "time"]
