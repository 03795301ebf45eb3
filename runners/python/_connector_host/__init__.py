"""The Python connector host: finds a connector's commands, describes them and runs one.

``handler.handle(request, target)`` is the core; it does no I/O of its own, so a process can call it once, many times,
or in a fork of itself.
"""
