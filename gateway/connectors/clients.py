"""Clients: who has which keys, what each may use of the common registry, and what is its own.

A client is a file, `clients.d/NAME.yaml`. It is understood as a whole or not at all; one bad connector in it is that
connector's own trouble.
"""

from __future__ import annotations

import datetime
import fnmatch
import hashlib
import re
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import ConfigError
from gateway.files import printable, unusable
from gateway.identity import DEFAULT, Role
from gateway.settings import NAME, ClientLimits
from gateway.yaml_document import YamlNode, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    ReadCallbacks = Callable[[YamlNode], Any]
    from pathlib import Path

    from gateway.secrets import Secrets
    from gateway.settings import Settings

SUFFIXES = (".yaml", ".yml")
SHOWN = 8  # digits of a key's digest that its id is made of
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_SECTIONS = ("connectors", "env", "callbacks")
"""Sections that are not decoded with the rest."""


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key as an operator writes it."""

    sha256: str | None = None
    """The SHA-256 of it, in hexadecimal digits."""
    key: str | None = None
    """The key itself: a secret's, or for a trial."""
    id: str | None = None
    """What the log calls it. Absent: the first digits of its SHA-256."""
    role: Role = Role.CALLER
    until: str | None = None
    """The last day (UTC), or the moment, on which it counts."""


class ClientSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A client's file, without its connectors and callbacks."""

    keys: list[Any] = []
    allow: list[str] | None = None
    """Patterns of names; absent: the whole common registry."""
    limits: ClientLimits = ClientLimits()


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key that is known by its digest."""

    digest: bytes
    id: str
    role: Role
    until: float | None = None
    """Seconds since 1970, from which on it does not count any more."""

    def is_over(self, now: float) -> bool:
        """Tell whether it counted once, and does not any more."""
        return self.until is not None and now >= self.until


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """A client that is understood."""

    name: str
    keys: tuple[Key, ...] = ()
    allow: tuple[str, ...] | None = None
    limits: ClientLimits = ClientLimits()
    callbacks: Any = None
    """What its section `callbacks` was read as; None: it has none, and uses the common one."""
    overlays: frozenset[str] = frozenset()
    """Connectors that its file changes, adds or switches off: of these names the common ones are not its own."""
    named: frozenset[str] = frozenset()
    """Common connectors that its file names without a change: it may use them, whatever `allow` says."""
    alone: bool = False
    """It has variables of its own: none of its connectors is a common one."""
    nobodys: tuple[str, ...] = ()
    """What is said of its keys that count for nobody: other clients have them, too, or a secret is missing."""
    unmatched: tuple[str, ...] = ()
    """Patterns of `allow` that no common connector fits."""
    problem: str | None = None
    """Why its file cannot be used; what there was before counts then, if there was something."""
    understood: bool = True
    """False: its file cannot be used, and there was nothing before."""

    def notices(self, now: float) -> list[str]:
        """Return what an operator should know at that moment although it can be used."""
        return [
            *self.nobodys,
            *(f"key {key.id} does not count any more: remove it" for key in self.keys if key.is_over(now)),
            *(f"allow: no common connector is called {pattern}" for pattern in self.unmatched),
        ]

    def shares(self, name: str) -> bool:
        """Tell whether a common connector is there for it as it is."""
        return not self.alone and name not in self.overlays and self.may_use(name)

    def may_use(self, name: str) -> bool:
        """Tell whether it may use a common connector, changed or not."""
        if name in self.named or self.allow is None:
            return True
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.allow)


class ClientFile(msgspec.Struct, frozen=True, kw_only=True):
    """A client, and the connectors of its file before they are understood."""

    client: Client
    connectors: tuple[tuple[str, YamlNode], ...] = ()
    env: YamlNode = YamlNode({})
    """Variables of all its connectors; those of an entry lie on top."""


def read_clients(settings: Settings, read_callbacks: ReadCallbacks) -> tuple[ClientFile, ...] | None:
    """Read the files of all clients, in the order of their names; None where there is no such folder.

    Raises:
        ConfigError: the folder cannot be read.
    """
    folder = settings.clients_dir
    if folder is None:
        return None
    files = client_files(folder)
    if files is None:
        return None
    found: dict[str, ClientFile] = {}
    for path in files:
        one = _read(path, settings.lookup, read_callbacks)
        name = one.client.name
        if name in found:
            one = _refused(name, f"{path}: there is a file {name}{SUFFIXES[0]}, too: remove one of them")
        found[name] = one
    return tuple(found[name] for name in sorted(found))


def has_clients(settings: Settings) -> bool:
    """Tell whether there are clients, so that nothing is served without a key."""
    return settings.clients_dir is not None and client_files(settings.clients_dir) is not None


def client_files(folder: Path) -> list[Path] | None:
    """Return the clients' files in a folder; None where there is no such folder.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        listing = sorted(folder.iterdir())
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise ConfigError(unusable(problem)) from problem
    return [path for path in listing if path.suffix in SUFFIXES and not path.name.startswith(".")]


def _read(path: Path, lookup: Secrets, read_callbacks: ReadCallbacks) -> ClientFile:
    name = printable(path.stem)
    if not NAME.fullmatch(name):
        return _refused(name, f"{path}: a client's name is made of letters, digits, _ - and .")
    try:
        document = load(path, entries="connectors")
        overlays = document.child("connectors").items() if document.data.get("connectors") else []
        client = _understood(name, document, overlays, lookup, read_callbacks)
    except ConfigError as problem:
        return _refused(name, str(problem))
    except Exception as problem:  # noqa: BLE001 - whatever is wrong with one client's file, the others are served
        return _refused(name, f"{path}: {type(problem).__name__}: {problem}")
    return ClientFile(
        client=client,
        connectors=tuple((one, node) for one, node in overlays if _changes(node)),
        env=document.child("env").alone() if client.alone else YamlNode({}),
    )


def _refused(name: str, problem: str) -> ClientFile:
    return ClientFile(client=Client(name=name, allow=(), problem=printable(problem), understood=False))


def _understood(
    name: str,
    document: YamlNode,
    overlays: list[tuple[str, YamlNode]],
    lookup: Secrets,
    read_callbacks: ReadCallbacks,
) -> Client:
    keys, missing = _keys(document, lookup)
    document, _ = document.resolved(lookup, lambda keys: keys[:1] in {("keys",), ("connectors",), ("env",)})
    own = {key: value for key, value in document.data.items() if key not in _SECTIONS}
    section = document.holding(own).decode(ClientSection)
    env = document.data.get("env")
    if env is not None and not isinstance(env, dict):
        raise document.error("expected a mapping with variables", ("env",))
    for pattern in section.allow or ():
        if not pattern:
            raise document.error("is empty: write the name of a connector, or a pattern such as text*", ("allow",))
    changed = frozenset(one for one, node in overlays if _changes(node))
    return Client(
        name=name,
        keys=keys,
        nobodys=missing,
        alone=bool(env),
        allow=tuple(section.allow) if section.allow is not None else None,
        limits=section.limits,
        callbacks=read_callbacks(document.child("callbacks")) if document.data.get("callbacks") is not None else None,
        overlays=changed,
        named=frozenset(one for one, _ in overlays) - changed,
    )


def _changes(node: YamlNode) -> bool:
    return bool(node.data) or node.fault() is not None


def _keys(document: YamlNode, lookup: Secrets) -> tuple[tuple[Key, ...], tuple[str, ...]]:
    """Return the keys, and what is said of those whose secret is missing: the others count without them."""
    found, missing = [], []
    listed = document.data.get("keys") or []
    if not isinstance(listed, list):
        raise document.error("expected a list of keys", ("keys",))
    for number, said in enumerate(listed):
        node = document.child("keys").child(number)
        if isinstance(said, dict) and len(said) > 1 and isinstance(said.get("secret"), str):  # with its role, say
            rest = {key: value for key, value in said.items() if key != "secret"}
            node = node.holding({"key": {"secret": said["secret"]}, **rest})
        try:
            node, _ = node.resolved(lookup)
        except ConfigError as problem:
            missing.append(str(problem))
            continue
        found.append(_key(node))
    return tuple(found), tuple(missing)


def _key(node: YamlNode) -> Key:
    entry = KeyEntry(key=node.data) if isinstance(node.data, str) else node.decode(KeyEntry)
    if (entry.sha256 is None) == (entry.key is None):
        raise node.error("a key has either sha256 or a secret: `gateway keys new` makes one")
    if entry.key is not None and not entry.key.strip():
        raise node.error("is empty")
    if entry.sha256 is not None and not _DIGEST.fullmatch(entry.sha256):
        raise node.error("is no SHA-256: 64 hexadecimal digits, of the key alone", ("sha256",))
    digest = digest_of(entry.key) if entry.key is not None else bytes.fromhex(str(entry.sha256))
    if digest == digest_of(""):
        raise node.error("is the SHA-256 of nothing: `gateway keys new` makes a key", ("sha256",))
    try:
        until = _end(entry.until)
    except (ValueError, OverflowError) as problem:
        raise node.error(f"is no date such as 2027-03-01: {problem}", ("until",)) from problem
    return Key(digest=digest, id=entry.id or digest.hex()[:SHOWN], role=entry.role, until=until)


def digest_of(key: str) -> bytes:
    """Return what a key is known by."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _end(said: str | None) -> float | None:
    """Return the moment from which on a key does not count: the end of a day, or the one that is said."""
    if said is None:
        return None
    day = len(said) == len("2027-03-01")
    moment = datetime.datetime.fromisoformat(said)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment + datetime.timedelta(days=1) if day else moment).timestamp()


def settled(
    files: Iterable[ClientFile], before: Mapping[str, ClientFile], common: Iterable[str]
) -> dict[str, ClientFile]:
    """Return the files that count, by the clients' names: of one that cannot be used, what there was of it before.

    A key that several clients have is nobody's: whoever has it could see what is another's. `common` are the names of
    the common connectors.
    """
    found = {}
    for one in files:
        name, problem = one.client.name, one.client.problem
        last = before.get(name) if problem is not None else None
        found[name] = one
        if last is not None:
            kept = msgspec.structs.replace(last.client, problem=problem)
            found[name] = ClientFile(client=kept, connectors=last.connectors, env=last.env)
    found.setdefault(DEFAULT, ClientFile(client=Client(name=DEFAULT)))
    owners: dict[bytes, set[str]] = {}
    for name, one in found.items():
        for key in one.client.keys:
            owners.setdefault(key.digest, set()).add(name)
    names = list(common)
    return {name: _apart(found[name], owners, names) for name in sorted(found)}


def _apart(one: ClientFile, owners: Mapping[bytes, set[str]], common: list[str]) -> ClientFile:
    client = one.client
    own = tuple(key for key in client.keys if len(owners[key.digest]) == 1)
    unmatched = tuple(pattern for pattern in client.allow or () if not fnmatch.filter(common, pattern))
    nobodys = tuple(
        f"key {key.id} is nobody's: {', '.join(sorted(owners[key.digest]))} have the same"
        for key in client.keys
        if key not in own
    )
    return msgspec.structs.replace(
        one, client=msgspec.structs.replace(client, keys=own, nobodys=(*client.nobodys, *nobodys), unmatched=unmatched)
    )
