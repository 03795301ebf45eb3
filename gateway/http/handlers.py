"""The handlers of every route."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aiohttp import web

from gateway.calls.circuit import CircuitState
from gateway.connectors.snapshot import ConnectorState
from gateway.errors import Forbidden
from gateway.http.audited import note
from gateway.http.auths import AuthHandlers
from gateway.http.calls import CallHandlers
from gateway.http.docs import DocsHandlers
from gateway.http.documents import Documents
from gateway.http.facts import SLICE, Facts
from gateway.http.jobs import JobHandlers
from gateway.http.keys import CLIENT, client_of, identity_of
from gateway.http.openapi import Admittance
from gateway.http.responses import json_response, raw_json
from gateway.http.routes import CLIENTS, Access, Route, whole
from gateway.http.runs import RunHandlers
from gateway.http.typeahead import TypeaheadHandlers
from gateway.identity import called, owner_of
from gateway.observe import logs
from gateway.sandbox import names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from gateway.connectors.definition import Connector
    from gateway.connectors.snapshot import Status
    from gateway.gateway import Gateway
    from gateway.health import Concern
    from gateway.http.connections import Connections
    from gateway.observe.metrics import Metrics
    from gateway.observe.outcomes import Recent
    from gateway.origins import Origin


class Handlers:
    """HTTP over one gateway."""

    def __init__(
        self,
        gateway: Gateway,
        metrics: Metrics,
        recent: Recent,
        version: str,
        connections: Connections,
        *,
        redirects: Callable[[str | None], tuple[Origin, ...]] = lambda _client: (),
    ) -> None:
        """`redirects` returns the origins that a client's browsers may be sent back to with a token."""
        self._gateway = gateway
        self._metrics = metrics
        self._recent = recent
        self._version = version
        self._connections = connections
        self._documents = Documents(self.routes, version)
        self._facts = Facts(gateway, connections, recent)
        self._jobs = JobHandlers(gateway)
        self._calls = CallHandlers(gateway, connections.budget)
        self._runs = RunHandlers(gateway, self._calls)
        self._auths = AuthHandlers(gateway, redirects)

    def routes(self) -> list[Route]:
        """Return the table of routes."""
        return whole(
            [
                Route("GET", "/", self.root, Access.OPEN),
                Route("GET", "/liveness", self.liveness, Access.OPEN),
                Route("GET", "/v1/liveness", self.liveness, Access.OPEN),
                Route("GET", "/v1/readiness", self.readiness, Access.OPEN),
                Route("GET", "/v1/status", self.status, Access.KEY),
                Route("GET", "/metrics", self.metrics, Access.METRICS),
                Route("GET", "/v1/commands", self.commands, Access.KEY),
                Route("GET", "/v1/auths", self.auths, Access.KEY),
                Route("GET", "/openapi.json", self.openapi, Access.KEY),
                Route("POST", "/v1/reload", self.reload, Access.OPERATOR, event="reload"),
                *(DocsHandlers(lambda: self._admittance().asks).routes() if self._gateway.settings.docs else ()),
                *self._auths.routes(),
                *TypeaheadHandlers(self._gateway.suggestions, self._gateway.quotas).routes(),
                *self._jobs.routes(),
                *self._runs.routes(),
                *self._calls.routes(),
            ]
        )

    async def root(self, _request: web.Request) -> web.Response:
        """Say who this is."""
        return json_response({"ok": True, "name": "connector gateway", "version": self._version})

    async def liveness(self, _request: web.Request) -> web.Response:
        """The process works."""
        return json_response({"ok": True})

    async def readiness(self, _request: web.Request) -> web.Response:
        """The process takes new work, and every connector of the start has said what it can do, or been given up.

        It takes it without a log, too, and says so; and without an audit, unless that is required.
        """
        problem, audit, reason = logs.problem(), self._gateway.audit, self._gateway.unready()
        told: dict[str, Any] = {"log_problem": problem} if problem else {}
        if audit is not None and audit.problem:
            told["audit_problem"] = audit.problem
        if reason is None:
            return json_response({"ok": True, **told})
        if reason == ConnectorState.DESCRIBING.value and self._gateway.registry.clients is None:
            # Whoever asks has shown no key: where there are clients, whose they are is nobody's business.
            told = {"connectors": self._gateway.registry.awaited(), **told}
        return json_response({"ok": False, "reason": reason, **told}, 503)

    async def commands(self, request: web.Request) -> web.Response:
        """The catalogue, from memory."""
        await self._gateway.registry.listed(client_of(request))
        return raw_json(self._gateway.registry.world(client_of(request)).commands)

    async def auths(self, request: web.Request) -> web.Response:
        """The authentications, from memory."""
        await self._gateway.registry.listed(client_of(request))
        return raw_json(self._gateway.registry.world(client_of(request)).auths)

    async def openapi(self, request: web.Request) -> web.StreamResponse:
        """The OpenAPI document: these routes, and an operation for each command."""
        registry = self._gateway.registry
        await registry.listed(client_of(request))
        world = registry.world(client_of(request))
        return await self._documents.answer(request, world, self._admittance(), server=self._server(request))

    def _server(self, request: web.Request) -> str:
        """Return what stands before all paths, for whoever asks below /clients/NAME for that client."""
        client = request.match_info.get(CLIENT)
        below = CLIENTS.format(client=quote(client, safe="")) if client is not None else ""
        return f"{self._gateway.settings.public_url or ''}{below}" or "/"

    def _admittance(self) -> Admittance:
        settings, clients = self._gateway.settings, self._gateway.registry.clients
        opened = {Access.METRICS: settings.metrics_open, Access.TYPEAHEAD: settings.typeahead_open}
        return Admittance(
            keyed=settings.api_key is not None or clients is not None,
            opened=frozenset({Access.OPEN, *(access for access, is_open in opened.items() if is_open)}),
            certified=settings.tls is not None and settings.tls.client_ca is not None,
            named=clients is not None,
            required=settings.tls is not None and settings.tls.required,
        )

    async def reload(self, request: web.Request) -> web.Response:
        """Read the files again, now, and try what is quarantined."""
        registry = self._gateway.registry
        await registry.reload(retry=True)
        clients = registry.clients or {}
        note(request, count=len(registry.snapshot.statuses), outcome="ok" if registry.problem is None else "failed")
        told = {
            "ok": registry.problem is None,
            "problem": registry.problem,
            "connectors": len(registry.snapshot.statuses),
            "clients": {name: client.problem for name, client in clients.items()},
        }
        return json_response(told)

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus' format."""
        only = None if identity_of(request).sees_all else identity_of(request).client
        await self._gateway.count_dead_letters()
        pieces = []
        for piece in self._metrics.pieces(only):
            pieces.append(piece)
            await asyncio.sleep(0)  # of a thousand connectors it is megabytes: calls have their turn in between

        async def sent() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece
                await asyncio.sleep(0)

        return web.Response(body=sent(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8",
                                                  "Content-Length": str(sum(map(len, pieces)))})  # fmt: skip

    async def status(self, request: web.Request) -> web.Response:
        """Every connector's state, for people: all that there is, or what is one client's."""
        client = request.query.get("client")
        identity = identity_of(request)
        if not identity.sees_all:
            if client not in {None, identity.client}:
                raise Forbidden("the status of others is for keys with the role operator")
            client = identity.client
        problems = await self._facts.concerns(client)
        told = await (self._whole_status(problems) if client is None else self._status_of(client, problems))
        return json_response(told)

    async def _status_of(self, client: str, problems: list[Concern]) -> dict[str, Any]:
        """Return what one client may know: nothing that others have a part in is counted."""
        gateway = self._gateway
        world = gateway.registry.world(client)
        describing = {called(name) for name in gateway.registry.awaited() if owner_of(name) in {"", client}}
        return {
            "version": self._version,
            "state": gateway.admission.state.value,
            "client": client,
            "problems": problems,
            "describing": sorted(describing & world.statuses.keys()),
            "connectors": await self._connectors(world.statuses, client),
        }

    async def _whole_status(self, problems: list[Concern]) -> dict[str, Any]:
        gateway = self._gateway
        clients = gateway.registry.clients
        return {
            "version": self._version,
            "state": gateway.admission.state.value,
            "problems": problems,
            "registry_problem": gateway.registry.problem,
            "log_problem": logs.problem(),
            "notices": self._connections.encryption.notices(),
            "tls": self._connections.encryption.facts(),
            "audit_problem": gateway.audit.problem if gateway.audit is not None else None,
            "journal": self._runs.health(),
            "describing": gateway.registry.awaited(),
            "processes": {
                "in_flight": gateway.places.running,
                "kept": gateway.places.kept + gateway.places.hosts,
                "max": gateway.settings.max_processes,
            },
            "connections": {"open": self._connections.open, "max": self._connections.most},
            "held": {
                "bodies": self._connections.budget.bodies,
                "answers": self._connections.budget.answers,
                "max": self._connections.budget.most,
            },
            "background_runs": gateway.background_runs(),
            "sandbox": {"steps": names(gateway.registry.machine.steps), "problem": gateway.registry.machine.problem},
            "jobs": self._jobs.health(),
            "workers": [{"worker": 0, "pid": os.getpid()}],
            "clients": {
                name: {**one.facts(time.time()), "at_work": gateway.quotas.at_work(name)}
                for name, one in clients.items()
            }
            if clients is not None
            else None,
            "connectors": await self._connectors(gateway.registry.snapshot.statuses),
        }

    async def _connectors(self, statuses: Mapping[str, Status], client: str | None = None) -> dict[str, Any]:
        """Tell the state of each, with calls having their turn in between; what is removed meanwhile is left out."""
        told = {}
        for number, (name, status) in enumerate(statuses.items(), 1):
            if status.name in self._gateway.registry.snapshot.statuses:
                told[name] = self._connector(status.name, client)
            if not number % SLICE:
                await asyncio.sleep(0)
        return told

    def _cache(self, name: str, connector: Connector | None) -> dict[str, Any] | None:
        """Return how large a connector's cache may be, and what it held at the latest look, in bytes."""
        if connector is None or connector.cache is None:
            return None
        return {"size": int(connector.cache.size), "held": self._gateway.registry.caches.held.get(name)}

    def _connector(self, name: str, client: str | None = None) -> dict[str, Any]:
        """Tell a registered connector's state, of its runs those of one client."""
        status = self._gateway.registry.snapshot.statuses[name]
        connector = status.connector
        mode, notices = self._gateway.pools.told(connector.launch) if connector is not None else (None, [])
        lane = self._gateway.places.lane(name)
        facts: dict[str, Any] = {
            "state": status.state.value,
            "reason": status.reason,
            "runtime": connector.runtime if connector is not None else None,
            "mode": mode,
            "sandbox": self._gateway.given(name),
            "commands": [],
            "in_flight": lane.running if client is None else lane.running_of(client),
            "queued": lane.queued if client is None else lane.waiting_of(client),
            "cache": self._cache(name, connector),
            "notices": [*self._gateway.notices(name, client), *notices],
            "last_outcomes": self._recent.of(name, client),
        }
        if connector is not None and status.state is ConnectorState.READY:
            circuit = self._gateway.invoker.trouble_of(connector, client)
            facts["commands"] = list(connector.commands or ())
            facts["circuit"] = circuit.state.value if circuit is not None else CircuitState.CLOSED.value
            facts["reason"] = circuit.reason if circuit is not None else None
        return facts
