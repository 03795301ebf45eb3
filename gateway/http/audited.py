"""What the audit is told of requests, and of what comes of them later."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web

from gateway.errors import AuditUnavailable
from gateway.http.proxies import address_of
from gateway.http.routes import CLIENTS
from gateway.http.statuses import HTTP_CODES
from gateway.identity import DEFAULT
from gateway.observe.audit import AuditLine, now, shown
from gateway.observe.events import BackgroundFinished, JobFinished

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from gateway.errors import GatewayError
    from gateway.http.routes import Route
    from gateway.identity import Identity
    from gateway.observe.audit import Audit
    from gateway.observe.events import Event

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

AGAIN = 5.0  # seconds after which to ask again
HUNG_UP = 499
"""The status of a request whose caller did not wait for the answer."""
_NOTES = "audit"
_NONE: Mapping[str, Any] = {}


def note(request: web.Request, **facts: Any) -> None:
    """Say what the audit is to tell of a request besides what shows: fields of its line."""
    request[_NOTES] = {**noted(request), **facts}


def noted(request: web.Request) -> Mapping[str, Any]:
    """Return what has been said of it so far."""
    notes: Mapping[str, Any] = request.get(_NOTES, _NONE)
    return notes


def note_problem(request: web.Request, problem: GatewayError) -> None:
    """Say why a request came to nothing, and what was run for it."""
    run = problem.run
    note(request, outcome=problem.code, **({"connector": run.connector, "command": run.command} if run else {}))


class Audited:
    """Writes a line for each request that is an audit's business, and for each end of a job."""

    kinds = (JobFinished, BackgroundFinished)
    """What it listens to."""

    def __init__(self, audit: Audit, routes: Iterable[Route]) -> None:
        self._audit = audit
        self._events = {(route.method, route.path): route.event for route in routes if route.event is not None}
        self._known: dict[web.AbstractRoute, str | None] = {}

    def __call__(self, event: Event) -> None:
        """Take the end of a job, or of a run that went on after its answer."""
        assert isinstance(event, JobFinished | BackgroundFinished)
        self._audit.put(
            AuditLine(
                time=now(),
                event="job",
                client=event.client or DEFAULT,
                request_id=event.request_id,
                task_id=shown(event.task_id),
                connector=event.connector,
                command=event.command,
                job=event.id,
                outcome=event.state if isinstance(event, JobFinished) else event.outcome,
            )
        )

    @web.middleware
    async def tell(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Tell of a request before it is answered: the outermost step around it."""
        event = self._event(request)
        if event is None:
            return await handler(request)
        try:
            response = await handler(request)
        except asyncio.CancelledError:
            note(request, outcome="cancelled")
            self._audit.put(_line(request, event, HUNG_UP))
            raise
        mark = self._audit.put(_line(request, event, response.status))
        if self._audit.required:
            await self._audit.settled(mark)
        return response

    @web.middleware
    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a request pass, unless its line has to be written and cannot be: the innermost step.

        Raises:
            AuditUnavailable: it cannot be.
        """
        if self._audit.refuses and self._event(request) is not None:
            raise AuditUnavailable(f"the audit cannot be written: {self._audit.problem}", retry_after=AGAIN)
        return await handler(request)

    def _event(self, request: web.Request) -> str | None:
        """Return what a request is called; it is known from then on where it is a route's."""
        route = request.match_info.route
        if route in self._known:
            return self._known[route]
        path = (route.resource.canonical if route.resource is not None else "").removeprefix(CLIENTS)
        event = self._events.get((request.method, path))
        if path:
            self._known[route] = event
        return event


def _line(request: web.Request, event: str, status: int) -> AuditLine:
    notes, names = noted(request), request.match_info
    who: Identity | None = request.get("identity")
    return AuditLine(
        time=now(),
        event=notes.get("event", event),
        client=shown(who.holder or who.client) if who is not None else None,
        key_id=(who.key or None) if who is not None else None,
        address=address_of(request) or None,
        request_id=request["request_id"],
        task_id=shown(notes.get("task_id")),
        connector=shown(names.get("connector") or notes.get("connector")),
        command=shown(names.get("command") or names.get("auth") or notes.get("command")),
        job=shown(names.get("id") or notes.get("job")),
        new_job=notes.get("new_job"),
        run=shown(names.get("run")),
        count=notes.get("count"),
        outcome=notes.get("outcome") or outcome_of(status),
        status=status,
    )


def outcome_of(status: int) -> str:
    """Return what a request of which nothing more is known has come to."""
    if status == 401:
        return "unauthorized"
    return "ok" if status < 400 else HTTP_CODES.get(status, "invalid_request")
