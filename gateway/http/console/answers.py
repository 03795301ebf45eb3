"""What every answer of the console has in common: headers, and pages instead of envelopes where something is wrong."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp_jinja2
import msgspec
from aiohttp import hdrs, web

from gateway.http.routes import CONSOLE

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none';"
    " object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Nothing is kept, framed, fetched from elsewhere, or run that is not a file of ours.

The policy of referrers is not `no-referrer`: browsers would send our own forms with `Origin: null`, and where there is
neither TLS nor a loopback address they send nothing else by which a form is known to be ours.
"""
LOG_IN = f"{CONSOLE}/login"


class _ProblemTold(msgspec.Struct):
    message: str = ""


class _ProblemSaid(msgspec.Struct):
    error: _ProblemTold | str | None = None


def page(request: web.Request, template: str, facts: Mapping[str, Any], status: int = 200) -> web.Response:
    """Answer a page."""
    text = aiohttp_jinja2.render_string(template, request, facts)
    return web.Response(text=text, status=status, content_type="text/html", charset="utf-8")


def sent_to(path: str) -> web.Response:
    """Send a browser to a page, to look at it."""
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={hdrs.LOCATION: path})


def wants_part(request: web.Request) -> bool:
    """Tell whether a part of a page is asked for, to be put into one that is there."""
    return "HX-Request" in request.headers


def instead(request: web.Request, envelope: web.Response) -> web.Response:
    """Return the page to show instead of an envelope: that something is wrong, or where to log in."""
    if envelope.status == HTTPStatus.UNAUTHORIZED:
        back = request.path_qs if request.method == hdrs.METH_GET and not wants_part(request) else CONSOLE
        where = f"{LOG_IN}?next={quote(back, safe='')}"
        if wants_part(request):
            return web.Response(status=HTTPStatus.UNAUTHORIZED, headers={"HX-Redirect": where})
        if request.headers.get(hdrs.ACCEPT) == "text/event-stream":
            return web.Response(status=HTTPStatus.NO_CONTENT)  # a browser asks no more then
        return sent_to(where)
    body = envelope.body if isinstance(envelope.body, bytes) else b""
    told = msgspec.json.decode(body, type=_ProblemSaid).error
    facts = {
        "title": HTTPStatus(envelope.status).phrase,
        "message": told.message if isinstance(told, _ProblemTold) else "",
        "part": wants_part(request),
    }
    answer = page(request, "problem.html", facts, envelope.status)
    for name in (hdrs.ALLOW, hdrs.RETRY_AFTER):
        if name in envelope.headers:
            answer.headers[name] = envelope.headers[name]
    return answer
