"""Keeps the OpenAPI documents: one for each client's world, made when it is asked for, until the registry changes."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from aiohttp import hdrs, web

from gateway.http import openapi
from gateway.http.responses import raw_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.connectors.snapshot import Snapshot
    from gateway.http.openapi import Admittance
    from gateway.http.routes import Route

_LEVEL = 1
"""Of compression: it is the same words over and over."""
_HEADERS = {hdrs.CACHE_CONTROL: "private, no-cache", hdrs.VARY: hdrs.ACCEPT_ENCODING}
"""It is of whose key asks, and may be another one in a moment: caches ask each time whether it has changed."""


class _Document(NamedTuple):
    """A document, compressed: of a thousand connectors it is megabytes, and each client has its own."""

    tag: str
    compressed: bytes


class Documents:
    """Documents by whose world they tell of, and by where that is called."""

    def __init__(self, routes: Callable[[], list[Route]], version: str) -> None:
        self._routes = routes
        self._version = version
        self._made: WeakKeyDictionary[Snapshot, dict[tuple[str, Admittance], asyncio.Task[_Document]]] = (
            WeakKeyDictionary()
        )
        self._turn = asyncio.Lock()
        """One at a time: what makes them wants a processor for itself."""

    async def answer(
        self, request: web.Request, world: Snapshot, admittance: Admittance, *, server: str
    ) -> web.StreamResponse:
        """Answer with the document of a world; 304 to who has it already. Whoever asks meanwhile waits for the same."""
        made = self._made.setdefault(world, {})
        task = made.get((server, admittance))
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = made[server, admittance] = asyncio.create_task(self._make(world, admittance, server))
        document = await asyncio.shield(task)
        headers = {**_HEADERS, hdrs.ETAG: f'W/"{document.tag}"'}
        known = request.if_none_match or ()
        if any(one.value in {document.tag, "*"} for one in known):
            return web.Response(status=304, headers=headers)
        if "gzip" in request.headers.get("Accept-Encoding", "").lower():
            response = raw_json(document.compressed)
            response.headers[hdrs.CONTENT_ENCODING] = "gzip"
        else:
            response = raw_json(await asyncio.to_thread(gzip.decompress, document.compressed))
        response.headers.update(headers)
        return response

    async def _make(self, world: Snapshot, admittance: Admittance, server: str) -> _Document:
        async with self._turn:
            return await asyncio.to_thread(self._written, world, admittance, server)

    def _written(self, world: Snapshot, admittance: Admittance, server: str) -> _Document:
        """Write a document, in a thread: the examples that lie beside connectors are read for it."""
        written = openapi.document(world, self._routes(), self._version, admittance, server=server)
        return _Document(hashlib.sha256(written).hexdigest()[:32], gzip.compress(written, _LEVEL, mtime=0))
