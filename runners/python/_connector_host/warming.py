"""What a process that forks does once for all its children, and what each child does at its end."""

from __future__ import annotations

import atexit
import contextlib
import re
import sys
from io import IOBase
from typing import Any, Iterator, List, Set

from . import channel, threads
from .own import gc, os

# How many threads a library starts for its work, most of them when it is imported: no child would have them.
_OF_OPENMP = (
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
)  # each follows OMP_NUM_THREADS where it is not said itself
_SAID = {
    **dict.fromkeys(("RAYON_NUM_THREADS", "POLARS_MAX_THREADS"), "1"),
    # A thread of jemalloc gives memory back, where it does not as it goes: in polars and others in Rust, and in Arrow.
    **dict.fromkeys(("_RJEM_MALLOC_CONF", "JE_ARROW_MALLOC_CONF"), "background_thread:false"),
}

_files: List[Any] = []  # what was open before the forks

_CLIENT = re.compile(r"""\b(?:client|resource)\(\s*["']([a-z0-9-]+)["']""")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Have what is imported meanwhile do its work in the thread that calls, unless the operator says otherwise.

    What a child imports, or starts, asks the environment again, and finds it as the operator has left it.
    """
    openmp = () if "OMP_NUM_THREADS" in os.environ else ("OMP_NUM_THREADS", *_OF_OPENMP)
    said = {**_SAID, **dict.fromkeys(openmp, "1")}
    ours = {name: value for name, value in said.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def known_costs(connector: str) -> None:
    """Pay what well-known libraries put off until their first use; `connector` is the name of its top module."""
    _try("encodings.idna", lambda module: module.ToASCII("a"))
    _try("idna", lambda module: module.encode("b\u00fccher"), only_loaded=True)
    if "ssl" in sys.modules:
        _try("ssl", lambda module: module.create_default_context())
    _try("boto3", lambda module: _boto3(module, connector), only_loaded=True)
    _try("requests", _requests, only_loaded=True)
    _try("httpx", _httpx, only_loaded=True)
    _try("matplotlib", lambda _: __import__("matplotlib.backends.backend_agg"), only_loaded=True)
    _try("PIL.Image", lambda module: module.preinit(), only_loaded=True)
    _try("urllib3.util.ssl_", lambda module: module.create_urllib3_context(), only_loaded=True)


def release_loop() -> None:
    """Give up gevent's loop where nothing waits for it: whoever needs one makes it, in each child its own."""
    _try("gevent._hub_local", _release, only_loaded=True)


def before_forks() -> None:
    """Forget what is the host's alone: its folder for temporary files, and what is to be removed at its end.

    What is in the buffers of files is written now: each child would write it again.
    """
    _files[:] = _of_files()
    _flush(_files)
    _try("tempfile", _forget_folder, only_loaded=True)
    _try("weakref", _disown_finalizers, only_loaded=True)


def leave() -> None:
    """Do what the interpreter does at its end, without taking apart what the host has built."""
    threads.wait_as_python_does()
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()  # noqa: SLF001  (os._exit comes next)
    _flush([*_files, *_of_files()])
    channel.flush()


def _release(module: Any) -> None:
    hub, greenlet = module.get_hub_if_exists(), sys.modules["greenlet"]
    if hub is None or hub.loop.activecnt:
        return
    there = [each for each in gc.get_objects() if issubclass(type(each), greenlet.greenlet) and not each.dead]
    if all(each is hub or each is greenlet.getcurrent() for each in there):
        hub.destroy(destroy_loop=True)


def _of_files() -> List[Any]:
    """List the files that there are; in a child, those that have come since the fork."""
    return [each for each in gc.get_objects() if issubclass(type(each), IOBase)]


def _flush(files: List[Any]) -> None:
    for each in files:
        with contextlib.suppress(Exception):  # it is closed, or its disk full
            each.flush()


def _forget_folder(module: Any) -> None:
    module.tempdir = None


def _disown_finalizers(module: Any) -> None:
    for one in list(module.finalize._registry):  # noqa: SLF001  (there is no public way)
        one.atexit = False


def _requests(module: Any) -> None:
    """Import what it imports for its first request, and prepare one that is not sent."""
    __import__("netrc")
    with module.Session() as session:
        session.prepare_request(module.Request("GET", "http://localhost/"))


def _httpx(module: Any) -> None:
    """Import what it imports for its first client, and for the first request of an asynchronous one."""
    module.Client().close()
    __import__("anyio._backends._asyncio")


def _boto3(module: Any, connector: str) -> None:
    """Make one client of each service that the connector's sources name.

    It reads and parses megabytes of JSON into the default session, which the children then share. Nothing is connected
    to, and no credentials are looked for: the keys are made up.
    """
    for service in sorted(_services(connector)):
        with contextlib.suppress(Exception):
            module.client(service, region_name="us-east-1", aws_access_key_id="-", aws_secret_access_key="-")  # noqa: S106


def _services(connector: str) -> Set[str]:
    services: Set[str] = set()
    for name, module in list(sys.modules.items()):
        if f"{name}.".startswith(f"{connector}."):
            services.update(_CLIENT.findall(_source(module)))
    return services


def _source(module: Any) -> str:
    try:
        with open(module.__file__, encoding="utf-8", errors="replace") as source:
            return source.read()
    except (OSError, TypeError, AttributeError):
        return ""


def _try(name: str, warm: Any, *, only_loaded: bool = False) -> None:
    """Warm one module up; what goes wrong costs a later call some time and nothing else."""
    with contextlib.suppress(Exception):
        if name not in sys.modules:
            if only_loaded:
                return
            __import__(name)
        warm(sys.modules[name])
