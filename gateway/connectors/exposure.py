"""Finds what others than the gateway's user could change of all that it runs and believes."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.connectors.clients import client_files
from gateway.connectors.ground import ways
from gateway.connectors.sources import DEFINITION
from gateway.files import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.connectors.definition import Connector
    from gateway.connectors.sources import Sources
    from gateway.settings import Settings

MOST = 20  # that are told
NOBODY = 65534  # whom the kernel names for owners that a namespace does not know


def exposed(settings: Settings, sources: Sources, connectors: Iterable[Connector]) -> tuple[str, ...]:
    """Say of each file and folder who else can change it, and how to mend that.

    Looked at are connectors.yaml, the clients, the files of TLS, the drop-ins, `state_dir`, what connectors rest on,
    and the folders above them.
    """
    look = _Look()
    folder = settings.connectors_dir
    clients = settings.clients_dir if sources.clients is not None else None
    for held in (folder, clients, settings.state_dir):
        if held is not None:
            look.at(held, held=True)
    for file in (settings.file, *((client_files(clients) or ()) if clients is not None else ())):
        look.at(file)
    tls = settings.tls
    if tls is not None:
        for one in (tls.cert, tls.key, *([tls.client_ca] if tls.client_ca is not None else [])):
            look.at(one)
    for entry in sources.entries:
        if entry.folder.parent == folder:
            look.at(entry.folder, held=True)
            look.at(entry.folder / DEFINITION)
    for connector in connectors:
        user = connector.launch.sandbox.user
        for file, *_ in connector.files:
            look.at(Path(str(file)), user=user[0] if user else None)
    told = list(look.told.values())
    more = [f"{len(told) - MOST} more files and folders can be changed by others"] if len(told) > MOST else []
    return (*told[:MOST], *more)


class _Look:
    """Looks at each place once."""

    def __init__(self) -> None:
        self.told: dict[Path, str] = {}
        self._seen: set[Path] = set()
        self._members: dict[int, set[int]] = {}
        # Another's files are another's to change. A gateway that is not root may well run what its operator owns.
        self._all_trusted = os.geteuid() != 0
        self._trusted = {0, None, *([NOBODY] if _is_namespace() else [])}

    def at(self, path: Path, *, held: bool = False, user: int | None = None) -> None:
        """Look at a path, by whatever links it is reached. What lies in a folder that is `held` is believed, too.

        `user` is whom it runs as: that one may change it.
        """
        if not self._is_new(path):
            return
        known = path.parent in self._seen and not os.path.islink(path)  # whatever leads there has been looked at
        for way in (path,) if known else ways(path):
            self._one(way, held=held, user=user)
            for above in way.parents:
                if self._is_new(above):
                    self._one(above)

    def _is_new(self, path: Path) -> bool:
        new = path not in self._seen
        self._seen.add(path)
        return new

    def _one(self, path: Path, *, held: bool = False, user: int | None = None) -> None:
        try:
            facts = os.lstat(path)
        except OSError:  # whoever needs it tells that
            return
        # In a sticky folder, such as /tmp, nobody can touch what is another's: it lets things be added, no more.
        sticky = facts.st_mode & stat.S_ISVTX and stat.S_ISDIR(facts.st_mode) and not held
        mode = 0 if sticky or stat.S_ISLNK(facts.st_mode) else facts.st_mode
        if not self._all_trusted and facts.st_uid not in {*self._trusted, user}:
            who, cure = f"user {_name(facts.st_uid)}", f"chown root {path}"
        elif mode & stat.S_IWOTH:
            who, cure = "everybody", f"chmod o-w {path}"
        elif mode & stat.S_IWGRP and not self._is_alone(facts.st_gid, facts.st_uid):
            who, cure = f"group {_group(facts.st_gid)}", f"chmod g-w {path}"
        else:
            return
        self.told[path] = f"{path} can be changed by {who}, and with it what the gateway runs: {cure}"

    def _is_alone(self, gid: int, owner: int) -> bool:
        """Tell whether nobody but root, the gateway and a file's owner is in a group."""
        if gid not in self._members:
            self._members[gid] = _members(gid)
        return self._members[gid] <= {0, os.geteuid(), owner}


def _members(gid: int) -> set[int]:
    """Return who is in a group, as far as this machine knows; in one without a name, of a container, only we are."""
    users = pwd.getpwall()
    try:
        names = set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        own = {os.getegid(), *os.getgroups()}
        return {os.geteuid()} if gid in own else {NOBODY}
    return {user.pw_uid for user in users if user.pw_name in names or user.pw_gid == gid}


def _is_namespace() -> bool:
    try:
        return read_text("/proc/self/uid_map").split() != ["0", "0", "4294967295"]
    except OSError:
        return False


def _name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return f"{grp.getgrgid(gid).gr_name} ({gid})"
    except KeyError:
        return str(gid)
