"""One consistent state of the registry. A reload makes a new one and swaps the reference."""

from __future__ import annotations

import enum
import functools
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.connectors.definition import Connector
from gateway.errors import CommandNotFound, ConnectorUnavailable
from gateway.identity import DEFAULT, called, owner_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gateway.connectors.auths import Auth
    from gateway.connectors.clients import Client
    from gateway.connectors.definition import Command


class ConnectorState(enum.Enum):
    """What a connector can do for callers."""

    READY = "ready"
    DESCRIBING = "describing"
    QUARANTINED = "quarantined"


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One connector's state. `connector` is None where its entry could not be understood."""

    name: str
    state: ConnectorState
    reason: str | None = None
    connector: Connector | None = None
    successor: Connector | None = None
    """A newer definition that is being described while this one goes on serving."""

    @property
    def newest(self) -> Connector | None:
        """The definition that the files say now."""
        return self.successor or self.connector


class Snapshot:
    """All connectors by name: those that are registered, or those that there are for one client, as it calls them."""

    def __init__(self, statuses: Mapping[str, Status], *, one_client: bool = False) -> None:
        self._one_client = one_client
        self.statuses = statuses
        self.found: dict[tuple[str, str], tuple[Connector, Command]] = {}
        """What was asked for already, by the names of connector and command: it stays as long as this state."""

    def find(self, connector: str, command: str) -> tuple[Connector, Command]:
        """Return what a call names.

        Raises:
            CommandNotFound: there is no such connector or command.
            ConnectorUnavailable: the connector is quarantined, or not described yet.
        """
        status = self.statuses.get(connector)
        if status is None:
            raise CommandNotFound(f"there is no connector {_quoted(connector)}")
        found = status.connector
        if status.state is not ConnectorState.READY or found is None or found.commands is None:
            raise ConnectorUnavailable(f"{connector} is {status.state.value}: {status.reason}", retry_after=10)
        if command not in found.commands:
            known = ", ".join(found.commands) or "none"
            raise CommandNotFound(f"{connector} has no command {_quoted(command)} (it has: {known})")
        return self.found.setdefault((connector, command), (found, found.commands[command]))

    def source(self, category: str) -> tuple[Connector, Command]:
        """Return the command that suggests for a category.

        Raises:
            CommandNotFound: there is none.
        """
        connector, command = self._sources[0].get(("", category), ("", ""))
        if not connector:
            known = ", ".join(one for _, one in self._sources[0]) or "none"
            raise CommandNotFound(f"there is no typeahead {_quoted(category)} (there is: {known})")
        return self.find(connector, command)

    def notices(self, connector: str) -> list[str]:
        """Return what an operator should know of a connector although it works."""
        found = self.statuses[connector].connector
        return [*found.notices, *self._sources[1].get(found.name, ())] if found is not None else []

    @functools.cached_property
    def _sources(self) -> tuple[dict[tuple[str, str], tuple[str, str]], dict[str, list[str]]]:
        """The sources of typeahead by category, and what to tell connectors that come too late with theirs.

        Among all that are registered, each client has its own.
        """
        first: dict[tuple[str, str], tuple[str, str]] = {}
        late: dict[str, list[str]] = {}
        for one in sorted(self.ready(), key=lambda connector: connector.name):
            for _, command in sorted((one.commands or {}).items()):
                if command.typeahead is None:
                    continue
                category = command.typeahead.category
                owner = "" if self._one_client else owner_of(one.name)
                taken = first.setdefault((owner, category), (one.called, command.name))
                if taken != (one.called, command.name):
                    notice = f"typeahead {category}: {'/'.join(taken)} has it already, so {command.name} is not asked"
                    late.setdefault(one.name, []).append(notice)
        return first, late

    def ready(self) -> Iterable[Connector]:
        """Return the connectors that can be called."""
        for status in self.statuses.values():
            if status.state is ConnectorState.READY and status.connector is not None:
                yield status.connector

    @functools.cached_property
    def commands(self) -> bytes:
        """The catalogue of commands as JSON."""
        return _catalogue((one.called, command) for one in self.ready() for command in (one.commands or {}).values())

    @functools.cached_property
    def auths(self) -> bytes:
        """The catalogue of the authentications that can be used, as JSON."""
        return msgspec.json.encode([_listed(one.called, auth) for one in self.ready() for auth in _usable(one)])

    def auth(self, connector: str, name: str) -> Auth | None:
        """Return an authentication that can be used, None when there is no such one."""
        status = self.statuses.get(connector)
        if status is None or status.connector is None or status.state is not ConnectorState.READY:
            return None
        auth = status.connector.auths.get(name)
        return auth if auth is not None and auth.flaw is None else None


class NotUnderstood(Snapshot):
    """What there is for a client whose file cannot be used: nothing, until it is mended. Its jobs wait for that."""

    def find(self, connector: str, command: str) -> tuple[Connector, Command]:
        """Refuse a call, which may come again.

        Raises:
            ConnectorUnavailable: always.
        """
        reason = "the file of its client cannot be used: gateway check says why"
        raise ConnectorUnavailable(f"{connector}/{command}: {reason}", retry_after=10)


class Worlds:
    """The whole registry, and what each client sees of it, which is worked out when it asks."""

    def __init__(self, whole: Snapshot, clients: Mapping[str, Client] | None) -> None:
        """`clients` None: there are none, and all is everybody's."""
        self.whole = whole
        self.clients = clients
        self._made: dict[str | None, Snapshot] = {} if clients is not None else {None: whole, DEFAULT: whole}

    def of(self, client: str | None) -> Snapshot:
        """Return a client's world; that of one that does not exist is empty."""
        world = self._made.get(client)
        if world is None:
            known = (self.clients or {}).get(client or DEFAULT)
            if known is None:
                return NOTHING
            seen = Snapshot(dict(sorted(self._seen_by(known))), one_client=True)
            world = self._made[client] = seen if known.understood else NotUnderstood({})
        return world

    def _seen_by(self, client: Client) -> Iterator[tuple[str, Status]]:
        for owner in ("", client.name):
            for status in self._owned.get(owner, ()):
                name = called(status.name)
                if owner or client.shares(name):
                    yield name, status

    @functools.cached_property
    def _owned(self) -> dict[str, list[Status]]:
        owned: dict[str, list[Status]] = {}
        for name, status in self.whole.statuses.items():
            owned.setdefault(owner_of(name), []).append(status)
        return owned


NOTHING = Snapshot({})


def _catalogue(commands: Iterable[tuple[str, Command]]) -> bytes:
    listed = []
    for connector, command in commands:
        item: dict[str, Any] = {"id": f"{connector}/{command.name}", "parameters": command.signature.parameters}
        if command.description:
            item["description"] = command.description
        if command.signature.additional:
            item["additional_parameters"] = True
        if command.is_async:
            item["async"] = True
        listed.append(item)
    return msgspec.json.encode(listed)


def _usable(connector: Connector) -> Iterable[Auth]:
    return (auth for auth in connector.auths.values() if auth.flaw is None)


def _listed(connector: str, auth: Auth) -> dict[str, Any]:
    listed: dict[str, Any] = {
        "id": f"{connector}/{auth.name}",
        "parameters": auth.signature.parameters if auth.signature is not None else (),
    }
    if auth.description:
        listed["description"] = auth.description
    return listed


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:80] + "...")
