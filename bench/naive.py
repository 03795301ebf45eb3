"""The obvious way: aiohttp and asyncio's subprocesses, without bounds, without a deadline. naive.py PORT [PROGRAM].

Without a program it answers at once, on uvloop: what aiohttp costs by itself.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import web


def main(port: int, program: str | None) -> None:
    async def still(request: web.Request) -> web.Response:
        return web.Response(body=await request.read(), content_type="application/json")

    async def run(request: web.Request) -> web.Response:
        process = await asyncio.create_subprocess_exec(
            program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        result, _ = await process.communicate(await request.read())
        return web.Response(body=result, content_type="application/json")

    app = web.Application()
    app.router.add_post("/", run if program else still)
    loop = None if program else uvloop.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, loop=loop)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
