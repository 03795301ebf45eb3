"""What one connector's sandbox is, worked out from its keys and from what its runtime names."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gateway.connectors.ground import Ground, Wishes, above, ground_of, layers, located, real, units
from gateway.connectors.installations import needed
from gateway.files import open_file
from gateway.sandbox import OFF, STRICT, TEMPORARY, Sandbox
from gateway.settings import LAST_UID, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.connectors.sources import Entry
    from gateway.errors import ConfigError
    from gateway.runtimes import CommandLine
    from gateway.sections import ConnectorEntry, Limits

User = tuple[int, int]
"""A uid and a gid."""

STARTERS = ("/run/user", "/run/systemd/private")
"""Where somebody listens who would start processes for its user, outside of the cell."""
BARE = ("/run", "/home", "/root", "/srv", "/mnt", "/media")
"""What strict does not even see: rules about files let through who connects to a socket there."""
RESOLVERS = ("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager/resolv.conf", "/run/nscd")
"""What is needed in there to find names."""
CONTAINER = "container"
CONTAINER_NOTICE = "its engine is its sandbox: nothing more is put around the engine's own process"


class Case(NamedTuple):
    """All that is known of a connector."""

    entry: Entry
    common: ConnectorEntry
    limits: Limits
    line: CommandLine
    settings: Settings
    cache: Path | None = None
    """A folder that it may write besides, which need not be there yet."""

    def error(self, key: str, problem: str) -> ConfigError:
        """Make the error that names a key: the connector's own, or that of `defaults`."""
        if getattr(self.common, key) is not None:
            return self.entry.node.error(problem, (key,))
        return self.entry.node.error(f"defaults.{key}: {problem}")


def confine(case: Case) -> tuple[Sandbox, tuple[str, ...]]:
    """Return the sandbox, and what an operator should know of it.

    Raises:
        ConfigError: a key makes no sense with the others, or on this machine.
    """
    limits, level = case.limits, str(case.limits.sandbox)
    user = _user(case)
    bare = Sandbox(max_pids=limits.max_pids, max_disk=int(limits.max_disk))
    if case.common.runtime == CONTAINER:
        return bare, _of_container(case, user)
    network = limits.network or ("none" if level == STRICT else "host")
    if level == OFF:
        if network == "none":
            raise case.error("network", "none takes a sandbox: say standard or strict")
        return msgspec.structs.replace(bare, user=user), ()
    ground = ground_of(case.entry.folder, case.settings, strict=level == STRICT)
    wishes = _wishes(case, ground, user)
    found = layers(ground, wishes)._asdict()
    return (
        msgspec.structs.replace(bare, level=level, network=network, user=user, private_tmp=wishes.private, **found),
        (),
    )


def own_user(name: str, first: int, count: int) -> int:
    """Return the user that a connector of this name has for itself, of so many from the first on."""
    return first + int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % count


def _of_container(case: Case, user: User | None) -> tuple[str, ...]:
    if case.limits.sandbox == STRICT:
        raise case.error("sandbox", "no engine of containers works in strict: say sandbox: off")
    if user is not None:
        raise case.error("user", "it would be the engine's: for the container say options: [--user, ...]")
    return (CONTAINER_NOTICE,) if case.limits.sandbox != OFF else ()


# --- paths


def _wishes(case: Case, ground: Ground, user: User | None) -> Wishes:
    read, write = (list(_named(case, key)) for key in ("read", "write"))
    if case.cache is not None:
        write.append(real(case.cache))
    code = _code(case, ground, user)
    program = Path(case.line.argv[0])
    search = str(case.common.env.get("PATH") or case.settings.path)
    needs = {path for one in (program, *case.line.needs, *_of_env(program, search)) for path in needed(one)}
    hide = ground.hidden
    unseen = BARE if ground.strict else STARTERS
    hide = hide | {path for path in map(Path, unseen) if path.exists() and not path.is_symlink()}
    if ground.strict:
        needs |= {path for path in map(Path, RESOLVERS) if path.exists()}
    if user is not None:
        hide = hide | _closed({*code, *needs, *read, *write, case.settings.state_dir / "run"}, user)
    private = not any(above(path, Path(temporary)) for path in write for temporary in TEMPORARY)
    return Wishes(hide=hide, code=code, needs=needs, others=case.entry.others, read=read, write=write, private=private)


def _named(case: Case, key: str) -> Iterator[Path]:
    """Yield the paths of `read` or `write`, each as the file that says it means it."""
    own = getattr(case.common, key) is not None
    for index, text in enumerate(getattr(case.limits, key)):
        mark = case.entry.node.mark((key, index)) if own else None
        folder = mark.path.parent if mark else case.entry.folder if own else case.settings.file.parent
        path = real(folder / text)
        if not path.exists():
            raise case.error(key, f"{path} does not exist")
        yield path


def _code(case: Case, ground: Ground, user: User | None) -> set[Path]:
    """Return the connector's own files, with the folders that belong to them."""
    if user is not None and ground.own is not None and not _may(ground.own, user, 5):
        ground = ground._replace(own=None)
    own = {(place, unit) for path in case.line.code for place in located(path) for unit in units(place, ground)}
    if user is not None:
        _must_read(case, user, {*(place for place, _ in own), real(Path(case.line.argv[0]))})
        # A folder that is closed to its user is no reason to keep the file in it from it: that is shown by itself.
        own = {(place, unit if _may(unit, user, 5 if unit.is_dir() else 4) else place) for place, unit in own}
    around = [path for path in (ground.own, *case.entry.beside) if path is not None]
    return {*(unit for _, unit in own), *(place for path in around for place in located(path))}


def _of_env(script: Path, search: str) -> Iterator[Path]:
    """Yield the interpreter that a script's #! line has `env` look up."""
    with contextlib.suppress(OSError), open_file(script) as file:
        words = file.readline(256).decode(errors="replace").split()
        if words and words[0].startswith("#!") and words[0].endswith("/env"):
            names = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
            found = shutil.which(names[0], path=search) if names else None
            if found is not None:
                yield Path(os.path.abspath(found))


# --- users


def _user(case: Case) -> User | None:
    said = case.limits.user
    if said is None:
        if case.limits.sandbox != STRICT or os.geteuid() != 0 or case.common.runtime == CONTAINER:
            return None
        number = own_user(case.entry.name, *case.settings.sandbox_uids)
        return number, number
    try:
        found = _resolved(str(said))
    except ValueError as problem:
        raise case.error("user", str(problem)) from problem
    if found == (os.geteuid(), os.getegid()):
        return None
    if os.geteuid() != 0:
        raise case.error("user", "only a gateway that runs as root can start it as another user")
    return found


def _resolved(text: str) -> User:
    """Read `name` or `uid`, or either with `:gid`.

    Raises:
        ValueError: there is no such user.
    """
    name, colon, group = text.partition(":")
    known = _known(name)
    if known is None and not _is_number(name):
        raise ValueError(f"this machine has no user {name!r}")
    uid = known.pw_uid if known else int(name)
    gid = known.pw_gid if known else uid
    if colon:
        gid = _group(group)
    if max(uid, gid) > LAST_UID:
        raise ValueError(f"{text!r}: the last user there can be is {LAST_UID}")
    return uid, gid


def _known(name: str) -> pwd.struct_passwd | None:
    with contextlib.suppress(KeyError, OverflowError):
        return pwd.getpwuid(int(name)) if _is_number(name) else pwd.getpwnam(name)
    return None


def _group(text: str) -> int:
    if _is_number(text):
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError as problem:
        raise ValueError(f"this machine has no group {text!r}") from problem


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _may(path: Path, user: User, bits: int) -> bool:
    try:
        facts = path.stat()
    except OSError:
        return False
    shift = 6 if facts.st_uid == user[0] else 3 if facts.st_gid == user[1] else 0
    return user[0] == 0 or (facts.st_mode >> shift) & bits == bits


def _must_read(case: Case, user: User, code: Iterable[Path]) -> None:
    for path in sorted(code):
        if path.exists() and not _may(path, user, 5 if path.is_dir() else 4):
            key = "user" if case.limits.user is not None else "sandbox"
            raise case.error(key, f"user {user[0]} may not read {path}: chmod -R o+rX {path}, or say user: root")


def _closed(paths: Iterable[Path], user: User) -> set[Path]:
    """Return the folders on the way to paths that a user cannot enter.

    Once they are hidden they can be entered, and hold what is shown and nothing else.
    """
    found: dict[Path, Path | None] = {}
    for path in paths:
        if path.parent not in found:
            found[path.parent] = next((one for one in reversed(path.parents) if not _open(one, user)), None)
    return {path for path in found.values() if path is not None}


def _open(folder: Path, user: User) -> bool:
    return not folder.is_dir() or _may(folder, user, 1)
