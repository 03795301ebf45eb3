"""A gateway that is nothing but its jobs: the engine of the product, and a `run` that writes into a file.

usage: driver.py PORT STATE_DIR EVENTS [DATABASE] [BEAT LEASE]
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from aiohttp import web

from gateway.errors import GatewayError
from gateway.jobs.cluster import PACE, Pace
from gateway.jobs.contract import Begin, Job, Outcome
from gateway.jobs.durable import DurableJobs
from gateway.jobs.settings import CallbacksSection, JobsSection
from gateway.protocol.request import Caller
from gateway.units import Duration


class Events:
    """Lines that survive kill -9: one write each."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, name: str, **facts: object) -> None:
        line = json.dumps({"event": name, "at": time.time(), "pid": os.getpid(), **facts})
        os.write(self._fd, line.encode() + b"\n")


def application(state: Path, events: Events, database: str | None, pace: Pace) -> web.Application:
    async def run(job: Job, begin: Begin) -> Outcome:
        await begin()
        events.write("run", job=job.id, idempotent=job.idempotent)
        await asyncio.sleep(json.loads(job.params)["seconds"])
        events.write("ran", job=job.id)
        body = {"command_response": {"body": {"job": job.id}}, "command_response_version": 2, "error": None}
        return Outcome(status=200, body=json.dumps(body))

    jobs = DurableJobs(
        run,
        state_dir=state,
        jobs=JobsSection(database=database, max_interruptions=50),
        callbacks=lambda _client: CallbacksSection(first_delay=Duration(0.3), timeout=Duration(5)),
        limit=lambda _connector: 16,
        publish=lambda event: events.write(type(event).__name__, told=repr(event)),
        pace=pace,
    )

    async def accept(request: web.Request) -> web.Response:
        asked = await request.json()
        job = Job(
            connector="fake",
            command="Sleep",
            params=json.dumps({"seconds": asked["seconds"]}),
            idempotent=asked["idempotent"],
            context=Caller(request_id="r", task_id=asked["task"], callback_url=asked["callback"]),
        )
        try:
            accepted = await jobs.accept(job)
        except GatewayError as problem:
            return web.json_response({"error": problem.code, "message": problem.message}, status=503)
        return web.json_response({"id": accepted.id, "joined": accepted.joined}, status=202)

    async def health(_request: web.Request) -> web.Response:
        told = jobs.health()
        return web.json_response({"ok": told.ok, "state": told.state, "open": told.open, "node": told.node})

    async def life(_app: web.Application):
        await jobs.start()
        yield
        jobs.drain()
        await jobs.stop()

    app = web.Application()
    app.router.add_post("/jobs", accept)
    app.router.add_get("/health", health)
    app.cleanup_ctx.append(life)
    return app


def main() -> None:
    port, state, events, *rest = sys.argv[1:]
    database = rest[0] if rest and rest[0] != "-" else None
    pace = Pace(float(rest[1]), float(rest[2])) if len(rest) > 2 else PACE
    log = Events(events)
    app = application(Path(state), log, database, pace)
    app.on_startup.append(_up(log))
    web.run_app(app, host="127.0.0.1", port=int(port), print=None, shutdown_timeout=1)


def _up(log: Events):
    async def up(_app: web.Application) -> None:
        log.write("up")

    return up


if __name__ == "__main__":
    main()
