"""Clients: who has which keys, what each may use of the common registry, and what is its own.

A client is a file, `clients.d/NAME.yaml`. It is understood as a whole or not at all; one bad connector in it is that
connector's own trouble.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import fnmatch
import hashlib
import os
import re
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import ConfigError
from gateway.files import printable, unusable
from gateway.identity import DEFAULT, Role
from gateway.sections import ClientLimits
from gateway.settings import NAME, is_mapping
from gateway.yaml_document import YamlNode, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    ReadCallbacks = Callable[[YamlNode], Any]
    from pathlib import Path

    from gateway.secrets import Keys, Secrets, Use
    from gateway.settings import Settings

SUFFIXES = (".yaml", ".yml")
SHOWN = 8  # digits of a key's digest that its id is made of
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_SECTIONS = ("connectors", "env", "callbacks")
"""Sections that are not decoded with the rest."""
EARLY = datetime.timedelta(days=14).total_seconds()
"""Before a key ends, when that is told."""


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
    """A client's file; its connectors, variables and callbacks are understood by others."""

    keys: list[Any] = []
    allow: list[str] | None = None
    """Patterns of names; absent: the whole common registry."""
    limits: ClientLimits = ClientLimits()
    connectors: Any = None
    env: Any = None
    callbacks: Any = None


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

    @property
    def end(self) -> str | None:
        """When it ends, for people and programs."""
        return None if self.until is None else datetime.datetime.fromtimestamp(self.until, datetime.UTC).isoformat()


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
    said_of_keys: tuple[str, ...] = ()
    """What is said of its keys: that there are none, or count for nobody since other clients have them, too, or a
    secret is missing; or that one stands in the file in plain."""
    unmatched: tuple[str, ...] = ()
    """What is said of patterns of `allow` that no common connector fits."""
    problem: str | None = None
    """Why its file cannot be used; what there was before counts then, if there was something."""
    understood: bool = True
    """False: its file cannot be used, and there was nothing before."""

    def notices(self, now: float, *, ending: bool = True) -> list[str]:
        """Return what an operator should know at that moment although it can be used; of keys that end soon, too."""
        soon = [key for key in self.keys if ending and key.is_over(now + EARLY) > key.is_over(now)]
        return [
            *self.said_of_keys,
            *(f"key {key.id} does not count any more: remove it" for key in self.keys if key.is_over(now)),
            *(f"key {key.id} ends at {key.end}" for key in soon),
            *self.unmatched,
        ]

    def facts(self, now: float) -> dict[str, Any]:
        """Return what an operator is told of it at that moment."""
        return {
            "problem": self.problem,
            "notices": self.notices(now),
            "keys": [{"id": key.id, "role": key.role.value, "until": key.end} for key in self.keys],
            "allow": self.allow,
            "own": sorted(self.overlays),
        }

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
    said: Client | None = None
    """The client as its file says, where others were looked at since: with keys that they have, too."""


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
        one = _read(path, settings, read_callbacks)
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
        listing = sorted(folder / entry.name for entry in os.scandir(folder))
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise ConfigError(unusable(problem)) from problem
    files = [path for path in listing if path.suffix in SUFFIXES and not path.name.startswith(".")]
    return [path for path in files if not path.stem.endswith((".tests", ".test"))]  # examples of clients' connectors


def _read(path: Path, settings: Settings, read_callbacks: ReadCallbacks) -> ClientFile:
    name = printable(path.stem)
    if not NAME.fullmatch(name):
        return _refused(name, f"{path}: a client's name is made of letters, digits, _ - and .")
    try:
        document = load(path, entries="connectors")
        overlays = document.child("connectors").items() if document.data.get("connectors") else []
        client = _understood(name, document, overlays, settings.lookup, read_callbacks)
    except ConfigError as problem:
        return _refused(name, str(problem))
    except Exception as problem:  # noqa: BLE001 - whatever is wrong with one client's file, the others are served
        return _refused(name, f"{path}: {type(problem).__name__}: {problem}")
    certified = settings.tls is not None and settings.tls.client_ca is not None
    if not document.data.get("keys") and name != DEFAULT and not certified:
        nobody = f"{path}: keys: there are none, so nobody calls for it: `gateway keys new {name}` makes one"
        client = msgspec.structs.replace(client, said_of_keys=(nobody,))
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
    keys, said_of_keys = _keys(document, lookup)
    document, _ = document.resolved(lookup, _left, is_mapping)
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
        said_of_keys=said_of_keys,
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
    """Return the keys, and what is said of them. Without one whose secret is missing the others count."""
    found, said_of_keys = [], []
    for written in _written_keys(document):
        try:
            node, uses = written.resolved(lookup)
        except ConfigError as problem:
            said_of_keys.append(str(problem))
            continue
        key = _key(node)
        if not uses and "sha256" not in (node.data if isinstance(node.data, dict) else ()):
            plain = (
                f'key {key.id} stands here in plain: make another one, and write {{sha256: "..."}}, or {{secret: NAME}}'
            )
            said_of_keys.append(str(node.error(plain)))
        found.append(key)
    return tuple(found), tuple(said_of_keys)


def _written_keys(document: YamlNode) -> Iterator[YamlNode]:
    """Yield the entries of the list of keys; a secret's with more to it has that as its key."""
    listed = document.data.get("keys") or []
    if not isinstance(listed, list):
        raise document.error('expected a list of keys: write [{sha256: "..."}]', ("keys",))
    for number, said in enumerate(listed):
        node = document.child("keys").child(number)
        if isinstance(said, dict) and len(said) > 1 and isinstance(said.get("secret"), str):  # with its role, say
            rest = {key: value for key, value in said.items() if key != "secret"}
            node = node.holding({"key": {"secret": said["secret"]}, **rest})
        yield node


def _left(keys: Keys) -> bool:
    """Tell whether what stands at some keys of a client's file is resolved elsewhere."""
    return keys[:1] in {("keys",), ("connectors",), ("env",)}


def secrets_of_clients(settings: Settings) -> Iterator[tuple[Use, str]]:
    """Yield each place in the clients' files that names a secret, but for connectors, and what it is called."""
    for path in client_files(settings.clients_dir) or () if settings.clients_dir is not None else ():
        with contextlib.suppress(ConfigError):  # `gateway check` says what is wrong with it
            document = load(path, entries="connectors")
            for use in document.resolved(settings.lookup, _left, is_mapping, lenient=True)[1]:
                yield use, f"{path.name}: {'.'.join(map(str, use.keys))}"
            for node in _written_keys(document):
                for use in node.resolved(settings.lookup, lenient=True)[1]:
                    yield use, f"{path.name}: {'.'.join(map(str, node.keys))}"


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
    moment = datetime.datetime.fromisoformat(said)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment + datetime.timedelta(days=1) if _is_day(said) else moment).timestamp()


def _is_day(said: str) -> bool:
    try:
        datetime.date.fromisoformat(said)
    except ValueError:
        return False
    return True


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
            kept = msgspec.structs.replace(last.said or last.client, problem=problem)
            found[name] = msgspec.structs.replace(last, client=kept, said=None)
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
    unmatched = tuple(
        f"allow: no common connector is called {pattern}{meant(pattern, common)}"
        for pattern in client.allow or ()
        if not fnmatch.filter(common, pattern)
    )
    nobodys = tuple(
        f"key {key.id} is nobody's: {', '.join(sorted(owners[key.digest]))} have the same, make another one for each"
        for key in client.keys
        if key not in own
    )
    told = msgspec.structs.replace(client, keys=own, said_of_keys=(*client.said_of_keys, *nobodys), unmatched=unmatched)
    return msgspec.structs.replace(one, client=told, said=client)


def meant(name: str, names: Iterable[str]) -> str:
    """Say which of the names that there are may be meant by one that is not."""
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
