"""The handlers of every route."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web
from yarl import URL

from gateway.calls.call import EMPTY, Call
from gateway.connectors.snapshot import State
from gateway.errors import InvalidRequest
from gateway.http.auths import AuthHandlers
from gateway.http.jobs import JobHandlers
from gateway.http.peers import ALONE
from gateway.http.responses import json_response, of_job, of_reply, raw_json
from gateway.http.routes import Access, Route, whole
from gateway.http.status import status_of_team
from gateway.http.team import TeamHandlers
from gateway.http.typeahead import TypeaheadHandlers
from gateway.jobs.port import Accepted
from gateway.processes.supervisor import State as Supervision
from gateway.protocol.document import Object, read_object
from gateway.protocol.request import LARGE, Caller
from gateway.sandbox import names

if TYPE_CHECKING:
    from gateway.calls.reply import Reply
    from gateway.gateway import Gateway
    from gateway.observe.metrics import Metrics
    from gateway.observe.outcomes import Recent
    from gateway.origins import Origin

MOST = 10_000  # parameters
_CONTEXT = "spiff__"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Handlers:
    """HTTP over one gateway."""

    def __init__(
        self, gateway: Gateway, metrics: Metrics, recent: Recent, version: str, redirects: tuple[Origin, ...] = ()
    ) -> None:
        """`redirects` are the origins that browsers may be sent back to with a token."""
        self._gateway = gateway
        self._metrics = metrics
        self._recent = recent
        self._version = version
        self._jobs = JobHandlers(gateway)
        self._team = TeamHandlers(gateway)
        self._auths = AuthHandlers(gateway, redirects)

    def routes(self) -> list[Route]:
        """Return the table of routes."""
        do = "/v1/do/{connector}/{command}"
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
                *self._auths.routes(),
                *TypeaheadHandlers(self._gateway.suggestions).routes(),
                *self._jobs.routes(),
                *self._team.routes(),
                Route("POST", do, self.do, Access.KEY),
                Route("GET", do, self.do, Access.KEY),
            ]
        )

    async def root(self, _request: web.Request) -> web.Response:
        """Say who this is."""
        return json_response({"ok": True, "name": "connector gateway", "version": self._version})

    async def liveness(self, _request: web.Request) -> web.Response:
        """The process works."""
        return json_response({"ok": True})

    async def readiness(self, _request: web.Request) -> web.Response:
        """The process takes new work."""
        state = self._gateway.supervisor.state
        if state is Supervision.SERVING:
            return json_response({"ok": True})
        return json_response({"ok": False, "reason": state.value}, 503)

    async def commands(self, _request: web.Request) -> web.Response:
        """The catalogue, from memory."""
        return raw_json(self._gateway.registry.snapshot.commands)

    async def auths(self, _request: web.Request) -> web.Response:
        """The authentications, from memory."""
        return raw_json(self._gateway.registry.snapshot.auths)

    async def metrics(self, _request: web.Request) -> web.Response:
        """Prometheus' format."""
        await self._team.look()
        return web.Response(
            body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def status(self, request: web.Request) -> web.Response:
        """Every connector's state, for people, over all workers."""
        own = self._status()
        team = self._gateway.team
        if team is None or ALONE in request.query:
            return json_response(own)
        return json_response(await status_of_team(own, team, f"/v1/status?{ALONE}", dict(request.headers)))

    def _status(self) -> dict[str, Any]:
        gateway = self._gateway
        return {
            "version": self._version,
            "state": gateway.supervisor.state.value,
            "registry_problem": gateway.registry.problem,
            "processes": {
                "in_flight": gateway.supervisor.running,
                "kept": gateway.pools.kept(),
                "max": gateway.settings.max_processes,
            },
            "background_runs": gateway.background_runs(),
            "sandbox": {"steps": names(gateway.registry.machine.steps), "problem": gateway.registry.machine.problem},
            "jobs": self._jobs.health(),
            "workers": [{"worker": gateway.team.worker if gateway.team else 0, "pid": os.getpid()}],
            "connectors": {name: self._connector(name) for name in gateway.registry.snapshot.statuses},
        }

    async def do(self, request: web.Request) -> web.Response:
        """Run a command."""
        content = request.content
        body = content.read_nowait() if content.is_eof() else await _body(request)
        if len(body) > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size, len(body))
        call, respond_async = _call(request, body)
        del body  # it may be large, and all of it is in the call
        if call.caller.callback_url is None and not respond_async:  # then nothing can become of it but its answer
            answer: Reply | Accepted = await self._gateway.invoker.invoke(call)
        else:
            answer = await self._gateway.desk.submit(call, respond_async=respond_async)
        return of_job(answer) if isinstance(answer, Accepted) else of_reply(answer, self._gateway.supervisor.sending)

    def _connector(self, name: str) -> dict[str, Any]:
        status = self._gateway.registry.snapshot.statuses[name]
        connector = status.connector
        mode, notices = self._gateway.pools.told(connector.launch) if connector is not None else (None, [])
        facts: dict[str, Any] = {
            "state": status.state.value,
            "reason": status.reason,
            "runtime": connector.runtime if connector is not None else None,
            "mode": mode,
            "sandbox": self._gateway.given(name),
            "commands": [],
            "in_flight": self._gateway.supervisor.in_flight(name),
            "queued": self._gateway.supervisor.queued(name),
            "notices": [*self._gateway.notices(name), *notices],
            "last_outcomes": self._recent.of(name),
        }
        if connector is not None and status.state is State.READY:
            circuit = self._gateway.invoker.circuit(connector)
            facts["commands"] = list(connector.commands or ())
            facts["circuit"] = circuit.state.value
            facts["reason"] = circuit.reason if circuit.state is not circuit.state.CLOSED else None
        return facts


async def _body(request: web.Request) -> bytearray:
    """Read the body. aiohttp's own way copies it once more, which holds everybody up when it is large."""
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size, len(body))
    return body


def _call(request: web.Request, body: bytes | bytearray) -> tuple[Call, bool]:
    """Return what is asked for, and whether its caller rather has a job of it."""
    headers, match = request.headers, request.match_info
    params = _fields(body, method=request.method)
    if len(params) > MOST:
        raise InvalidRequest(f"the body has more than {MOST:,} parameters")
    context: Object = {}
    for name in params:
        if name.startswith(_CONTEXT):
            context[name] = params[name]
    for name in context:
        del params[name]
    traceparent = headers.get("traceparent")
    if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
        traceparent = None
    name, timeout = request["request_id"], headers.get("X-Timeout")
    call = Call(
        connector=match["connector"],
        command=match["command"],
        params=params,
        caller=_caller(name, traceparent, context) if context else Caller(request_id=name, traceparent=traceparent),
        task_data=_task_data(context) if context else EMPTY,
        timeout=None if timeout is None else _timeout(timeout),
        small=len(body) <= LARGE,
    )
    return call, "respond-async" in headers.get("Prefer", "")


def _fields(body: bytes | bytearray, *, method: str) -> Object:
    if not body and method != "POST":
        return {}
    try:
        return read_object(body)
    except (ValueError, msgspec.DecodeError) as problem:
        raise InvalidRequest(f"the body is not a JSON object: {problem}") from problem


def _caller(request_id: str, traceparent: str | None, fields: Object) -> Caller:
    return Caller(
        request_id=request_id,
        traceparent=traceparent,
        process_instance_id=_context(fields, "process_instance_id", int | str | None),
        process_model_identifier=_context(fields, "process_model_identifier", str | None),
        task_id=_context(fields, "task_id", str | None),
        callback_url=_callback_url(fields),
    )


def _task_data(fields: Object) -> msgspec.Raw:
    raw = fields.get(f"{_CONTEXT}task_data", EMPTY)
    first = bytes(memoryview(raw)[:1])
    if first == b'"':  # older callers send it as JSON in a string
        raw = msgspec.Raw(msgspec.json.decode(raw, type=str).encode() or b"{}")
        try:
            read_object(bytes(raw))
        except (ValueError, msgspec.DecodeError) as problem:
            raise InvalidRequest(f"{_CONTEXT}task_data is not a JSON object: {problem}") from problem
        return raw
    if first == b"n":
        return EMPTY
    if first != b"{":
        raise InvalidRequest(f"{_CONTEXT}task_data is not a JSON object")
    return raw


def _context(fields: Object, name: str, kind: Any) -> Any:
    raw = fields.get(f"{_CONTEXT}{name}")
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as problem:
        raise InvalidRequest(f"{_CONTEXT}{name}: {problem}") from problem


def _callback_url(fields: Object) -> str | None:
    url: str | None = _context(fields, "callback_url", str | None)
    try:
        if url and URL(url).scheme not in {"http", "https"}:
            raise InvalidRequest(f"{_CONTEXT}callback_url is not an http or https URL")
    except ValueError as problem:
        raise InvalidRequest(f"{_CONTEXT}callback_url is not a URL: {problem}") from problem
    return url or None


def _timeout(header: str) -> float:
    try:
        timeout = float(header)
    except ValueError:
        timeout = -1.0
    if not 0 < timeout < float("inf"):
        raise InvalidRequest(f"X-Timeout: {header[:40]!r} is not a number of seconds, for example 2.5")
    return timeout
