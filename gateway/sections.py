"""The shapes of what operators write: the sections of a file, and a connector's entry, with what holds by itself."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec

from gateway.application import Application
from gateway.sandbox import STANDARD, Level
from gateway.typeahead import Typeahead
from gateway.units import Duration, Rate, Size

SMALLEST_JOURNAL = 4 << 20  # bytes

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
