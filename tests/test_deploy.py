"""What lies in deploy/ is valid, and fits together and to the gateway."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from gateway.connectors.definition import define
from gateway.connectors.sources import read_sources
from gateway.jobs.settings import CallbacksSection, read_sections
from gateway.sections import GatewaySection
from gateway.settings import JOBS_DATABASE, Settings, read_settings
from gateway.units import Duration

DEPLOY = Path(__file__).parent.parent / "deploy"
KUBERNETES = "1.37"
DRAIN = GatewaySection().drain
PROBES = {"readiness": "/v1/readiness", "liveness": "/liveness"}


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    """The Kubernetes objects by kind; there is one of each."""
    found = {}
    for file in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            assert document["kind"] not in found
            found[document["kind"]] = document
    return found


# --- compose


def test_compose_is_valid(compose: Any) -> None:
    read = PyCompose.from_yaml(yaml.safe_dump(compose))  # it does not know YAML's merge keys
    assert set(read.service_names()) == {"one", "two", "postgres", "haproxy"}


def test_the_image_has_what_health_checks_and_requirements_need() -> None:
    text = (DEPLOY.parent / "Dockerfile").read_text()
    *_, final = re.split(r"^FROM ", text, flags=re.MULTILINE)
    (installed,) = re.findall(r"apt-get install -y --no-install-recommends (.+) \\", final)
    assert {"curl", "git"} <= set(installed.split())
    assert "\nUSER gateway\n" in final


def test_the_image_is_built_from_what_it_is_given_and_its_compiler_stays_behind() -> None:
    text = (DEPLOY.parent / "Dockerfile").read_text()
    (build,) = re.findall(r"^FROM base AS build\n(.*?)^FROM ", text, flags=re.MULTILINE | re.DOTALL)
    assert "gcc libc6-dev" in build  # of the cell
    assert "gcc" not in text.replace(build, "")
    given = set(re.findall(r"^!(\S+)$", (DEPLOY.parent / ".dockerignore").read_text(), flags=re.MULTILINE))
    copied = {
        name.rstrip("/")
        for names in re.findall(r"^COPY ([^-].*) \S+$", text, flags=re.MULTILINE)
        for name in names.split()
    }
    assert copied == given


def test_compose_gives_a_drain_its_time_and_probes_what_is_alive(compose: Any) -> None:
    for name in ("one", "two"):
        gateway = compose["services"][name]
        assert Duration.parse(gateway["stop_grace_period"]) > DRAIN + 10
        assert PROBES["liveness"] in gateway["healthcheck"]["test"][-1]
        assert gateway["read_only"] is True
        assert {"CONNECTOR_PROXY_API_KEY", JOBS_DATABASE} <= gateway["environment"].keys()
        assert gateway["depends_on"]["postgres"] == {"condition": "service_healthy"}
    volumes = [compose["services"][name]["volumes"] for name in ("one", "two")]
    assert volumes == [["one:/var/lib/gateway"], ["two:/var/lib/gateway"]]  # a state_dir each
    assert {"one", "two", "postgres"} == compose["volumes"].keys()
    assert all("healthcheck" in service for service in compose["services"].values())


def test_containers_give_what_sandboxes_need_and_bound_what_is_in_them(compose: Any, arena: Any) -> None:
    for folder, gateway in ((DEPLOY, compose["services"]["one"]), (DEPLOY / "spiff-arena", arena["gateway"])):
        options = dict(re.split("[:=]", one, maxsplit=1) for one in gateway["security_opt"])
        assert options["no-new-privileges"] == "true"
        assert options["systempaths"] == options["apparmor"] == "unconfined"
        assert (folder / options["seccomp"]).resolve() == DEPLOY / "seccomp.json"
        assert gateway["cap_drop"] == ["ALL"]
        assert {"mem_limit", "pids_limit"} <= gateway.keys()
    assert compose["networks"]["database"] == {"internal": True}
    assert compose["services"]["postgres"]["networks"] == ["database"]


def test_the_profile_leaves_calls_that_cells_are_made_with() -> None:
    profile = json.loads((DEPLOY / "seccomp.json").read_text())
    (rule,) = profile["syscalls"]
    assert (profile["defaultAction"], rule["action"]) == ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO")
    assert rule["names"] == sorted(set(rule["names"]))
    assert not {"clone", "clone3", "unshare", "setns", "mount", "umount2", "pivot_root", "mount_setattr"} & set(
        rule["names"]
    )
    assert {"bpf", "kexec_load", "ptrace", "keyctl", "init_module"} <= set(rule["names"])


def test_the_service_leaves_cells_their_namespaces_and_bounds_what_is_in_it() -> None:
    unit = (DEPLOY / "gateway.service").read_text()
    said = dict(re.findall(r"^(\w+)=(.*)$", unit, flags=re.MULTILINE))
    assert not {
        "RestrictNamespaces",
        "ProtectKernelLogs",
        "ProtectHostname",
        "ProtectProc",
        "ProtectKernelTunables",
    } & set(said)
    assert said["Delegate"] == said["NoNewPrivileges"] == "yes"
    assert {"MemoryMax", "TasksMax", "IPAddressDeny"} <= set(said)


def test_the_service_says_what_systemd_is_to_watch_and_its_socket_is_where_the_gateway_listens() -> None:
    unit = (DEPLOY / "gateway.service").read_text()
    assert re.findall(r"^(?:Type|WatchdogSec)=(.*)$", unit, flags=re.MULTILINE) == ["notify", "15"]
    listen = GatewaySection().listen
    assert f"ListenStream={listen}\n" in (DEPLOY / "gateway.socket").read_text()


def test_compose_and_haproxy_name_the_same_servers_and_ports(compose: Any) -> None:
    text = (DEPLOY / "haproxy.cfg").read_text()
    assert re.findall(r"^ +server (\w+) (\w+):7004$", text, flags=re.MULTILINE) == [("one", "one"), ("two", "two")]
    assert compose["services"]["haproxy"]["ports"] == ["7004:7004"]
    assert "bind :7004" in text
    assert f"GET {PROBES['readiness']}" in text
    monitored = compose["services"]["haproxy"]["healthcheck"]["test"][-1]
    assert monitored == "http://127.0.0.1:7005/health"
    assert "bind :7005" in text
    assert "monitor-uri /health" in text


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="there is no haproxy: apt-get install haproxy")
def test_haproxy_takes_its_configuration() -> None:
    done = subprocess.run(["haproxy", "-c", "-f", DEPLOY / "haproxy.cfg"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line or "ALERT" in line]
    assert all("could not resolve address" in line for line in warnings), warnings  # there are no containers here


def test_haproxy_waits_longer_than_a_call_may_take() -> None:
    text = (DEPLOY / "haproxy.cfg").read_text()
    for side in ("client", "server"):
        (found,) = re.findall(rf"timeout {side} +(\d+)s", text)
        assert int(found) > 45


# --- Spiff Arena


@pytest.fixture(scope="module")
def arena() -> Any:
    return yaml.safe_load((DEPLOY / "spiff-arena/compose.yaml").read_text())["services"]


@pytest.fixture
def beside(tmp_path: Path) -> tuple[Settings, CallbacksSection, Any]:
    """What connectors.yaml says; `rewrite` is left to the tests of callbacks."""
    data = yaml.safe_load((DEPLOY / "spiff-arena/gateway/connectors.yaml").read_text())
    rewrite = data["gateway"]["callbacks"].pop("rewrite")
    file = tmp_path / "connectors.yaml"
    file.write_text(yaml.safe_dump(data))
    settings, _ = read_settings(file, environ={"PATH": "/usr/bin:/bin"})
    sources = read_sources(settings)
    for entry in sources.entries:
        assert define(entry, sources.defaults, settings) is not None
    return settings, read_sections(settings)[1], rewrite


def test_the_compose_file_of_spiff_arena_is_valid(arena: Any) -> None:
    whole = yaml.safe_load((DEPLOY / "spiff-arena/compose.yaml").read_text())
    read = PyCompose.from_yaml(yaml.safe_dump(whole))
    assert set(read.service_names()) == {"frontend", "spiffworkflow-backend", "bootstrap", "gateway"}
    mounted = {one.partition(":")[0] for service in arena.values() for one in service.get("volumes", [])}
    assert {one for one in mounted if not one.startswith(".")} == whole["volumes"].keys()
    assert all((DEPLOY / "spiff-arena" / one).exists() for one in mounted if one.startswith("."))
    assert all("healthcheck" in service for name, service in arena.items() if name != "bootstrap")


def test_backend_and_gateway_know_each_others_place_and_key(
    arena: Any, beside: tuple[Settings, CallbacksSection, Any]
) -> None:
    settings, callbacks, rewrite = beside
    backend, gateway = arena["spiffworkflow-backend"]["environment"], arena["gateway"]
    key = "${CONNECTOR_PROXY_API_KEY:?}"
    assert gateway["environment"]["CONNECTOR_PROXY_API_KEY"] == key
    assert backend["SPIFFWORKFLOW_BACKEND_CONNECTOR_PROXY_API_KEY"] == key
    here = f"http://gateway:{settings.listen[0].port}"
    assert here in backend["SPIFFWORKFLOW_BACKEND_CONNECTOR_PROXY_URL"]
    assert backend["SPIFFWORKFLOW_BACKEND_CONNECTOR_PROXY_TYPEAHEAD_URL"] == here
    assert gateway["ports"] == [
        f"{settings.listen[0].port}:{settings.listen[0].port}"
    ]  # a browser that signs in comes by the same URL
    port = backend["SPIFFWORKFLOW_BACKEND_PORT"]
    assert rewrite == {backend["SPIFFWORKFLOW_BACKEND_URL"]: f"http://spiffworkflow-backend:{port}"}
    assert not callbacks.headers  # they would go to whatever host a caller names
    assert {host: one.headers.keys() for host, one in callbacks.hosts.items()} == {
        f"spiffworkflow-backend:{port}": {"SpiffWorkflow-Api-Key"}
    }
    frontend = arena["frontend"]["environment"]["PORT0"]
    assert int(frontend) == int(port) + 1  # as it was built
    assert backend["SPIFFWORKFLOW_BACKEND_URL_FOR_FRONTEND"] == f"http://localhost:{frontend}"


def test_the_account_for_callbacks_is_made_and_may_do_nothing_else(arena: Any) -> None:
    rules = yaml.safe_load((DEPLOY / "spiff-arena/permissions.yml").read_text())
    (account,) = (name for name, user in rules["users"].items() if user["service"] == "bootstrap")
    bootstrap = arena["bootstrap"]
    assert bootstrap["command"] == ["python", "bin/bootstrap.py"]
    assert f"SPIFFWORKFLOW_API_KEY_{account}" in bootstrap["environment"]
    assert bootstrap["volumes"] == arena["spiffworkflow-backend"]["volumes"]
    groups = {name for name, group in rules["groups"].items() if f"{account}@bootstrap" in group["users"]} | {
        "everybody"
    }
    allowed = [one for one in rules["permissions"].values() if groups & set(one["groups"])]
    assert [(one["actions"], one["uri"]) for one in allowed] == [(["update"], "/tasks/*")]


def test_the_gateway_beside_spiff_arena_writes_where_it_may(
    arena: Any, beside: tuple[Settings, CallbacksSection, Any]
) -> None:
    gateway = arena["gateway"]
    assert gateway["read_only"] is True
    assert f"gateway:{beside[0].state_dir}" in gateway["volumes"]
    assert Path(gateway["command"][gateway["command"].index("--config") + 1]).parent == Path("/srv/gateway")
    assert "./gateway:/srv/gateway:ro" in gateway["volumes"]
    assert Duration.parse(gateway["stop_grace_period"]) > DRAIN + 10
    assert gateway["healthcheck"]["test"][-1].endswith(f":{beside[0].listen[0].port}{PROBES['liveness']}")


# --- Kubernetes


def test_the_manifests_are_valid(manifests: dict[str, Any]) -> None:
    assert set(manifests) == {"Deployment", "Service", "PodDisruptionBudget", "ConfigMap", "Secret", "NetworkPolicy"}
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_validation_of_manifests_finds_mistakes(manifests: dict[str, Any]) -> None:
    wrong = {**manifests["Service"], "spec": {"port": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_selectors_find_the_pods(manifests: dict[str, Any]) -> None:
    pod = manifests["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"].items()
    selectors = [
        manifests["Deployment"]["spec"]["selector"]["matchLabels"],
        manifests["Service"]["spec"]["selector"],
        manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(one["labelSelector"]["matchLabels"] for one in pod["spec"]["topologySpreadConstraints"]),
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)


def container(manifests: dict[str, Any]) -> Any:
    (only,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    return only


def test_ports_and_probes_fit(manifests: dict[str, Any]) -> None:
    gateway = container(manifests)
    (port,) = gateway["ports"]
    (served,) = manifests["Service"]["spec"]["ports"]
    assert served["targetPort"] == port["name"]
    annotations = manifests["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])
    assert annotations["prometheus.io/path"] == "/metrics"
    for name, path in {**PROBES, "startup": PROBES["liveness"]}.items():
        assert gateway[f"{name}Probe"]["httpGet"] == {"path": path, "port": port["name"]}


def test_what_the_pod_refers_to_exists(manifests: dict[str, Any]) -> None:
    pod, gateway = manifests["Deployment"]["spec"]["template"]["spec"], container(manifests)
    (secret,) = gateway["envFrom"]
    assert secret["secretRef"]["name"] == manifests["Secret"]["metadata"]["name"]
    assert set(manifests["Secret"]["stringData"]) == {"CONNECTOR_PROXY_API_KEY", JOBS_DATABASE}
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert {one["name"] for one in gateway["volumeMounts"]} == volumes.keys()
    assert volumes["config"]["configMap"]["name"] == manifests["ConfigMap"]["metadata"]["name"]
    documented = {one["metadata"]["name"]: one["kind"] for one in documented_manifests("clients.md")}
    clients, secrets = volumes["clients"]["configMap"], volumes["secrets"]["secret"]
    assert documented == {clients["name"]: "ConfigMap", secrets["secretName"]: "Secret"}
    assert clients["optional"] is secrets["optional"] is True
    assert not any("subPath" in one for one in gateway["volumeMounts"])  # what is mounted so never changes


def test_the_configuration_of_the_manifests_is_one(manifests: dict[str, Any], tmp_path: Path) -> None:
    gateway = container(manifests)
    mounts = {one["mountPath"]: one["name"] for one in gateway["volumeMounts"]}
    path = Path(gateway["args"][gateway["args"].index("--config") + 1])
    assert mounts[str(path.parent)] == "config"
    file = tmp_path / path.name
    file.write_text(manifests["ConfigMap"]["data"][path.name])
    settings, _ = read_settings(file, environ=manifests["Secret"]["stringData"])
    jobs, _ = read_sections(settings)
    assert jobs.database == manifests["Secret"]["stringData"][JOBS_DATABASE]
    assert settings.listen[0].port == gateway["ports"][0]["containerPort"]
    assert mounts[str(settings.state_dir)] == "state"
    assert mounts[str(settings.clients_dir)] == "clients"
    assert [mounts[str(folder)] for folder in settings.lookup.folders] == ["secrets"]
    assert settings.metrics_open


def test_a_rollout_loses_nothing(manifests: dict[str, Any]) -> None:
    deployment = manifests["Deployment"]["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    pause = int(container(manifests)["lifecycle"]["preStop"]["exec"]["command"][1])
    assert deployment["template"]["spec"]["terminationGracePeriodSeconds"] > DRAIN + pause + 10


def test_the_pod_gives_what_sandboxes_need(manifests: dict[str, Any]) -> None:
    pod, gateway = manifests["Deployment"]["spec"]["template"]["spec"], container(manifests)
    assert pod["hostUsers"] is False  # what makes the others harmless to the node
    assert gateway["securityContext"]["procMount"] == "Unmasked"
    assert pod["securityContext"]["seccompProfile"] == {"type": "Unconfined"}
    assert gateway["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_pod_is_not_root_and_writes_only_where_it_may(manifests: dict[str, Any]) -> None:
    pod, gateway = manifests["Deployment"]["spec"]["template"]["spec"], container(manifests)
    user = re.search(r"useradd --uid (\d+)", (DEPLOY.parent / "Dockerfile").read_text())
    assert user is not None
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == int(user[1])
    assert gateway["securityContext"]["readOnlyRootFilesystem"] is True
    assert gateway["securityContext"]["allowPrivilegeEscalation"] is False
    writable = {one["name"] for one in gateway["volumeMounts"] if not one.get("readOnly")}
    assert writable == {one["name"] for one in pod["volumes"] if "emptyDir" in one} == {"state", "tmp"}


# --- what the documentation adds to it


def documented(page: str) -> list[Any]:
    """Return the YAML documents of a page."""
    blocks = re.findall(r"```yaml\n(.*?)```", (DEPLOY.parent / "docs" / page).read_text(), flags=re.DOTALL)
    return [document for block in blocks for document in yaml.safe_load_all(block)]


def documented_manifests(page: str) -> list[Any]:
    return [one for one in documented(page) if "kind" in one]


@pytest.mark.parametrize("page", ["clients.md", "secrets.md"])
def test_documented_compose_files_lie_on_top_of_the_one_that_there_is(page: str, compose: Any) -> None:
    (over,) = (one for one in documented(page) if "services" in one)
    assert over["services"].keys() == {"one", "two"}
    for service in over["services"].values():
        assert set(service["secrets"]) == over["secrets"].keys()
        assert all("file" in one for one in over["secrets"].values())  # others need a file system that can be written
        assert set(service.get("volumes", [])) <= {"./clients.d:/etc/gateway/clients.d:ro"}
    whole = {**compose, **over, "services": {**compose["services"]}}
    for name, service in over["services"].items():
        volumes = [*compose["services"][name]["volumes"], *service.get("volumes", [])]
        whole["services"][name] = {**compose["services"][name], **service, "volumes": volumes}
    assert set(PyCompose.from_yaml(yaml.safe_dump(whole)).service_names()) == set(compose["services"])


@pytest.mark.parametrize("page", ["clients.md", "secrets.md"])
def test_documented_manifests_are_valid_and_mounted(page: str, manifests: dict[str, Any]) -> None:
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    for manifest in documented_manifests(page):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    (part,) = [one for one in documented("secrets.md") if "containers" in one]
    assert part["volumes"][0] in pod["volumes"]
    assert part["containers"][0]["volumeMounts"][0] in container(manifests)["volumeMounts"]


def test_documented_clients_are_understood_with_the_secrets_beside_them(tmp_path: Path) -> None:
    clients, secrets = documented_manifests("clients.md")
    for folder, files in (("clients.d", clients["data"]), ("secrets", secrets["stringData"])):
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    file = tmp_path / "connectors.yaml"
    file.write_text("secrets: {dir: secrets}\nconnectors: {text: {run: [cat], commands: {Find: {}}}}\n")
    settings, _ = read_settings(file, environ={"PATH": "/usr/bin:/bin"})
    found = read_sources(settings)
    assert {name: one.client.notices(0.0) for name, one in (found.clients or {}).items()} == {
        "acme": [],
        "beta": [],
        "default": [],
    }
    for entry in found.entries:
        assert define(entry, found.defaults, settings) is not None
    assert [entry.name for entry in found.entries] == ["ledger@acme", "text"]
