"""Durable jobs over HTTP: what there is, one of them, cancel, deliver or run again, remove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway.api.responses import json_response
from gateway.api.routes import Access, Route, read
from gateway.errors import InvalidRequest
from gateway.jobs.port import OPEN, JobsUnavailable, State
from gateway.units import Duration

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.jobs.desk import Desk
    from gateway.jobs.port import Jobs, JobStatus

PAGE = 50
LONGEST_PAGE = 500


class JobHandlers:
    """The routes below /v1/jobs."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[Route]:
        """Return the table of routes."""
        return [
            *read("/v1/jobs", self.list, Access.KEY),
            Route("POST", "/v1/jobs/purge", self.purge, Access.KEY),
            *read("/v1/jobs/{id}", self.show, Access.KEY),
            Route("POST", "/v1/jobs/{id}/cancel", self.cancel, Access.KEY),
            Route("POST", "/v1/jobs/{id}/retry", self.retry, Access.KEY),
        ]

    def health(self) -> Any:
        """Return whether jobs can be accepted, for the status view."""
        return self._desk.jobs.health() if self._desk.jobs is not None else None

    async def list(self, request: web.Request) -> web.Response:
        """List jobs, the latest first: `?state=&connector=&limit=&offset=`."""
        query = request.query
        state = _state(query.get("state"))
        limit = min(_number(query.get("limit"), PAGE, "limit"), LONGEST_PAGE)
        offset = _number(query.get("offset"), 0, "offset")
        found = await self._jobs().list(state=state, connector=query.get("connector"), limit=limit, offset=offset)
        return json_response({"jobs": [_told(one) for one in found], "limit": limit, "offset": offset})

    async def show(self, request: web.Request) -> web.Response:
        """Show one job: attempts, timings, the outcome once there is one."""
        return json_response(_told(await self._jobs().status(request.match_info["id"])))

    async def cancel(self, request: web.Request) -> web.Response:
        """Kill what it runs, or end its delivery; its caller is told."""
        name = request.match_info["id"]
        await self._jobs().cancel(name)
        return json_response(_told(await self._jobs().status(name)))

    async def retry(self, request: web.Request) -> web.Response:
        """Deliver again what it came to; with `?run=true` run it again, as a new job."""
        again = request.query.get("run", "false")
        if again not in {"true", "false"}:
            raise InvalidRequest("run is true or false")
        name = await self._jobs().retry(request.match_info["id"], run=again == "true")
        return json_response(_told(await self._jobs().status(name)), 202)

    async def purge(self, request: web.Request) -> web.Response:
        """Remove jobs that ended: `?older_than=7d&state=`."""
        state = _state(request.query.get("state"))
        if state in OPEN:
            raise InvalidRequest(f"a job that is {request.query['state']} has not ended: cancel it first")
        try:
            older_than = Duration.parse(request.query.get("older_than"))
        except ValueError as problem:
            raise InvalidRequest(f"older_than: {problem}") from problem
        removed = await self._jobs().purge(older_than=float(older_than), state=state)
        return json_response({"removed": removed})

    def _jobs(self) -> Jobs:
        if self._desk.jobs is None:
            raise JobsUnavailable("this gateway keeps no jobs")
        return self._desk.jobs


def _told(status: JobStatus) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(status)
    if status.outcome is not None:
        told["outcome"]["body"] = msgspec.Raw(status.outcome.body.encode())
    return told


def _state(text: str | None) -> State | None:
    if text is None:
        return None
    try:
        return State(text)
    except ValueError:
        known = ", ".join(state.value for state in State)
        raise InvalidRequest(f"state is one of {known}") from None


def _number(text: str | None, default: int, name: str) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise InvalidRequest(f"{name} is a number")
    return int(text)
