"""The handlers of every route."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from aiohttp import web

from gateway.calls.admission import AdmissionState
from gateway.connectors.snapshot import ConnectorState
from gateway.http import openapi
from gateway.http.auths import AuthHandlers
from gateway.http.calls import CallHandlers
from gateway.http.jobs import JobHandlers
from gateway.http.responses import json_response, raw_json
from gateway.http.routes import Access, Route, whole
from gateway.http.typeahead import TypeaheadHandlers
from gateway.observe import logs
from gateway.sandbox import names

if TYPE_CHECKING:
    from gateway.connectors.definition import Connector
    from gateway.gateway import Gateway
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
        redirects: tuple[Origin, ...] = (),
    ) -> None:
        """`redirects` are the origins that browsers may be sent back to with a token."""
        self._gateway = gateway
        self._metrics = metrics
        self._recent = recent
        self._version = version
        self._connections = connections
        self._jobs = JobHandlers(gateway)
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
                *self._auths.routes(),
                *TypeaheadHandlers(self._gateway.suggestions).routes(),
                *self._jobs.routes(),
                *CallHandlers(self._gateway, self._connections.budget).routes(),
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

        It takes it without a log, too, and says so.
        """
        state, asked = self._gateway.admission.state, self._gateway.registry.awaited()
        problem = logs.problem()
        told: dict[str, Any] = {"log_problem": problem} if problem else {}
        if state is not AdmissionState.SERVING:
            return json_response({"ok": False, "reason": state.value, **told}, 503)
        if asked:
            told = {"reason": ConnectorState.DESCRIBING.value, "connectors": asked, **told}
            return json_response({"ok": False, **told}, 503)
        return json_response({"ok": True, **told})

    async def commands(self, _request: web.Request) -> web.Response:
        """The catalogue, from memory."""
        await self._gateway.registry.listed()
        return raw_json(self._gateway.registry.snapshot.commands)

    async def auths(self, _request: web.Request) -> web.Response:
        """The authentications, from memory."""
        await self._gateway.registry.listed()
        return raw_json(self._gateway.registry.snapshot.auths)

    async def openapi(self, _request: web.Request) -> web.Response:
        """The OpenAPI document: these routes, and an operation for each command."""
        await self._gateway.registry.listed()
        snapshot = self._gateway.registry.snapshot
        keyed = self._gateway.settings.api_key is not None
        return raw_json(openapi.document(snapshot, self.routes(), self._version, keyed=keyed))

    async def metrics(self, _request: web.Request) -> web.Response:
        """Prometheus' format."""
        return web.Response(
            body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def status(self, _request: web.Request) -> web.Response:
        """Every connector's state, for people."""
        gateway = self._gateway
        facts = {
            "version": self._version,
            "state": gateway.admission.state.value,
            "registry_problem": gateway.registry.problem,
            "log_problem": logs.problem(),
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
            "connectors": {name: self._connector(name) for name in gateway.registry.snapshot.statuses},
        }
        return json_response(facts)

    def _cache(self, name: str, connector: Connector | None) -> dict[str, Any] | None:
        """Return how large a connector's cache may be, and what it held at the latest look, in bytes."""
        if connector is None or connector.cache is None:
            return None
        return {"size": int(connector.cache.size), "held": self._gateway.registry.caches.held.get(name)}

    def _connector(self, name: str) -> dict[str, Any]:
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
            "in_flight": lane.running,
            "queued": len(lane.waiting),
            "cache": self._cache(name, connector),
            "notices": [*self._gateway.notices(name), *notices],
            "last_outcomes": self._recent.of(name),
        }
        if connector is not None and status.state is ConnectorState.READY:
            circuit = self._gateway.invoker.circuit(connector)
            facts["commands"] = list(connector.commands or ())
            facts["circuit"] = circuit.state.value
            facts["reason"] = circuit.reason if circuit.state is not circuit.state.CLOSED else None
        return facts
