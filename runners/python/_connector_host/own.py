"""The standard library as it was before any of a connector's code ran.

gevent and eventlet put functions of their own into `os`, `select`, `socket` and `time`, pyfakefs into `os`, and a
connector may put anything anywhere. The host imports from here what it needs afterwards: copies stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

    json, os, select, signal, socket, time = map(_copied, ("json", "os", "select", "signal", "socket", "time"))

__all__ = ["json", "os", "select", "signal", "socket", "time"]
