"""The page that shows the OpenAPI document: Swagger UI, and the files that it is made of. Nothing on it is a secret."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from gateway.http.routes import DOCS, Access, Route

if TYPE_CHECKING:
    from collections.abc import Callable

_ASSETS = Path(__file__).parent / "assets"
SHIPPED = "swagger-ui"
"""Their folder in the wheel, of what hatch_build.py puts there."""
SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class DocsHandlers:
    """The routes of the page."""

    def __init__(self, keyed: Callable[[], bool]) -> None:
        """`keyed` tells whether the document cannot be had without a key: then the page asks for one at once."""
        self._keyed = keyed
        own = {name: _ASSETS / name for name in ("docs.css", "docs.js")}
        self._files = own | {name: folder / name for folder in (_swagger_ui(),) if folder for name in SWAGGER_UI}

    def routes(self) -> list[Route]:
        """Return the table of routes."""
        return [
            Route("GET", DOCS, self.page, Access.OPEN),
            Route("GET", f"{DOCS}/{{file}}", self.file, Access.OPEN),
        ]

    async def page(self, request: web.Request) -> web.Response:
        """Show the OpenAPI document in a browser."""
        text = (_ASSETS / "docs.html").read_text()
        if self._keyed():
            text = text.replace("<html", "<html data-keyed", 1)
        tag = hashlib.sha256(text.encode()).hexdigest()[:32]
        headers = {**HEADERS, hdrs.ETAG: f'"{tag}"'}
        if any(one.value in {tag, "*"} for one in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(text=text, headers=headers, content_type=_TYPES[".html"], charset="utf-8")

    async def file(self, request: web.Request) -> web.FileResponse:
        """One of the files of that page."""
        file = self._files.get(request.match_info["file"])
        if file is None:
            raise web.HTTPNotFound
        return _sent(file)


def _sent(file: Path) -> web.FileResponse:
    return web.FileResponse(file, headers={**HEADERS, "Content-Type": f"{_TYPES[file.suffix]}; charset=utf-8"})


def _swagger_ui() -> Path | None:
    """Return where Swagger UI lies: in the wheel, or, in a checkout, in the package that the wheel has it from."""
    if (_ASSETS / SHIPPED).exists():
        return _ASSETS / SHIPPED
    package = importlib.util.find_spec("flask_swagger_ui")  # which is found, and not imported
    return Path(package.origin).parent / "dist" if package is not None and package.origin is not None else None
