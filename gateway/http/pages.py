"""Pages for the people whose browsers come here. Nothing on them is fetched, run or kept."""

from __future__ import annotations

import html

from aiohttp import web

PRIVATE = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every answer that a browser gets while it signs in."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title></head>
<body>
<h1>{title}</h1>
{paragraphs}
</body>
</html>
"""


def page(status: int, title: str, *paragraphs: str) -> web.Response:
    """Answer a page; the texts are escaped."""
    body = "\n".join(f"<p>{html.escape(one)}</p>" for one in paragraphs)
    text = _PAGE.format(title=html.escape(title), paragraphs=body)
    return web.Response(status=status, text=text, content_type="text/html", charset="utf-8")
