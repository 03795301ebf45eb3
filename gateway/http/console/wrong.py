"""What is wrong, for the overview: the one place where the console asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.connectors.snapshot import ConnectorState
from gateway.identity import DEFAULT, called
from gateway.observe import logs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gateway.calls.circuit import Circuit
    from gateway.connectors.definition import Connector
    from gateway.gateway import Gateway
    from gateway.http.connections import Connections


class Wrong(NamedTuple):
    """One thing that somebody should look at."""

    severity: str
    """`error`, `warning` or `notice`."""
    subject: str
    """A connector's name, or a part of the gateway."""
    text: str
    remedy: str = ""
    """What to do; empty where the text says it."""
    connector: str = ""
    """The connector that it is about, if it is about one."""


_WORST = ("error", "warning", "notice")
_AGAIN = "it is tried again by itself"


async def what_is_wrong(gateway: Gateway, connections: Connections, client: str | None) -> list[Wrong]:
    """Return it, the worst first: of one client's world, or of everything."""
    found = list(_of_gateway(gateway, connections)) if client is None else []
    found += _of_connectors(gateway, client)
    return sorted(found, key=lambda one: _WORST.index(one.severity))


def _of_gateway(gateway: Gateway, connections: Connections) -> Iterator[Wrong]:
    registry, jobs = gateway.registry, gateway.submitter.jobs
    if registry.problem is not None:
        text = f"the files cannot be used, and what they said before serves on: {registry.problem}"
        yield Wrong("error", "configuration", text, f"mend the file; {_AGAIN}")
    problem = logs.problem()
    if problem is not None:
        yield Wrong("error", "log", f"it cannot be written: {problem}", "make room on its disk, or mend what reads it")
    if gateway.audit is not None and gateway.audit.problem is not None:
        yield Wrong(
            "error", "audit", f"it cannot be written: {gateway.audit.problem}", f"make room on its disk; {_AGAIN}"
        )
    if jobs is not None and not jobs.health().ok:
        text = f"no job can be accepted or delivered: {jobs.health().reason}"
        yield Wrong("error", "jobs", text, f"bring the database back; {_AGAIN}")
    for notice in connections.encryption.notices():
        yield Wrong("warning", "tls", notice)
    for one in registry.exposed:
        yield Wrong("warning", "files", one, "take the right to write it from others (chmod, chown)")
    for client in (registry.clients or {}).values():
        if client.problem is not None:
            yield Wrong("error", f"client {client.name}", f"its file cannot be used: {client.problem}", "mend the file")


def trouble_of(
    unclosed: Mapping[tuple[str, str], Sequence[Circuit]], connector: Connector, client: str | None
) -> Circuit | None:
    """Return the circuit of a client, or the first of all clients', that is not closed; None: there is none."""
    found = unclosed.get((connector.name, connector.identity), ())
    return next((one for one in found if client is None or (one.client or DEFAULT) == client), None)


def _of_connectors(gateway: Gateway, client: str | None) -> Iterator[Wrong]:
    registry, unclosed = gateway.registry, gateway.invoker.unclosed()
    for status in (registry.snapshot if client is None else registry.world(client)).statuses.values():
        name = status.name if client is None else called(status.name)
        lane, connector = gateway.places.lane(status.name), status.connector
        if status.state is ConnectorState.QUARANTINED:
            yield Wrong("error", name, f"it cannot be served: {status.reason}", f"mend that; {_AGAIN}", name)
        elif connector is not None and status.state is ConnectorState.READY:
            circuit = trouble_of(unclosed, connector, client)
            if circuit is not None:
                text = f"it fails to start, or crashes, again and again, so calls are refused: {circuit.reason}"
                yield Wrong("error", name, text, f"its log has why; {_AGAIN}", name)
            queued = lane.queued if client is None else lane.waiting_of(client)
            if connector.limits.queue and queued >= connector.limits.queue:
                text = f"its queue is full ({queued}), and more calls are refused"
                yield Wrong(
                    "error", name, text, "find why its calls take so long, or raise concurrency and queue", name
                )
        for notice in gateway.notices(status.name, client):
            yield Wrong("notice", name, notice, connector=name)
