"""The route of what is suggested while a person types."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote_to_bytes

from gateway.errors import InvalidRequest
from gateway.http.audited import note
from gateway.http.keys import client_of
from gateway.http.responses import raw_json
from gateway.http.routes import Access, Route
from gateway.http.statuses import RAISED, UNSUGGESTED
from gateway.http.traced import trace_of
from gateway.identity import DEFAULT
from gateway.protocol.request import Caller

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.calls.quotas import Quotas
    from gateway.calls.suggestions import Suggestions

LIMIT = 10  # suggestions, unless the caller says how many
MOST = 1000


class TypeaheadHandlers:
    """The route below /v1/typeahead."""

    def __init__(self, suggestions: Suggestions, quotas: Quotas) -> None:
        self._suggestions = suggestions
        self._quotas = quotas

    def routes(self) -> list[Route]:
        """Return the table of routes."""
        return [Route("GET", "/v1/typeahead/{category}", self.suggest, Access.TYPEAHEAD, event="call")]

    async def suggest(self, request: web.Request) -> web.Response:
        """Answer a JSON list."""
        prefix, limit = _asked(request.raw_path.partition("?")[2])
        trace = trace_of(request)
        caller = Caller(
            request_id=request["request_id"], client=client_of(request), traceparent=trace[0], tracestate=trace[1]
        )
        client = client_of(request) or DEFAULT
        since = self._quotas.enter(client, self._quotas.limits_of(client))
        try:
            suggested = await self._suggestions.ask(request.match_info["category"], prefix, limit, caller)
        finally:
            self._quotas.leave(client, since)
        note(request, connector=suggested.connector, command=suggested.command)
        if suggested.error is None:
            return raw_json(suggested.body)
        note(request, outcome="raised" if suggested.error.raised else "error")
        return raw_json(suggested.body, RAISED if suggested.error.raised else UNSUGGESTED)


def _asked(query: str) -> tuple[str, int]:
    """Read the query of a caller that does not escape: the prefix ends at the last `&limit=`, and may hold an &."""
    before, found, rest = f"&{query}".partition("&prefix=")
    prefix, limited, limit = rest.rpartition("&limit=")
    if not limited:
        prefix, limit = rest, parse_qs(before).get("limit", [""])[-1]
    return _text(prefix) if found else "", _limit(limit.partition("&")[0])


def _text(escaped: str) -> str:
    return unquote_to_bytes(escaped.encode(errors="surrogateescape")).decode(errors="replace")


def _limit(text: str) -> int:
    if not text:
        return LIMIT
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MOST):
        raise InvalidRequest(f"limit: {text[:40]!r} is not a number from 1 to {MOST}")
    return int(text)
