"""Gateways in every kind of trouble before a real Prometheus: each panel shows something, and alerts know of it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
from typing import TYPE_CHECKING

import trustme

from bench.servers import free_port
from tests.http.test_clients import client
from tests.http.test_problems import bearer, dead_letter
from tests.http.test_tls import HOSTS, TLS, install, trusting
from tests.jobs.support import caller
from tests.observe.test_unwritable import told_to
from tests.support import Server, Site, eventually, served
from tests.test_monitoring import ROOT, expressions, prometheus, with_prometheus

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.test_monitoring import Prometheus

KEY = "sesame"
WORN = """
fine: {run: [cat], commands: {Go: {additional_parameters: true}}}
gone: {run: [no-such-program]}
crash: {run: [./crash.sh], commands: {Go: {}}}
full: {run: [./held.sh], concurrency: 1, queue: 5, timeout: 5m, queue_timeout: 5m, commands: {Go: {}}}
hungry: {run: [./hungry.py], max_memory: 64MiB, commands: {Go: {}}}
fax: {run: [cat], commands: {Send: {async: true, additional_parameters: true}}}
later: {run: [./later.sh]}
"""
LATER = """
case $(cat) in
*'"op":"describe"'*)
  echo '{"commands": [{"name": "Go", "additional_parameters": true, "execute_async": true}]}' ;;
*'"how":"hold"'*) echo '{"started": true}'; exec >&-; while [ ! -e DIR/gate ]; do sleep 0.02; done ;;
*) echo '{"started": true}' ;;
esac
"""
AWAY = """
fine: {run: [cat], commands: {Go: {additional_parameters: true}, Later: {async: true, additional_parameters: true}}}
silent: {run: [./held.sh], describe_timeout: 5m}
"""
TOLD = {"spiff__callback_url": "http://127.0.0.1:9/"}
NEVER = {"Parts of the gateway that failed"}
"""Panels that only a fault of the gateway's own fills."""
AT_ONCE = {"ConnectorOutOfMemory", "AuditFails", "JournalFails", "CertificateEnds"}
AFTER_A_WHILE = {
    "GatewayDown", "GatewayNotReady", "ConnectorQuarantined", "ConnectorCircuitOpen", "ConnectorFailing",
    "ConnectorQueueFull", "ConnectorRefusesCalls", "ClientOverItsLimits", "JobsUnavailable", "DeadLetters",
    "CallbacksFail", "NotWritable",
}  # fmt: skip


@contextlib.asynccontextmanager
async def worn(site: Site) -> AsyncIterator[Server]:
    """Run a gateway with TLS whose connectors have every kind of trouble."""
    authority = trustme.CA()
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    install(site, authority.issue_cert(*HOSTS, not_after=soon))
    site.script("crash.sh", "kill -9 $$")
    site.script("held.sh", f"while [ ! -e {site.folder}/gate ]; do sleep 0.02; done; echo 1")
    site.script("later.sh", LATER.replace("DIR", str(site.folder)))
    site.python("hungry.py", "held = b'x' * (500 << 20)\n")
    site.configure(WORN, gateway=f"{TLS}\ndrain: 1s\ncallbacks: {{first_delay: 50ms, hosts: {{127.0.0.1: {{}}}}}}")
    client(site, "flood", "keys: [KEY(flood)]\nlimits: {rate: 2/h, burst: 1}\n")
    context: ssl.SSLContext = trusting(authority)
    async with served(site, env={"CONNECTOR_PROXY_API_KEY": KEY}, tls=context) as server:
        yield server


@contextlib.asynccontextmanager
async def away(site: Site) -> AsyncIterator[Server]:
    """Run one that can write nothing: no log, no audit, no journal and no jobs; and that waits for a connector."""
    site.script("held.sh", f"while [ ! -e {site.folder}/gate ]; do sleep 0.02; done")
    site.configure(AWAY, gateway=f"api_key: {KEY}\ndrain: 1s\naudit: {{file: /dev/full}}")
    site.state.mkdir()
    for name in ("jobs", "journal"):
        (site.state / name).write_text("no folder")
    async with told_to(site, os.open("/dev/full", os.O_WRONLY)) as server:
        server.url = f"http://127.0.0.1:{server.port}"
        yield server


async def trouble(one: Server, callback: str) -> None:
    """Have something happen of each kind that counts, again and again: rates need more than one."""
    operator = bearer(KEY)
    await asyncio.gather(
        one.do("fine/Go", headers=operator), one.do("crash/Go", headers=operator),
        one.do("fine/Go", headers=bearer("flood")), one.do("later/Go", {"how": "end", **TOLD}, headers=operator),
        one.do("full/Go", headers=operator),
        one.do("fax/Send", {"spiff__callback_url": callback}, headers=operator),
    )  # fmt: skip


async def silence(one: Server) -> None:
    operator = bearer(KEY)
    await one.do("fine/Go", headers=operator)
    await one.do("fine/Later", headers={**operator, "Prefer": "respond-async"})


@with_prometheus
async def test_every_panel_shows_what_goes_wrong_and_every_alert_of_it_is_raised(tmp_path: Path) -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
    sites = Site(tmp_path / "worn"), Site(tmp_path / "away")
    nobody = f"http://127.0.0.1:{free_port()}"
    async with (
        caller() as backend, worn(sites[0]) as one, away(sites[1]) as other,
        prometheus(tmp_path, KEY, one.url, other.url, nobody) as watcher,
    ):  # fmt: skip
        waiting = [asyncio.create_task(one.do("full/Go", headers=bearer(KEY))) for _ in range(6)]
        try:
            await dead_letter(one, backend, bearer(KEY))
            await one.do("hungry/Go", headers=bearer(KEY))
            await one.do("later/Go", {"how": "hold", **TOLD}, headers=bearer(KEY))

            async def empty() -> set[str]:
                await asyncio.gather(trouble(one, backend.url), silence(other))
                return {title for title, expr in expressions(dashboard) if not await watcher.query(expr)}

            async def shown() -> bool:
                print(await empty())
                return await empty() == NEVER

            async def raised() -> bool:
                await asyncio.gather(trouble(one, backend.url), silence(other))
                found = await alerts(watcher)
                print(found)
                return found["firing"] >= AT_ONCE and found["firing"] | found["pending"] >= AFTER_A_WHILE

            await eventually(shown, 60)
            await eventually(raised, 60)
        finally:
            (sites[0].folder / "gate").touch()
            (sites[1].folder / "gate").touch()
            await asyncio.gather(*waiting)


async def alerts(watcher: Prometheus) -> dict[str, set[str]]:
    """Return the names of alerts by their state."""
    found: dict[str, set[str]] = {"firing": set(), "pending": set(), "inactive": set(), "unknown": set()}
    for rule in await watcher.rules() or ():
        if rule["type"] == "alerting":
            found[rule["state"]].add(rule["name"])
    return found
