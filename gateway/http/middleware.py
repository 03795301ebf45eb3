"""What happens around every handler. `app.build` has their order."""

from __future__ import annotations

import hmac
import re
import uuid
from typing import TYPE_CHECKING

import structlog
from aiohttp import hdrs, web

from gateway.errors import GatewayError, RequestTooLarge
from gateway.http.pages import PRIVATE
from gateway.http.responses import json_response, of_error, of_status
from gateway.http.routes import Access, Route
from gateway.units import Size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.settings import Settings

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SIGN_IN = "/v1/auth/"
_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_KEY_HEADER = "Spiff-Connector-Proxy-Api-Key"


@web.middleware
async def request_id(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Accept the caller's request id, or make one; it is in the response, the log and the connector's context."""
    given = request.headers.get("X-Request-Id", "")
    request["request_id"] = given if _ID.fullmatch(given) else uuid.uuid4().hex
    response = await handler(request)
    response.headers["X-Request-Id"] = request["request_id"]
    return response


@web.middleware
async def private(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep what browsers get while they sign in, whatever it is, out of caches, frames and Referer headers."""
    response = await handler(request)
    if request.path.startswith(SIGN_IN):
        response.headers.update(PRIVATE)
    return response


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever is raised into the envelope. The outermost handler of errors."""
    try:
        return await handler(request)
    except GatewayError as problem:
        return of_error(problem)
    except web.HTTPRequestEntityTooLarge:
        limit = Size(request.app[SETTINGS].max_request)
        return of_error(RequestTooLarge(f"the body is larger than {limit} (gateway.max_request)"))
    except web.HTTPException as problem:
        response = of_status(problem.status, f"{request.method} {request.path}: {problem.reason}")
        if "Allow" in problem.headers:
            response.headers["Allow"] = problem.headers["Allow"]
        return response
    except Exception:  # noqa: BLE001 - the outermost handler; the log gets all of it
        structlog.get_logger().exception("internal_error", path=request.path, request_id=request["request_id"])
        return of_status(500, f"the gateway failed; its log has the cause under {request['request_id']}")


def access(settings: Settings, routes: list[Route]) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Make the middleware that asks for the API key. What is no route at all needs it too."""
    rules = {(route.method, route.path): route.access for route in routes}
    settable = {Access.METRICS: settings.metrics_open, Access.TYPEAHEAD: settings.typeahead_open}
    opened = {Access.OPEN, *(rule for rule, is_open in settable.items() if is_open)}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        rule = rules.get((request.method, _path(request)))
        if rule in opened or _is_preflight(request) or settings.api_key is None or _has_key(request, settings.api_key):
            return await handler(request)
        return json_response({"error": "Unauthorized"}, 401)

    return check


def options(routes: list[Route]) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Make the middleware that keeps OPTIONS from the handler of preflights where it is none."""
    own = {route.path: route.handler for route in routes if route.method == hdrs.METH_OPTIONS}

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        plain = request.method == hdrs.METH_OPTIONS and not _is_preflight(request)
        return await (own.get(_path(request), handler) if plain else handler)(request)

    return answer


def _path(request: web.Request) -> str:
    """Return the path as the table of routes has it; nothing where there is no route."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else ""


def _is_preflight(request: web.Request) -> bool:
    asks = {hdrs.ORIGIN, hdrs.ACCESS_CONTROL_REQUEST_METHOD}
    return request.method == hdrs.METH_OPTIONS and all(name in request.headers for name in asks)


def _has_key(request: web.Request, key: str) -> bool:
    given = request.headers.get(_KEY_HEADER)
    if given is None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else ""
    # aiohttp keeps bytes that are no UTF-8 as surrogates.
    return hmac.compare_digest(given.encode(errors="surrogateescape"), key.encode())


SETTINGS: web.AppKey[Settings] = web.AppKey("settings")
