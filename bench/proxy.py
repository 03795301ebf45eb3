"""The in-process way: the same classes behind Flask, served by gunicorn.

With REIMPORT=1 the command modules of all plugins are executed anew on each call, as a proxy does that reloads its
plugins to find a command. PLUGINS is a comma-separated list of packages.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import types
from typing import Any

import flask

PLUGINS = os.environ["PLUGINS"].split(",")
REIMPORT = os.environ.get("REIMPORT") == "1"


def commands() -> dict[str, dict[str, type]]:
    """Execute every module below every plugin's `commands`, and return the classes."""
    found: dict[str, dict[str, type]] = {}
    for plugin in PLUGINS:
        package = importlib.import_module(f"{plugin}.commands")
        classes = found[plugin.removeprefix("connector_")] = {}
        for finder, name, _ in pkgutil.iter_modules(package.__path__):
            spec = finder.find_spec(name, None)  # type: ignore[call-arg]
            assert spec is not None
            assert spec.loader is not None
            module = types.ModuleType(spec.name)
            spec.loader.exec_module(module)
            classes |= {key: value for key, value in vars(module).items() if hasattr(value, "execute")}
    return found


app = flask.Flask(__name__)
known = commands()


@app.post("/v1/do/<plugin>/<command>")
def do(plugin: str, command: str) -> flask.Response:
    params: dict[str, Any] = flask.request.get_json()
    kind = (commands() if REIMPORT else known)[plugin][command]
    result = kind(**params).execute({}, {})
    return flask.Response(flask.json.dumps(result["response"]), result["status"], mimetype=result["mimetype"])
