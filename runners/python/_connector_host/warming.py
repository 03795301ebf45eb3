"""What a process that forks does once for all its children, and what each child does for itself."""

from __future__ import annotations

import atexit
import contextlib
import sys
from typing import Any


def known_costs() -> None:
    """Pay what well-known libraries put off until their first use."""
    _try("encodings.idna", lambda module: module.ToASCII("a"))
    _try("idna", lambda module: module.encode("b\u00fccher"), only_loaded=True)
    if "ssl" in sys.modules:
        _try("ssl", lambda module: module.create_default_context())
    for name in ("boto3", "botocore"):
        if name in sys.modules:
            _try("botocore.session", _botocore)
            break
    _try("urllib3.util.ssl_", lambda module: module.create_urllib3_context(), only_loaded=True)
    _try("requests.adapters", lambda module: None, only_loaded=True)


def in_child() -> None:
    """Give a child what must not be its siblings' too."""
    random = sys.modules.get("random")
    if random is not None:
        random.seed()  # CPython does so for its own generator at a fork; this is for those that replace it
    _try("numpy.random", lambda module: module.seed(), only_loaded=True)
    # The host's folder was remembered for temporary files, and what is to be removed at the end is the host's.
    _try("tempfile", lambda module: setattr(module, "tempdir", None), only_loaded=True)
    _try("weakref", _disown_finalizers, only_loaded=True)


def leave() -> None:
    """Do what the interpreter does at its end, without taking apart what the host has built."""
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _disown_finalizers(module: Any) -> None:
    for one in list(module.finalize._registry):
        one.atexit = False


def _botocore(module: Any) -> None:
    session = module.get_session()
    loader = session.get_component("data_loader")
    for name in ("endpoints", "partitions", "sdk-default-configuration"):
        with contextlib.suppress(Exception):
            loader.load_data(name)


def _try(name: str, warm: Any, *, only_loaded: bool = False) -> None:
    """Warm one module up; what goes wrong costs a later call some time and nothing else."""
    with contextlib.suppress(Exception):
        if name not in sys.modules:
            if only_loaded:
                return
            __import__(name)
        warm(sys.modules[name])
