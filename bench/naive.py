"""The obvious way: aiohttp and asyncio's subprocesses, without bounds, without a deadline. naive.py PORT PROGRAM."""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web


def main(port: int, program: str) -> None:
    async def run(request: web.Request) -> web.Response:
        process = await asyncio.create_subprocess_exec(
            program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        result, _ = await process.communicate(await request.read())
        return web.Response(body=result, content_type="application/json")

    app = web.Application()
    app.router.add_post("/", run)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
