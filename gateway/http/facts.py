"""The facts that tell what is wrong, of all that there is or of one client's world."""

from __future__ import annotations

import asyncio
import datetime
import time
from typing import TYPE_CHECKING

from gateway import health
from gateway.connectors.snapshot import ConnectorState
from gateway.health import ClientFacts, ConnectorFacts, GatewayFacts
from gateway.identity import called
from gateway.observe import logs

if TYPE_CHECKING:
    from gateway.connectors.clients import Client
    from gateway.connectors.definition import Connector
    from gateway.connectors.snapshot import Status
    from gateway.gateway import Gateway
    from gateway.health import Concern
    from gateway.http.connections import Connections
    from gateway.observe.outcomes import Recent

SLICE = 50  # connectors after which calls have their turn


class Facts:
    """Gathers them where they are."""

    def __init__(self, gateway: Gateway, connections: Connections, recent: Recent) -> None:
        self._gateway = gateway
        self._connections = connections
        self._recent = recent

    async def concerns(self, client: str | None = None) -> list[Concern]:
        """Return what should be looked at, the worst first; of one client's world, or of everything."""
        registry = self._gateway.registry
        await self._gateway.count_dead_letters()
        statuses = (registry.snapshot if client is None else registry.world(client)).statuses
        connectors = []
        for number, status in enumerate(statuses.values(), 1):
            if status.name in registry.snapshot.statuses:  # else it was removed in between
                connectors.append(self._of_connector(status, client))
            if not number % SLICE:
                await asyncio.sleep(0)
        return health.concerns(self._of_gateway() if client is None else self._of_world(client), connectors)

    def _of_world(self, client: str) -> GatewayFacts:
        """Return what one client may know: nothing that others have a part in."""
        gateway = self._gateway
        known = (gateway.registry.clients or {}).get(client)
        return GatewayFacts(
            now=_now(),
            state=gateway.admission.state.value,
            dead_letters=gateway.dead_letters(client) or 0,
            clients=[_of_client(known)] if known is not None else [],
        )

    def _of_gateway(self) -> GatewayFacts:
        gateway, connections, journal = self._gateway, self._connections, self._gateway.invoker.journal
        audit, jobs, encryption = gateway.audit, gateway.submitter.jobs, connections.encryption
        places, budget = gateway.places, connections.budget
        return GatewayFacts(
            now=_now(),
            state=gateway.admission.state.value,
            registry_problem=gateway.registry.problem,
            log_problem=logs.problem(),
            log_dropped=logs.dropped(),
            audit_problem=audit.problem if audit is not None else None,
            audit_required=audit is not None and audit.required,
            journal_problem=journal.problem if journal is not None else None,
            jobs_problem=jobs.health().reason if jobs is not None else None,
            dead_letters=gateway.dead_letters() or 0,
            bare=encryption.bare(),
            tls_problem=encryption.problem,
            tls_ends=encryption.ends,
            processes=(places.running + places.hosts, places.most),
            connections=(connections.open, connections.most),
            held=(budget.bodies + budget.answers, budget.most),
            exposed=gateway.registry.exposed,
            clients=[_of_client(one) for one in (gateway.registry.clients or {}).values()],
        )

    def _of_connector(self, status: Status, client: str | None) -> ConnectorFacts:
        gateway, name, connector = self._gateway, status.name, status.connector
        lane, circuit, notices = gateway.places.lane(name), None, gateway.notices(name, client)
        if connector is not None:
            notices += gateway.pools.told(connector.launch)[1]
            if status.state is ConnectorState.READY:
                circuit = self._circuit(connector, client)
        return ConnectorFacts(
            name=name if client is None else called(name),
            state=status.state.value,
            reason=status.reason,
            circuit=circuit,
            in_flight=lane.running if client is None else lane.running_of(client),
            queued=lane.queued if client is None else lane.waiting_of(client),
            queue=connector.limits.queue if connector is not None else 0,
            timeouts=_timeouts(connector),
            missing=gateway.lacking(name),
            notices=notices,
            last=self._recent.of(name, client),
        )

    def _circuit(self, connector: Connector, client: str | None) -> str | None:
        """Say why calls of a connector are refused, those of a client or of any; None: they are not."""
        one = self._gateway.invoker.trouble_of(connector, client)
        if one is None:
            return None
        return one.reason if client is not None or one.client is None else f"{one.reason} (for {one.client})"


def _timeouts(connector: Connector | None) -> dict[str, float]:
    commands = connector.commands if connector is not None else None
    return {name: command.timeout for name, command in (commands or {}).items()}


def _of_client(client: Client) -> ClientFacts:
    ends = {key.id: key.until for key in client.keys if key.until is not None}
    return ClientFacts(
        name=client.name,
        problem=client.problem,
        notices=client.notices(time.time(), ending=False),
        keys={key: datetime.datetime.fromtimestamp(until, datetime.UTC) for key, until in ends.items()},
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
