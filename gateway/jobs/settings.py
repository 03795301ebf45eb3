"""What operators write about jobs: the `jobs:` and `callbacks:` sections of connectors.yaml."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import msgspec

from gateway.errors import ConfigError
from gateway.jobs.targets import Refused, Targets, host_key, read_url
from gateway.settings import JOBS_DATABASE
from gateway.units import Duration, Size
from gateway.yaml_document import YamlNode

if TYPE_CHECKING:
    from gateway.settings import Settings

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")
_OWN = {"allow", "headers", "oauth2", "hosts"}
"""What no client takes over from the common section."""
_ANYWHERE = (
    "would be sent to whatever host a caller names: say callbacks.allow, or give them to one host under callbacks.hosts"
)

Positive = Annotated[int, msgspec.Meta(ge=1)]


class OAuth2(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Client credentials that are turned into a bearer token for callbacks."""

    token_url: str
    client_id: str
    client_secret: str
    scope: str | None = None

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        try:
            read_url(self.token_url)
        except Refused as problem:
            raise ValueError("token_url is not an http or https URL") from problem


class Credentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is sent with callbacks to one host; nothing, where it asks for nothing."""

    headers: dict[str, str] = {}
    oauth2: OAuth2 | None = None

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        _check_headers(self.headers)


class CallbacksSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `callbacks:` section."""

    allow: list[str] | None = None
    """Where callbacks may go: names, `*.domain`, addresses, networks. Absent: anywhere but metadata addresses."""
    headers: dict[str, str] = {}
    """Sent with callbacks to hosts that have none of their own; the values are secret."""
    oauth2: OAuth2 | None = None
    """A bearer token for the same."""
    hosts: dict[str, Credentials] = {}
    """Credentials by host: `name`, `name:port` or `*.domain`. An empty mapping: that host asks for none."""
    rewrite: dict[str, str] = {}
    """Beginnings of callback URLs, and what this gateway calls instead."""
    attempts: Positive = 500
    """Tries until a callback is a dead letter."""
    max_age: Duration = Duration(86400)
    """Time until a callback is a dead letter."""
    first_delay: Duration = Duration(1)
    """The wait after the first failed try; it doubles up to five minutes."""
    timeout: Duration = Duration(90)
    """Of one try; a workflow backend runs the tasks that follow before it answers."""

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        Targets.parse(self.allow)
        for name in self.hosts:
            try:
                host_key(name)
            except ValueError as problem:
                raise ValueError(f"hosts: {problem}") from problem
        for url in (url for pair in self.rewrite.items() for url in pair):
            _check_prefix(url)
        _check_headers(self.headers)

    @property
    def everywhere(self) -> Credentials:
        """What is sent to hosts that have nothing of their own."""
        return Credentials(headers=self.headers, oauth2=self.oauth2)


class JobsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `jobs:` section."""

    database: str | None = None
    """A `postgresql://` URL that several gateways share. Absent: a file in `state_dir`."""
    encrypt: str | list[str] | None = None
    """Keys, texts of any length, that seal what is stored of jobs: the first one does, the others still open."""
    backlog: Positive = 10_000
    """Open jobs of this gateway, above which new ones are answered with 429."""
    backlog_size: Size = Size(256 << 20)
    """Bytes of their parameters, which are held in memory."""
    max_interruptions: Positive = 3
    """Runs of an idempotent job that a crash may cut short before its caller is told."""
    keep: Duration = Duration(7 * 86400)
    """How long ended jobs are kept."""
    keep_count: Positive = 20_000
    """How many of them."""

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        if self.database is not None and not self.database.startswith(("postgresql://", "postgres://")):
            raise ValueError("database is no postgresql:// URL")
        if self.database is not None and not _has_port(self.database):
            raise ValueError("database has a port that is none: in a password, write # as %23, and so on")
        if self.encrypt is not None and (not self.keys or not all(key.strip() for key in self.keys)):
            raise ValueError("encrypt is empty: name a key, or leave it out")

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of `encrypt`."""
        return (self.encrypt,) if isinstance(self.encrypt, str) else tuple(self.encrypt or ())


def _has_port(url: str) -> bool:
    """Tell whether what stands for the ports of a URL, several with commas between, are some."""
    hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts]
    return all(not port or (port.isascii() and port.isdigit()) for port in ports)


def _check_prefix(url: str) -> None:
    try:
        read = read_url(url)
    except Refused:
        read = None
    if read is None or read.raw_query_string or read.raw_fragment or not url.isprintable():
        raise ValueError(f"rewrite: {url!r} is not the beginning of a URL: write http://name:port")


def _check_headers(headers: dict[str, str]) -> None:
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"headers: {name!r} is no name of a header")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"headers: the value of {name} holds a line break or a control character")


def read_sections(settings: Settings) -> tuple[JobsSection, CallbacksSection]:
    """Decode both sections.

    Raises:
        ConfigError: one cannot be used; file, line and key, or the variable, are named.
    """
    jobs = settings.jobs.decode(JobsSection)
    if settings.jobs_database is not None:
        try:
            jobs = msgspec.structs.replace(jobs, database=settings.jobs_database)
        except ValueError as problem:
            raise ConfigError(f"{JOBS_DATABASE}: {problem}") from problem
    return jobs, _callbacks(settings.callbacks)


class Nowhere(CallbacksSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That of a client that is not there, or whose file cannot be used: nothing is sent, and all is tried again."""


def read_callbacks(node: YamlNode, settings: Settings) -> CallbacksSection:
    """Decode a client's section: where callbacks go and with which credentials is its own, the rest as the common one.

    Raises:
        ConfigError: it cannot be used.
    """
    if not isinstance(node.data, dict):
        return node.decode(CallbacksSection)
    common = {key: value for key, value in settings.callbacks.data.items() if key not in _OWN}
    return _callbacks(YamlNode({**common, **node.data}, node.keys, node.marks))


def _callbacks(node: YamlNode) -> CallbacksSection:
    callbacks = node.decode(CallbacksSection)
    if callbacks.allow is None:
        for name in ("headers", "oauth2"):
            if getattr(callbacks, name):
                raise node.error(_ANYWHERE, (name,))
    return callbacks
