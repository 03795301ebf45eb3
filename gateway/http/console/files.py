"""The files that pages are made of, each with a version by which browsers may keep it."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from aiohttp import hdrs, web

HERE = Path(__file__).parent
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
STATIC = {one.name: one for one in (HERE / "static").iterdir() if one.suffix in KINDS}
FOREVER = "public, max-age=31536000, immutable"
"""How long a file of the pages is kept: its URL has its version, and no secret is in it."""


def answered(request: web.Request) -> web.Response:
    """Answer the file that a request names.

    Raises:
        HTTPNotFound: there is none.
    """
    file = STATIC.get(request.match_info["file"])
    if file is None:
        raise web.HTTPNotFound
    response = web.Response(body=_bytes(file), content_type=KINDS[file.suffix], charset="utf-8")
    if request.query.get("v") == version_of(file.name):
        response.headers[hdrs.CACHE_CONTROL] = FOREVER
    return response


@functools.cache
def version_of(name: str) -> str:
    """Return what changes whenever a file of the pages does."""
    return hashlib.sha256(_bytes(STATIC[name])).hexdigest()[:12]


@functools.cache
def _bytes(file: Path) -> bytes:
    return file.read_bytes()
