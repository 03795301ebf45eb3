"""A connector that is understood: everything a call needs, worked out once."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.config import CommandEntry, ConnectorEntry, Limits, Settings
from gateway.errors import ConfigError, Quarantine
from gateway.parameters import Signature
from gateway.process import Bounds, Keep, Launch
from gateway.redact import Redactor, telling_values
from gateway.registry import auths, signatures, typeaheads
from gateway.registry.auths import Auth
from gateway.registry.sources import Entry, identity
from gateway.runtimes import RUNTIMES, Build, Place, Runtime
from gateway.typeahead import Typeahead

if TYPE_CHECKING:
    from gateway.document import Node
    from gateway.protocol import DescribedCommand, Description

LOCALE = {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One command of a connector. `timeout` is in seconds."""

    name: str
    description: str | None
    timeout: float
    signature: Signature
    is_async: bool = False
    job_timeout: float = 3600.0
    """Seconds of one run as a job."""
    rerun: bool = False
    """A job's run that a crash interrupted may be run again."""
    priority: int = 0
    execute_async: bool = False
    """Given a callback URL it arranges the callback itself, and its answer is an acknowledgement."""
    module: str | None = None
    """Where its runner found it; sent back with each request, so that nothing else need be imported."""
    typeahead: Typeahead | None = None


class Connector(msgspec.Struct, frozen=True, kw_only=True):
    """A connector that can be started. Immutable: work in flight keeps the one it began with."""

    name: str
    description: str | None
    runtime: str
    launch: Launch
    config: msgspec.Raw
    limits: Limits
    redact: Redactor
    identity: str
    files: tuple[tuple[object, ...], ...]
    """The state of every file that this definition rests on (see `gateway.registry.sources.identity`)."""
    commands: dict[str, Command] | None
    """None: it has not been described yet."""
    auths: dict[str, Auth] = {}
    notices: tuple[str, ...] = ()
    """What an operator should know although it works."""
    cluster_concurrency: int | None = None

    def described(self, description: Description) -> Connector:
        """Return it with the commands and authentications that it told itself.

        Raises:
            Quarantine: the description contradicts itself.
        """
        commands = {one.name: _command_told(one, self.limits) for one in description.commands}
        signed = auths.merged(auths.told(description.auths), self.auths)
        if len(commands) != len(description.commands):
            raise Quarantine("describe names a command twice")
        problems = tuple(f"{one.module} is left out: {one.message}" for one in description.problems)
        if problems and not commands and not signed:
            raise Quarantine("; ".join(problems))
        redact = self.redact.plus(auths.secrets(signed))
        return msgspec.structs.replace(
            self,
            commands=commands,
            auths=signed,
            notices=(*self.notices, *problems, *auths.notices(signed)),
            redact=redact,
            launch=msgspec.structs.replace(self.launch, redact=redact),
        )


class Recognised(NamedTuple):
    """An entry whose keys are decoded, before anything is looked up on the machine."""

    common: ConnectorEntry
    runtime: Runtime
    options: msgspec.Struct
    place: Place
    limits: Limits

    def build(self) -> Build | None:
        """Return what has to be built for it.

        Raises:
            Quarantine: something is missing, or the options do not make sense together.
        """
        try:
            return self.runtime.build(self.options, self.place)
        except ConfigError as problem:
            raise Quarantine(str(problem)) from problem


def recognise(entry: Entry, defaults: Limits, settings: Settings) -> Recognised | None:
    """Decode one entry's keys; None when it is switched off.

    Raises:
        Quarantine: a key is wrong; file, line and key are named.
    """
    if entry.problem is not None:
        raise Quarantine(entry.problem)
    try:
        common, options_node = _split(entry.node)
        if not common.enabled:
            return None
        runtime = RUNTIMES.get(common.runtime)
        if runtime is None:
            raise entry.node.error(f"unknown runtime (known: {', '.join(sorted(RUNTIMES))})", ("runtime",))
        limits = common.limits(defaults)
        place = Place(
            name=entry.name,
            node=entry.node,
            folder=entry.folder,
            state_dir=settings.state_dir,
            path=settings.path,
            memory=int(limits.max_memory),
            env=tuple(common.env),
        )
        return Recognised(common, runtime, options_node.decode(runtime.options, ConnectorEntry), place, limits)
    except ConfigError as problem:
        raise Quarantine(str(problem)) from problem


def define(entry: Entry, defaults: Limits, settings: Settings) -> Connector | None:
    """Understand one entry; None when it is switched off.

    Raises:
        Quarantine: it cannot be served; the message says why, with file, line and key where there are some.
    """
    recognised = recognise(entry, defaults, settings)
    if recognised is None:
        return None
    common, limits = recognised.common, recognised.limits
    try:
        line = recognised.runtime.command_line(recognised.options, recognised.place)
        mode = common.mode or recognised.runtime.mode
        if mode in {"fork", "persistent"} and mode not in line.resident:
            raise entry.node.error(f"runtime {common.runtime} has no mode {mode}", ("mode",))
        env = {"PATH": settings.path, **LOCALE, **line.env, **_env(entry.node, common.env)}
        commands = None if common.commands is None else _commands(entry.node.child("commands"), limits)
        signed = auths.declared(entry.node.child("auths")) if common.auths else {}
    except ConfigError as problem:
        raise Quarantine(str(problem)) from problem
    files = tuple(identity(file) for file in dict.fromkeys((*line.files, *entry.files)))
    config = msgspec.json.encode(common.config)
    key = _identity(entry, files, line.argv, env, config)
    telling = (*telling_values(common.config), *telling_values(common.env), *auths.secrets(signed))
    redact = Redactor([*telling, settings.api_key or ""])
    notices = () if commands is None else auths.notices(signed)  # else the connector may tell what is missing
    return Connector(
        name=entry.name,
        description=common.description,
        runtime=common.runtime,
        launch=Launch(
            argv=line.argv,
            env=env,
            result_on_fd3=line.result_on_fd3 or common.result == "fd3",
            bounds=Bounds(output=int(limits.max_output), log=int(limits.max_log), memory=int(limits.max_memory)),
            cleanup=line.cleanup,
            name=entry.name,
            key=key,
            mode=mode,
            resident=line.resident.get(mode, ()),
            keep=Keep(
                warm=limits.warm,
                warm_min=limits.warm_min,
                warm_idle=float(limits.warm_idle),
                uses=limits.recycle_uses,
                age=float(limits.recycle_age),
                rss=int(limits.recycle_rss),
                concurrency=limits.concurrency,
            ),
            redact=redact,
        ),
        config=msgspec.Raw(config),
        limits=limits,
        redact=redact,
        identity=key,
        files=files,
        commands=commands,
        auths=signed,
        notices=(*((line.notice,) if line.notice else ()), *notices),
        cluster_concurrency=common.cluster_concurrency,
    )


def _split(node: Node) -> tuple[ConnectorEntry, Node]:
    known = {field.encode_name for field in msgspec.structs.fields(ConnectorEntry)}
    common = {key: value for key, value in node.data.items() if key in known}
    own = {key: value for key, value in node.data.items() if key not in known}
    entry = type(node)(common, node.keys, node.marks).decode(ConnectorEntry)
    return entry, type(node)(own, node.keys, node.marks)


def _env(node: Node, declared: dict[str, Any]) -> dict[str, str]:
    env = {}
    for name, value in declared.items():
        if not name or "=" in name or "\0" in name:
            raise node.error("this cannot be the name of an environment variable", ("env", name))
        if isinstance(value, str) and "\0" in value:
            raise node.error("the environment cannot hold a NUL", ("env", name))
        if isinstance(value, bool):
            env[name] = "true" if value else "false"
        elif isinstance(value, str | int | float):
            env[name] = str(value)
        else:
            raise node.error("expected text or a number", ("env", name))
    return env


def _commands(node: Node, limits: Limits) -> dict[str, Command]:
    commands = {}
    for name, below in node.items():
        if not name or "/" in name:
            raise below.error("a command's name has no /")
        known = below if below.data is not None else type(below)({}, below.keys, below.marks)
        entry = known.decode(CommandEntry)
        signature = signatures.declared(known, additional=entry.additional_parameters)
        commands[name] = Command(
            name=name,
            description=entry.description,
            timeout=entry.timeout if entry.timeout is not None else limits.timeout,
            signature=signature,
            is_async=entry.is_async,
            job_timeout=float(entry.timeout if entry.timeout is not None and entry.is_async else limits.job_timeout),
            rerun=entry.idempotent if entry.retry is None else entry.retry == "always",
            priority=entry.priority,
            typeahead=typeaheads.declared(known, signature),
        )
    return commands


def _command_told(told: DescribedCommand, limits: Limits) -> Command:
    if not told.name or "/" in told.name:
        raise Quarantine(f"describe names a command {told.name!r}: a name is not empty and has no /")
    where = f"command {told.name}"
    signature = signatures.told(where, told.parameters, additional=told.additional_parameters)
    return Command(
        name=told.name,
        description=told.description,
        timeout=limits.timeout,
        signature=signature,
        is_async=told.is_async,
        job_timeout=float(limits.job_timeout),
        rerun=told.idempotent,
        execute_async=told.execute_async,
        module=told.module,
        typeahead=typeaheads.told(where, told.typeahead, signature),
    )


def _identity(
    entry: Entry, files: tuple[tuple[object, ...], ...], argv: tuple[str, ...], env: dict[str, str], config: bytes
) -> str:
    facts = repr((argv, sorted(env.items()), config, files, entry.node.data))
    return hashlib.sha256(facts.encode()).hexdigest()
