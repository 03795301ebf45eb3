"""The in-process way: the same classes behind Flask, served by gunicorn.

With REIMPORT=1 each call looks for its command as the proxy does that reloads its plugins: every module that can be
imported is listed to find the plugins, each plugin's command modules are executed anew, and the classes are picked from
what is then in them. Without, all of that is done once.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import types
from typing import TYPE_CHECKING, Any

import flask

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "connector_"
REIMPORT = os.environ.get("REIMPORT") == "1"


def commands() -> dict[str, dict[str, type]]:
    """Find the plugins, execute every module below their `commands`, and return the classes."""
    found: dict[str, dict[str, type]] = {}
    for _, plugin, _ in pkgutil.iter_modules():
        if plugin.startswith(PREFIX):
            classes = found[plugin.removeprefix(PREFIX)] = {}
            for module in executed(importlib.import_module(f"{plugin}.commands")):
                own = inspect.getmembers(module, inspect.isclass)
                classes |= {name: kind for name, kind in own if kind.__module__ == module.__name__}
    return found


def executed(package: types.ModuleType) -> Iterator[types.ModuleType]:
    """Execute each module of a package in a namespace of its own."""
    for finder, name, _ in pkgutil.iter_modules(package.__path__):
        spec = finder.find_spec(name, None)  # type: ignore[call-arg]
        assert spec is not None
        assert spec.loader is not None
        module = types.ModuleType(spec.name)
        spec.loader.exec_module(module)
        yield module


app = flask.Flask(__name__)
known = commands()


@app.post("/v1/do/<plugin>/<command>")
def do(plugin: str, command: str) -> flask.Response:
    params: dict[str, Any] = flask.request.get_json()
    kind = (commands() if REIMPORT else known)[plugin][command]
    result = kind(**params).execute({}, {})
    return flask.Response(flask.json.dumps(result["response"]), result["status"], mimetype=result["mimetype"])
