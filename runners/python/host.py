"""Run commands of a Python connector: one JSON request on stdin, one JSON value on stdout.

    <venv>/bin/python host.py --package connector_x
    <venv>/bin/python host.py --module /abs/path/fax.py

    host.py --fork ...     import once, then fork for each request that comes over the socket on descriptor 3
    host.py --lines ...    many requests, a JSON line each on stdin, a JSON line each on descriptor 3

It runs under the connector's own interpreter (CPython 3.8 or newer) and needs the standard library only. Exit status: 0
with a result, 1 with an error told as ``{"error": ...}``, 2 for a wrong command line.
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))

# The host's own code is one private package. Its folder is on the path for this one import: after that a connector's
# `import host` must not find ours.
sys.path.insert(0, HERE)
from _connector_host import channel, errors, forking, handler, targets, threads  # noqa: E402

MODES = ("--fork", "--lines")

sys.path[:] = [entry for entry in sys.path if entry != HERE]

USAGE = "usage: host.py [--fork | --lines] --package NAME | --module /abs/path/file.py"


def main(argv: list[str]) -> int:
    """Serve and return the exit status."""
    mode = argv.pop(0) if argv[:1] and argv[0] in MODES else None
    target = targets.from_arguments(argv)
    if target is None:
        print(USAGE, file=sys.stderr)
        return 2
    if mode == "--fork":
        forking.serve(target, one)
        return 0
    if mode == "--lines":
        return lines(target)
    return one(target)


def one(target: targets.Target, known: handler.Known | None = None) -> int:
    """Serve the one request on stdin; whoever has to wait for it imports everything meanwhile.

    A process that was forked brings along the commands that are `known`.
    """
    result = channel.take_over()
    if known is None and not channel.request_has_come():
        warm_up(target)
    try:
        request = channel.read_request()
        if known is not None:
            forking.follow_trace(request)
        outcome = handler.handle(request, target, known)
    except errors.ConnectorError as error:
        outcome = handler.told(error)
    result.write(outcome["body"], outcome["log"])
    result.close()
    if outcome["exit_status"] == 0 and handler.goes_on(request, target, known):
        threads.wait_for_all()
    return outcome["exit_status"]


def warm_up(target: targets.Target) -> None:
    """Import everything ahead of requests. What goes wrong goes to the log."""
    for problem in handler.warm_up(target):
        channel.say(f"{problem['module']}: {problem['message']}\n")


def lines(target: targets.Target) -> int:
    """Serve a request a line until EOF."""
    requests, results = channel.take_over_lines()
    warm_up(target)
    for line in requests:
        try:
            outcome = handler.handle(channel.decode(line), target)
        except errors.ConnectorError as error:
            outcome = handler.told(error)
        results.write(outcome["body"], outcome["log"])
        if not results.ours:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
