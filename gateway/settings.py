"""Settings of the gateway, read from the file of operators and from the environment.

The only place that reads the environment. Settings are read once into a frozen object; connectors' entries are
decoded one by one by the registry, so that a bad one takes nobody with it.
"""

from __future__ import annotations

import os
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import unquote

import msgspec

from gateway import origins
from gateway.errors import ConfigError
from gateway.files import unusable
from gateway.observe.telling import secrets_in
from gateway.secrets import Secrets, SecretsSection
from gateway.sections import (
    AuditSection,
    DefaultsSection,
    GatewaySection,
    JournalSection,
    Limits,
    OAuthSection,
    TlsSection,
)
from gateway.service import Address, Local, Service, Tcp
from gateway.yaml_document import SECRETS, YamlNode, load

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gateway.secrets import Keys, Use

DEFAULT_FILE = "connectors.yaml"
SECTIONS = ("gateway", SECRETS, "defaults", "connectors")
JOBS_DATABASE = "CONNECTOR_PROXY_JOBS_DATABASE"
OTLP = "OTEL_EXPORTER_OTLP_"
LAST_UID = (1 << 32) - 2  # the one behind it means nobody at all
NAME = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*")


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """The files of TLS, paths absolute."""

    cert: Path
    key: Path
    client_ca: Path | None
    required: bool
    """Who shows no certificate cannot connect."""


class TrustedProxies(NamedTuple):
    """Proxies that are believed."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    unix: bool = False
    """Whoever comes by a Unix socket is one."""


class AuditSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the section `audit` comes to."""

    file: Path | None
    """None is standard output."""
    required: bool


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the running gateway was told, paths absolute. Handed on; never read again."""

    file: Path
    listen: tuple[Address, ...]
    socket_mode: int
    tls: Tls | None
    plain: bool
    """Whether there is no TLS on purpose."""
    trusted_proxies: TrustedProxies
    connectors_dir: Path | None
    clients_dir: Path | None
    state_dir: Path
    enable: Literal["all", "listed"]
    max_processes: int
    max_request: int
    max_held: int
    max_connections: int
    read_timeout: float
    write_timeout: float
    drain: float
    api_key: str | None
    open: bool
    hosts: frozenset[str]
    """As `origins.host_of` has them."""
    cors_origins: tuple[str, ...]
    metrics_open: bool
    docs: bool
    public_url: str | None
    """Without a slash at its end."""
    oauth: OAuthSection
    typeahead_open: bool
    typeahead_cache: float
    jobs: YamlNode
    jobs_database: str | None
    """What the environment has instead of `jobs.database`."""
    callbacks: YamlNode
    journal: JournalSection | None
    """None: no run is kept."""
    audit: AuditSettings | None
    console: bool
    """Whether there are pages for people."""
    restart: bool
    """Whether a keeper starts the gateway again."""
    workers: bool
    """Whether several workers were asked for, as there were in former times."""
    cgroup: bool
    sandbox_uids: tuple[int, int]
    """The first user of a range, and how many there are."""
    path: str
    """The PATH that connectors get."""
    secrets: tuple[str, ...]
    """What the section and the environment hold that nobody is to read in a log."""
    lookup: Secrets
    """Where the secrets are that files name."""
    service: Service
    """What whoever keeps this process running has told it."""
    traces: tuple[str, ...]
    """Where traces go: exporters by their names in OpenTelemetry; none: there are none."""


_PROXIES = {"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"}
_FOR_BUILDS = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TZ", "TMPDIR", "LANG", "LANGUAGE"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NIX_SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("NODE_EXTRA_CA_CERTS", "SSH_AUTH_SOCK", "NETRC", "NODE_OPTIONS"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"),
    *("JAVA_HOME", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "M2_HOME", "MAVEN_HOME", "MAVEN_OPTS", "MAVEN_ARGS"),
    *("CC", "CXX", "FC", "LD", "AR", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "MAKEFLAGS", "ARCHFLAGS"),
    *("CPATH", "LIBRARY_PATH", "LD_LIBRARY_PATH", "PKG_CONFIG_PATH", "SOURCE_DATE_EPOCH"),
    *("CARGO_HOME", "RUSTUP_HOME", "RUSTFLAGS", "GIT_ASKPASS", "GIT_SSH", "GIT_SSH_COMMAND"),
}
_FOR_BUILDS_WITH = (
    *("LC_", "PIP_", "UV_", "NPM_CONFIG_", "npm_config_", "PYENV_", "CARGO_HTTP_", "CARGO_NET_", "CARGO_BUILD_"),
    *("GIT_SSL_", "GIT_CONFIG_", "CMAKE_"),
)
"""How names begin of what says where tools find things: indexes, caches, certificates, compilers."""
_NOT_FOR_BUILDS = ("UV_PUBLISH_",)


def operators_environment() -> dict[str, str]:
    """Return the whole environment, for another gateway."""
    return dict(os.environ)


def building_environment(more: Iterable[str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what the programs of `gateway install` get, and so the scripts of packages; `more` are names besides.

    Of secrets those alone are among it that belong to package indexes and proxies.
    """
    environ = os.environ if environ is None else environ
    wanted = set(more)
    return {name: value for name, value in environ.items() if name in wanted or _is_for_builds(name)}


def _is_for_builds(name: str) -> bool:
    if name.startswith(_NOT_FOR_BUILDS):
        return False
    return name in _FOR_BUILDS or name.lower() in _PROXIES or name.startswith(_FOR_BUILDS_WITH)


def find_file(given: Path | None) -> Path:
    """Return the absolute path of the configuration file.

    Raises:
        ConfigError: none was named and there is none here.
    """
    path = given or Path(DEFAULT_FILE)
    try:
        path.stat()
    except FileNotFoundError as problem:
        hint = "" if given else " here: name one with --config FILE"
        other = path.with_suffix(".yml")
        if path.suffix == ".yaml" and other.exists():
            hint = f" here, but {other}: rename it"
        raise ConfigError(f"{path}: there is no such file{hint}") from problem
    except OSError as problem:
        raise ConfigError(unusable(problem)) from problem
    return path.absolute()


def read_settings(
    file: Path,
    *,
    listen: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    lenient: bool = False,
) -> tuple[Settings, YamlNode]:
    """Read the file's `gateway:` section and the environment; return the settings and the whole document.

    `lenient`: a setting whose secret is missing counts as not said.

    Raises:
        ConfigError: a setting is unknown, empty or cannot be parsed, or names a secret that is missing; it is named.
    """
    environ = os.environ if environ is None else environ
    document = read_document(file)
    lookup = Secrets(environ, file.parent)
    lookup.use(read_secrets(document))
    gateway, _ = of_gateway(document, lookup, lenient=lenient)
    section = gateway.decode(GatewaySection)
    for name in ("connectors_dir", "clients_dir", "state_dir"):
        if getattr(section, name) == "":
            raise document.error("is empty: name a folder", ("gateway", name))
    oauth = _below(gateway, "oauth").decode(OAuthSection)
    _check_oauth(section, oauth, document)
    origins = section.cors_origins
    if "CONNECTOR_PROXY_CORS_ORIGINS" in environ:
        origins = [origin.strip() for origin in environ["CONNECTOR_PROXY_CORS_ORIGINS"].split(",") if origin.strip()]
    base = file.parent
    settings = Settings(
        file=file,
        listen=_addresses(section, listen, environ, base),
        socket_mode=int(section.socket_mode, 8),
        tls=_tls(gateway, base),
        plain=section.tls is False,
        trusted_proxies=_proxies(section, document),
        connectors_dir=base / section.connectors_dir if section.connectors_dir is not None else None,
        clients_dir=base / section.clients_dir if section.clients_dir is not None else None,
        # Without links: the kernel tells the real folder of a process that works there.
        state_dir=(base / section.state_dir).resolve(),
        enable=section.enable,
        max_processes=section.max_processes,
        max_request=section.max_request,
        max_held=max(int(section.max_held), int(section.max_request)),
        max_connections=section.max_connections,
        read_timeout=_positive(section, "read_timeout", document),
        write_timeout=_positive(section, "write_timeout", document),
        drain=float(section.drain),
        api_key=_api_key(section, environ),
        open=section.open,
        hosts=_hosts(section, document),
        cors_origins=tuple(origins),
        metrics_open=section.metrics == "open",
        docs=section.docs == "on",
        public_url=section.public_url.rstrip("/") if section.public_url is not None else None,
        oauth=oauth,
        typeahead_open=section.typeahead == "open",
        typeahead_cache=float(section.typeahead_cache),
        jobs=_below(gateway, "jobs"),
        jobs_database=environ.get(JOBS_DATABASE),
        callbacks=_below(gateway, "callbacks"),
        journal=None if section.journal == "off" else _below(gateway, "journal").decode(JournalSection),
        audit=_audit(section, gateway, base),
        console=section.console in {"on", True},
        restart=section.restart,
        workers=section.workers != 1,
        cgroup=section.cgroup,
        sandbox_uids=_uids(section, document),
        path=environ.get("PATH") or os.defpath,
        secrets=tuple(dict.fromkeys((*gateway.secrets, *_secrets(gateway.data, environ)))),
        lookup=lookup,
        service=Service.told(environ),
        traces=_traces(environ),
    )
    return settings, document


def read_document(file: Path) -> YamlNode:
    """Read the whole file.

    Raises:
        ConfigError: it cannot be read or parsed, or has a section that does not exist. A connector whose own part is
            bad is no such case.
    """
    document = load(file, entries="connectors")
    for key in document.data:
        if key not in SECTIONS:
            raise document.error(f"unknown key (known: {', '.join(SECTIONS)})", (key,))
    return document


def of_gateway(document: YamlNode, lookup: Secrets, *, lenient: bool = False) -> tuple[YamlNode, tuple[Use, ...]]:
    """Return the section `gateway` with secrets in the place of what refers to them, and what it used.

    `lenient`: what needs one that is missing is left out, whole settings at a time.

    Raises:
        ConfigError: one is missing; it and its place are named.
    """
    node, uses = section_of(document, "gateway").resolved(lookup, mapping=is_mapping, lenient=lenient)
    lost = {use.keys[1] for use in uses if use.is_missing}
    return (node.holding({key: node.data[key] for key in node.data if key not in lost}) if lost else node), uses


def is_mapping(keys: Keys) -> bool:
    """Tell whether what stands at these keys of the section `gateway`, or of a client's file, can only be a mapping."""
    mappings = {"oauth", "jobs", "callbacks", "headers", "hosts", "oauth2", "rewrite"}
    return not keys or keys[-1] in mappings or keys[-2:-1] == ("hosts",)


def read_secrets(document: YamlNode) -> SecretsSection:
    """Read where secrets are.

    Raises:
        ConfigError: it cannot be used; file, line and key are named.
    """
    section = section_of(document, SECRETS).decode(SecretsSection)
    folders = [section.dir] if isinstance(section.dir, str) else section.dir
    base = os.path.realpath(document.marks[()].path.parent)
    for folder in folders:
        real = os.path.realpath(os.path.join(base, folder))
        if base == real or base.startswith(f"{real.rstrip('/')}/"):
            problem = f"{real} holds the folder of connectors.yaml, which connectors see: give secrets one of their own"
            raise document.error(problem, (SECRETS, "dir"))
    return section


def read_defaults(document: YamlNode) -> tuple[Limits, YamlNode]:
    """Read the limits of every connector, and its variables, as a document of their own.

    Raises:
        ConfigError: they cannot be used; file, line and key are named.
    """
    node = section_of(document, "defaults")
    section = node.decode(DefaultsSection)
    return section.as_limits(), node.child("env").alone() if section.env else YamlNode({})


def section_of(document: YamlNode, name: str) -> YamlNode:
    """Return a section of the document; an absent or empty one is an empty mapping."""
    if document.data.get(name) is None:
        return YamlNode({}, (name,), document.marks)
    return document.child(name)


def _below(node: YamlNode, name: str) -> YamlNode:
    return node.child(name) if node.data.get(name) else YamlNode({}, (*node.keys, name), node.marks)


def key_of_environment() -> str | None:
    """Return the API key that the environment names, for whoever has no configuration file."""
    return os.environ.get("CONNECTOR_PROXY_API_KEY") or None


def _audit(section: GatewaySection, gateway: YamlNode, base: Path) -> AuditSettings | None:
    if section.audit is None:
        return None
    said = AuditSection(required=True) if section.audit == "required" else _below(gateway, "audit").decode(AuditSection)
    return AuditSettings(file=None if said.file == "stdout" else base / said.file, required=said.required)


def _traces(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the exporters of traces that OpenTelemetry's own variables ask for: by name, or by where traces go."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    said = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not said and any(environ.get(name, "").strip() for name in (f"{OTLP}ENDPOINT", f"{OTLP}TRACES_ENDPOINT")):
        said = "otlp"
    protocol = environ.get(f"{OTLP}TRACES_PROTOCOL") or environ.get(f"{OTLP}PROTOCOL") or ""
    otlp = "otlp_proto_grpc" if protocol.strip().lower() == "grpc" else "otlp_proto_http"
    names = [name.strip().lower() for name in said.split(",")]
    return tuple(dict.fromkeys(otlp if name == "otlp" else name for name in names if name not in {"", "none"}))


def _check_oauth(section: GatewaySection, oauth: OAuthSection, document: YamlNode) -> None:
    """Check what is said about addresses of browsers, and the key."""
    addresses: list[tuple[Keys, str]] = [
        (("oauth", "redirects", number), one) for number, one in enumerate(oauth.redirects or ())
    ]
    if section.public_url is not None:
        addresses.append((("public_url",), section.public_url))
    for keys, address in addresses:
        try:
            origins.rule(address)
        except ValueError as problem:
            raise document.error(str(problem), ("gateway", *keys)) from problem
    if oauth.key is not None and not oauth.key.strip():
        raise document.error("is empty: give it a value, or leave it out", ("gateway", "oauth", "key"))


def _tls(gateway: YamlNode, base: Path) -> Tls | None:
    if not gateway.data.get("tls"):
        return None
    node = gateway.child("tls")
    if node.data is True:
        raise node.error("name the files: {cert: tls.crt, key: tls.key}")
    section = node.decode(TlsSection)
    required = section.client_certificates == "required"
    if required and section.client_ca is None:
        raise node.error("needs client_ca, the authorities of these certificates", ("client_certificates",))
    authorities = base / section.client_ca if section.client_ca is not None else None
    return Tls(cert=base / section.cert, key=base / section.key, client_ca=authorities, required=required)


def _proxies(section: GatewaySection, document: YamlNode) -> TrustedProxies:
    networks = []
    for number, one in enumerate(section.trusted_proxies):
        if one == "unix":
            continue
        try:
            networks.append(ip_network(one))
        except ValueError as problem:
            keys = "gateway", "trusted_proxies", number
            raise document.error(f"is no network, such as 10.0.0.0/8, nor unix: {problem}", keys) from problem
    return TrustedProxies(tuple(networks), "unix" in section.trusted_proxies)


def _positive(section: GatewaySection, name: str, document: YamlNode) -> float:
    length = float(getattr(section, name))
    if length == 0:
        raise document.error("is no time at all: write 30s", ("gateway", name))
    return length


def _hosts(section: GatewaySection, document: YamlNode) -> frozenset[str]:
    found = [origins.host_of(one) for one in section.hosts]
    for number, host in enumerate(found):
        if host is None:
            raise document.error("is no name of a host, such as gateway.local", ("gateway", "hosts", number))
    return frozenset(host for host in found if host is not None)


def _uids(section: GatewaySection, document: YamlNode) -> tuple[int, int]:
    first, count = section.sandbox_uids
    if first + count > LAST_UID + 1:
        raise document.error(f"goes beyond the last user there can be, {LAST_UID}", ("gateway", "sandbox_uids"))
    return first, count


def _api_key(section: GatewaySection, environ: Mapping[str, str]) -> str | None:
    name = "CONNECTOR_PROXY_API_KEY"
    if name in environ:
        key: str | None = environ[name]
    else:
        name, key = "gateway.api_key", section.api_key
    if key is not None and not key.strip():
        raise ConfigError(f"{name} is empty: give it a value, or leave it out to run without a key")
    return key


def _secrets(section: dict[str, Any], environ: Mapping[str, str]) -> Iterator[str]:
    """Yield what is secret of the section `gateway`, all headers of callbacks, and of what overrides it."""
    yield from secrets_in({name: value for name, value in section.items() if name != "tls"})  # paths are none
    jobs = section.get("jobs")
    yield from secrets_in(jobs.get("encrypt") if isinstance(jobs, dict) else None, secret=True)
    ours = "CONNECTOR_PROXY_", OTLP
    yield from secrets_in({name: value for name, value in environ.items() if name.startswith(ours)})
    for name in (f"{OTLP}HEADERS", f"{OTLP}TRACES_HEADERS"):
        # What has no name is told by the library as it is.
        said = [unquote(one.split("=", 1)[-1]).strip() for one in environ.get(name, "").split(",")]
        yield from secrets_in([one for one in said if one], secret=True)
    callbacks = section.get("callbacks")
    todo = [callbacks, *(hosts.values() if isinstance(hosts := (callbacks or {}).get("hosts"), dict) else ())]
    for one in todo:
        if isinstance(one, dict):
            yield from secrets_in(one.get("headers"), secret=True)


def _addresses(
    section: GatewaySection, given: Sequence[str], environ: Mapping[str, str], base: Path
) -> tuple[Address, ...]:
    """Read where to listen: what was `given` on the command line, or else what the file and the environment say."""
    if given:
        return tuple(_address(one, "--listen", Path.cwd()) for one in given)
    said = [section.listen] if isinstance(section.listen, str) else section.listen
    found = [_address(one, "gateway.listen", base) for one in said]
    if "CONNECTOR_PROXY_PORT" in environ:
        port = _port(environ["CONNECTOR_PROXY_PORT"], "CONNECTOR_PROXY_PORT")
        found = [one._replace(port=port) if isinstance(one, Tcp) else one for one in found]
    return tuple(dict.fromkeys(found))


def _address(text: str, setting: str, base: Path) -> Address:
    """Read an address; the path of a Unix socket begins at a folder."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise ConfigError(f"{setting}: {text!r} is not a path: write unix:/run/gateway/gateway.sock")
        return Local(str(base / path))
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ConfigError(f"{setting}: {text!r} is not an address: write host:port, for example 127.0.0.1:7004")
    return Tcp(host.strip("[]") or None, _port(port, setting))


def _port(text: str, setting: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ConfigError(f"{setting}: {text!r} is not a port: write a number from 0 to 65535")
    return int(text)
