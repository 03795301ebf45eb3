"""What keeps a connector where it belongs: what is asked of its cell, and what a machine does not give of it."""

from __future__ import annotations

import enum
import functools
from pathlib import Path
from typing import Literal

import msgspec

OFF, STANDARD, STRICT = "off", "standard", "strict"
LEVELS = (OFF, STANDARD, STRICT)
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - what a connector gets anew, not where we write
OOM = 500
"""What is added to a connector's badness, in thousandths of the machine's memory: the kernel takes it before others."""

Network = Literal["host", "none"]


class Level(str):
    """How much a connector is kept from: `off`, `standard` or `strict`."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Level:
        """Read what an operator has written.

        Raises:
            ValueError: anything else.
        """
        if isinstance(value, str) and value in LEVELS:
            return cls(value)
        raise ValueError(f"{value!r} is not a level: write off, standard or strict")


class Step(enum.IntFlag):
    """A part of a sandbox that a cell has, or not. The bits are those of its READY (`runners/cell/cell.h`)."""

    NAMESPACES = 1
    USER_NAMESPACE = 2
    """They had to be made in a user namespace. Nobody asks for it."""
    NETWORK = 4
    PRIVATE_TMP = 8
    MOUNTS = 16
    """Paths are hidden and shown by mounts."""
    LANDLOCK = 32
    """The same, by rules."""
    RESTRICT = 64
    FILTER = 128
    USER = 256
    PIDS = 512
    """The kernel itself holds `max_pids`, and not only who looks ten times a second."""
    NETWORK_FILTER = 1024
    """Without a network namespace: no sockets but Unix ones can be made."""
    SIGNALS = 2048
    """Without namespaces: no signal leaves the cell. Nobody asks for it."""


HIDING = Step.MOUNTS | Step.LANDLOCK
NO_NETWORK = Step.NETWORK | Step.NETWORK_FILTER
EITHER = (HIDING, NO_NETWORK)
"""Two ways to the same end: one of them is enough."""


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """What one connector's cell is asked for. Paths are absolute and without links.

    Of several that lie inside each other the nearest says what holds, and `hide` of two that are the same.
    """

    level: str = OFF
    network: Network = "host"
    read: tuple[str, ...] = ()
    """What strict opens for reading."""
    write: tuple[str, ...] = ()
    """What is the machine's own and may be written, also where it lies in something that is hidden or private."""
    max_pids: int = 512
    max_disk: int = 1 << 30
    """Bytes of the private folder, and of the largest file."""
    user: tuple[int, int] | None = None
    """The user and group that it runs as; None: the gateway's."""
    hide: tuple[str, ...] = ()
    """Folders that show nothing, files that cannot be read."""
    show: tuple[str, ...] = ()
    """What is there and cannot be written, also where it lies in something that is hidden or private."""
    guard: tuple[str, ...] = ()
    """The same for code of others. Apart, since it changes with them, and this connector does not."""
    covered: tuple[tuple[int, int], ...] = ()
    """Device and inode of what is hidden or guarded. When another file takes the name, as editors have it, the kernel
    takes the cover off: the cell has to be made anew."""
    private_tmp: bool = False


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of a connector's sandbox on this machine."""

    level: str
    network: Network
    missing: tuple[str, ...] = ()


def options(sandbox: Sandbox, memory: int) -> tuple[str, ...]:
    """Return a cell's options; `memory` is what one run may use, 0 for no bound.

    Paths come with what holds them before what they hold, so that they can be carried out in their order.
    """
    found: list[str] = []
    if sandbox.level != OFF:
        found.append("--namespaces")
        if sandbox.network == "none":
            found.append("--no-network")
        if sandbox.private_tmp:
            found += ("--private-tmp", str(memory or sandbox.max_disk))
        ranked = [(path, rank) for rank, paths in enumerate(_paths(sandbox)) for path in paths]
        for path, rank in sorted(ranked, key=lambda one: (Path(one[0]).parts, one[1])):
            found += (("--show", "--write", "--hide")[rank], path)
        if sandbox.level == STRICT:
            found.append("--restrict")
            for path in sandbox.read:
                found += ("--read", path)
        found += ("--filter", "--max-disk", str(sandbox.max_disk), "--oom", str(OOM))
    if sandbox.user is not None:
        found += ("--user", f"{sandbox.user[0]}:{sandbox.user[1]}")
    return (*found, "--max-pids", str(sandbox.max_pids))


def asked(sandbox: Sandbox) -> Step:
    """Return the steps that a sandbox is made of; of two ways to one end, both."""
    hides = bool(sandbox.hide or sandbox.show or sandbox.guard)
    return _asked(sandbox.level, sandbox.network, tmp=sandbox.private_tmp, hides=hides, user=sandbox.user is not None)


@functools.cache  # the status view asks of each connector, and flags are slow to put together
def _asked(level: str, network: Network, *, tmp: bool, hides: bool, user: bool) -> Step:
    steps = Step(0)
    if user:
        steps |= Step.USER
    if level == OFF:
        return steps
    steps |= Step.NAMESPACES | Step.FILTER | Step.PIDS
    if network == "none":
        steps |= NO_NETWORK
    if tmp:
        steps |= Step.PRIVATE_TMP
    if hides:
        steps |= HIDING
    if level == STRICT:
        steps |= Step.RESTRICT
    return steps


def lacking(sandbox: Sandbox, got: int) -> Step:
    """Return the steps that were asked for and are not there."""
    return _lacking(int(asked(sandbox)), int(got), named=sandbox.user is not None)


@functools.cache
def _lacking(wanted: int, got: int, *, named: bool) -> Step:
    lacks = Step(wanted & ~got)
    for ways in EITHER:
        if got & ways:
            lacks &= ~ways
    if named and got & Step.USER:
        lacks &= ~Step.PIDS  # whose processes are counted, and nobody else's
    return lacks


def missing(sandbox: Sandbox, got: int, machine: Path = Path("/")) -> tuple[str, ...]:
    """Say what was asked for and is not there, and what switches it on. `machine` is where its /proc and /sys are."""
    return _told(lacking(sandbox, got), machine)


def refused(sandbox: Sandbox, got: int, machine: Path = Path("/")) -> str | None:
    """Say why this connector cannot be served here; None when it can, if perhaps with less than was asked for.

    `strict` goes without nothing, and no level without what its operator has named: a network, a user.
    """
    lacks = lacking(sandbox, got)
    needs = NO_NETWORK | Step.USER if sandbox.level != STRICT else ~Step.PIDS
    told = "; ".join(_told(lacks & needs, machine))
    if not told:
        return None
    if sandbox.level == STRICT:
        return f"sandbox: strict cannot be had on this machine, and nothing weaker is put in its place: {told}"
    return f"its sandbox cannot be had on this machine: {told}"


def needs_judging(sandbox: Sandbox) -> bool:
    """Tell whether `refused` may have a word on it."""
    return sandbox.level == STRICT or sandbox.network == "none" or sandbox.user is not None


def names(got: int) -> dict[str, bool]:
    """Return the steps by name, with whether they are there."""
    return {str(step.name).lower(): bool(got & step) for step in Step}


def given(sandbox: Sandbox, got: int, machine: Path = Path("/")) -> Given:
    """Compare what was asked for with what there is."""
    return Given(level=sandbox.level, network=sandbox.network, missing=missing(sandbox, got, machine))


def switch(step: Step, machine: Path = Path("/")) -> str:
    """Say what switches a step on, as far as this machine tells."""
    if step in _OF_NAMESPACES:
        found = [text for file, value, text in _LOCKS if _said(machine / file) == value]
        if any((machine / mark).exists() for mark in _CONTAINERS):
            found.append(_IN_CONTAINER)
        return ", ".join(found) or "; ".join([*(text for _, _, text in _LOCKS), _IN_CONTAINER])
    return _SWITCHES[step]


_OF_NAMESPACES = Step.NAMESPACES | NO_NETWORK | Step.PRIVATE_TMP
_LOCKS = (
    ("proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
     "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
    ("proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
)  # fmt: skip
_CONTAINERS = (".dockerenv", "run/.containerenv", "var/run/secrets/kubernetes.io")
_IN_CONTAINER = (
    "in a container: --security-opt seccomp=unconfined (or deploy/seccomp.json), systempaths=unconfined and, with"
    " AppArmor, apparmor=unconfined; in Kubernetes: hostUsers: false, procMount: Unmasked, seccompProfile: Unconfined"
)
_WITHOUT = {
    Step.NAMESPACES: "no namespaces of its own, so processes beside it and System V IPC are in its reach",
    NO_NETWORK: "no network of its own, so network: none cannot be kept",
    Step.PRIVATE_TMP: "no /tmp, /var/tmp and /dev/shm of its own, so it shares them and what it leaves there stays",
    HIDING: "nothing can be hidden, so it reads connectors.yaml, state_dir and other drop-ins, and may write its code",
    Step.RESTRICT: "reading and writing cannot be restricted to a list",
    Step.FILTER: "no filter of system calls",
    Step.USER: "no user of its own",
    Step.PIDS: "the kernel does not hold max_pids, so a burst between two looks can go over it",
}
_SWITCHES = {
    HIDING: "Linux 5.13 with landlock in the kernel's lsm= list, or namespaces",
    Step.RESTRICT: "Linux 5.13 with landlock in the kernel's lsm= list",
    Step.FILTER: "a kernel with CONFIG_SECCOMP_FILTER",
    Step.USER: (
        "a gateway that runs as root with CAP_SETUID, CAP_SETGID and CAP_CHOWN, and a uid that exists in its user"
        " namespace: gateway.sandbox_uids"
    ),
    Step.PIDS: "a writable tree of control groups, a user of its own, or a gateway that is not root",
}


@functools.lru_cache(maxsize=64)
def _told(lacks: Step, machine: Path) -> tuple[str, ...]:
    """Say what is not there; two ways to one end are one."""
    return tuple(f"{text} ({switch(step, machine)})" for step, text in _WITHOUT.items() if lacks & step)


def _said(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None


def _paths(sandbox: Sandbox) -> tuple[tuple[str, ...], ...]:
    return (*sandbox.show, *sandbox.guard), sandbox.write, sandbox.hide
