"""Reads connectors.yaml and connectors.d: who is registered, with which keys, from where."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gateway.cells.program import cache
from gateway.connectors.clients import ClientFile, client_files, read_clients, settled
from gateway.connectors.ground import Inode, ground_of, inode, located, units
from gateway.errors import ConfigError
from gateway.files import check_file, identity, open_file, printable, unusable, walk
from gateway.identity import registered
from gateway.runners import RUNNERS
from gateway.runtimes.base import BUILT, FAILED, LOCK
from gateway.sections import GatewaySection, Limits
from gateway.settings import NAME, Settings, read_defaults, read_document, read_secrets, section_of
from gateway.yaml_document import YamlNode, load

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gateway.connectors.clients import ReadCallbacks

FOLDER_FILES = 2000  # files of a drop-in's folder whose change is noticed
OURS = (
    Path(__file__).parent.parent,
    RUNNERS,
    cache(),
    *((Path(sys.prefix),) if sys.prefix != sys.base_prefix else ()),
)
"""The gateway's own code: connectors run some of it."""

DEFINITION = "connector.yaml"
"""What makes a folder a drop-in."""
_MISNAMED = {"connector.yaml", "connector.yml", "connectors.yaml", "connectors.yml"}
_NOTES = re.compile(r"(?:readme|license|licence|notice|changelog)(?:\..*)?|.*\.(?:md|rst|txt)", re.IGNORECASE)
"""What may lie anywhere."""

Fingerprint = tuple[tuple[object, ...], ...]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A registered connector before it is understood: its merged keys, or why they cannot be read."""

    name: str
    node: YamlNode
    folder: Path
    problem: str | None = None
    files: tuple[Path, ...] = ()
    """What belongs to it besides what its command line names: a drop-in's own files."""
    beside: tuple[Path, ...] = ()
    """What lies beside a drop-in and is none: what several of them share."""
    others: dict[str, Inode] = {}
    """The code of whatever connectors.yaml names, and the gateway's own: no connector's to write."""


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was read, in the order of names."""

    entries: tuple[Entry, ...]
    defaults: Limits
    said: YamlNode = YamlNode({})
    """The section `defaults` as it is written."""
    clients: dict[str, ClientFile] | None = None
    """By their names; None where there is no folder of them."""
    has_folder: bool = True
    """Whether the folder of drop-ins was there."""
    passed_over: tuple[str, ...] = ()
    """What lies in it and is no drop-in, each with the reason, but for notes; or that there is no such folder."""


def read_sources(
    settings: Settings,
    read_callbacks: ReadCallbacks = lambda node: node,
    clients: Mapping[str, ClientFile] | None = None,
) -> Sources:
    """Read the registry's files.

    Args:
        settings: where they are.
        read_callbacks: decodes a client's section `callbacks`.
        clients: what there was of clients before; None: nothing was read yet.

    Raises:
        ConfigError: connectors.yaml, or a folder, cannot be used as a whole. One bad connector, or client, is no such
            case.
    """
    document = read_document(settings.file)
    settings.lookup.use(read_secrets(document))
    defaults, env = read_defaults(document)
    listed = dict(section_of(document, "connectors").items())
    shared: dict[Path, str] = {}
    listing = _folder_entries(settings)
    found = list(_drop_ins(listing or (), shared))
    drop_ins = [msgspec.structs.replace(entry, beside=tuple(shared)) for entry in found]

    def common(env: YamlNode) -> dict[str, Entry]:
        """Return the common entries by their names, above some variables."""
        entries = {entry.name: msgspec.structs.replace(entry, node=_above(env, entry.node)) for entry in drop_ins}
        for name, node in listed.items():
            entries[name] = _overlaid(name, node, entries.get(name), settings.file.parent, env)
        return entries

    entries = common(env)
    served = [name for name in entries if settings.enable == "all" or name in listed]
    found_clients = read_clients(settings, read_callbacks)
    if found_clients is None and clients is not None:
        raise ConfigError(f"{settings.clients_dir}: the folder is gone")
    files = settled(found_clients, clients or {}, entries) if found_clients is not None else None
    own: list[Entry] = []
    for one in (files or {}).values():
        below = env.overlaid(one.env)
        own += _own(one, common(below) if one.client.alone else entries, served, settings, below)
    ground = ground_of(settings.file.parent, settings)
    named = [(node, settings.file.parent) for node in listed.values()]
    named += [(entry.node, entry.folder) for entry in own]
    code = [*OURS, *(file for node, folder in named for file in _code(node, folder))]
    others = {str(unit): inode(unit) for file in code for place in located(file) for unit in units(place, ground)}
    chosen = [msgspec.structs.replace(entry, others=others) for entry in (*(entries[name] for name in served), *own)]
    return Sources(
        entries=tuple(sorted(chosen, key=lambda entry: entry.name)),
        defaults=defaults,
        said=section_of(document, "defaults"),
        clients=files,
        has_folder=listing is not None,
        passed_over=(
            *(f"{path}: {why}" for path, why in shared.items() if not _NOTES.fullmatch(path.name)),
            *(f"{one}: there is no such folder" for one in _missing(settings, listing, found_clients)),
        ),
    )


def _own(
    file: ClientFile, common: Mapping[str, Entry], served: Iterable[str], settings: Settings, env: YamlNode
) -> Iterator[Entry]:
    """Yield a client's own connectors, under the names that they are registered by; `env` lies below them."""
    client, overlays = file.client, dict(file.connectors)
    folder = settings.clients_dir or settings.file.parent
    names = dict.fromkeys((*overlays, *(name for name in served if client.alone and client.may_use(name))))
    for name in names:
        under = common.get(name)
        entry = _overlaid(name, overlays[name], under, folder, env) if name in overlays or under is None else under
        data = entry.node.data
        if under is None and entry.problem is None and not {"run", "runtime", "enabled"} & data.keys():
            problem = entry.node.error(
                "there is no common connector of this name to change; a new one needs run, or a runtime"
            )
            entry = msgspec.structs.replace(entry, problem=str(problem))
        yield msgspec.structs.replace(entry, name=registered(name, client.name))


def _missing(settings: Settings, drop_ins: object, clients: object) -> Iterator[Path]:
    """Yield the folders that somebody has named and that are not there."""
    for folder, found, usual in (
        (settings.connectors_dir, drop_ins, GatewaySection().connectors_dir),
        (settings.clients_dir, clients, GatewaySection().clients_dir),
    ):
        if found is None and folder is not None and folder.name != usual:
            yield folder


def _code(node: YamlNode, folder: Path) -> Iterator[Path]:
    """Yield the files and folders that an entry names as its code, before anything else of it is understood."""
    data = node.data if isinstance(node.data, dict) else {}
    run = data.get("run")
    first = run[:1] if isinstance(run, list) else []
    texts = [*first, *(data.get(key) for key in ("module", "jar", "venv"))]
    for key in ("classpath", "sources", "requirements"):
        several = data.get(key)
        texts += several if isinstance(several, list) else []
    for text in texts:
        if isinstance(text, str) and "/" in text and "\0" not in text:
            yield Path(os.path.normpath(folder / text))


def fingerprint(settings: Settings) -> Fingerprint:
    """Return what changes when connectors.yaml, a client, a build or the folder of drop-ins (not its contents) does.

    So does the key of TLS, which is hidden from connectors.
    """
    marks = [identity(settings.file), *(identity(build) for build in _builds(settings.state_dir / "runtimes"))]
    if settings.tls is not None:
        marks.append(identity(settings.tls.key))
    try:
        entries = _folder_entries(settings)
        clients = client_files(settings.clients_dir) if settings.clients_dir is not None else None
    except ConfigError as problem:  # `read_sources` tells it; here it is a state like any other
        return (*marks, (str(problem),))
    if settings.clients_dir is not None:
        marks += [identity(settings.clients_dir), *(identity(file) for file in clients or ())]
    if entries is None:
        return (*marks, (None,))
    if settings.connectors_dir is not None:
        marks.append(identity(settings.connectors_dir)[-1:])  # who may write to it
    for entry in entries:
        marks.append(identity(entry))
        if os.path.isdir(entry):
            marks.append(identity(entry / DEFINITION))
    return tuple(marks)


def _builds(folder: Path) -> Iterator[str]:
    """Yield what changes when `gateway install` has made something, or failed, and what it would be made of again."""
    with contextlib.suppress(OSError), os.scandir(folder) as listing:
        for name in sorted(entry.path for entry in listing):
            yield f"{name}/current"
            yield f"{name}/{FAILED}"
            yield f"{name}/{LOCK}"


def _overlaid(name: str, node: YamlNode, under: Entry | None, folder: Path, env: YamlNode) -> Entry:
    """Return an entry of a file in that folder, on top of what there is under the same name, or of variables alone."""
    if not NAME.fullmatch(name):
        problem = node.error("a connector's name is made of letters, digits, _ - and . and does not begin with a dot")
        return Entry(name=name, node=node, folder=folder, problem=str(problem))
    fault = node.fault()
    off = isinstance(node.data, dict) and node.data.get("enabled") is False  # whatever is wrong with it
    if fault is not None and not off:
        return Entry(name=name, node=node, folder=folder, problem=str(fault))
    if not isinstance(node.data, dict):
        if node.data is not None:
            problem = node.error("expected a mapping with the connector's keys")
            return Entry(name=name, node=node, folder=folder, problem=str(problem))
        node = node.holding({})
    if under is None:
        return Entry(name=name, node=_above(env, node), folder=folder)
    if off:
        return Entry(name=name, node=node, folder=under.folder)
    return msgspec.structs.replace(under, node=under.node.overlaid(node))


def _above(env: YamlNode, node: YamlNode) -> YamlNode:
    """Return an entry's keys with variables below its own; `null` takes one away, also from an overlay's."""
    if not env.data or not isinstance(node.data, dict):
        return node
    return YamlNode({"env": env.data}, node.keys, env.moved((*node.keys, "env")).marks).overlaid(node)


def _drop_ins(listing: Iterable[Path], shared: dict[Path, str]) -> Iterator[Entry]:
    """Yield the drop-ins; what lies there and is none is put into `shared`, with the reason."""
    claimed: dict[str, Path] = {}
    for path in listing:
        found = _from_folder(path) if os.path.isdir(path) else _from_file(path)
        if isinstance(found, str):
            shared[path] = found
            continue
        if found.name in claimed:
            problem = f"{path}: {claimed[found.name].name} claims the name {found.name} too: rename one of them"
            found = msgspec.structs.replace(found, problem=problem)
        claimed.setdefault(found.name, path)
        yield found


def _folder_entries(settings: Settings) -> list[Path] | None:
    """Return what lies in the folder of drop-ins; None where there is no such folder."""
    folder = settings.connectors_dir
    if folder is None:
        return []
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise ConfigError(unusable(problem)) from problem
    # Hidden names are a ConfigMap's ..data and editors' swap files, a ~ ends their backups.
    return [folder / entry.name for entry in found if not entry.name.startswith(".") and not entry.name.endswith("~")]


def _from_folder(path: Path) -> Entry | str:
    """Return a folder's connector, or why it has none."""
    name = printable(path.name)
    keys = ("connectors", name)
    bare = Entry(name=name, node=YamlNode({}, keys), folder=path)
    try:
        names = os.listdir(path)
        if DEFINITION not in names:
            meant = next((one for one in sorted(names) if one.lower() in _MISNAMED), None)
            if meant is None:
                return f"a folder without {DEFINITION}"
            return msgspec.structs.replace(bare, problem=f"{path / meant}: rename it to {DEFINITION}")
        os.stat(path / DEFINITION)
    except OSError as problem:  # whatever it is, nobody could use it
        return msgspec.structs.replace(bare, problem=unusable(problem))
    if not NAME.fullmatch(path.name):
        return msgspec.structs.replace(bare, problem=f"{path}: this name cannot be a connector's")
    try:
        node = load(path / DEFINITION).moved(keys)
    except ConfigError as problem:
        return msgspec.structs.replace(bare, problem=str(problem))
    return msgspec.structs.replace(bare, node=node, files=tuple(_below(path)))


def _from_file(path: Path) -> Entry | str:
    """Return a file's connector, or why it is none."""
    name = printable(path.stem)
    node = YamlNode({"runtime": "exec", "run": [str(path)]}, ("connectors", name))
    bare = Entry(name=name, node=node, folder=path.parent)
    try:
        check_file(path)
        if os.access(path, os.X_OK):
            problem = None if NAME.fullmatch(name) else f"{path}: this name cannot be a connector's"
        elif _NOTES.fullmatch(path.name):
            return "no connector"
        elif not _is_script(path):
            hint = f": a connector's keys are in {DEFINITION}, in a folder of its own" if _is_yaml(path) else ""
            return f"neither executable nor a script{hint}"
        else:
            problem = f"{path} is not executable: chmod +x {path}"
    except FileNotFoundError as gone:
        problem = f"{path}: the link leads nowhere" if path.is_symlink() else unusable(gone)
    except OSError as other:
        if other.errno == 0:  # a pipe, a socket, a device
            return str(other.strerror)
        problem = unusable(other)
    return msgspec.structs.replace(bare, problem=problem, files=() if problem else (path,))


def _is_script(path: Path) -> bool:
    with open_file(path) as file:
        return file.read(2) == b"#!"


def _is_yaml(path: Path) -> bool:
    return path.suffix in {".yaml", ".yml"}


def _below(folder: Path) -> list[Path]:
    """Return the files of a drop-in's folder, without hidden ones and what tools build there."""
    files = (Path(file) for file in walk(folder, lambda name: name.startswith(".") or name in BUILT))
    return sorted(itertools.islice((file for file in files if not file.name.startswith(".")), FOLDER_FILES))
