"""Calls that people make on the pages, and what is shown of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.errors import GatewayError
from gateway.http.audited import note, note_problem
from gateway.http.console import views
from gateway.http.console.live import HELD, Follower
from gateway.http.responses import status_of
from gateway.identity import DEFAULT
from gateway.observe.events import ConnectorLine
from gateway.units import Size

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from gateway.calls.call import Call
    from gateway.gateway import Gateway
    from gateway.http.console.live import LiveLogs
    from gateway.observe.events import RunFinished


class Attempts:
    """Makes them as a caller would, within the limits of a client."""

    def __init__(self, gateway: Gateway, logs: LiveLogs) -> None:
        self._gateway = gateway
        self._logs = logs

    async def shown(
        self, request: web.Request, connector: str, client: str | None, call: Callable[[], Call]
    ) -> dict[str, Any]:
        """Make a call of a registered connector within its client's limits; return what is shown of it."""
        quotas, whose = self._gateway.quotas, client or DEFAULT
        follower = Follower(connector, HELD, request_id=request["request_id"], client=client)
        since = quotas.enter(whose, quotas.limits_of(whose))
        self._logs.add(follower)
        try:
            outcome = await self._run(request, call)
        finally:
            self._logs.remove(follower)
            quotas.leave(whose, since)
        lines = [one.line for one in follower.lines if isinstance(one, ConnectorLine)] or outcome["logs"]
        return {**outcome, "lines": lines}

    async def _run(self, request: web.Request, call: Callable[[], Call]) -> dict[str, Any]:
        """Make a call, and return what is shown of it."""
        try:
            reply = await self._gateway.invoker.invoke(call())
        except GatewayError as problem:
            note_problem(request, problem)
            code, message, run, logs = problem.code, problem.message, problem.run, problem.logs
            return {
                "status": status_of(problem),
                "code": code,
                "message": message,
                "body": "",
                "logs": logs,
                **_usage(run),
            }
        result = reply.result
        found = {"status": status_of(reply), "code": "", "message": "", "body": "", "logs": reply.logs}
        if result.error is not None:
            note(request, outcome="raised" if result.error.raised else "error")
            found |= {"code": result.error.error_code, "message": result.error.message}
        content = b"".join(map(bytes, result.pieces))
        found["body"] = views.pretty(content)
        return {**found, **_usage(reply.run)}


def _usage(run: RunFinished | None) -> dict[str, Any]:
    if run is None:
        return {"usage": {}}
    usage = {"in the queue": views.seconds(run.queue_wait), "request": run.request_id}
    if run.pid:
        usage |= {
            "ran": views.seconds(run.wall),
            "processor": views.seconds(run.cpu_user + run.cpu_system),
            "memory at most": str(Size(run.peak_rss)),
            "exit status": str(run.signal or run.status),
        }
    return {"usage": usage}
