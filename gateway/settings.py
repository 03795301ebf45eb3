"""Settings of the gateway, and the shapes of what operators write.

The only place that reads the environment. Settings are read once into a frozen object; connectors' entries are
decoded one by one by the registry, so that a bad one takes nobody with it.
"""

from __future__ import annotations

import math
import os
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple
from urllib.parse import unquote

import msgspec

from gateway import origins
from gateway.application import Application
from gateway.errors import ConfigError
from gateway.files import unusable
from gateway.observe.telling import secrets_in
from gateway.sandbox import STANDARD, Level
from gateway.secrets import Secrets, SecretsSection
from gateway.service import Address, Local, Service, Tcp
from gateway.typeahead import Typeahead
from gateway.units import Duration, Rate, Size
from gateway.yaml_document import SECRETS, YamlNode, load

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gateway.secrets import Keys, Use

DEFAULT_FILE = "connectors.yaml"
SECTIONS = ("gateway", SECRETS, "defaults", "connectors")
JOBS_DATABASE = "CONNECTOR_PROXY_JOBS_DATABASE"
SMALLEST_JOURNAL = 4 << 20  # bytes
OTLP = "OTEL_EXPORTER_OTLP_"
LAST_UID = (1 << 32) - 2  # the one behind it means nobody at all
NAME = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*")

Mode = Literal["spawn", "standby", "fork", "persistent"]
"""How a connector's process is obtained: see docs/modes.md."""
Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Named = Annotated[str, msgspec.Meta(min_length=1)]
User = Annotated[int, msgspec.Meta(ge=0)] | Named


class OAuthSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `oauth:` section."""

    key: str | None = None
    """What seals a sign-in's cookies, a text of any length; one for all gateways behind a balancer."""
    redirects: list[str] | None = None
    """Origins that browsers may be sent back to with a token."""


class TlsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `tls:` section."""

    cert: Named
    """The file of the certificate and of those that lead to its authority, in PEM."""
    key: Named
    """The file of its private key, without a passphrase."""
    client_ca: Named | None = None
    """The file of the authorities whose certificates callers may show."""
    client_certificates: Literal["optional", "required"] = "optional"
    """Whether whoever shows none can connect."""


class AuditSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `audit:` section."""

    file: Named = "audit.log"
    """Where lines are appended; `stdout` is standard output."""
    required: bool = False
    """Refuse new work while the audit cannot be written."""


Payloads = Literal["none", "errors", "all"]
"""Of which runs parameters and results are kept: of none, of those that came to an error, of all."""


class JournalSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `journal:` section."""

    keep: Duration = Duration(7 * 86400)
    """How long runs are kept."""
    size: Size = Size(256 << 20)
    """Bytes of the file: the oldest runs go when it would be larger."""
    payloads: Payloads = "none"
    """Of which runs parameters and results are kept, where their connector does not say."""
    payload_size: Size = Size(64 << 10)
    """Bytes of a run's parameters, and of its result, that are kept; what is larger is not."""

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        if self.size < SMALLEST_JOURNAL:
            raise ValueError(f"size is less than {Size(SMALLEST_JOURNAL)}")
        if self.payload_size > self.size // 16:
            raise ValueError("payload_size is more than a sixteenth of size: a few runs would be all")


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `journal:` of a connector."""

    payloads: Payloads | None = None
    """Of which of its runs parameters and results are kept. Absent: as the gateway's section says."""


class GatewaySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `gateway:` section of connectors.yaml."""

    listen: str | Annotated[list[str], msgspec.Meta(min_length=1)] = "127.0.0.1:7004"
    """Host and port, `unix:` and a path, or a list of such; `:7004` is every address."""
    socket_mode: Annotated[str, msgspec.Meta(pattern="^0?[0-7]{3}$")] = "0660"
    """The permissions of Unix sockets, as chmod takes them."""
    tls: dict[str, Any] | bool | None = None
    """The certificate of ports; false: there is none on purpose."""
    trusted_proxies: list[Named] = []
    """Networks whose word on a caller's address is taken; `unix` is whoever comes by a Unix socket."""
    connectors_dir: str | None = "connectors.d"
    """The folder of drop-in connectors; null switches it off."""
    clients_dir: str | None = "clients.d"
    """The folder of clients, a file each; null switches it off."""
    enable: Literal["all", "listed"] = "all"
    """`listed` serves only what `connectors:` names."""
    state_dir: str = ".gateway"
    """The only place the gateway writes."""
    max_processes: Positive = 64
    """Connector processes alive at once, over all connectors."""
    max_request: Size = Size(32 << 20)
    """Bytes of an HTTP request's body."""
    max_held: Size = Size(256 << 20)
    """Bytes of large bodies and answers in memory at once; at least `max_request`."""
    max_connections: Positive = 4096
    """Connections at once. Beyond them those go that have been idle for longest."""
    read_timeout: Duration = Duration(30)
    """How long the head of a request may take, and its body go without progress."""
    write_timeout: Duration = Duration(30)
    """How long an answer may go without progress."""
    drain: Duration = Duration(30)
    """What a shutdown leaves to work in flight."""
    api_key: str | None = None
    """What callers must send; CONNECTOR_PROXY_API_KEY overrides it. Without one only this machine can call."""
    open: bool = False
    """Without a key, serve whoever can reach the address all the same."""
    hosts: list[Named] = []
    """Names that callers have for a gateway without a key, beside those of the loopback."""
    cors_origins: list[str] = []
    """Origins whose browsers may call; CONNECTOR_PROXY_CORS_ORIGINS overrides it."""
    metrics: Literal["key", "open"] = "key"
    """Whether /metrics needs the API key."""
    docs: Literal["on", "off"] = "on"
    """Whether /docs shows the OpenAPI document."""
    public_url: str | None = None
    """Where browsers find this gateway, when it is not what they send as Host."""
    oauth: dict[str, Any] = {}
    """Signing in: see docs/oauth.md."""
    typeahead: Literal["key", "open"] = "key"
    """Whether /v1/typeahead needs the API key."""
    typeahead_cache: Duration = Duration(10)
    """How long suggestions are kept for whoever types the same."""
    jobs: dict[str, Any] = {}
    """Durable jobs: see docs/jobs.md."""
    callbacks: dict[str, Any] = {}
    """Where and how outcomes of jobs are delivered: see docs/jobs.md."""
    journal: dict[str, Any] | Literal["off"] = {}
    """The latest runs: see docs/runs.md."""
    audit: dict[str, Any] | Literal["required"] | None = None
    """One line for each call and each operator's act: see docs/audit.md. `required` alone is `{required: true}`."""
    console: Literal["on", "off"] | bool = "on"
    """Pages for people at /console."""
    restart: bool = False
    """Start the gateway again when it crashes or hangs; its listening sockets stay."""
    workers: Positive | Literal["auto"] = 1
    """Of former times: the gateway is one process. More than one means `restart: true`."""
    cgroup: bool = True
    """Put each cell into a control group where that is possible."""
    sandbox_uids: Annotated[list[Positive], msgspec.Meta(min_length=2, max_length=2)] = msgspec.field(
        default_factory=lambda: [1 << 30, 1 << 28]
    )
    """The first of the users, and how many, that strict connectors run as where the gateway is root."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of a connector."""

    timeout: Duration = Duration(40)
    """From the moment that a call is there in full to its end, the wait in the queue included."""
    concurrency: Positive = 8
    """Processes of one connector alive at once."""
    queue: NotNegative = 32
    """Calls that may wait for one of them."""
    queue_timeout: Duration = Duration(10)
    """How long they may."""
    max_output: Size = Size(8 << 20)
    """Bytes of a result."""
    max_log: Size = Size(256 << 10)
    """Bytes of log kept of one run; the rest is dropped."""
    max_memory: Size = Size(1 << 30)
    """Resident bytes of everything one run has started."""
    linger: Duration = Duration(2)
    """How long a process may live on after its result."""
    promote_after: Duration | None = Duration(30)
    """When a call with a callback URL that still runs becomes a job; null: never."""
    job_timeout: Duration = Duration(3600)
    """From the start of a job's run to its end, where it is not an async command with a timeout of its own."""
    describe_timeout: Duration = Duration(30)
    """How long it may take to say what it can do, its imports included."""
    warm: NotNegative = 1
    """Processes started ahead of requests (mode fork: with 0 its host starts with the first call)."""
    warm_min: NotNegative = 0
    """How many stay when there is nothing to do."""
    warm_idle: Duration = Duration(600)
    """How long there has to be nothing to do."""
    recycle_uses: Positive = 1000
    """Requests after which a process that stays (a fork host, a persistent process) is replaced."""
    recycle_age: Duration = Duration(3600)
    """Age at which it is."""
    recycle_rss: Size = Size(512 << 20)
    """Resident bytes at which it is."""
    sandbox: Level = Level(STANDARD)
    """How much it is kept from."""
    network: Literal["host", "none"] | None = None
    """None: the level's own, which is `host` but for strict."""
    read: list[Named] = []
    """Paths that it may read although its level would not let it."""
    write: list[Named] = []
    """Paths that it may write although its level would not let it."""
    max_pids: Positive = 512
    """Processes and threads of one run."""
    max_disk: Size = Size(1 << 30)
    """Bytes in a run's private folder, and of the largest file."""
    user: User | None = None
    """Whom it runs as, where the gateway is root. None: the gateway, or with strict a user of its own."""


class DefaultsSection(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `defaults:` section: limits, and what is no limit."""

    env: dict[str, Any] = {}
    """Variables of every connector; its own lie on top."""

    def as_limits(self) -> Limits:
        """Return the limits alone."""
        return Limits(**{name: getattr(self, name) for name in Limits.__struct_fields__})


class ClientLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `limits:` of a client. None: as much as there is."""

    concurrency: Positive | None = None
    """Its calls at once, those that wait included, and the runs of its jobs."""
    rate: Rate | None = None
    """Its calls a second, in the long run."""
    burst: Positive | None = None
    """Its calls at once after a rest. Absent: what comes in a second."""
    max_request: Size | None = None
    """Bytes of a request's body; never more than the gateway's own."""

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        if self.burst is not None and self.rate is None:
            raise ValueError("burst says how much of a rate may come at once: say rate, too")

    @property
    def most_at_once(self) -> int:
        """The burst that counts."""
        return self.burst or max(1, math.ceil(self.rate or 0))


class ParameterEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A parameter of a command as an operator writes it."""

    type: Literal["str", "int", "bool", "any"] = "any"
    description: str | None = None
    required: bool | None = None
    """Absent: required unless a default is given."""
    default: Any = msgspec.UNSET
    enum: list[Any] | None = None
    secret: bool = False
    """Its value never appears in messages and logs."""
    schema: dict[str, Any] | None = None
    """A JSON Schema, checked before the process starts."""


class TypeaheadEntry(Typeahead, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `typeahead` of a command as an operator writes it."""


class CommandEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A command as an operator writes it."""

    description: str | None = None
    timeout: Duration | None = None
    parameters: dict[str, Any] = {}
    additional_parameters: bool = False
    """Accept parameters that are not declared."""
    is_async: bool = msgspec.field(default=False, name="async")
    """Given a callback URL, it is run as a job."""
    idempotent: bool = False
    """It may be run again after a crash in the middle."""
    retry: Literal["never", "always"] | None = None
    """Whether its job is run again after such a crash. Absent: as `idempotent` says."""
    priority: int = 0
    """Among the jobs that wait for a connector, the higher goes first."""
    typeahead: dict[str, Any] | None = None
    """It is a source of suggestions while a person types."""


class AuthEntry(Application, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An authentication as an operator writes it, with the keys of the application that was registered for it."""

    description: str | None = None
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        for fault in self.faults():
            raise ValueError(fault)


class OverrideEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator says of a command that a connector describes itself. Absent: as the connector says."""

    timeout: Duration | None = None
    is_async: bool | None = msgspec.field(default=None, name="async")
    idempotent: bool | None = None
    retry: Literal["never", "always"] | None = None
    priority: int = 0
    validate: Literal["strict", "names"] | None = None
    typeahead: TypeaheadEntry | None = None


class ConnectorEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of a connector that every runtime knows; the runtime's own come beside them."""

    enabled: bool = True
    description: str | None = None
    runtime: str = "exec"
    env: dict[str, Any] = {}
    """Added to the clean environment."""
    config: dict[str, Any] = {}
    """Handed over in the request."""
    mode: Mode | None = None
    """How a process is obtained; each runtime has a default."""
    cache: Size | None = None
    """Bytes of a folder that stays for it. Absent: none does."""
    result: Literal["stdout", "fd3"] = "stdout"
    validate: Literal["strict", "names"] | None = None
    """What is checked of calls to commands that it describes. Absent: what it says itself."""
    commands: dict[str, Any] | None = None
    """Absent: the executable is asked with op "describe"."""
    overrides: dict[str, Any] = {}
    """What is different about commands that it describes, by their names."""
    auths: dict[str, Any] = {}
    """What users sign in to, by name; on top of what the connector itself tells."""
    journal: JournalEntry = JournalEntry()
    """What the journal keeps of its runs."""
    timeout: Duration | None = None
    concurrency: Positive | None = None
    queue: NotNegative | None = None
    queue_timeout: Duration | None = None
    linger: Duration | None = None
    max_output: Size | None = None
    max_log: Size | None = None
    max_memory: Size | None = None
    promote_after: Duration | msgspec.UnsetType | None = msgspec.UNSET
    job_timeout: Duration | None = None
    describe_timeout: Duration | None = None
    cluster_concurrency: Positive | None = None
    """Runs of its jobs at once over all gateways that share a database."""
    warm: NotNegative | None = None
    warm_min: NotNegative | None = None
    warm_idle: Duration | None = None
    recycle_uses: Positive | None = None
    recycle_age: Duration | None = None
    recycle_rss: Size | None = None
    sandbox: Level | None = None
    network: Literal["host", "none"] | None = None
    read: list[Named] | None = None
    write: list[Named] | None = None
    max_pids: Positive | None = None
    max_disk: Size | None = None
    user: User | None = None

    def limits(self, defaults: Limits) -> Limits:
        """Return the effective limits."""
        own = {name: getattr(self, name) for name in Limits.__struct_fields__}
        said = {name: value for name, value in own.items() if value is not None and value is not msgspec.UNSET}
        if self.promote_after is None:
            said["promote_after"] = None
        return msgspec.structs.replace(defaults, **said)


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
