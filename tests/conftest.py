"""Fixtures, and the check after every test that nothing is left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import procfs
from tests.support import Gate, Site, cmdline, is_cell, reaped
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

PR_SET_CHILD_SUBREAPER = 36
# What takes longest goes first (`--no-loadscope-reorder`), so that no processor is idle at the end beside one long file.
LONGEST = (
    "jobs/test_torture.py",
    "jobs/test_torture_http.py",
    "processes/test_modes.py",
    "http/test_jobs.py",
    "processes/test_pools.py",
    "cell/test_sandbox.py",
    "runners/test_python_host.py",
    "test_unmodified.py",
    "console/test_operating.py",
    "test_soak.py",
)


# Where nothing may be kept that was compiled, each gateway compiles itself at its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_configure() -> None:
    # Whatever a test leaves behind becomes a child of pytest, where it cannot hide.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = pathlib.Path(__file__).parent
    places = {here / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No test leaves a process, a zombie or a descriptor behind."""
    with leaving_nothing():
        yield


@contextlib.contextmanager
def leaving_nothing() -> Iterator[None]:
    """Fail when the block leaves a process, a zombie or a descriptor behind."""
    processes, descriptors = _processes(), _descriptors()
    yield
    left: dict[int, str] = {}
    kept: set[str] = set()

    def clean() -> bool:
        nonlocal left, kept
        left = {pid: _describe(pid) for pid in _processes() - processes if not reaped(pid)}
        kept = _descriptors() - descriptors
        return not (left or kept)

    until(clean, 10)
    assert not left, f"processes left behind: {left}"
    assert not kept, f"descriptors left behind: {kept}"


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have processes that the test starts not measure what of them is covered: that loads SQLite, for one thing."""
    for name in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def gate(site: Site) -> Iterator[Gate]:
    """Where connectors of the site wait until they are let through: its file `gate`."""
    with contextlib.closing(Gate(site.folder / "gate")) as made:
        yield made


@pytest.fixture(scope="module")
def short_site() -> Iterator[Site]:
    """Return one with a short path: the sockets of multiprocessing lie in a private folder, and have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="gw", dir="/tmp") as folder:
        yield Site(Path(folder))


def _processes() -> set[int]:
    """Our descendants; but a cell that waits for its connector's next run, which is its gateway's to end, is none."""
    me = os.getpid()
    table = procfs.scan()
    found = procfs.descendants({me}, table) - {me}
    cells = {pid for pid in found if is_cell(pid)}
    busy = procfs.descendants(cells, table) - cells
    return found - {pid for pid in cells if not procfs.descendants({pid}, table) & busy}


def _descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:  # the listing's own
            continue
    return {one for one in found if "/proc/" not in one}


def _describe(pid: int) -> str:
    return cmdline(pid).replace(b"\0", b" ").decode(errors="replace") or "gone"
