"""The gateway without HTTP: everything that a server, or one command on the command line, needs to run connectors."""

from __future__ import annotations

import asyncio
import functools
import os
import time
import uuid
from typing import TYPE_CHECKING

from gateway import leftovers
from gateway.calls.admission import Admission, AdmissionState
from gateway.calls.invoke import Invoker
from gateway.calls.quotas import Quotas
from gateway.calls.suggestions import Suggestions
from gateway.cells import machine
from gateway.cells.cells import Cells
from gateway.cells.program import NoCell
from gateway.cells.removing import remove
from gateway.connectors.describe import Describer
from gateway.connectors.registry import Registry
from gateway.connectors.snapshot import ConnectorState
from gateway.errors import AuditUnavailable, ConfigError
from gateway.identity import DEFAULT, called, owner_of
from gateway.jobs.background import Background
from gateway.jobs.contract import JobsUnavailable
from gateway.jobs.destinations import Directory
from gateway.jobs.durable import DurableJobs
from gateway.jobs.notices import of_connector
from gateway.jobs.settings import read_callbacks, read_sections
from gateway.jobs.submit import Submitter
from gateway.journal.journal import Journal
from gateway.observe.audit import Audit
from gateway.observe.events import ConnectorWarning, FolderLeft, RegistryLoaded, SandboxIncomplete
from gateway.observe.history import Busy
from gateway.observe.metrics import LaneLoad, PlaceLoad
from gateway.processes.places import Places
from gateway.processes.pools import Pools
from gateway.sandbox import Given, Step, given, missing
from gateway.sealing import Keyring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from gateway.calls.reply import Reply
    from gateway.connectors.definition import Connector
    from gateway.errors import GatewayError
    from gateway.jobs.destinations import Destinations
    from gateway.observe.events import Bus, Event
    from gateway.observe.tracing import Tracing
    from gateway.settings import Settings


COUNTED = 5.0  # seconds for which the number of dead letters is believed


class Gateway:
    """The parts, put together. Cheap to make; `open` loads the registry."""

    def __init__(self, settings: Settings, bus: Bus, tracing: Tracing | None = None) -> None:
        """Read the sections that are parts' own; without `tracing` there are no spans.

        Raises:
            ConfigError: the sections `jobs` or `callbacks` cannot be used.
        """
        self.settings = settings
        self.bus = bus
        self.run_folder = settings.state_dir / "run" / uuid.uuid4().hex[:12]
        self.cells = Cells(self.run_folder, cgroup=settings.cgroup)
        self.places = Places(settings.max_processes)
        self.admission = Admission(self.places, bus)
        self.pools = Pools(self.cells, bus, self.places)
        self.describer = Describer(self.pools.spawn, settings.state_dir / "describe")
        read = functools.partial(read_callbacks, settings=settings)
        self.registry = Registry(settings, self.describer, bus, machine.look, read)
        self.quotas = Quotas(self.registry.limits_of, bus.publish)
        self._jobs, callbacks = read_sections(settings)
        self.callbacks = Directory(callbacks, lambda: self.registry.clients)
        self.invoker = Invoker(
            self.registry, self.admission, self.pools, bus, self.callbacks.rewritten, tracing=tracing
        )
        self.background = Background(self.invoker, self.quotas)
        self.submitter = Submitter(self.registry, self.invoker, self.background, self.callbacks)
        self.suggestions = Suggestions(self.registry, self.invoker.invoke, settings.typeahead_cache)
        audit = settings.audit
        self.audit = Audit(audit.file, bus, required=audit.required) if audit is not None else None
        """None: nobody wants one."""
        self.tracing = tracing
        """None: nobody wants spans."""
        self._lock = -1
        self._dead: dict[str | None, int] | None = None
        """How many dead letters there were when they were last counted, by client; None: nobody could say."""
        self._counted = float("-inf")

    async def open(self, *, registry: bool = True, watch: bool = True) -> None:
        """Start; without `registry`, processes can be run and nothing is known of connectors.

        Raises:
            ConfigError: the registry's files cannot be used.
        """
        try:
            self._lock = await leftovers.claim(self.run_folder, self._on_left)
        except OSError as problem:
            raise ConfigError(f"gateway.state_dir: {problem.filename}: {problem.strerror}") from problem
        try:
            try:
                self.cells.open()
            except NoCell as problem:
                raise ConfigError(str(problem)) from problem
            if watch and self.audit is not None:  # before what is hidden from connectors is looked for
                self.audit.open(asyncio.get_running_loop())
            if registry:
                await self.registry.open(watch=watch)
            if watch:
                self._keep()
                self.bus.listen(self._on_registry_loaded, RegistryLoaded, called="registry")
                self._warn(self.registry.snapshot.statuses)
                self._tell_missing()
                self.pools.open()
                if self.submitter.jobs is not None:
                    await self.submitter.jobs.start(warm=self.submitter.expects_jobs())
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop at once: whatever still runs is killed."""
        self.admission.close()
        if self.submitter.jobs is not None:
            await self.submitter.jobs.stop()
        await self.registry.close()
        await self.pools.close()
        await self.cells.close()
        if self.invoker.journal is not None:
            await asyncio.to_thread(self.invoker.journal.close)
        if not await asyncio.to_thread(remove, self.run_folder):
            self._on_left(self.run_folder)
        if self.audit is not None:
            await asyncio.to_thread(self.audit.close)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _on_left(self, folder: Path) -> None:
        self.bus.publish(FolderLeft(folder=str(folder)))

    def _on_registry_loaded(self, event: Event) -> None:
        assert isinstance(event, RegistryLoaded)
        self._keep()
        if self.submitter.jobs is not None and self.submitter.expects_jobs():
            self.submitter.jobs.wake()
        self._warn(event.changed)

    def notices(self, name: str, client: str | None = None) -> list[str]:
        """Return what an operator should know of a registered connector, beyond its processes; or a client of one."""
        found = self.registry.snapshot.statuses[name].connector
        seen, title = (self.registry.snapshot, name) if client is None else (self.registry.world(client), called(name))
        there = self.destinations(found) if found is not None and client is None else self.callbacks.of(client)
        jobs = of_connector(found, there) if found is not None else []
        used, stale = found.secrets if found is not None else (), self.settings.lookup.stale()
        old = [f"secret {one} is what it was, since {stale[one]}" for one in used if one in stale]
        return [*seen.notices(title), *jobs, *old]

    def destinations(self, connector: Connector) -> Destinations:
        """Return where callbacks of a connector's jobs go, as far as it is one client's own."""
        return self.callbacks.of(owner_of(connector.name) or None)

    def given(self, name: str) -> Given | None:
        """Return what has become of a connector's sandbox here; None when its entry could not be understood."""
        found = self.registry.snapshot.statuses[name].connector
        steps = self.registry.machine.steps | (Step.PIDS if self.cells.bounded else Step(0))
        return given(found.launch.sandbox, steps) if found is not None else None

    def lacking(self, name: str) -> tuple[str, ...]:
        """Return what this machine does not give of a connector's sandbox."""
        found = self.registry.snapshot.statuses[name].connector
        got = self.registry.machine.steps | Step.PIDS  # that a bound is held by looking is no news
        return missing(found.launch.sandbox, got) if found is not None else ()

    def _tell_missing(self) -> None:
        told = [text for name in self.registry.snapshot.statuses for text in self.lacking(name)]
        if told:
            self.bus.publish(SandboxIncomplete(missing=tuple(dict.fromkeys(told))))

    def _warn(self, names: Iterable[str]) -> None:
        for name in names:
            status = self.registry.snapshot.statuses.get(name)
            found = status.connector if status is not None else None
            for notice in of_connector(found, self.destinations(found)) if found is not None else ():
                self.bus.publish(ConnectorWarning(connector=name, command="", request_id="", message=notice))

    def _keep(self) -> None:
        self.pools.keep(connector.launch for connector in self.registry.snapshot.ready())

    def keep_jobs(self, status_of: Callable[[Reply | GatewayError], int]) -> None:
        """Make jobs of calls that take long; to be said before `open`."""
        jobs = DurableJobs(
            self.submitter.run,
            state_dir=self.settings.state_dir,
            jobs=self._jobs,
            callbacks=self.callbacks.section,
            limit=self.submitter.concurrency,
            quotas=self.quotas,
            publish=self.bus.publish,
            tracing=self.tracing,
        )
        self.submitter.keep_jobs(jobs, status_of)

    def keep_runs(self) -> None:
        """Hand runs that are over to the journal, if there is to be one; to be said before `open`."""
        section, folder = self.settings.journal, self.settings.state_dir / "journal"
        if section is not None:
            self.invoker.journal = Journal(section, folder, Keyring(self._jobs.keys, "journal"), self.bus.publish)

    def unready(self) -> str | None:
        """Return why no new work is to be sent here; None: it may be."""
        if self.admission.state is not AdmissionState.SERVING:
            return str(self.admission.state.value)
        if self.audit is not None and self.audit.refuses:
            return AuditUnavailable.code
        return ConnectorState.DESCRIBING.value if self.registry.awaited() else None

    def ready(self) -> bool:
        """Tell whether new work is taken."""
        return self.unready() is None

    def lanes(self) -> Iterable[LaneLoad]:
        """Return what is true of every connector."""
        for name, status in self.registry.snapshot.statuses.items():
            lane, connector = self.places.lane(name), status.connector
            ready = connector is not None and status.state is ConnectorState.READY
            circuits = self.invoker.circuits(connector) if connector is not None and ready else []
            yield LaneLoad(
                connector=name,
                in_flight=lane.running,
                queued=lane.queued,
                bounds=(connector.limits.concurrency, connector.limits.queue) if connector is not None else None,
                quarantined=status.state is ConnectorState.QUARANTINED,
                circuit_open=any(one.state is not one.state.CLOSED for one in circuits),
            )

    def busy(self) -> Iterator[Busy]:
        """Yield what each client has of each connector now."""
        several = self.registry.clients is not None
        for connector, client, running, waiting in self.places.busy():
            yield Busy(connector, client if several else None, running, waiting)

    def processes(self) -> PlaceLoad:
        """Return how many processes there are."""
        return PlaceLoad(self.places.running, self.places.kept + self.places.hosts, self.places.most)

    def refusals(self) -> Mapping[tuple[str, str], int]:
        """Return how many calls were refused, by client and limit."""
        return self.quotas.refusals

    async def count_dead_letters(self) -> None:
        """Have the store count them, if nobody has lately."""
        if self.submitter.jobs is None or time.monotonic() < self._counted + COUNTED:
            return
        self._counted = time.monotonic()
        try:
            self._dead = await self.submitter.jobs.count_dead()
        except JobsUnavailable:
            self._dead = None

    def dead_letters(self, client: str | None = None) -> int | None:
        """Return how many there were at the latest count, of one client or of all; None when nobody could say."""
        if self._dead is None:
            return None
        if client is None:
            return sum(self._dead.values())
        return self._dead.get(client, 0) + (self._dead.get(None, 0) if client == DEFAULT else 0)

    def background_runs(self) -> int:
        """Return how many runs go on after their answers."""
        return len(self.background)

    def jobs_available(self) -> bool:
        """Tell whether durable jobs can be accepted and delivered."""
        return self.submitter.jobs is None or self.submitter.jobs.health().ok

    def open_jobs(self) -> int | None:
        """Return how many durable jobs are in this gateway's hands; None when nobody can say now."""
        return self.submitter.jobs.health().open if self.submitter.jobs is not None else 0

    def writable(self) -> Mapping[str, bool]:
        """Tell of the audit and the journal, where they are kept, whether they can be written."""
        kept = {"audit": self.audit, "journal": self.invoker.journal}
        return {what: one.problem is None for what, one in kept.items() if one is not None}

    def audit_failed(self) -> int:
        """Return how many lines of the audit could not be written when their time had come."""
        return self.audit.failed if self.audit is not None else 0

    def journal_dropped(self) -> int:
        """Return how many runs are missing in the journal."""
        return self.invoker.journal.dropped if self.invoker.journal is not None else 0

    def listener_faults(self) -> Mapping[str, int]:
        """Return how often each listener that ever did has failed."""
        return self.bus.faults
