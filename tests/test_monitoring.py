"""The dashboard and the rules in deploy/ ask for what there is, and a real Prometheus takes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import yaml

from gateway.observe.events import RunFinished
from tests.observe.test_metrics import idle
from tests.support import PATIENCE, Site, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = Path(__file__).parent.parent
RULES = ROOT / "deploy/prometheus"
JOB = "gateway"
VALUES = {"$__rate_interval": "1m", "$job": JOB, "$instance": ".*", "$connector": ".*"}
OPTIONS = {
    "stat": {"reduceOptions", "colorMode", "graphMode", "textMode", "justifyMode", "orientation", "wideLayout",
             "showPercentChange", "percentChangeColorMode"},
    "table": {"frameIndex", "showHeader"},
    "timeseries": {"legend", "tooltip"},
}  # fmt: skip
"""Options that Grafana's schema (grafana-foundation-sdk) asks for, by the type of a panel."""
with_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="there is no promtool: apt-get install prometheus"
)
with_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="there is no Prometheus: apt-get install prometheus"
)


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions(dashboard: Any) -> Iterator[tuple[str, str]]:
    """Return the title of each panel with each of its expressions."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def metrics_in(text: str) -> set[str]:
    """Return the metrics that an expression names, those of recording rules left out."""
    bare = re.sub(r'"[^"]*"', "", text)
    return set(re.findall(r"(?<![\w:])(?:gateway|process)_\w+(?![\w:])", bare))


def exposed() -> set[str]:
    """Return the series that a gateway has once there was a call."""
    metrics = idle()
    metrics(RunFinished(connector="fax", command="Go", request_id="r", outcome="ok", pid=7))
    text = metrics.text().decode()
    types = re.findall(r"^# TYPE (\w+) (\w+)$", text, flags=re.MULTILINE)
    histograms = {
        f"{name}_{part}" for name, kind in types if kind == "histogram" for part in ("bucket", "sum", "count")
    }
    return {name for name, kind in types if kind != "histogram"} | histograms


def test_every_metric_that_is_named_is_there(dashboard: Any, rules: list[dict[str, Any]]) -> None:
    variables = [one["definition"] for one in dashboard["templating"]["list"] if "definition" in one]
    named = [expr for _, expr in expressions(dashboard)] + [rule["expr"] for rule in rules] + variables
    assert metrics_in(" ".join(named)) - {"gateway_draining"} <= exposed()
    recorded = {rule["record"] for rule in rules if "record" in rule}
    assert set(re.findall(r"gateway:[\w:]+", " ".join(named))) <= recorded


def test_every_metric_of_the_gateways_own_is_shown_or_watched(dashboard: Any, rules: list[dict[str, Any]]) -> None:
    used = metrics_in(" ".join([*(expr for _, expr in expressions(dashboard)), *(rule["expr"] for rule in rules)]))
    own = {re.sub(r"_(bucket|sum|count)$", "", one) for one in exposed() if not one.endswith("_created")}
    unused = {one for one in own if one.startswith("gateway_")} - {
        re.sub(r"_(bucket|sum|count)$", "", one) for one in used
    }
    assert unused <= {"gateway_quarantined"}  # which the one by connector says, too


def test_the_dashboard_can_be_provisioned(dashboard: Any) -> None:
    assert dashboard["schemaVersion"] >= 41
    assert "id" not in dashboard
    panels = dashboard["panels"]
    assert len({one["id"] for one in panels}) == len(panels)
    assert len({one["title"] for one in panels}) == len(panels)
    for one in panels:
        if one["type"] != "row":
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert all(target["datasource"] == one["datasource"] for target in one["targets"])
            assert OPTIONS.get(one["type"], set()) <= one["options"].keys()
    assert all(variable["current"].keys() == {"text", "value"} for variable in dashboard["templating"]["list"])
    taken = [
        (x, y)
        for grid in (one["gridPos"] for one in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    provider = yaml.safe_load((ROOT / "deploy/grafana/provider.yml").read_text())
    assert provider["apiVersion"] == 1


def test_every_alert_is_tried_in_both_ways_and_documented(rules: list[dict[str, Any]]) -> None:
    alerts = {rule["alert"] for rule in rules if "alert" in rule}
    tried: dict[str, set[bool]] = {}
    for case in yaml.safe_load((RULES / "rules_test.yml").read_text())["tests"]:
        for one in case["alert_rule_test"]:
            tried.setdefault(one["alertname"], set()).add(bool(one["exp_alerts"]))
    assert tried == {name: {True, False} for name in alerts}
    text = (ROOT / "docs/metrics.md").read_text()
    assert set(re.findall(r"^\| `([A-Z]\w+)` \|", text, flags=re.MULTILINE)) == alerts
    for rule in rules:
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"critical", "warning", "info"}
            assert set(rule["annotations"]) == {"summary", "description"}


@with_promtool
@pytest.mark.parametrize(
    "arguments", [("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml"),
                  ("check", "config", "--syntax-only", "prometheus.yml")], ids=" ".join,
)  # fmt: skip
def test_promtool_takes_them(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """One that runs."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(self, path: str, **params: str) -> Any:
        """Return what its API answers."""
        try:
            async with self._session.get(f"{self._url}/api/v1/{path}", params=params) as response:
                return await response.json() if response.content_type == "application/json" else {"status": "starting"}
        except aiohttp.ClientConnectionError:
            return {"status": "away"}

    async def query(self, expression: str) -> Any:
        """Return what an expression comes to."""
        for name, value in VALUES.items():
            expression = expression.replace(name, value)
        assert "$" not in expression
        answer = await self.ask("query", query=expression)
        assert answer["status"] == "success", (expression, answer)
        return answer["data"]["result"]

    async def is_up(self) -> bool:
        """Tell whether it has scraped all that there is."""
        answer = await self.ask("targets")
        return answer["status"] == "success" and {one["health"] for one in answer["data"]["activeTargets"]} == {"up"}

    async def rules(self) -> list[Any] | None:
        """Return its rules once each was evaluated."""
        answer = await self.ask("rules")
        found = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
        return found if found and all(one["health"] != "unknown" for one in found) else None


@contextlib.asynccontextmanager
async def prometheus(folder: Path, key: str, *urls: str) -> AsyncIterator[Prometheus]:
    """Run one with the configuration in deploy/, before gateways; whose certificates they are is not looked at."""
    config = yaml.safe_load((RULES / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    [scraped] = config["scrape_configs"]
    scraped["authorization"]["credentials_file"] = str(folder / "key")
    config["scrape_configs"] = [
        {**scraped, "job_name": f"scraped-{number}", "scheme": url.partition("://")[0],
         "tls_config": {"insecure_skip_verify": True},
         "static_configs": [{"targets": [url.partition("://")[2]], "labels": {"job": scraped["job_name"]}}]}
        for number, url in enumerate(urls)
    ]  # fmt: skip
    config["rule_files"] = [str(RULES / one) for one in config["rule_files"]]
    (folder / "key").write_text(key)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={address}"],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as session:
            yield Prometheus(session, f"http://{address}")
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, PATIENCE)


@with_prometheus
async def test_a_real_prometheus_scrapes_a_gateway_with_the_key_and_evaluates_everything(
    site: Site, dashboard: Any, rules: list[dict[str, Any]]
) -> None:
    key = "sesame"
    site.configure("fax: {run: [cat], commands: {Go: {additional_parameters: true}}}\ngone: {run: [no-such-program]}")
    env = {"CONNECTOR_PROXY_API_KEY": key}
    async with served(site, env=env) as gateway, prometheus(site.folder, key, gateway.url) as watcher:
        await eventually(watcher.is_up, 60)
        headers = {"Authorization": f"Bearer {key}"}

        async def shown() -> Any:
            assert (await gateway.do("fax/Go", headers=headers)).status == 200
            by_outcome = dict(expressions(dashboard))["Calls by outcome"]
            return [one for one in await watcher.query(by_outcome) if float(one["value"][1]) > 0]

        [one] = await eventually(shown, 60)
        assert one["metric"] == {"outcome": "ok"}
        for _, expression in expressions(dashboard):
            await watcher.query(expression)
        answers = {title: await watcher.query(expr) for title, expr in expressions(dashboard)}
        assert answers["Quarantined"][0]["value"][1] == "1"
        assert answers["Not ready"][0]["value"][1] == "0"
        assert {one["metric"]["connector"] for one in answers["Quarantined connectors"]} == {"gone"}
        evaluated = await eventually(watcher.rules, 60)
        assert len(evaluated) == len(rules)
        assert {one["name"]: one.get("lastError") for one in evaluated if one["health"] != "ok"} == {}
        pending = [one["name"] for one in evaluated if one["type"] == "alerting" and one["state"] != "inactive"]
        assert pending == ["ConnectorQuarantined"]
