"""Settings: what the example says is what the gateway gets, and nothing silently becomes a default."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.errors import ConfigError
from gateway.jobs.settings import read_sections
from gateway.sections import ConnectorEntry, JournalSection, Limits
from gateway.service import Local, Tcp
from gateway.settings import Settings, Tls, building_environment, find_file, read_settings, section_of
from gateway.units import Duration, Size
from tests.support import cli

if TYPE_CHECKING:
    from tests.support import Site


def settings(site: Site, gateway: str = "", *, listen: str | None = None, **environ: str) -> Settings:
    site.configure(gateway=gateway)
    return read_settings(site.file, listen=() if listen is None else (listen,), environ=environ)[0]


def refusal(site: Site, gateway: str, *, listen: str | None = None, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(site, gateway, listen=listen, **environ)
    return str(caught.value)


def test_an_empty_section_is_all_defaults(site: Site) -> None:
    found = settings(site)
    assert found.listen == (Tcp("127.0.0.1", 7004),)
    assert found.connectors_dir == site.folder / "connectors.d"
    assert found.state_dir == site.folder / ".gateway"
    assert (found.enable, found.max_processes, found.max_request, found.drain) == ("all", 64, 32 << 20, 30)
    assert (found.api_key, found.cors_origins, found.metrics_open, found.cgroup) == (None, (), False, True)
    assert found.path


def test_a_file_without_the_section_is_all_defaults(site: Site) -> None:
    site.file.write_text("connectors: {}\n")
    assert read_settings(site.file, environ={})[0].listen == (Tcp("127.0.0.1", 7004),)


@pytest.mark.parametrize(
    ("line", "setting", "value"),
    [
        ("listen: 0.0.0.0:80", "listen", (Tcp("0.0.0.0", 80),)),
        ("listen: ':7005'", "listen", (Tcp(None, 7005),)),
        ("listen: '[::1]:7005'", "listen", (Tcp("::1", 7005),)),
        ("connectors_dir: null", "connectors_dir", None),
        ("connectors_dir: /etc/connectors", "connectors_dir", "/etc/connectors"),
        ("enable: listed", "enable", "listed"),
        ("state_dir: /var/lib/gateway", "state_dir", "/var/lib/gateway"),
        ("max_processes: 1", "max_processes", 1),
        ("max_request: 1MiB", "max_request", 1 << 20),
        ("max_request: 1MiB", "max_held", 256 << 20),
        ("max_request: 1GiB", "max_held", 1 << 30),
        ("max_held: 32MiB", "max_held", 32 << 20),
        ("max_connections: 1", "max_connections", 1),
        ("read_timeout: 1m", "read_timeout", 60),
        ("write_timeout: 500ms", "write_timeout", 0.5),
        ("drain: 1m", "drain", 60),
        ("api_key: s3cret", "api_key", "s3cret"),
        ("cors_origins: ['https://a.example', 'https://b.example']", "cors_origins", ("https://a.example", "https://b.example")),
        ("open: true", "open", True),
        ("hosts: [Gateway.local, 'other:80', '[0:0::1]']", "hosts", {"gateway.local", "other", "[::1]"}),
        ("metrics: open", "metrics_open", True),
        ("docs: off", "docs", False),
        ("cgroup: false", "cgroup", False),
        ("listen: [':1', '[::1]:2']", "listen", (Tcp(None, 1), Tcp("::1", 2))),
        ("listen: 'unix:/run/gw.sock'", "listen", (Local("/run/gw.sock"),)),
        ("socket_mode: '600'", "socket_mode", 0o600),
        ("tls: null", "tls", None),
        ("trusted_proxies: ['::1', unix]", "trusted_proxies", ((ip_network("::1"),), True)),
        ("tls: false", "plain", True),
    ],
)  # fmt: skip
def test_each_setting_is_taken(site: Site, line: str, setting: str, value: Any) -> None:
    found = getattr(settings(site, line), setting)
    assert (str(found) if hasattr(found, "parent") else found) == value


@pytest.mark.parametrize(("name", "line"), [("connectors_dir", "drop/ins"), ("state_dir", "../state")])
def test_a_relative_folder_is_relative_to_the_file(
    site: Site, name: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert getattr(settings(site, f"{name}: {line}"), name).resolve() == (site.folder / line).resolve()


def test_the_state_folder_is_known_by_its_real_name(site: Site) -> None:
    (site.folder / "link").symlink_to("real/state")
    assert settings(site, "state_dir: link").state_dir == site.folder / "real/state"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("listen: 7004", "gateway.listen: expected `str | array`, got `int`"),
        ("listen: ''", "gateway.listen: '' is not an address"),
        ("listen: localhost", "gateway.listen: 'localhost' is not an address: write host:port"),
        ("listen: 'localhost:'", "gateway.listen: '' is not a port"),
        ("listen: 'localhost:http'", "gateway.listen: 'http' is not a port"),
        ("listen: 'localhost:65536'", "gateway.listen: '65536' is not a port"),
        ("listen: 'localhost:-1'", "gateway.listen: '-1' is not a port"),
        ("listen: null", "gateway.listen: expected `str | array`, got `null`"),
        ("listen: []", "gateway.listen: expected `array` of length >= 1"),
        ("listen: [':1', 'unix:']", "gateway.listen: 'unix:' is not a path: write unix:/run/gateway/gateway.sock"),
        ("socket_mode: 660", 'gateway.socket_mode: expected `str`, got `int`: write "660" in quotes'),
        ("socket_mode: '0999'", "gateway.socket_mode: expected `str` matching regex"),
        ("trusted_proxies: 10.0.0.0/8", "gateway.trusted_proxies: expected `array`, got `str`"),
        ("trusted_proxies: [10.0.0.1/8]", "gateway.trusted_proxies.0: is no network, such as 10.0.0.0/8, nor unix"),
        ("trusted_proxies: [proxy.example]", "gateway.trusted_proxies.0: is no network"),
        ("tls: true", "gateway.tls: name the files: {cert: tls.crt, key: tls.key}"),
        ("tls: tls.crt", "gateway.tls: expected `bool | object | null`, got `str`"),
        ("tls: {cert: tls.crt}", "gateway.tls: object missing required field `key`"),
        ("tls: {cert: a, key: b, ca: c}", "gateway.tls.ca: unknown key"),
        ("tls: {cert: a, key: b, client_certificates: required}", "gateway.tls.client_certificates: needs client_ca"),
        ("connectors_dir: ''", "gateway.connectors_dir: is empty: name a folder"),
        ("connectors_dir: [a]", "gateway.connectors_dir: expected `str | null`, got `array`"),
        ("enable: some", "gateway.enable: invalid enum value 'some'"),
        ("state_dir: null", "gateway.state_dir: expected `str`, got `null`"),
        ("state_dir: ''", "gateway.state_dir: is empty: name a folder"),
        ("max_processes: 0", "gateway.max_processes: expected `int` >= 1"),
        ("max_processes: '8'", "gateway.max_processes: expected `int`, got `str`"),
        ("max_processes: 1.5", "gateway.max_processes: expected `int`, got `float`"),
        ("max_processes: true", "gateway.max_processes: expected `int`, got `bool`"),
        ("max_processes:", "gateway.max_processes: expected `int`, got `null`"),
        ("max_request: 1048576", "gateway.max_request: 1048576 is not a size"),
        ("max_held: much", "gateway.max_held: 'much' is not a size"),
        ("max_connections: 0", "gateway.max_connections: expected `int` >= 1"),
        ("read_timeout: 30", "gateway.read_timeout: 30 is not a duration"),
        ("write_timeout: 0s", "gateway.write_timeout: is no time at all"),
        ("drain: 30", "gateway.drain: 30 is not a duration"),
        ("drain: soon", "gateway.drain: 'soon' is not a duration"),
        ("api_key: ''", "gateway.api_key is empty"),
        ("api_key: '  '", "gateway.api_key is empty"),
        ("api_key: 12345", "gateway.api_key: expected `str | null`, got `int`"),
        ("cors_origins: https://a.example", "gateway.cors_origins: expected `array`, got `str`"),
        ("open: 'yes'", "gateway.open: expected `bool`, got `str`"),
        ("hosts: gateway.local", "gateway.hosts: expected `array`, got `str`"),
        ("hosts: [a, 'http://b']", "gateway.hosts.1: is no name of a host"),
        ("metrics: closed", "gateway.metrics: invalid enum value 'closed'"),
        ("cgroup: 'no'", "gateway.cgroup: expected `bool`, got `str`"),
        ("max_proceses: 8", "gateway.max_proceses: unknown key (did you mean max_processes?)"),
        (
            "completely: 8",
            "gateway.completely: unknown key (known: api_key, audit, callbacks, cgroup, clients_dir, connectors_dir",
        ),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_by_its_name(site: Site, line: str, problem: str) -> None:
    message = refusal(site, line)
    assert problem in message
    assert str(site.file) in message or "is empty" in message or "is not a" in message


def test_the_section_must_be_a_mapping(site: Site) -> None:
    site.file.write_text("gateway: [a]\n")
    with pytest.raises(ConfigError, match=r"connectors\.yaml:1: gateway: expected `object`, got `array`"):
        read_settings(site.file, environ={})


def test_an_unknown_section_is_refused_by_its_name(site: Site) -> None:
    site.file.write_text("gateway: {}\nconectors: {}\n")
    with pytest.raises(
        ConfigError,
        match=r"connectors\.yaml:2: conectors: unknown key \(known: gateway, secrets, defaults, connectors\)",
    ):
        read_settings(site.file, environ={})


def test_files_of_tls_and_unix_sockets_are_relative_to_the_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    found = settings(site, "listen: [':1', 'unix:gw.sock']\ntls: {cert: tls.crt, key: /etc/key, client_ca: ca/ca.crt}")
    assert found.listen == (Tcp(None, 1), Local(str(site.folder / "gw.sock")))
    assert found.tls == Tls(
        cert=site.folder / "tls.crt", key=Path("/etc/key"), client_ca=site.folder / "ca/ca.crt", required=False
    )
    assert settings(site, listen="unix:tmp/gw.sock").listen == (Local("/tmp/gw.sock"),)


def test_the_port_of_the_environment_is_that_of_each_port(site: Site) -> None:
    found = settings(site, "listen: ['127.0.0.1:1', 'unix:/s', '[::1]:2', '127.0.0.1:3']", CONNECTOR_PROXY_PORT="9")
    assert found.listen == (Tcp("127.0.0.1", 9), Local("/s"), Tcp("::1", 9))


# --- the command line and the environment


def test_the_command_line_goes_before_the_environment_and_both_before_the_file(site: Site) -> None:
    line = "listen: 10.0.0.1:1"
    assert settings(site, line, CONNECTOR_PROXY_PORT="2").listen == (Tcp("10.0.0.1", 2),)
    found = settings(site, line, listen="10.0.0.2:3", CONNECTOR_PROXY_PORT="2")
    assert found.listen == (Tcp("10.0.0.2", 3),)


def test_the_environment_overrides_key_and_origins(site: Site) -> None:
    found = settings(
        site,
        "api_key: file\ncors_origins: ['https://file.example']",
        CONNECTOR_PROXY_API_KEY="environment",
        CONNECTOR_PROXY_CORS_ORIGINS="https://a.example, https://b.example,",
    )
    assert found.api_key == "environment"
    assert found.cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize("value", ["", "http", "70000", "-1", "7004 ", "\u0667"])
def test_a_port_in_the_environment_that_is_none_is_refused_by_its_name(site: Site, value: str) -> None:
    assert f"CONNECTOR_PROXY_PORT: {value!r} is not a port" in refusal(site, "", CONNECTOR_PROXY_PORT=value)


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_key_in_the_environment_is_refused_even_when_the_file_has_one(site: Site, value: str) -> None:
    assert "CONNECTOR_PROXY_API_KEY is empty" in refusal(site, "api_key: file", CONNECTOR_PROXY_API_KEY=value)


@pytest.mark.parametrize("value", ["", "nonsense", "127.0.0.1:", "127.0.0.1:x"])
def test_a_listen_option_that_is_none_is_refused_by_its_name(site: Site, value: str) -> None:
    assert "--listen" in refusal(site, "", listen=value)


def test_the_path_that_connectors_get_is_the_gateways(site: Site) -> None:
    assert settings(site, "", PATH="/opt/bin").path == "/opt/bin"
    assert settings(site, "").path


@pytest.mark.parametrize("line", ["max_processes: none", "listen: x", "api_key: ''", "unheard: 1"])
def test_a_bad_setting_ends_every_verb_with_status_2_and_one_line(site: Site, line: str) -> None:
    site.configure(gateway=line)
    for verb in (("serve",), ("check",)):
        ended = cli(site, *verb)
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert ended.stderr.startswith("error: ")
        assert line.partition(":")[0] in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_a_file_that_is_not_there_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site.folder)
    with pytest.raises(ConfigError, match=r"connectors\.yaml: there is no such file here: name one with --config FILE"):
        find_file(None)
    with pytest.raises(ConfigError, match=r"other\.yaml: there is no such file$"):
        find_file(site.folder / "other.yaml")
    site.configure()
    assert find_file(None) == site.file


# --- limits


def defaults(site: Site, text: str) -> Limits:
    site.configure(defaults=text)
    _, document = read_settings(site.file, environ={})
    return section_of(document, "defaults").decode(Limits)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("timeout: 1s", "timeout", 1),
        ("concurrency: 1", "concurrency", 1),
        ("queue: 0", "queue", 0),
        ("queue_timeout: 1s", "queue_timeout", 1),
        ("linger: 0s", "linger", 0),
        ("max_output: 1KiB", "max_output", 1024),
        ("max_log: 1KiB", "max_log", 1024),
        ("max_memory: 64MiB", "max_memory", 64 << 20),
    ],
)
def test_each_default_limit_is_taken(site: Site, line: str, name: str, value: float) -> None:
    assert getattr(defaults(site, line), name) == value


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("timeout: 1", "defaults.timeout: 1 is not a duration"),
        ("concurrency: 0", "defaults.concurrency: expected `int` >= 1"),
        ("queue: -1", "defaults.queue: expected `int` >= 0"),
        ("max_output: lots", "defaults.max_output: 'lots' is not a size"),
        ("max_memory:", "defaults.max_memory: none is not a size"),
        ("timeot: 1s", "defaults.timeot: unknown key (did you mean timeout?)"),
    ],
)
def test_a_default_that_cannot_be_used_is_refused_by_its_name(site: Site, line: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        defaults(site, line)
    assert f"{site.file}:3: {problem}" in str(caught.value)


def test_a_connector_s_own_limit_wins_over_the_default() -> None:
    entry = ConnectorEntry(timeout=Duration(5), max_output=Size(10))
    limits = entry.limits(Limits(timeout=Duration(1), concurrency=3))
    assert (limits.timeout, limits.concurrency, limits.max_output) == (5, 3, 10)


def test_the_database_of_jobs_can_come_from_the_environment(site: Site) -> None:
    url = "postgresql://gateway:hunter2@db/gateway"
    line = "jobs: {backlog: 7}"
    jobs, _ = read_sections(settings(site, line, CONNECTOR_PROXY_JOBS_DATABASE=url))
    assert (jobs.database, jobs.backlog) == (url, 7)
    with pytest.raises(ConfigError, match="CONNECTOR_PROXY_JOBS_DATABASE: database is no postgresql:// URL"):
        read_sections(settings(site, line, CONNECTOR_PROXY_JOBS_DATABASE=""))


@pytest.mark.parametrize(
    ("audit", "file", "required"),
    [
        ("{}", "audit.log", False),
        ("required", "audit.log", True),
        ("{required: true}", "audit.log", True),
        ("{file: logs/a.log}", "logs/a.log", False),
        ("{file: /var/log/a.log, required: true}", "/var/log/a.log", True),
        ("{file: stdout}", None, False),
    ],
)
def test_an_audit_is_a_file_or_standard_output(site: Site, audit: str, file: str | None, required: bool) -> None:
    found = settings(site, f"audit: {audit}").audit
    assert found is not None
    assert found.file == (site.folder / file if file is not None else None)
    assert found.required is required
    assert settings(site, "audit: null").audit is None


@pytest.mark.parametrize(
    ("journal", "told"),
    [
        ("{kep: 1d}", "connectors.yaml:2: gateway.journal.kep: unknown key (did you mean keep?)"),
        ("{size: 1MiB}", "connectors.yaml:2: gateway.journal: size is less than 4MiB"),
        ("{size: 4MiB, payload_size: 1MiB}", "payload_size is more than a sixteenth of size"),
        ("{payloads: some}", "gateway.journal.payloads: invalid enum value 'some'"),
        ("on", "gateway.journal"),
    ],
)
def test_a_journal_that_cannot_be_used_is_named(site: Site, journal: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        settings(site, f"journal: {journal}")


def test_a_journal_is_kept_unless_it_is_off(site: Site) -> None:
    assert settings(site, "drain: 1s").journal == JournalSection()
    kept = settings(site, "journal: {keep: 1h, payloads: errors}").journal
    assert kept is not None
    assert (kept.keep, kept.payloads) == (3600, "errors")
    assert settings(site, "journal: off").journal is None


@pytest.mark.parametrize(
    ("audit", "told"),
    [
        ("{fil: x}", "connectors.yaml:2: gateway.audit.fil: unknown key (did you mean file?)"),
        ("{file: ''}", "gateway.audit.file"),
        ("{required: maybe}", "gateway.audit.required"),
        ("optional", "gateway.audit"),
    ],
)
def test_what_is_wrong_with_an_audit_is_named(site: Site, audit: str, told: str) -> None:
    assert told in refusal(site, f"audit: {audit}")


@pytest.mark.parametrize(
    ("callbacks", "key"),
    [
        ("headers: {X-Key: hunter2}", "headers"),
        ("oauth2: {token_url: 'http://login/t', client_id: me, client_secret: hunter2}, hosts: {b: {}}", "oauth2"),
    ],
)
def test_credentials_for_whatever_host_a_caller_names_are_refused_with_their_line(
    site: Site, callbacks: str, key: str
) -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.allow.*callbacks\.hosts") as caught:
        read_sections(settings(site, f"callbacks: {{{callbacks}}}"))
    assert str(caught.value).startswith(f"{site.file}:2: gateway.callbacks.{key}: would be sent to")
    assert "hunter2" not in str(caught.value)
    _, told = read_sections(settings(site, f"callbacks: {{{callbacks}, allow: [backend]}}"))
    assert told.allow == ["backend"]


@pytest.mark.parametrize(
    ("said", "exporters"),
    [
        ("", ()),
        ("OTEL_SERVICE_NAME=x OTEL_TRACES_SAMPLER=always_on", ()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT=http://h:4318", ("otlp_proto_http",)),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://h:4318/v1/traces", ("otlp_proto_http",)),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://h:4318/v1/metrics", ()),
        ("OTEL_TRACES_EXPORTER=otlp", ("otlp_proto_http",)),
        ("OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_PROTOCOL=grpc", ("otlp_proto_grpc",)),
        ("OTEL_EXPORTER_OTLP_PROTOCOL=grpc OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf", ()),
        (
            "OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_PROTOCOL=grpc OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf",
            ("otlp_proto_http",),
        ),
        ("OTEL_TRACES_EXPORTER=console,otlp,otlp", ("console", "otlp_proto_http")),
        ("OTEL_TRACES_EXPORTER=none OTEL_EXPORTER_OTLP_ENDPOINT=http://h:4318", ()),
        ("OTEL_SDK_DISABLED=True OTEL_EXPORTER_OTLP_ENDPOINT=http://h:4318", ()),
        ("OTEL_SDK_DISABLED=false OTEL_EXPORTER_OTLP_ENDPOINT=http://h:4318", ("otlp_proto_http",)),
    ],
)
def test_the_variables_of_opentelemetry_say_where_traces_go(site: Site, said: str, exporters: tuple[str, ...]) -> None:
    environ = dict(one.split("=", 1) for one in said.split())
    assert settings(site, "", **environ).traces == exporters


def test_what_is_secret_of_the_section_and_of_the_environment_is_known(site: Site) -> None:
    section = """
    api_key: key-of-the-file
    oauth: {key: seal-it}
    jobs: {database: "postgresql://u:pass%2Fword@h/x"}
    callbacks:
      allow: [h, g]
      headers: {X-Any: any-header, Authorization: Bearer a-token}
      oauth2: {token_url: "https://h/token", client_id: id, client_secret: a-secret}
      hosts: {g: {headers: {X-Other: other-header}}}
    """
    environ = {
        "CONNECTOR_PROXY_API_KEY": "key-of-the-environment",
        "CONNECTOR_PROXY_JOBS_DATABASE": "postgres://u:another@h/x",
        "CONNECTOR_PROXY_PORT": "7004",
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20collector-key, x-team=a-team",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://u:of-the-collector@h",
        "HOME": "/root",
    }
    assert set(settings(site, section, **environ).secrets) == {
        "key-of-the-file", "seal-it", "pass%2Fword", "pass/word", "any-header", "Bearer a-token", "a-token", "a-secret",
        "other-header", "key-of-the-environment", "another", "a collector-key", "a-team",
        "of-the-collector", "a%20collector-key", "a%20collector-key, x-team=a-team", "a collector-key, x-team=a-team",
    }  # fmt: skip


@pytest.mark.parametrize(
    "url", ["postgres://u:p@h/x", "postgresql://u:p@h:5432,g:5433/x", "postgres://u@[::1]:5432/x", "postgres:///x"]
)
def test_a_database_of_jobs_is_taken(site: Site, url: str) -> None:
    jobs, _ = read_sections(settings(site, f"jobs: {{database: '{url}'}}"))
    assert jobs.database == url


def test_a_database_whose_password_is_no_part_of_a_url_is_refused_without_it(site: Site) -> None:
    read = settings(site, "", CONNECTOR_PROXY_JOBS_DATABASE="postgres://u:hun#ter@h/x")
    with pytest.raises(ConfigError, match="write # as %23") as caught:
        read_sections(read)
    assert "hun" not in str(caught.value)


def test_builds_get_what_tools_need_and_no_secrets() -> None:
    tools = dict.fromkeys(("PATH", "HOME", "LC_ALL", "https_proxy", "NO_PROXY", "UV_CACHE_DIR", "PIP_CERT"), "x")
    others = dict.fromkeys(("CONNECTOR_PROXY_API_KEY", "DATABASE_URL", "UV_PUBLISH_TOKEN", "PYTHONPATH"), "x")
    assert building_environment((), {**tools, **others}) == tools
    assert building_environment(["DATABASE_URL", "ABSENT"], {**tools, **others}) == {**tools, "DATABASE_URL": "x"}
