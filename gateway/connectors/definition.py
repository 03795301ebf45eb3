"""A connector that is understood: everything a call needs, worked out once."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from gateway.connectors import auths, signatures, typeaheads
from gateway.connectors.auths import Auth
from gateway.connectors.caches import Cache, cache_of
from gateway.connectors.confinement import CONTAINER, Case, confine
from gateway.connectors.parameters import NotAName, Signature
from gateway.errors import ConfigError, Quarantine
from gateway.files import identity, unusable
from gateway.identity import called
from gateway.observe.redact import SHORTEST, Redactor
from gateway.observe.telling import secrets_in
from gateway.processes.launch import BOOT, Bounds, Keep, Launch
from gateway.protocol.description import Validate
from gateway.runtimes import RUNTIMES, Build, Home, Runtime, installed
from gateway.secrets import Use, named, variables
from gateway.sections import CommandEntry, ConnectorEntry, Limits, OverrideEntry, Payloads
from gateway.typeahead import Typeahead

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.connectors.sources import Entry
    from gateway.protocol.description import DescribedCommand, DescribedParameter, Description
    from gateway.sandbox import Sandbox
    from gateway.secrets import Keys, Secrets
    from gateway.settings import Settings
    from gateway.yaml_document import YamlNode

Described = TypeVar("Described", "DescribedCommand", "DescribedParameter")

BACKENDS_OWN = {f"http/{verb}Request" for verb in ("Delete", "Get", "Head", "Patch", "Post", "Put")}
"""What Spiff Arena's backend runs itself. Whatever else begins with http/ it asks the gateway for."""
TOLD = 30  # names of packages
_DESCRIBING = frozenset(("commands", "overrides", "description"))
"""What stands there is told to callers, and has no secrets."""
_MAPPINGS = frozenset((None, "env", "config", "auths", "engine_env"))
_BUILT_OF = frozenset(
    key.encode_name
    for name, runtime in RUNTIMES.items()
    if name not in {"exec", "container"}
    for key in msgspec.structs.fields(runtime.options)
)
"""What is built of these keys is written down, so that no secret may stand there. `${NAME}` is the build's own."""
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
    """The one that it is registered under."""
    description: str | None
    folder: Path
    """The folder of the file that defines it."""
    runtime: str
    launch: Launch
    config: msgspec.Raw
    limits: Limits
    payloads: Payloads | None = None
    """Of which of its runs the journal keeps parameters and results; None: as the gateway's section says."""
    redact: Redactor
    identity: str
    files: tuple[tuple[object, ...], ...]
    """The state of every file that this definition rests on (see `gateway.files.identity`)."""
    commands: dict[str, Command] | None
    """None: it has not been described yet."""
    auths: dict[str, Auth] = {}
    overrides: dict[str, OverrideEntry] = {}
    """What the operator says of commands that it describes."""
    validate: Validate | None = None
    """What is checked of calls to commands that it describes; None: what it says itself."""
    notices: tuple[str, ...] = ()
    """What an operator should know although it works."""
    defined: tuple[str, ...] = ()
    """Those of them that do not come of its description."""
    cluster_concurrency: int | None = None
    cache: Cache | None = None
    secrets: tuple[str, ...] = ()
    """The names of the secrets that it uses."""
    remembered_by: str = ""
    """What takes the place of `identity` where it is written down: no secret's value is in it."""

    @property
    def called(self) -> str:
        """What its callers call it: without whose it is."""
        return called(self.name)

    def described(self, description: Description) -> Connector:
        """Return it with the commands and authentications that it told itself.

        Raises:
            Quarantine: the description contradicts itself.
        """
        if len({one.name for one in description.commands}) != len(description.commands):
            raise Quarantine("describe names a command twice")
        problems = tuple(f"{one.module} is left out: {one.message}" for one in description.problems)
        if any("ModuleNotFoundError" in problem for problem in problems):
            problems += (self._installed(),)
        commands: dict[str, Command] = {}
        for one in map(self._without_secrets, description.commands) if self.secrets else description.commands:
            try:
                commands[one.name] = self._overridden(one)
            except NotAName as problem:
                problems += (f"{one.name} is left out: parameters.{problem.name}: {problem}",)
        signed = auths.merged(auths.told(description.auths), self.auths)
        if problems and not commands and not signed:
            raise Quarantine("; ".join(problems))
        known = ", ".join(commands) or "none"
        problems += tuple(
            f"overrides: it describes no command {name} (it has: {known})"
            for name in self.overrides
            if name not in commands
        )
        told = (*problems, *auths.notices(signed), *overlooked(self.name, commands).values())
        redact = self.redact.plus(auths.secrets(signed))
        return msgspec.structs.replace(
            self,
            commands=commands,
            auths=signed,
            notices=(*self.notices, *map(redact, told)),  # what it raised may hold its config
            redact=redact,
            launch=msgspec.structs.replace(self.launch, redact=redact),
        )

    def _installed(self) -> str:
        venv = Path(self.launch.argv[0]).parent.parent
        found = installed.names(venv) if (venv / "pyvenv.cfg").exists() else []
        more = f" and {len(found) - TOLD} more" if len(found) > TOLD else ""
        return f"its packages are {', '.join(found[:TOLD])}{more}" if found else "it has no packages but Python's own"

    def _without_secrets(self, told: DescribedCommand) -> DescribedCommand:
        """Return a command that tells callers no secret, neither in its texts nor as a default."""
        parameters = [_described_without(_kept_secret(one, self.redact), self.redact) for one in told.parameters]
        return _described_without(msgspec.structs.replace(told, parameters=parameters), self.redact)

    def _overridden(self, told: DescribedCommand) -> Command:
        return _command_told(told, self.limits, self.overrides.get(told.name, OverrideEntry()), self.validate)


class Recognised(NamedTuple):
    """An entry whose keys are decoded, before anything is looked up on the machine."""

    common: ConnectorEntry
    runtime: Runtime
    options: msgspec.Struct
    place: Home
    limits: Limits

    @property
    def env(self) -> dict[str, str]:
        """The variables that its entry declares.

        Raises:
            Quarantine: one cannot be.
        """
        try:
            return _env(self.place.node, self.common.env)
        except ConfigError as problem:
            raise Quarantine(str(problem)) from problem

    def build(self) -> Build | None:
        """Return what has to be built for it.

        Raises:
            Quarantine: something is missing, or the options do not make sense together.
        """
        try:
            return self.runtime.build(self.options, self.place)
        except ConfigError as problem:
            raise Quarantine(str(problem)) from problem


def with_secrets(entry: Entry, settings: Settings, *, lenient: bool = False) -> tuple[Entry, tuple[Use, ...]]:
    """Return an entry with secrets in the place of what refers to them, and what it used; one that is off needs none.

    `lenient`: what needs a secret that is missing is left out.

    Raises:
        Quarantine: a secret is missing, or named where none may stand; file, line and key are named.
    """
    data = entry.node.data
    if entry.problem is not None or not isinstance(data, dict) or data.get("enabled") is False:
        return entry, ()
    for key in _BUILT_OF & data.keys():
        if any(named(data[key])):
            problem = "what is built of this is written down, so no secret may stand here: env and config can have some"
            raise Quarantine(str(entry.node.error(problem, (key,))))
    try:
        node, uses = entry.node.resolved(settings.lookup, is_left, is_mapping, lenient=lenient)
    except ConfigError as problem:
        raise Quarantine(str(problem)) from problem
    return msgspec.structs.replace(entry, node=node), uses


def is_left(keys: Keys) -> bool:
    """Tell whether what stands at these keys of an entry stays as it is written."""
    first = keys[0] if keys else None
    return first in _DESCRIBING or first in _BUILT_OF or (first == "auths" and keys[2:3] == ("parameters",))


def is_mapping(keys: Keys) -> bool:
    """Tell whether what stands at these keys of an entry can only be a mapping."""
    first = keys[0] if keys else None
    return first in _MAPPINGS and len(keys) < (3 if first == "auths" else 2)


def secrets_named(entry: Entry) -> set[str]:
    """Return the names of all secrets that an entry, which need not be understood, refers to."""
    data = entry.node.data
    if not isinstance(data, dict) or data.get("enabled") is False:
        return set()
    return set(named(data, is_left, is_mapping))


def recognise(entry: Entry, defaults: Limits, settings: Settings) -> Recognised | None:
    """Decode one entry's keys, without secrets that are missing; None when it is switched off.

    Raises:
        Quarantine: a key is wrong; file, line and key are named.
    """
    return _recognised(with_secrets(entry, settings, lenient=True)[0], defaults, settings)


def _recognised(entry: Entry, defaults: Limits, settings: Settings) -> Recognised | None:
    if entry.problem is not None:
        raise Quarantine(entry.problem)
    try:
        common, options_node = _split(entry.node)
        if not common.enabled:
            return None
        runtime = RUNTIMES.get(common.runtime)
        if runtime is None:
            raise entry.node.error(f"unknown runtime (known: {', '.join(sorted(RUNTIMES))})", ("runtime",))
        _refuse_others_keys(options_node, common.runtime, said="runtime" in entry.node.data)
        limits = common.limits(defaults)
        place = Home(
            name=entry.name,
            node=entry.node,
            folder=entry.folder,
            state_dir=settings.state_dir,
            path=_search_path(common.env, settings),
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
    bare = entry.node.data
    entry, uses = with_secrets(entry, settings)
    redact = redactor(entry.node, settings)
    try:
        found = _defined(entry, defaults, settings)
    except Exception as problem:  # a value may be part of whatever is said
        raise Quarantine(redact(why(problem))) from problem
    if found is None:
        return None
    found = msgspec.structs.replace(found, notices=(*found.notices, *_unfilled(bare, settings.lookup)))
    return _using(found, entry, uses, bare, settings.lookup) if uses else found


def why(problem: Exception) -> str:
    """Return what is said of a connector that cannot be served for this reason."""
    return str(problem) if isinstance(problem, Quarantine) else f"{type(problem).__name__}: {problem}"


def _defined(entry: Entry, defaults: Limits, settings: Settings) -> Connector | None:
    recognised = _recognised(entry, defaults, settings)
    if recognised is None:
        return None
    common, limits = recognised.common, recognised.limits
    try:
        line = recognised.runtime.command_line(recognised.options, recognised.place)
        mode = common.mode or recognised.runtime.mode
        if mode in {"fork", "persistent"} and mode not in line.resident:
            raise entry.node.error(f"runtime {common.runtime} has no mode {mode}", ("mode",))
        own = _env(entry.node, common.env)
        cache = cache_of(entry.name, common.cache, settings.state_dir)
        if cache is not None and common.runtime == CONTAINER:
            raise entry.node.error("a container sees nothing of it: mount a volume, with `options:`", ("cache",))
        env = {"PATH": settings.path, **LOCALE, **(cache.env() if cache is not None else {}), **line.env, **own}
        commands = None if common.commands is None else _commands(entry.node.child("commands"), limits)
        signed = auths.declared(entry.node.child("auths")) if common.auths else {}
        overrides = _overrides(entry.node, common)
        sandbox, warned = confine(
            Case(entry, common, limits, line, settings, cache.folder if cache is not None else None)
        )
        if cache is not None:
            cache.prepare(sandbox.user)
    except ConfigError as problem:
        raise Quarantine(str(problem)) from problem
    except OSError as problem:
        raise Quarantine(unusable(problem)) from problem
    files = tuple(identity(file) for file in dict.fromkeys((*line.files, *entry.files)))
    made_of = tuple(identity(file) for file in line.made_of)
    config = msgspec.json.encode(common.config)
    key = _identity(line.argv, sorted(env.items()), config, files, entry.node.data, _kept(sandbox))
    redact = redactor(entry.node, settings).plus((*auths.secrets(signed), *secrets_in(own)))
    # Of a connector that describes itself: it may tell what is missing.
    notices = () if commands is None else auths.notices(signed)
    if line.notice:
        warned = (line.notice, *warned)
    told = (*warned, *notices, *overlooked(entry.name, commands or ()).values())
    return Connector(
        name=entry.name,
        description=common.description,
        folder=entry.folder,
        runtime=common.runtime,
        launch=Launch(
            argv=line.argv,
            env=env,
            result_on_fd3=line.result_on_fd3 or common.result == "fd3",
            result_in_line=line.result_in_line,
            bounds=Bounds(
                output=int(limits.max_output),
                log=int(limits.max_log),
                memory=int(limits.max_memory),
                linger=float(limits.linger),
            ),
            cleanup=line.cleanup,
            heap_full=line.heap_full,
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
                boot=max(BOOT, float(limits.describe_timeout)),
            ),
            redact=redact,
            sandbox=sandbox,
        ),
        config=msgspec.Raw(config),
        limits=limits,
        payloads=common.journal.payloads,
        redact=redact,
        identity=key,
        files=tuple(dict.fromkeys((*files, *made_of))),
        commands=commands,
        auths=signed,
        overrides=overrides,
        validate=common.validate,
        notices=told,
        defined=told,
        cluster_concurrency=common.cluster_concurrency,
        cache=cache,
        remembered_by=key,
    )


def _using(found: Connector, entry: Entry, uses: tuple[Use, ...], bare: object, lookup: Secrets) -> Connector:
    """Return a connector with what is to be known of the secrets that it uses; `bare` is its entry without them."""
    facts = (found.launch.argv, sorted(found.launch.env.items()), found.files, repr(_kept(found.launch.sandbox)))
    states = [lookup.told_by(use.name) for use in uses if not use.is_variable]
    short = dict.fromkeys(use.name for use in uses if use.is_short)
    return msgspec.structs.replace(
        found,
        secrets=tuple(sorted({use.name for use in uses})),
        remembered_by=_identity(_without(facts, entry.node.secrets), bare, states),
        notices=(
            *found.notices,
            *(f"secret {name} has less than {SHORTEST} bytes: too short to be kept out of messages" for name in short),
        ),
    )


def _without(value: Any, secrets: Iterable[str]) -> Any:
    """Return a value that has no secrets in its texts."""
    if isinstance(value, tuple | list):
        return [_without(one, secrets) for one in value]
    for secret in sorted(secrets, key=len, reverse=True) if isinstance(value, str) else ():
        value = value.replace(secret, "?")
    return value


def _unfilled(data: object, lookup: Secrets) -> tuple[str, ...]:
    """Say which texts look as if they meant a variable that they do not get."""
    parts = {key: data[key] for key in ("env", "config") if key in data} if isinstance(data, dict) else {}
    return tuple(
        f"{'.'.join(map(str, keys))}: ${{{name}}} stays as it is written, since secrets.env does not name it"
        for name, keys in variables(parts)
        if not lookup.allows(name)
    )


def redactor(node: YamlNode, settings: Settings) -> Redactor:
    """Return what keeps the secrets of an entry, and the gateway's own, out of texts; it need not be understood.

    What stands in `commands` and `overrides` describes values, and has none.
    """
    data = node.literal
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key not in _DESCRIBING}
        if isinstance(data.get("auths"), dict):
            data["auths"] = [_without_parameters(auth) for auth in data["auths"].values()]
    return Redactor((*settings.secrets, *node.secrets, *secrets_in(data)))


def _without_parameters(auth: object) -> object:
    return {key: one for key, one in auth.items() if key != "parameters"} if isinstance(auth, dict) else auth


def overlooked(connector: str, commands: Iterable[str]) -> dict[str, str]:
    """Return a notice for each command that the backend never asks for."""
    connector = called(connector)
    return {
        command: f"Spiff Arena's backend runs {connector}/{command} itself and never asks for this one"
        for command in commands
        if f"{connector}/{command}" in BACKENDS_OWN
    }


def _split(node: YamlNode) -> tuple[ConnectorEntry, YamlNode]:
    said = node.data.get("runtime")
    runtime = RUNTIMES.get(said) if isinstance(said, str) else None
    known = _keys(ConnectorEntry)
    if runtime is not None:  # `network` of a container is its engine's
        known = known - _keys(runtime.options)
    common = {key: value for key, value in node.data.items() if key in known}
    own = {key: value for key, value in node.data.items() if key not in known}
    return node.holding(common).decode(ConnectorEntry), node.holding(own)


@functools.cache
def _keys(kind: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))


def _refuse_others_keys(options: YamlNode, runtime: str, *, said: bool) -> None:
    keys = {name: _keys(one.options) for name, one in RUNTIMES.items()}
    for key in options.data:
        owners = [name for name, its in keys.items() if key in its]
        if not owners or runtime in owners:
            continue
        of = f"runtime {owners[0]}" if len(owners) == 1 else f"the runtimes {', '.join(owners)}"
        add = f"`runtime: {owners[0]}`" if len(owners) == 1 else "`runtime:` with one of them"
        raise options.error(f"a key of {of}, not of {runtime}" if said else f"a key of {of}: add {add}", (key,))


def _search_path(declared: dict[str, Any], settings: Settings) -> str:
    """Return where programs are looked for: its own PATH, if it declares one."""
    path = declared.get("PATH")
    return path if isinstance(path, str) and path else settings.path


def _env(node: YamlNode, declared: dict[str, Any]) -> dict[str, str]:
    env = {}
    for name, value in declared.items():
        if not name or "=" in name or "\0" in name:
            raise node.error("this cannot be the name of an environment variable", ("env", name))
        if isinstance(value, str) and "\0" in value:
            raise node.error("the environment cannot hold a NUL", ("env", name))
        if not isinstance(value, str | int | float):
            raise node.error("expected text or a number", ("env", name))
        written = node.written("env", name)
        env[name] = str(value) if written is None else written
    return env


def _commands(node: YamlNode, limits: Limits) -> dict[str, Command]:
    commands = {}
    for name, below in node.items():
        if not name or "/" in name:
            raise below.error("a command's name has no /")
        known = below if below.data is not None else below.holding({})
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


def _overrides(node: YamlNode, common: ConnectorEntry) -> dict[str, OverrideEntry]:
    if not common.overrides:
        return {}
    if common.commands is not None:
        raise node.error("they are for commands that a connector describes: write this into commands", ("overrides",))
    return {name: below.decode(OverrideEntry) for name, below in node.child("overrides").items()}


def _command_told(
    told: DescribedCommand, limits: Limits, override: OverrideEntry, validate: Validate | None
) -> Command:
    if not told.name or "/" in told.name:
        raise Quarantine(f"describe names a command {told.name!r}: a name is not empty and has no /")
    where = f"command {told.name}"
    signature = signatures.told(
        where,
        told.parameters,
        additional=told.additional_parameters,
        enforced=(override.validate or validate or told.validate) == "strict",
        # Where annotations only describe, the code's own defaults hold: an Enum's member, say, and not its value.
        filled=told.validate == "strict",
    )
    is_async = told.is_async if override.is_async is None else override.is_async
    own = override.timeout if is_async else None
    idempotent = told.idempotent if override.idempotent is None else override.idempotent
    return Command(
        name=told.name,
        description=told.description,
        timeout=override.timeout if override.timeout is not None else limits.timeout,
        signature=signature,
        is_async=is_async,
        job_timeout=float(own if own is not None else limits.job_timeout),
        rerun=idempotent if override.retry is None else override.retry == "always",
        priority=override.priority,
        execute_async=told.execute_async,
        module=told.module,
        typeahead=typeaheads.told(where, override.typeahead or told.typeahead, signature),
    )


def _kept(sandbox: Sandbox) -> Sandbox:
    """Return what of a sandbox is its connector's own."""
    return msgspec.structs.replace(sandbox, guard=(), covered=())


def _kept_secret(one: DescribedParameter, redact: Redactor) -> DescribedParameter:
    """Return a parameter as a secret one, which nobody lists the default of, where that has a secret in it."""
    default = b"" if one.default is msgspec.UNSET else msgspec.json.encode(one.default)
    return one if redact.masked(default) is default else msgspec.structs.replace(one, secret=True)


def _described_without(one: Described, redact: Redactor) -> Described:
    return msgspec.structs.replace(one, description=redact(one.description)) if one.description else one


def _identity(*facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()
