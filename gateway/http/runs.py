"""The journal of runs over HTTP: what there is, one of them, one of them again."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.calls.call import EMPTY, Call
from gateway.errors import InvalidRequest, JournalUnavailable, RunConflict, RunNotFound
from gateway.http.audited import note
from gateway.http.jobs import LONGEST_PAGE, PAGE, read_number, read_text
from gateway.http.keys import client_of, identity_of
from gateway.http.owned import Owned
from gateway.http.responses import json_response
from gateway.http.routes import Access, Route
from gateway.http.traced import trace_of
from gateway.identity import called, registered
from gateway.journal.records import Wanted
from gateway.protocol.document import Object
from gateway.protocol.request import LARGE, Caller
from gateway.units import Duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiohttp import web

    from gateway.gateway import Gateway
    from gateway.http.calls import CallHandlers
    from gateway.journal.journal import Journal, JournalHealth
    from gateway.journal.records import RunDetail, RunSummary

_OWNED = Owned("run")
_WHY_NOT = {
    "no": "what it was called with was not kept (journal.payloads)",
    "masked": "what it was called with has secrets, which were not kept",
    "too_large": "what it was called with was larger than gateway.journal.payload_size, and was not kept",
}


class RunHandlers:
    """The routes below /v1/runs."""

    def __init__(self, gateway: Gateway, calls: CallHandlers) -> None:
        self._gateway = gateway
        self._calls = calls

    def routes(self) -> list[Route]:
        """Return the table of routes."""
        return [
            Route("GET", "/v1/runs", self.list, Access.KEY),
            Route("GET", "/v1/runs/{run}", self.show, Access.KEY),
            Route("POST", "/v1/runs/{run}/replay", self.replay, Access.CALL, event="replay"),
        ]

    def health(self) -> JournalHealth | None:
        """Return whether runs are written, for the status view; None where none is kept."""
        journal = self._gateway.invoker.journal
        return journal.health() if journal is not None else None

    async def list(self, request: web.Request) -> web.Response:
        """List runs that are over, the latest first."""
        found, limit, offset = await self.search(request, request.query)
        return json_response({**self.node(request), "runs": [told_of_run(one, request) for one in found],
                              "limit": limit, "offset": offset})  # fmt: skip

    async def search(self, request: web.Request, query: Mapping[str, str]) -> tuple[Sequence[RunSummary], int, int]:
        """Return the runs that are asked for, as far as who asks may see them, and which page that is: limit, offset.

        Raises:
            InvalidRequest: the query makes no sense.
            Forbidden: it asks for others' runs.
            JournalUnavailable: there is no journal, or it cannot be read.
        """
        now = time.time()
        limit = min(read_number(query.get("limit"), PAGE, "limit"), LONGEST_PAGE)
        offset = read_number(query.get("offset"), 0, "offset")
        wanted = Wanted(
            connector=self._registered(request, read_text(query.get("connector"), "connector")),
            command=read_text(query.get("command"), "command"),
            outcome=read_text(query.get("outcome"), "outcome"),
            process_instance=read_text(query.get("process_instance"), "process_instance"),
            task=read_text(query.get("task"), "task"),
            client=_OWNED.wanted(request, read_text(query.get("client"), "client")),
            job=read_text(query.get("job"), "job"),
            since=_moment(query.get("since"), now, "since"),
            until=_moment(query.get("until"), now, "until"),
            after=read_text(query.get("after"), "after"),
        )
        return await self._journal().list(wanted, limit=limit, offset=offset), limit, offset

    async def latest(self, connector: str, client: str | None, most: int) -> Sequence[RunSummary] | None:
        """Return the latest runs of a registered connector, of one client or of all; None: no journal can tell."""
        try:
            return await self._journal().list(Wanted(connector=connector, client=client), limit=most, offset=0)
        except JournalUnavailable:
            return None

    async def show(self, request: web.Request) -> web.Response:
        """Show one run: the end of its log, and what was kept of its parameters and result."""
        return json_response({**self.node(request), **told_of_run(await self.find(request), request)})

    async def replay(self, request: web.Request) -> web.Response:
        """Call again with what was kept of a run: a new call, which is answered as any."""
        return await self._calls.repeat(request, await self.again(request))

    async def again(self, request: web.Request) -> Call:
        """Return the call that repeats the run that a request names.

        Raises:
            GatewayError: as `find` does.
            RunConflict: what it was called with was not kept, or not all of it.
        """
        run, trace = await self.find(request), trace_of(request)
        note(request, connector=run.connector, command=run.command, task_id=run.task_id)
        if run.unreadable:
            raise RunConflict("what it was called with is sealed, and no key of gateway.jobs.encrypt opens it")
        if run.kept != "whole" or run.params is None:
            raise RunConflict(_WHY_NOT.get(run.kept, _WHY_NOT["no"]))
        params = msgspec.json.decode(run.params, type=Object)
        return Call(
            connector=called(run.connector),
            command=run.command,
            params=params,
            task_data=run.task_data or EMPTY,
            caller=Caller(
                request_id=request["request_id"],
                client=run.client or client_of(request),
                traceparent=trace[0],
                tracestate=trace[1],
                key_id=identity_of(request).key or None,
                process_instance_id=run.process_instance_id,
                process_model_identifier=run.process_model_identifier,
                task_id=run.task_id,
            ),
            small=len(memoryview(run.params)) + len(memoryview(run.task_data or EMPTY)) <= LARGE,
            replay_of=run.id,
        )

    async def find(self, request: web.Request) -> RunDetail:
        """Return the run that a request names.

        Raises:
            Forbidden: who asks sees his client's runs, and this is none of them; whether there is one is not told.
            RunNotFound: there is none.
        """
        name = read_text(request.match_info["run"], "the id of a run") or ""
        with _OWNED.hidden(request, RunNotFound):
            run = await self._journal().find(name)
        _OWNED.check(request, run.client)
        return run

    def _registered(self, request: web.Request, connector: str | None) -> str | None:
        """Return under which name runs have a connector that is asked for; one that is not there has its client's."""
        client = client_of(request)
        status = self._gateway.registry.world(client).statuses.get(connector or "")
        if status is not None:
            return status.name
        if connector is None or client is None or identity_of(request).sees_all:
            return connector
        return registered(connector, client)

    def node(self, request: web.Request) -> dict[str, Any]:
        """Return whose runs these are: each gateway has its own."""
        return {"node": self._journal().node} if identity_of(request).sees_all else {}

    def _journal(self) -> Journal:
        journal = self._gateway.invoker.journal
        if journal is None:
            raise JournalUnavailable("this gateway keeps no runs (gateway.journal)")
        return journal


def told_of_run(run: RunSummary, request: web.Request) -> dict[str, Any]:
    """Return what whoever asks is told of a run."""
    told: dict[str, Any] = msgspec.structs.asdict(run)
    if not identity_of(request).sees_all:
        told["connector"] = called(run.connector)
    return told


def _moment(text: str | None, now: float, name: str) -> float | None:
    """Read a moment: so long ago (`1h`), seconds since 1970, or RFC 3339."""
    if text is None:
        return None
    try:
        return now - Duration.parse(text)
    except ValueError:
        pass
    try:
        moment = datetime.datetime.fromisoformat(text).astimezone(datetime.UTC).timestamp()
    except (ValueError, OverflowError):
        try:
            moment = float(text)
        except ValueError:
            moment = float("nan")
    if not 0 <= moment <= 1e12:
        raise InvalidRequest(
            f"{name} is no moment: write 1h for an hour ago, 2026-11-30T00:00:00Z, or seconds since 1970"
        )
    return moment
