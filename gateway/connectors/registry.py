"""Keeps the snapshot up to date: loads, describes, watches, heals. Never loses the last good state."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from typing import TYPE_CHECKING

import msgspec

from gateway.backoff import wait
from gateway.cells.machine import Machine
from gateway.connectors.caches import Cache, Caches
from gateway.connectors.confinement import own_user
from gateway.connectors.definition import Connector, define, overlooked, redactor, secrets_named, why
from gateway.connectors.exposure import exposed
from gateway.connectors.snapshot import ConnectorState, Snapshot, Status, Worlds
from gateway.connectors.sources import Entry, Sources, fingerprint, read_sources
from gateway.errors import ConfigError, GatewayDraining, Quarantine
from gateway.files import identity, printable
from gateway.identity import owner_of
from gateway.observe.events import (
    AllDescribed,
    Bus,
    ClientRefused,
    ConnectorWarning,
    Exposed,
    Quarantined,
    RegistryLoaded,
    ReloadFailed,
    SecretStale,
)
from gateway.sandbox import STRICT, Step, refused
from gateway.yaml_document import YamlNode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.connectors.clients import Client, ClientFile, ReadCallbacks
    from gateway.connectors.definition import Command
    from gateway.connectors.describe import Describer
    from gateway.sections import ClientLimits
    from gateway.settings import Settings

POLL = 0.5  # seconds between two looks at the files; a change counts when it is still there at the next look
FIRST_RETRY = 5.0  # seconds until a quarantined connector is tried again; doubles
LAST_RETRY = 300.0
SPARING = 50  # times what reading all takes is the pause at least until the next one, where nothing has changed
SOON = 3.0  # seconds from the start on in which the catalogue waits for connectors that are asked what they can do
LATEST = 10.0  # seconds in which it waits for those that work for their answer: callers give up after 15
LOOK = 0.05  # seconds between two looks whether they do


class Registry:
    """The current snapshot and the tasks that renew it."""

    def __init__(
        self,
        settings: Settings,
        describer: Describer,
        bus: Bus,
        look: Callable[[], Machine] | None = None,
        read_callbacks: ReadCallbacks = lambda node: node,
    ) -> None:
        """`look` tells what the machine gives to sandboxes; without it, it gives everything.

        `read_callbacks` decodes a client's section of that name.
        """
        self.machine = Machine(steps=~Step(0))
        self._look_at_machine = look
        self._missed = True
        """Nobody has looked at the machine yet, or some connector was refused for it."""
        self._worlds = Worlds(Snapshot({}), None)
        self.clients: Mapping[str, Client] | None = None
        """All clients by their names; None where there are none, and everybody is the same."""
        self.problem: str | None = None
        """Why the last reload failed, None when it did not."""
        self.exposed: tuple[str, ...] = ()
        """What others can change of what is served."""
        self.passed_over: tuple[str, ...] = ()
        """What lies among the drop-ins and is none."""
        self.caches = Caches(settings.state_dir, bus)
        self._settings = settings
        self._describer = describer
        self._read_callbacks = read_callbacks
        self._client_files: dict[str, ClientFile] | None = None
        self._bus = bus
        self._entries: dict[str, Entry] = {}
        self.defaults = YamlNode({})
        """The section `defaults` as it is written."""
        self._describing: dict[str, asyncio.Task[None]] = {}
        self._first: set[str] = set()
        """Those of the start that have not answered yet what they can do, nor been given up."""
        self._asked = 0
        """How many they were."""
        self._waiting: collections.Counter[str] = collections.Counter()
        """How many calls wait for a connector's first description."""
        self._opened = 0.0
        self._closed = False
        self._retries: dict[str, tuple[float, int]] = {}  # name -> (moment, how often it was quarantined)
        self._took = 0.0
        """Seconds of the latest reading."""
        self._fingerprint: object = None
        self._stale: set[str] = set()
        """Secrets whose command fails by now."""
        self._watcher: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()

    @property
    def snapshot(self) -> Snapshot:
        """The whole registry, under the names that it is registered by."""
        return self._worlds.whole

    @snapshot.setter
    def snapshot(self, snapshot: Snapshot) -> None:
        self._worlds = Worlds(snapshot, self.clients)

    def world(self, client: str | None) -> Snapshot:
        """Return what a client sees; None is the client of whoever needs no key."""
        return self._worlds.of(client)

    def entry(self, name: str) -> Entry | None:
        """Return what the files say of a registered connector; secrets are named in it, and not looked up."""
        return self._entries.get(name)

    def limits_of(self, client: str) -> ClientLimits | None:
        """Return what a client may take of the gateway; None: as much as there is."""
        known = self.clients.get(client) if self.clients is not None else None
        return known.limits if known is not None else None

    async def open(self, *, watch: bool = True) -> None:
        """Load everything, begin to ask what has to be asked, and start watching.

        Raises:
            ConfigError: the files cannot be used.
        """
        self._opened = time.monotonic()
        await self._load()
        self._first = set(self._describing)
        self._asked = len(self._first)
        if watch:
            self._watcher = asyncio.create_task(self._watch(), name="registry watcher")
            keeping = self.caches.keep(self._caches, lambda: self._entries)
            self._keeper = asyncio.create_task(keeping, name="keeper of caches")

    def stop(self) -> None:
        """Watch and ask no more; who waits for a description hears that the gateway ends."""
        self._closed = True
        for task in self._tasks():
            task.cancel()

    async def close(self) -> None:
        """Stop, and wait until nothing is asked any more."""
        self.stop()
        await asyncio.gather(*self._tasks(), return_exceptions=True)
        await asyncio.to_thread(self._settings.lookup.close)

    def awaited(self) -> list[str]:
        """Return the connectors of the start that have neither said yet what they can do, nor been given up."""
        return sorted(self._first)

    async def described(self) -> None:
        """Wait until all connectors of the start have, or have been given up: each has its `describe_timeout`."""
        while self._first:
            await asyncio.wait([self._describing[name] for name in self._first])

    async def listed(self, client: str | None) -> None:
        """Wait for what will be in a client's catalogue soon after a start, so that nobody takes half of it for all.

        Connectors that work for their answer are waited for until `LATEST`, those that only hang until `SOON`.
        """
        while self._first and any(one.name in self._first for one in self.world(client).statuses.values()):
            since = time.monotonic() - self._opened
            if since > (LATEST if self._describer.busy else SOON):
                return
            await asyncio.sleep(LOOK)

    async def find(
        self,
        connector: str,
        command: str,
        *,
        client: str | None = None,
        since: float,
        within: float | None = None,
        job: bool = False,
    ) -> tuple[Connector, Command]:
        """Return what a call names; a connector that is not described yet is waited for, as long as the call may take.

        Args:
            connector: its name.
            command: its name.
            client: who calls.
            since: when the call came, in the loop's time.
            within: the seconds that its caller gives it, if he says so.
            job: it is a job's run, which may take longer.

        Raises:
            CommandNotFound: there is no such connector or command.
            ConnectorUnavailable: the connector is quarantined, or did not describe itself in that time.
            GatewayDraining: the gateway ends.
        """
        clock = asyncio.get_running_loop().time
        while True:
            world = self.world(client)
            found = _undescribed(world.statuses.get(connector))
            task = self._describing.get(found.name) if found is not None else None
            if found is None or task is None or task.done():
                return world.find(connector, command)
            left = since + _allowed(found, command, within, job=job) - clock()
            if left <= 0 or self._waiting[found.name] >= found.limits.concurrency + found.limits.queue:
                return world.find(connector, command)
            self._waiting[found.name] += 1
            try:
                await asyncio.wait((task,), timeout=left)
            finally:
                self._waiting[found.name] -= 1
            if self._closed:
                raise GatewayDraining(retry_after=5)

    async def reload(self, *, retry: bool = False) -> None:
        """Read the files again; when they cannot be used, keep what there is and say so.

        With `retry` the quarantined connectors are tried at once rather than when their time comes.
        """
        if self._closed:
            return
        if retry:
            self._retries = dict.fromkeys(self._retries, (0.0, 1))
        try:
            await self._load()
        except ConfigError as problem:
            if self.problem != str(problem):
                self._bus.publish(ReloadFailed(reason=str(problem)))
            self.problem = str(problem)

    # --- waiting for descriptions

    def _await_less(self, names: set[str]) -> None:
        """Take out of those of the start what has answered, was given up, or is no more."""
        if self._first & names:
            self._first -= names
            if not self._first and not self._closed:
                self._bus.publish(AllDescribed(asked=self._asked, took=time.monotonic() - self._opened))

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [task for task in (self._watcher, self._keeper, *self._describing.values()) if task is not None]

    def _caches(self) -> dict[str, Cache]:
        newest = [status.newest for status in self.snapshot.statuses.values()]
        return {one.name: one.cache for one in newest if one is not None and one.cache is not None}

    # --- loading

    async def _load(self) -> None:
        async with self._reloading:
            begun = time.monotonic()
            with self._settings.lookup.round():
                seen, sources = await asyncio.to_thread(self._read)
                statuses = await asyncio.to_thread(self._understand, sources)
            newest = [status.newest for status in statuses.values()]
            self._expose(await asyncio.to_thread(exposed, self._settings, sources, filter(None, newest)))
            self._fingerprint = (seen, _facts(statuses), self._settings.lookup.known())
            self.problem = None
            self.passed_over = sources.passed_over
            self._took = time.monotonic() - begun
            self._swap(sources, statuses, self._took)

    def _read(self) -> tuple[object, Sources]:
        seen = fingerprint(self._settings)
        sources = read_sources(self._settings, self._read_callbacks, self._client_files)
        if not sources.has_folder and self._had_drop_ins():
            self._fingerprint = None  # it may be there again before anybody looks
            raise ConfigError(f"{self._settings.connectors_dir}: the folder is gone")
        return seen, sources

    def _expose(self, found: tuple[str, ...]) -> None:
        for problem in found:
            if problem not in self.exposed:
                self._bus.publish(Exposed(problem=problem))
        self.exposed = found

    def _had_drop_ins(self) -> bool:
        folder = self._settings.connectors_dir
        return any(folder in (entry.folder, entry.folder.parent) for entry in self._entries.values())

    def _look(self) -> object:
        facts = _facts(self.snapshot.statuses)
        secrets = self._settings.lookup.now()
        return fingerprint(self._settings), tuple(identity(str(file[0])) for file in facts), secrets

    def _understand(self, sources: Sources) -> dict[str, Status]:
        if self._look_at_machine is not None and (self._missed or self.machine.problem is not None):
            self.machine = self._look_at_machine()  # somebody may have switched on what was missing
            self._missed = False
        self._settings.lookup.begin({name for entry in sources.entries for name in secrets_named(entry)})
        statuses = {}
        users: dict[int, str] = {}
        for entry in sources.entries:
            try:
                connector = define(entry, sources.defaults, self._settings)
                if connector is not None:
                    self._check_sandbox(connector)
                    self._claim_user(connector, users)
            except Exception as problem:  # noqa: BLE001 - whatever is wrong with one entry, the others are served
                reason = printable(redactor(entry.node, self._settings)(why(problem)))
                statuses[entry.name] = Status(name=entry.name, state=ConnectorState.QUARANTINED, reason=reason)
                continue
            if connector is not None:
                statuses[entry.name] = self._with_description(connector)
        return statuses

    def _check_sandbox(self, connector: Connector) -> None:
        """Refuse what would be weaker here than its operator has said.

        Raises:
            Quarantine: it would be.
        """
        reason = refused(connector.launch.sandbox, self.machine.steps)
        if reason is not None:
            self._missed = True
            raise Quarantine(self.machine.problem or reason)

    def _claim_user(self, connector: Connector, users: dict[int, str]) -> None:
        """Take for a connector the user that is its own, which is made from its name.

        Raises:
            Quarantine: another name came to the same one.
        """
        sandbox, number = connector.launch.sandbox, own_user(connector.name, *self._settings.sandbox_uids)
        if sandbox.level == STRICT and sandbox.user == (number, number):
            other = users.setdefault(number, connector.name)
            if other != connector.name:
                shown = other if not owner_of(other) else "another client's connector"
                raise Quarantine(
                    f"its own user would be {number}, and so is that of {shown}: give one of them another with `user:`,"
                    " or all of them more to choose from in gateway.sandbox_uids"
                )

    def _with_description(self, connector: Connector) -> Status:
        name = connector.name
        if connector.commands is not None:
            return Status(name=name, state=ConnectorState.READY, connector=connector)
        old = self.snapshot.statuses.get(name)
        known = _still(old, connector) if old is not None else None
        if known is not None:
            return known
        description = self._describer.remembered(connector)
        if description is not None:
            with contextlib.suppress(Quarantine):
                return Status(name=name, state=ConnectorState.READY, connector=connector.described(description))
        if old is not None and old.state is ConnectorState.READY:
            return msgspec.structs.replace(old, successor=connector)
        allowed = connector.limits.describe_timeout
        reason = f"it is being asked what it can do, {allowed:g} s at most (describe_timeout)"
        return Status(name=name, state=ConnectorState.DESCRIBING, reason=reason, connector=connector)

    def _swap(self, sources: Sources, statuses: Mapping[str, Status], took: float) -> None:
        before = self.snapshot.statuses
        self._entries = {entry.name: entry for entry in sources.entries}
        self.defaults = sources.said
        known = self.clients or {}
        clients = None
        if sources.clients is not None:
            clients = {name: one.client for name, one in sources.clients.items()}
            for client in clients.values():
                told = known[client.name].problem if client.name in known else None
                if client.problem is not None and client.problem != told:
                    self._bus.publish(ClientRefused(client=client.name, reason=client.problem))
        self._client_files = sources.clients
        self.clients = clients
        self._worlds = Worlds(Snapshot(statuses), clients)
        for name in [name for name in self._describing if self._superseded(name, before.get(name))]:
            self._describing.pop(name).cancel()
        for name, status in statuses.items():
            if status.state is ConnectorState.QUARANTINED and self._reason(before.get(name)) != status.reason:
                self._quarantine(status)
            elif status.state is ConnectorState.DESCRIBING or status.successor is not None:
                if name not in self._describing and status.newest is not None:
                    self._describe(status.newest)
            elif status.state is ConnectorState.READY:
                self._retries.pop(name, None)
        self._retries = {name: retry for name, retry in self._retries.items() if name in statuses}
        self._await_less(self._first - self._describing.keys())
        self._announce(before, statuses, took)

    def _superseded(self, name: str, old: Status | None) -> bool:
        new = self.snapshot.statuses.get(name)
        if new is None or new.newest is None or old is None or old.newest is None:
            return True
        return new.newest.identity != old.newest.identity

    def _announce(self, before: Mapping[str, Status], statuses: Mapping[str, Status], took: float) -> None:
        changed = tuple(name for name, status in statuses.items() if _face(before.get(name)) != _face(status))
        removed = tuple(name for name in before if name not in statuses)
        if (
            not changed
            and not removed
            and not any(_confined(before.get(name)) != _confined(statuses[name]) for name in statuses)
        ):
            return
        self._bus.publish(
            RegistryLoaded(
                connectors=len(statuses),
                commands=sum(len(one.commands or {}) for one in self.snapshot.ready()),
                quarantined=sum(status.state is ConnectorState.QUARANTINED for status in statuses.values()),
                changed=changed,
                removed=removed,
                took=took,
            )
        )
        for name in changed:
            known = _overlooked(before.get(name))
            for command, notice in _overlooked(statuses[name]).items():
                if command not in known:
                    self._bus.publish(ConnectorWarning(connector=name, command=command, request_id="", message=notice))

    # --- describing

    def _describe(self, connector: Connector) -> None:
        if self._closed:
            return
        task = asyncio.create_task(self._ask(connector), name=f"describe {connector.name}")
        self._describing[connector.name] = task
        task.add_done_callback(lambda done: self._described(connector.name, done))

    def _described(self, name: str, task: asyncio.Task[None]) -> None:
        if self._describing.get(name) is task:
            del self._describing[name]
            self._await_less({name})

    async def _ask(self, connector: Connector) -> None:
        try:
            description = await self._describer.ask(connector)
            asked = None
            while connector is not asked:
                asked = connector = self._current(connector)
                described = await asyncio.to_thread(connector.described, description)  # of thousands, it takes its time
                connector = self._current(connector)
            status = Status(name=connector.name, state=ConnectorState.READY, connector=described)
            self._retries.pop(connector.name, None)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is not to be asked for ever
            connector = self._current(connector)
            status = Status(
                name=connector.name,
                state=ConnectorState.QUARANTINED,
                reason=connector.redact(why(problem)),
                connector=connector,
            )
        before = self.snapshot.statuses
        self.snapshot = Snapshot({**before, connector.name: status})
        if status.state is ConnectorState.QUARANTINED:
            self._quarantine(status)
        self._announce(before, self.snapshot.statuses, 0.0)

    def _current(self, connector: Connector) -> Connector:
        """Return the newest definition of the same executable: its limits may have changed meanwhile."""
        status = self.snapshot.statuses.get(connector.name)
        return connector if status is None or status.newest is None else status.newest

    def _quarantine(self, status: Status) -> None:
        _, often = self._retries.get(status.name, (0.0, 0))
        self._retries[status.name] = (time.monotonic() + wait(often, FIRST_RETRY, LAST_RETRY), often + 1)
        self._bus.publish(Quarantined(connector=status.name, reason=status.reason or ""))

    @staticmethod
    def _reason(status: Status | None) -> str | None:
        return status.reason if status is not None and status.state is ConnectorState.QUARANTINED else None

    # --- watching

    async def _watch(self) -> None:
        last = self._fingerprint
        while True:
            await asyncio.sleep(POLL)
            try:
                seen = await asyncio.to_thread(self._look)
                if seen == last and seen != self._fingerprint:
                    self._fingerprint = seen
                    await self.reload()
                    seen = self._fingerprint
                last = seen
                self._tell_stale()
                await self._retry()
            except Exception as problem:  # noqa: BLE001 - whatever it is, a gateway that stops watching is worse
                self._bus.publish(ReloadFailed(reason=f"{type(problem).__name__}: {problem}"))

    def _tell_stale(self) -> None:
        stale = self._settings.lookup.stale()
        for name in stale.keys() - self._stale:
            self._bus.publish(SecretStale(secret=name, reason=stale[name]))
        self._stale = set(stale)

    async def _retry(self) -> None:
        now = time.monotonic()
        due = [name for name, (moment, _) in self._retries.items() if moment <= now and name not in self._describing]
        for name in due:
            connector = self.snapshot.statuses[name].connector
            if connector is not None:
                self._describe(connector)
        stuck = {name for name in self._retries if self.snapshot.statuses[name].connector is None}
        if stuck.isdisjoint(due):
            return
        for name in stuck:  # all of them are tried by it, so that it comes for many as often as for one
            often = self._retries[name][1]
            pause = max(wait(often - 1, FIRST_RETRY, LAST_RETRY), min(LAST_RETRY, SPARING * self._took))
            self._retries[name] = (now + pause, often)
        await self.reload()


def _undescribed(status: Status | None) -> Connector | None:
    """Return a connector that is being asked for the first time what it can do."""
    return status.connector if status is not None and status.state is ConnectorState.DESCRIBING else None


def _overlooked(status: Status | None) -> dict[str, str]:
    connector = status.connector if status is not None else None
    return overlooked(connector.name, connector.commands or ()) if connector is not None else {}


def _face(status: Status | None) -> object:
    if status is None:
        return None
    connector = status.connector
    return status.state, status.reason, connector and (connector.identity, connector.limits)


def _confined(status: Status | None) -> object:
    """Return what else changes with others' files alone."""
    return status.connector.launch.sandbox if status is not None and status.connector is not None else None


def _still(old: Status, connector: Connector) -> Status | None:
    """Return what is known of a connector that is the same executable as before, None when it is another."""
    newest = old.newest
    if newest is None or newest.identity != connector.identity:
        return None
    if old.successor is not None:
        return msgspec.structs.replace(old, successor=connector)
    if old.state is not ConnectorState.READY:
        other = newest.limits.describe_timeout != connector.limits.describe_timeout
        if other and old.state is ConnectorState.QUARANTINED:
            return None  # it may have been that which it lacked
        return msgspec.structs.replace(old, connector=connector)
    same = newest.limits == connector.limits and newest.launch.sandbox == connector.launch.sandbox
    return old if same and newest.files == connector.files and newest.defined == connector.defined else None


def _allowed(connector: Connector, command: str, within: float | None, *, job: bool) -> float:
    """Return the seconds that a call may take, as far as that is known before its command is described."""
    limits, override = connector.limits, connector.overrides.get(command)
    own = override.timeout if override is not None else None
    allowed = limits.job_timeout if job else own if own is not None else limits.timeout
    return allowed if within is None else min(within, allowed)


def _facts(statuses: Mapping[str, Status]) -> tuple[tuple[object, ...], ...]:
    """Return the state of every file that the definitions rest on, as it was when they were made."""
    newest = [status.newest for status in statuses.values()]
    facts = {file for connector in newest if connector is not None for file in connector.files}
    return tuple(sorted(facts, key=lambda file: str(file[0])))
