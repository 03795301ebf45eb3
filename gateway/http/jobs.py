"""Durable jobs over HTTP: what there is, one of them, cancel, deliver or run again, remove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import InvalidRequest
from gateway.http.audited import note
from gateway.http.keys import client_of, identity_of
from gateway.http.owned import Owned
from gateway.http.responses import json_response
from gateway.http.routes import Access, Route
from gateway.identity import called
from gateway.jobs.background import is_run
from gateway.jobs.contract import OPEN, JobConflict, JobNotFound, JobState, JobsUnavailable, Query
from gateway.units import Duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiohttp import web

    from gateway.gateway import Gateway
    from gateway.jobs.contract import JobStatus
    from gateway.jobs.durable import DurableJobs

PAGE = 50
LONGEST_PAGE = 500
DIGITS = 15  # of a number in a query
_OWNED = Owned("job")
OLDEST = 100 * 365 * 86_400.0  # seconds


class JobHandlers:
    """The routes below /v1/jobs: jobs, and calls that were answered and go on."""

    def __init__(self, gateway: Gateway) -> None:
        self._registry = gateway.registry
        self._submitter = gateway.submitter
        self._background = gateway.background

    def routes(self) -> list[Route]:
        """Return the table of routes."""
        return [
            Route("GET", "/v1/jobs", self.list, Access.KEY),
            Route("POST", "/v1/jobs/purge", self.purge, Access.OPERATOR, event="purge"),
            Route("GET", "/v1/jobs/{id}", self.show, Access.KEY),
            Route("POST", "/v1/jobs/{id}/cancel", self.cancel, Access.CALL, event="cancel"),
            Route("POST", "/v1/jobs/{id}/retry", self.retry, Access.CALL, event="retry"),
        ]

    def health(self) -> Any:
        """Return whether jobs can be accepted, for the status view."""
        return self._submitter.jobs.health() if self._submitter.jobs is not None else None

    async def list(self, request: web.Request) -> web.Response:
        """List jobs, the latest first: `?state=&connector=&process_instance=&task=&client=&limit=&offset=`."""
        found, limit, offset = await self.find(request, request.query)
        return json_response({"jobs": [told(one, request) for one in found], "limit": limit, "offset": offset})

    async def find(self, request: web.Request, query: Mapping[str, str]) -> tuple[Sequence[JobStatus], int, int]:
        """Return the jobs that are asked for, as far as who asks may see them, and which page that is: limit, offset.

        Raises:
            InvalidRequest: the query makes no sense.
            Forbidden: it asks for others' jobs.
            JobsUnavailable: their store does not answer.
        """
        limit = min(read_number(query.get("limit"), PAGE, "limit"), LONGEST_PAGE)
        offset = read_number(query.get("offset"), 0, "offset")
        wanted = Query(
            state=_state(query.get("state")),
            connector=self._registered(request, read_text(query.get("connector"), "connector")),
            process_instance=read_text(query.get("process_instance"), "process_instance"),
            task=read_text(query.get("task"), "task"),
            client=_OWNED.wanted(request, read_text(query.get("client"), "client")),
        )
        going_on = self._background.list(wanted)
        shown = going_on[offset : offset + limit]
        left = limit - len(shown)
        found = await self._jobs().list(wanted, limit=left, offset=max(0, offset - len(going_on))) if left else []
        return (*shown, *found), limit, offset

    async def show(self, request: web.Request) -> web.Response:
        """Show one job: attempts, timings, the outcome once there is one."""
        return json_response(told(await self.status(request), request))

    async def cancel(self, request: web.Request) -> web.Response:
        """Kill what it runs, or end its delivery; its caller is told, unless it calls back by itself."""
        return json_response(told(await self.cancelled(request), request))

    async def cancelled(self, request: web.Request) -> JobStatus:
        """Cancel the job that a request names, and return what has become of it.

        Raises:
            GatewayError: as `status` does, or it has ended.
        """
        name = (await self.status(request)).id
        if is_run(name):
            status = _going_on(name, await self._background.cancel(name))
        else:
            await self._jobs().cancel(name)
            status = await self._jobs().status(name)
        _note(request, status)
        return status

    async def retry(self, request: web.Request) -> web.Response:
        """Deliver again what it came to; with `?run=true` run it again, as a new job."""
        again = request.query.get("run", "false")
        if again not in {"true", "false"}:
            raise InvalidRequest("run is true or false")
        return json_response(told(await self.retried(request, run=again == "true"), request), 202)

    async def retried(self, request: web.Request, *, run: bool) -> JobStatus:
        """Deliver the job that a request names again, or `run` it again as a new one; return that.

        Raises:
            GatewayError: as `status` does, or it has not ended, or has no outcome.
        """
        if run:
            note(request, event="run_again")
        name = _name(request)
        if not is_run(name) or not identity_of(request).sees_all:
            await self.status(request)
        if is_run(name):
            raise JobConflict("a call that goes on after its answer has no outcome that could be delivered again")
        name = await self._jobs().retry(name, run=run)
        if run:
            note(request, new_job=name)
        status = await self._jobs().status(name)
        _note(request, status)
        return status

    async def purge(self, request: web.Request) -> web.Response:
        """Remove jobs that ended: `?older_than=7d&state=`."""
        return json_response({"removed": await self.purged(request, request.query)})

    async def purged(self, request: web.Request, query: Mapping[str, str]) -> int:
        """Remove the jobs that a query names, and return how many.

        Raises:
            InvalidRequest: it makes no sense.
            JobsUnavailable: their store does not answer.
        """
        older_than, state = _ended(query)
        removed = await self._jobs().purge(older_than=older_than, state=state)
        note(request, count=removed)
        return removed

    async def purgeable(self, query: Mapping[str, str], most: int) -> int:
        """Return how many jobs `purged` would remove, at most so many. Raises what it does."""
        older_than, state = _ended(query)
        return await self._jobs().count_ended(older_than=older_than, state=state, most=most)

    async def status(self, request: web.Request) -> JobStatus:
        """Return the job that a request names.

        Raises:
            Forbidden: who asks sees his client's jobs, and this is none of them; whether there is one is not told.
            JobNotFound: there is none.
        """
        return await self.named(request, _name(request))

    async def named(self, request: web.Request, name: str) -> JobStatus:
        """Return a job, as `status` does."""
        with _OWNED.hidden(request, JobNotFound):
            status = _going_on(name, self._background.find(name)) if is_run(name) else await self._jobs().status(name)
        _OWNED.check(request, status.client)
        return status

    def _registered(self, request: web.Request, connector: str | None) -> str | None:
        """Return under which name jobs have a connector that is asked for."""
        status = self._registry.world(client_of(request)).statuses.get(connector or "")
        return status.name if status is not None else connector

    def _jobs(self) -> DurableJobs:
        if self._submitter.jobs is None:
            raise JobsUnavailable("this gateway keeps no jobs")
        return self._submitter.jobs


def _going_on(name: str, status: JobStatus | None) -> JobStatus:
    if status is None:
        raise JobNotFound(f"no call goes on under {name}: it has ended")
    return status


def _note(request: web.Request, status: JobStatus) -> None:
    note(request, connector=status.connector, command=status.command, task_id=status.task_id)


def told(status: JobStatus, request: web.Request) -> dict[str, Any]:
    """Return what whoever asks is told of a job."""
    facts: dict[str, Any] = msgspec.to_builtins(status)
    if not identity_of(request).sees_all:
        facts["connector"] = called(status.connector)
        facts.pop("node")
    if status.outcome is not None:
        facts["outcome"]["body"] = msgspec.Raw(status.outcome.body.encode())
    return facts


def _state(text: str | None) -> JobState | None:
    if text is None:
        return None
    try:
        return JobState(text)
    except ValueError:
        known = ", ".join(state.value for state in JobState)
        raise InvalidRequest(f"state is one of {known}") from None


def _ended(query: Mapping[str, str]) -> tuple[float, JobState | None]:
    """Read which jobs are to be removed: those that ended so many seconds ago, and in this state; None: in any.

    Raises:
        InvalidRequest: the query makes no sense.
    """
    state = _state(query.get("state"))
    if state in OPEN:
        raise InvalidRequest(f"a job that is {query['state']} has not ended: cancel it first")
    try:
        older_than = Duration.parse(query.get("older_than"))
    except ValueError as problem:
        raise InvalidRequest(f"older_than: {problem}") from problem
    if older_than > OLDEST:
        raise InvalidRequest("older_than is more than 100 years")
    return float(older_than), state


def read_number(text: str | None, default: int, name: str) -> int:
    """Read a number of a query."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise InvalidRequest(f"{name} is a number")
    if len(text) > DIGITS:
        raise InvalidRequest(f"{name} is a number of at most {DIGITS} digits")
    return int(text)


def read_text(text: str | None, name: str) -> str | None:
    """Read a text of a query, or of a path."""
    if text is not None and "\0" in text:
        raise InvalidRequest(f"{name} holds the character U+0000")
    return text


def _name(request: web.Request) -> str:
    """Return the job that is named in the path."""
    name = request.match_info["id"]
    if "\0" in name:  # PostgreSQL could not even be asked
        raise InvalidRequest("the id of a job does not hold the character U+0000")
    return name
