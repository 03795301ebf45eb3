"""What a child does, done in the host before the first fork: with a command of ours in place of the connector's.

The interpreter specializes code that has run a few times, the loader looks a function of the C library up when it is
called first, lookups of methods are remembered. A child that did that itself would do it, and copy the pages that it is
kept in, for nobody else.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Callable, Dict, List

from .own import json, os
from .signatures import Signature

if TYPE_CHECKING:
    from .handler import Known
    from .targets import Target

    One = Callable[[Target, Known], int]
    TakePlace = Callable[[List[int], str, Dict[str, str]], None]

TIMES = 20  # CPython specializes a function's code after eight calls, and some of it later
NAMES = ("HOME", "TMPDIR")
STREAMS = 3


class Example:
    """A class command."""

    def __init__(self, first: str, second: Any = None) -> None:
        """Take a parameter that is given and one that is not."""
        self.first = first
        self.second = second

    def execute(self, _config: Any, _task_data: Any) -> Any:
        """Return what connectors return."""
        return {"response": {"text": self.first, "list": [1, 2.5, None, True]}, "status": 200, "mimetype": "text/plain"}


def example(first: str, second: Any = None) -> Any:
    """Be a function command."""
    return Example(first, second).execute({}, {})


_COMMANDS = {"Example": (Example, Signature.of_class(Example)), "example": (example, Signature.of_function(example))}
KNOWN = {(__name__, name): known for name, known in _COMMANDS.items()}


def request(command: str) -> bytes:
    """Make one up, for one of the commands that are known here."""
    document = {"op": "execute", "module": __name__, "command": command, "params": {"first": "text"}}
    return json.dumps({**document, "config": {"key": "value"}, "task_data": {}, "context": {}}).encode()


def repeat(times: int, target: Target, one: One, take_place: TakePlace) -> None:
    """Serve made-up requests in the calling process, whose streams, folder and environment are the same afterwards."""
    streams = [os.dup(descriptor) for descriptor in range(STREAMS)]
    try:
        with contextlib.suppress(Exception):  # a later call takes some time more, and that is all
            for _ in range(times):
                for name in _COMMANDS:
                    _serve(target, name, one, take_place)
    finally:
        for descriptor, stream in enumerate(streams):
            os.dup2(stream, descriptor)
            os.close(stream)


def _serve(target: Target, name: str, one: One, take_place: TakePlace) -> None:
    read, write = os.pipe()
    with open(write, "wb") as pipe:
        pipe.write(request(name))
    outputs = [os.open(os.devnull, os.O_WRONLY) for _ in range(STREAMS - 1)]
    env = {each: os.environ[each] for each in NAMES if each in os.environ}
    take_place([read, *outputs], os.getcwd(), env)
    one(target, KNOWN)
