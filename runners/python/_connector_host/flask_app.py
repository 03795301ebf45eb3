"""`flask.current_app` for packages that use it: in the original proxy they run inside of a Flask application.

Flask is the connector's own, and is looked for in its environment; where there is none, nothing of this happens.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from typing import Any, Dict, Iterator, List, Optional, Tuple

NAME = "connector_proxy"
HERE = os.path.dirname(os.path.abspath(__file__))

# The application and its own configuration, or None where there is no Flask; nothing before anybody has looked.
_made: List[Optional[Tuple[Any, Dict[str, Any]]]] = []


def warm_up() -> None:
    """Make the application, ahead of the requests that will need it."""
    if not _made:
        _made.append(_application())


@contextlib.contextmanager
def context(config: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    """Enter the application, and give its configuration: the connector's own, and Flask's. Its logger is the log."""
    warm_up()
    made = _made[0]
    if made is None:
        yield config
        return
    app, own = made
    app.config.clear()
    app.config.update({**own, **config})
    with app.app_context():
        yield app.config


def _application() -> Optional[Tuple[Any, Dict[str, Any]]]:
    try:
        if importlib.util.find_spec("flask") is None:
            return None
        from flask import Flask  # noqa: PLC0415

        app = Flask(NAME, root_path=HERE, instance_path=HERE, static_folder=None)
    except Exception as problem:  # noqa: BLE001  (a package that does not use it is served all the same)
        print(f"flask.current_app cannot be provided: {type(problem).__name__}: {problem}", file=sys.stderr)
        return None
    app.logger.setLevel(logging.INFO)
    return app, dict(app.config)
