"""Forms that browsers send: bounded, and counted in what may be held."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.errors import InvalidRequest, RequestTimeout, RequestTooLarge
from gateway.http.budget import Body
from gateway.http.responses import unreadable
from gateway.units import Size

if TYPE_CHECKING:
    from gateway.http.budget import Budget

MOST = 1 << 20  # bytes of a form
FIELDS = 1000  # of a form


async def read_form(request: web.Request, budget: Budget, patience: float, most: int = MOST) -> dict[str, str]:
    """Read a form.

    Raises:
        RequestTooLarge: it has more bytes.
        RequestTimeout: it does not come.
        GatewayBusy: there is no room for it.
        InvalidRequest: it is none.
    """
    body, share = bytearray(), Body(budget)
    try:
        async with asyncio.timeout(patience):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > most:
                    raise RequestTooLarge(f"a form has {Size(most)} at most")
                share.grow(len(body))
    except TimeoutError as problem:
        raise RequestTimeout("the form did not come in time (gateway.read_timeout)") from problem
    except (web.RequestPayloadError, HttpProcessingError) as problem:
        raise InvalidRequest(f"the form cannot be read: {unreadable(problem)}") from problem
    finally:
        share.end()
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=FIELDS, errors="strict")
    except ValueError as problem:
        raise InvalidRequest("this is no form") from problem
    return dict(pairs)
